"""The schedule that `sfd learn-schedule` found, as transformers trained along it take it, and what it was found by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

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


def save_surface(
    folder: Path, surface: ErrorSurface, control: ErrorSurface, trained_on: ErrorSurface, energies: Streams[Tensor]
) -> None:
    """Write the errors of every image, so that another criterion can be tried without the probe.

    Args:
        folder: of the learned schedule.
        surface: errors on images held out.
        control: those on the same images beside strangers' semantics.
        trained_on: those on images that the probe was trained on.
        energies: mean squares of the predicted velocities, (n, n) a channel.
    """
    arrays: dict[str, Any] = {"levels": surface.levels.numpy(), "semantic_end": np.float64(surface.semantic_end)}
    for kind, found in (("", surface), ("_control", control), ("_trained_on", trained_on)):
        arrays[f"clusters{kind}"] = found.clusters.numpy()
        arrays |= {f"{name}{kind}": stream.float().numpy() for name, stream in found.errors._asdict().items()}
    arrays |= {f"{name}_energy": stream.float().numpy() for name, stream in energies._asdict().items()}
    with atomic_path(folder / SURFACE) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_surface(folder: Path, of: Literal["", "control", "trained_on"] = "") -> ErrorSurface:
    """The errors that `save_surface` wrote: on images held out, on the control, or on images trained on.

    Raises:
        UserError: they are missing or damaged.
    """
    path, kind = folder / SURFACE, f"_{of}" if of else ""
    names = [f"{name}{kind}" for name in (*Streams._fields, "clusters")]
    try:
        with np.load(path) as arrays:
            levels, *errors, clusters = (torch.from_numpy(arrays[name]) for name in ("levels", *names))
            semantic_end = float(arrays["semantic_end"])
    except (*DAMAGED_ARCHIVE, KeyError):
        raise UserError(path, "holds no errors of a probe", AGAIN) from None
    return ErrorSurface(levels, Streams(*errors), clusters, semantic_end)
