"""A strip: images on the way from one image to another, between two seeds, two classes or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.interpolation import slerp
from sfd_cli.errors import UserError
from sfd_cli.pipeline.class_labels import plainly, rows_of
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.tables import SOLVERS


@dataclass(frozen=True)
class Strip:
    """Image i of n stands at i / (n - 1) of the way; the first and the last are image 0 of their seed and class.

    Noise goes along the great circle between two noises, the class's embedding along the line between two embeddings.

    Attributes:
        count: images.
        seeds: of the first and the last.
        classes: of the first and the last, by index or name.
    """

    count: int
    seeds: tuple[int, int]
    classes: tuple[int | str, int | str]

    def place(self, index: int) -> float:
        """How far image `index` is on the way, from 0 to 1, which those past the end are at."""
        return min(index / (self.count - 1), 1.0)

    def noise_of(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise (n, *shape) float32 on the CPU."""
        first, last = (initial_noise(seed, [0], shape)[0] for seed in self.seeds)
        if self.seeds[0] == self.seeds[1]:
            return torch.stack([first for _ in indices])
        return torch.stack([slerp(first, last, self.place(index)) for index in indices])

    def ends(self, conditions: Conditions) -> tuple[int, int]:
        """Rows of the first and the last class."""
        first, last = rows_of(self.classes, conditions, "labels")
        return first, last

    def rows_of(self, indices: Sequence[int], conditions: Conditions) -> Tensor:
        """Rows (n,) int64 of a network that has one for each of these images behind those of its conditions."""
        first, last = self.ends(conditions)
        if first == last:
            return torch.full((len(indices),), first)
        return torch.arange(conditions.rows, conditions.rows + len(indices))

    def labels_of(self, indices: Sequence[int], conditions: Conditions) -> Tensor:
        """The nearer one of both classes for every image, (n,) int64."""
        first, last = self.ends(conditions)
        return torch.tensor([first if self.place(index) < 0.5 else last for index in indices])

    def captions(self, indices: Sequence[int], conditions: Conditions) -> list[str]:
        """What an end is, and where another image stands."""
        rows = self.ends(conditions)
        ends = {0: (rows[0], self.seeds[0]), self.count - 1: (rows[1], self.seeds[1])}
        said = {index: f"{conditions.name(row)}, seed {seed}" for index, (row, seed) in ends.items()}
        return [said.get(index, f"{self.place(index):.2f}") for index in indices]

    def as_plain(self, conditions: Conditions) -> dict[str, Any]:
        """What it goes between, for JSON."""
        return {"seeds": list(self.seeds), "classes": plainly(self.ends(conditions), conditions)}

    def require_fit(self, conditions: Conditions) -> None:
        """Check both classes against what a transformer knows.

        Raises:
            UserError: it does not know one, or they are the same although the strip is to go from one to the other.
        """
        (first,) = rows_of(self.classes[:1], conditions, "sample.classes")
        (last,) = rows_of(self.classes[1:], conditions, "sample.to_class")
        if first == last and self.seeds[0] == self.seeds[1]:
            problem = f"{self.classes[1]!r} is the class that the strip begins with"
            raise UserError("sample.to_class", problem, "give another one")


def strip_of(
    sample: Sample, classes: Sequence[int | str] | None, count: int, own_noise: bool, subject: str = "sample.classes"
) -> Strip | None:
    """The strip that settings ask for; None where they ask for none.

    Args:
        sample: `to_seed` and `to_class` say so.
        classes: those that the images have, of which a strip begins with the only one.
        count: images.
        own_noise: whether the noise comes from elsewhere than the seed.
        subject: where the classes come from, for messages.

    Raises:
        UserError: there is more than one class, or one image, noise from elsewhere, or a solver that draws noise.
    """
    if sample.to_seed is None and sample.to_class is None:
        return None
    key = "sample.to_class" if sample.to_seed is None else "sample.to_seed"
    if own_noise:
        raise UserError(key, "a strip's noise is that of its seeds, and noise is given beside it", "leave one out")
    if sample.to_seed == sample.seed:
        raise UserError(key, f"{sample.to_seed} is the seed that the strip begins with", "give another one")
    if SOLVERS[sample.solver].is_stochastic:
        problem = f"{sample.solver} draws noise in every step, which leads to no other image's end"
        raise UserError("sample.solver", problem, "use a solver of the ODE, as ab3")
    if classes is None or len(set(classes)) != 1:
        found = "all" if classes is None else len(set(classes))
        raise UserError(subject, f"a strip begins with one class, and there are {found}", "name one")
    if count < 2:
        raise UserError("sample.num_images", "a strip has two ends, and there is one image", "ask for more")
    seeds = (sample.seed, sample.seed if sample.to_seed is None else sample.to_seed)
    first = next(iter(classes))
    return Strip(count, seeds, (first, first if sample.to_class is None else sample.to_class))
