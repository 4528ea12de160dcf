"""The schedule that `sfd learn-schedule` found, as transformers trained along it take it, and what it was found by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.config import DiT, first_problem
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.path_criterion import ErrorSurface
from sfd_cli.errors import UserError
from sfd_cli.files import DAMAGED_ARCHIVE, atomic_path, read_as, write_json
from sfd_cli.laws import LEARNED

LAW, SURFACE = "law.json", "surface.npz"
AGAIN = "delete its folder and run `sfd learn-schedule` again"

D = TypeVar("D", bound=DiT)


def with_learned_law(section: D, folder: Path) -> D:
    """The section with the learned schedule's name and numbers, where it asks for the learned one.

    Raises:
        UserError: nothing was learned yet, or the file in `folder` tells of no law.
    """
    if section.schedule != LEARNED:
        return section
    finished(folder, "sfd learn-schedule")
    path = folder / LAW
    if not path.exists():
        raise UserError(folder, "holds no learned schedule", "run `sfd learn-schedule`")
    law = read_as(dict[str, Any], path, AGAIN)
    if law.get("schedule", LEARNED) == LEARNED:
        raise UserError(path, "tells of no schedule", AGAIN)
    try:
        return type(section).model_validate(section.model_dump() | law)
    except ValidationError as error:
        found = first_problem(error, type(section))
        raise UserError(path, f"tells of no schedule ({found.subject}: {found.problem})", AGAIN) from None


def save_law(folder: Path, law: dict[str, Any]) -> None:
    """Write the law, `schedule` and the numbers that it reads."""
    write_json(folder / LAW, law)


def save_surface(folder: Path, surface: ErrorSurface, control: ErrorSurface, energies: Streams[Tensor]) -> None:
    """Write the errors of every image, so that another criterion can be tried without the probe.

    `control` are those beside strangers' semantics, `energies` the mean squares of the predicted velocities, (n, n) a
    channel.
    """
    with atomic_path(folder / SURFACE) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            levels=surface.levels.numpy(),
            texture=surface.errors.texture.float().numpy(),
            semantic=surface.errors.semantic.float().numpy(),
            texture_control=control.errors.texture.float().numpy(),
            semantic_control=control.errors.semantic.float().numpy(),
            clusters=surface.clusters.numpy(),
            texture_energy=energies.texture.float().numpy(),
            semantic_energy=energies.semantic.float().numpy(),
        )


def read_surface(folder: Path, control: bool = False) -> ErrorSurface:
    """The errors that `save_surface` wrote: of the images, or of the `control`.

    Raises:
        UserError: they are missing or damaged.
    """
    path = folder / SURFACE
    names = [f"{stream}_control" if control else stream for stream in Streams._fields]
    try:
        with np.load(path) as arrays:
            levels, *errors, clusters = (torch.from_numpy(arrays[name]) for name in ("levels", *names, "clusters"))
    except (*DAMAGED_ARCHIVE, KeyError):
        raise UserError(path, "holds no errors of a probe", AGAIN) from None
    return ErrorSurface(levels, Streams(*errors), clusters)
