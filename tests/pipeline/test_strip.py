"""Strips between two seeds or classes, classes by name, and the null label, of the Python object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import refusal
from tiny_project import CLASSES
from torch import Tensor
from trained_pipeline import CHANNELS

from sfd_cli.diffusion.conditions import NULL, Conditions
from sfd_cli.diffusion.interpolation import slerp
from sfd_cli.pipeline.class_labels import rows_of
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

SHAPE = (CHANNELS, 2, 2)


@pytest.fixture(autouse=True)
def _hangs_on_its_class(pipeline: SemanticFirstPipeline) -> None:
    for network in (pipeline.dit, pipeline.guide):
        network.class_embedding.weight.data *= 20


def begins(seed: int) -> Tensor:
    return initial_noise(seed, [0], SHAPE)


def placed(pipeline: SemanticFirstPipeline, noise: Tensor, label: str, index: int, count: int = 5) -> Tensor:
    """An ordinary image in the place that it has in a strip: bits hang on the row of a batch."""
    batch = torch.cat([noise] * count)
    return pipeline.sample_latents([label] * count, noise=batch)[index]


def test_the_ends_of_a_strip_between_seeds_are_the_images_of_the_seeds(pipeline: SemanticFirstPipeline) -> None:
    strip = pipeline.sample_latents(["squares"] * 5, seed=3, to_seed=8)
    assert torch.equal(strip[0], placed(pipeline, begins(3), "squares", 0))
    assert torch.equal(strip[4], placed(pipeline, begins(8), "squares", 4))
    own = pipeline.sample_latents("squares", seed=8)[0]
    torch.testing.assert_close(strip[4], own, atol=1e-5, rtol=1e-5)
    middle = slerp(begins(3)[0], begins(8)[0], 0.5)[None]
    assert torch.equal(strip[2], placed(pipeline, middle, "squares", 2))


@pytest.mark.parametrize("guidance", ["none", "cfg", "autoguidance"])
def test_the_ends_of_a_strip_between_classes_are_the_images_of_the_classes(
    pipeline: SemanticFirstPipeline, guidance: str
) -> None:
    pipeline._sampler = replace(
        pipeline._sampler, sample=pipeline._sampler.sample.model_copy(update={"guidance": guidance})
    )
    strip = pipeline.sample_latents(["circles"] * 5, to_class="triangles", seed=4)
    assert torch.equal(strip[0], placed(pipeline, begins(4), "circles", 0))
    assert torch.equal(strip[4], placed(pipeline, begins(4), "triangles", 4))
    assert len({image.numpy().tobytes() for image in strip}) == 5


def test_between_classes_the_network_is_asked_for_the_mean_of_their_embeddings(pipeline: SemanticFirstPipeline) -> None:
    strip = pipeline.sample_latents([0] * 3, to_class=2, guidance="none", solver="euler", steps=1, delta_t=0.0)
    table = pipeline.dit.class_embedding.weight.data
    table[1] = (table[0] + table[2]) / 2
    expected = pipeline.sample_latents(
        [1] * 3, noise=torch.cat([begins(0)] * 3), guidance="none", solver="euler", steps=1, delta_t=0.0
    )
    torch.testing.assert_close(strip[1], expected[1], atol=1e-6, rtol=1e-6)


def test_seeds_and_classes_may_change_together(pipeline: SemanticFirstPipeline) -> None:
    strip = pipeline.sample_latents(["circles"] * 5, to_class=NULL, to_seed=2)
    assert torch.equal(strip[0], placed(pipeline, begins(0), "circles", 0))
    assert torch.equal(strip[4], placed(pipeline, begins(2), NULL, 4))


def test_a_strip_leaves_the_pipelines_networks_as_they_were(pipeline: SemanticFirstPipeline) -> None:
    before, rows = pipeline.sample_latents([0, 1]), pipeline.dit.class_embedding.weight.shape
    pipeline.sample_latents([0, 0, 0], to_class=1)
    assert pipeline.dit.class_embedding.weight.shape == rows
    assert torch.equal(pipeline.sample_latents([0, 1]), before)


def test_a_strip_in_batches_is_the_strip(pipeline: SemanticFirstPipeline) -> None:
    whole = pipeline.sample_latents(["circles"] * 7, to_class="squares", to_seed=1)
    parts = pipeline.sample_latents(["circles"] * 7, to_class="squares", to_seed=1, batch_size=3)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_the_null_label_is_the_networks_last_row(pipeline: SemanticFirstPipeline) -> None:
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"solver": "euler", "steps": 1, "delta_t": 0.0, "guidance": "none"}
    found = pipeline.sample_latents([NULL, "circles"], noise=noise, **options)
    zeros = torch.zeros(2)
    with torch.inference_mode():
        velocity = pipeline.dit(noise, zeros, zeros, torch.tensor([3, 0]))
    torch.testing.assert_close(found, noise + velocity)
    assert pipeline.dit.config.num_classes == 3
    assert not torch.allclose(found[0], pipeline.sample_latents(["squares", "circles"], noise=noise, **options)[0])


def test_a_class_that_is_called_null_is_that_class() -> None:
    assert rows_of([NULL], Conditions(("a", NULL)), "labels") == [1]
    assert rows_of([NULL], Conditions(("a", "b")), "labels") == [2]
    assert [Conditions(("a", "b")).name(row) for row in (0, 2)] == ["a", NULL]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("circle", ("'circles'",)),
        ("SQUARES", ("did you mean 'squares'?",)),
        ("trangles", ("'triangles'",)),
        ("xyz", ("'circles', 'squares', 'triangles'", "'null'")),
        ("", ("class_names",)),
    ],
)
def test_an_unknown_name_is_refused_with_those_near_it(name: str, named: tuple[str, ...]) -> None:
    with refusal("labels", repr(name), *named):
        rows_of([0, name], Conditions(tuple(CLASSES)), "labels")


def test_of_many_classes_not_all_are_listed() -> None:
    with refusal("labels", "and 990 more") as caught:
        rows_of(["xyz"], Conditions.numbered(1000), "labels")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("labels", "arguments", "subject", "named"),
    [
        ([0, 1], {"to_seed": 3}, "labels", ("2",)),
        ([0], {"to_seed": 3}, "sample.num_images", ()),
        ([0, 0], {"to_seed": 0}, "sample.to_seed", ("0",)),
        ([0, 0], {"to_seed": -1}, "sample.to_seed", ("-1",)),
        ([0, 0], {"to_class": "circls"}, "sample.to_class", ("'circles'",)),
        ([0, 0], {"to_class": True}, "sample.to_class", ("true",)),
        ([0, 0], {"to_class": 7}, "sample.to_class", ("[7]", "0 to 2")),
        ([0, 0], {"to_class": 0}, "sample.to_class", ("0",)),
        ([0, 0], {"to_seed": 1, "solver": "euler_maruyama"}, "sample.solver", ("euler_maruyama", "ab3")),
        ([0, 0], {"to_seed": 1, "generator": torch.Generator()}, "sample.to_seed", ("noise",)),
        ([0, 0], {"to_class": 1, "noise": torch.zeros(2, *SHAPE)}, "sample.to_class", ("noise",)),
    ],
)
def test_strips_that_cannot_be_are_refused(
    pipeline: SemanticFirstPipeline, labels: list[int], arguments: dict[str, Any], subject: str, named: tuple[str, ...]
) -> None:
    with refusal(subject, *named):
        pipeline(labels, **arguments)
