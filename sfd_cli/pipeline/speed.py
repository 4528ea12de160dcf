"""What `auto` comes to where images are sampled: the fastest way of a device that costs no quality."""

from __future__ import annotations

import torch

from sfd_cli.config import Sample
from sfd_cli.devices import kind_of
from sfd_cli.errors import SettingError, UserError
from sfd_cli.networks.precision import choose_precision

LONG = 5_000
"""Images of a process from which compiling pays: SFD-XL and its guide may take a minute to compile, which so many
images in a fourth less time spare. This is arithmetic, and was not measured."""


def settled(sample: Sample, device: torch.device, images: int = 0) -> Sample:
    """The settings with what `auto` is on a device, for that is what a record should say.

    Args:
        sample: the section.
        device: where the transformers are.
        images: that a process samples, where that is known; for few of them nothing is compiled unasked.

    Raises:
        UserError: the device has no such number format.
    """
    precision, compiled = sample.precision, sample.compile
    if precision in ("auto", "bf16"):
        try:
            precision = choose_precision(precision, device)
        except SettingError as error:
            raise UserError(f"sample.{error.subject}", error.problem, error.remedy) from None
    if compiled == "auto":
        compiled = kind_of(device).auto_compile and images >= LONG
    return sample.model_copy(update={"precision": precision, "compile": compiled})
