"""What callers pass to the pipeline, as the arrays and settings that its parts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from sfd_cli.config import EDITS, Sample, Section, first_problem
from sfd_cli.data.images import as_rgb, center_crop
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.errors import UserError
from sfd_cli.laws import laid_over
from sfd_cli.pipeline.class_labels import rows_of

# Settings of the section `sample` that a call has no use for, and what there is instead.
NOT_OF_A_CALL = {
    "num_images": "a call makes one image for every label",
    "classes": "a call takes classes as its labels",
    "class_labels": "a call takes classes as its labels",
    "weights": "they are chosen when models are loaded from settings or checkpoints",
    "compile": "it is done when models are loaded from settings or checkpoints",
}

# What a call does not take over from the settings of its pipeline.
NOT_TAKEN_OVER = {*NOT_OF_A_CALL, *EDITS}

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Images = Image.Image | Sequence[Image.Image] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]
Labels = int | str | Sequence[int | str] | np.ndarray | Tensor
S = TypeVar("S", bound=Section)


def as_sample(defaults: Mapping[str, Any], changes: Any, *allowed: str) -> Sample:
    """The section `sample` of a call: `changes` over `defaults`, both by name; `allowed` are of NOT_OF_A_CALL.

    Raises:
        UserError: one is unknown, has no use in a call, or is not acceptable.
    """
    for name in changes if isinstance(changes, Mapping) else ():
        if name in NOT_OF_A_CALL and name not in allowed:
            raise UserError(f"sample.{name}", "has no use here", NOT_OF_A_CALL[name])
    return as_section(Sample, laid_over(defaults, changes) if isinstance(changes, Mapping) else changes, "sample")


def as_section(kind: type[S], values: Any, name: str) -> S:
    """A section of settings from plain values, called `name` in errors.

    Raises:
        UserError: a setting is unknown or not acceptable.
    """
    if not isinstance(values, Mapping | kind):
        raise UserError(name, f"found {values!r} instead of settings by their names", "give a dictionary")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = first_problem(error, kind)
        raise UserError(f"{name}.{found.subject}", found.problem, found.remedy) from None


def as_rows(labels: Labels, conditions: Conditions) -> np.ndarray:
    """Rows (n,) of the conditions that labels name; the last row of `null`.

    Raises:
        UserError: there is no such class, or a label is neither a name nor a whole number.
    """
    if isinstance(labels, np.ndarray | Tensor):
        labels = labels.tolist()
    return np.asarray(rows_of([_label(label) for label in _listed(labels)], conditions, "labels"))


def as_noise(noise: Tensor | np.ndarray) -> np.ndarray:
    """Noise (n, C, h, w), floats, on the CPU.

    Raises:
        UserError: it is something else.
    """
    if isinstance(noise, Tensor):
        noise = noise.detach().cpu()
        noise = (noise.float() if noise.dtype == torch.bfloat16 else noise).numpy()  # NumPy has no bfloat16
    if not isinstance(noise, np.ndarray) or noise.ndim != 4 or noise.dtype.kind != "f":
        found = f"{noise.dtype} of shape {noise.shape}" if isinstance(noise, np.ndarray) else type(noise).__name__
        raise UserError("noise", f"is {found}", "give floats of shape (n, C, h, w)")
    return noise


def drawn_noise(generator: Generators, count: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (count, *shape) float32 on the CPU: all from one generator, or each image from its own.

    Raises:
        UserError: it is something else, or there are not as many generators as images.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn((count, *shape), generator=generator, device=generator.device).cpu()
    generators = _listed(generator)
    if not all(isinstance(one, torch.Generator) for one in generators):
        kinds = ", ".join(sorted({type(one).__name__ for one in generators}))
        raise UserError("generator", f"found {kinds}", "give a torch.Generator, or a list with one for each label")
    if len(generators) != count:
        raise UserError("generator", f"{len(generators)} generators for {count} labels", "give one, or as many")
    return torch.cat([drawn_noise(one, 1, shape) for one in generators])


def as_dtype(dtype: Any) -> torch.dtype:
    """The dtype that weights are held in.

    Raises:
        UserError: it is none that a network can compute in.
    """
    if dtype not in WEIGHT_DTYPES:
        raise UserError("torch_dtype", f"found {dtype!r}", f"use one of {', '.join(map(str, WEIGHT_DTYPES))}")
    return dtype


def as_pixels(images: Images, side: int) -> Tensor:
    """Images as uint8 (n, 3, side, side): PIL images on the CPU, centre-cropped; a tensor where it is.

    Raises:
        UserError: there are none, they are no images, or a tensor of another shape or dtype.
    """
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            problem = f"are {images.dtype} of shape {tuple(images.shape)}"
            raise UserError("images", problem, f"give uint8 (n, 3, {side}, {side})")
        if len(images):
            return images
    pictures = [] if isinstance(images, Tensor) else _listed(images)
    if not pictures:
        raise UserError("images", "there are none", "give one at least")
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise UserError("images", f"a {type(picture).__name__} is no PIL image", "open it with PIL.Image.open")
    crops = [np.asarray(center_crop(as_rgb(picture), side)) for picture in pictures]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _label(label: Any) -> int | str:
    if isinstance(label, str):
        return label
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise UserError("labels", f"{label!r} is no class", "give whole numbers or names of classes")
    return int(label)


def _listed(one_or_more: Any) -> list[Any]:
    many = isinstance(one_or_more, Sequence) and not isinstance(one_or_more, str)
    return list(one_or_more) if many else [one_or_more]
