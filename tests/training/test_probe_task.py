"""The probe's objective: every second image beside a stranger's semantics, told apart by its condition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sfd_cli.config import Probe
from sfd_cli.data.store import Field
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.training.probe_task import ProbeTask, strangers
from sfd_cli.training.velocity_task import VelocityTask

COUNT, TEXTURE, SEMANTIC, GRID = 24, 3, 2, 2
CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60), st.integers(0, 3))
def test_a_stranger_is_another_of_the_class_on_the_same_side_and_every_image_is_ones(
    images: list[tuple[int, bool]], seed: int
) -> None:
    labels = np.array([label for label, _ in images])
    is_held = np.array([held for _, held in images])
    found = strangers(labels, np.flatnonzero(is_held), seed)
    assert sorted(found.tolist()) == list(range(len(images)))
    assert np.array_equal(is_held[found], is_held)
    alone = np.array([images.count(image) == 1 for image in images])
    assert np.array_equal(labels[found][~alone], labels[~alone])
    others = np.array([sum(alone & (is_held == held)) > 1 for held in is_held])
    assert not (found == np.arange(len(images)))[~alone | others].any()


def test_who_is_whose_stranger_is_drawn() -> None:
    labels = np.zeros(50, int)
    one, again, other = (strangers(labels, np.arange(10), seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


class Latents(SimpleNamespace):
    """Random float16 latents in memory, read as a store is."""

    def read(self, field: str, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        return self.arrays[field][indices, flips]

    def __len__(self) -> int:
        return COUNT


def latents(swapped: np.ndarray | None = None) -> Any:
    """A store; its semantics are those at `swapped` where that is given."""
    rng = np.random.default_rng(0)
    shapes = {"texture": (2, TEXTURE, GRID, GRID), "semantic": (2, SEMANTIC, GRID, GRID)}
    arrays = {name: rng.normal(1, 2, (COUNT, *shape)).astype(np.float16) for name, shape in shapes.items()}
    if swapped is not None:
        arrays["semantic"] = arrays["semantic"][swapped]
    statistics = {"mean": np.full(TEXTURE + SEMANTIC, 1.0), "std": np.full(TEXTURE + SEMANTIC, 2.0)}
    fields = {name: Field(shape) for name, shape in shapes.items()}
    return Latents(
        arrays=arrays,
        fields=fields,
        labels=np.arange(COUNT) % 3,
        classes=["a", "b", "c"],
        statistics=statistics,
        folder="latents",
    )


class Recorder(nn.Module):
    """Predicts what it is given, and keeps it."""

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor, *rest: Any) -> Tensor:
        self.x, self.rows = x, rows
        return x


def test_the_control_is_the_objective_on_images_with_strangers_semantics_under_conditions_of_their_own() -> None:
    """Against the plain objective on two stores: the same one, and one whose semantics were swapped by hand."""
    section = Probe(width=8, depth=1, heads=1, label_dropout=0.3)
    task = ProbeTask(latents(), section, CPU, np.arange(COUNT))
    swapped = strangers(task.store.labels, task.held_out, section.seed)
    plain, of_strangers = (VelocityTask(store, section, None, CPU) for store in (latents(), latents(swapped)))
    indices, flips = np.arange(COUNT), np.arange(COUNT) % 2
    draws = task.draw(torch.Generator().manual_seed(0), COUNT)
    control = draws["control"]
    assert 4 < control.sum() < 20
    for name, drawn in plain.draw(torch.Generator().manual_seed(0), COUNT).items():
        assert torch.equal(draws[name], drawn), "the rest of the draws is as it was"

    network = Recorder()
    task.losses(network, task.fetch(indices, flips), draws)
    found, rows = network.x, network.rows
    plain.losses(network, plain.fetch(indices, flips), draws)
    assert torch.equal(found[~control], network.x[~control])
    dropped = draws["dropped"]
    assert torch.equal(rows[~control & ~dropped], network.rows[~control & ~dropped])
    assert rows[dropped].tolist() == [6] * int(dropped.sum()) == [task.conditions.nothing] * int(dropped.sum())
    of_strangers.losses(network, of_strangers.fetch(indices, flips), draws)
    assert torch.equal(found[control], network.x[control])
    assert torch.equal(rows[control & ~dropped], network.rows[control & ~dropped] + 3)


def test_no_lead_is_rarer_than_another_where_a_stream_is_nearly_done() -> None:
    """An error that is large for want of draws would otherwise be taken for the lead's."""
    section = Probe()

    def unevenness(objective: Literal["paper", "corrected"], stream: str) -> float:
        """Most over least weight of seven equal ranges of leads, at late times of a stream."""
        times = TrainingTimes(schedule_of(section), objective, section.time_mean, section.lead_jitter)
        generator = torch.Generator().manual_seed(0)
        level = times.draw_level(400_000, generator)
        found, weights = times.of({"level": level} | times.draw_further(len(level), generator))
        counted = torch.ones_like(level) if weights is None else getattr(weights, stream)
        late = getattr(found, stream).logit() > 1
        leads = (found.semantic.logit() - found.texture.logit())[late].double()
        mass = np.histogram(leads, bins=7, range=(-2, 5), weights=counted[late].double())[0]
        return float(mass.max() / mass.min())

    for stream in ("texture", "semantic"):
        assert unevenness(section.objective, stream) < 1.2, stream
    assert unevenness("paper", "texture") > 10


def test_held_out_images_are_examined_beside_held_out_strangers() -> None:
    section = Probe(width=8, depth=1, heads=1, holdout=0.5)
    task = ProbeTask(latents(), section, CPU, np.arange(COUNT))
    swapped = strangers(task.store.labels, task.held_out, section.seed)
    own, labels = task.examples(task.held_out)
    raw = np.concatenate([task.store.arrays[name][task.held_out, 0] for name in ("texture", "semantic")], axis=1)
    assert torch.equal(own, (torch.from_numpy(raw).float() - 1) / 2)
    control, rows = task.control_examples(task.held_out)
    expected, _ = VelocityTask(latents(swapped), section, None, CPU).examples(task.held_out)
    assert torch.equal(control, expected)
    assert not torch.equal(control, own)
    assert torch.equal(rows, labels + 3)
    assert set(swapped[task.held_out].tolist()) == set(task.held_out.tolist())
