"""What `auto` comes to where images are sampled: the fastest way of a device that costs no quality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def tf32(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Where there are any, TF32 products: full float32 gains nothing over the published numbers, made with TF32.

    Where they are not `wanted`, float32 products, in convolutions too. Afterwards all is as it was.
    """
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if kind_of(device).tf32:
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = convolutions and wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
