"""A progress bar and a callback that is told of every step, and may change what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import refusal
from torch import Tensor
from trained_pipeline import CHANNELS

from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

PHASES = [0.3, 0.65, 1.0, 1.3]
"""Where the four steps of the tiny pipeline end, by phases of an offset of 0.3."""


def bar_of(pipeline: SemanticFirstPipeline, capsys: pytest.CaptureFixture[str], **call: Any) -> str:
    capsys.readouterr()
    pipeline([0, 1, 2, 0, 1], output="latent", **call)
    return capsys.readouterr().err.rpartition("\r")[2]


def test_a_bar_counts_the_steps_of_all_batches_and_can_be_told_off(
    pipeline: SemanticFirstPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.set_progress_bar_config()
    assert "sampling: 100%" in bar_of(pipeline, capsys)
    assert " 4/4 " in bar_of(pipeline, capsys)
    assert " 12/12 " in bar_of(pipeline, capsys, batch_size=2)
    assert " 3/3 " in bar_of(pipeline, capsys, solver="dopri5")
    assert " 7/7 " in bar_of(pipeline, capsys, steps=7, time_grid="one-span")
    pipeline.set_progress_bar_config(desc="emoji", unit="point")
    assert "emoji: 100%" in bar_of(pipeline, capsys)
    pipeline.set_progress_bar_config(disable=True)
    assert bar_of(pipeline, capsys) == ""


def test_a_bar_goes_over_anything(pipeline: SemanticFirstPipeline) -> None:
    assert list(pipeline.progress_bar([3, 1])) == [3, 1]
    with pipeline.progress_bar(total=3) as bar:
        assert bar.total == 3


def test_the_callback_sees_every_step_of_every_batch(pipeline: SemanticFirstPipeline) -> None:
    calls: list[tuple[int, float, Tensor]] = []

    def look(pipe: Any, step: int, progress: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipe is pipeline
        assert tensors.keys() == {"latents"}
        calls.append((step, progress, tensors["latents"].clone()))
        return tensors

    labels = [0, 1, 2, 0, 1]
    made = pipeline.sample_latents(labels, batch_size=2, callback_on_step_end=look)
    assert [step for step, _, _ in calls] == [0, 1, 2, 3] * 3
    assert [progress for _, progress, _ in calls] == pytest.approx(PHASES * 3)
    assert [len(latents) for _, _, latents in calls] == [2] * 8 + [1] * 4
    assert torch.equal(torch.cat([latents for step, _, latents in calls if step == 3]), made)
    assert torch.equal(made, pipeline.sample_latents(labels, batch_size=2)), "looking changes nothing"
    texture = [pipeline.dit.config.space.views(latents).texture for _, _, latents in calls[:4]]
    assert torch.equal(texture[0], pipeline.dit.config.space.views(start(0, 2)).texture), "semantics are first"
    assert not torch.equal(texture[1], texture[0])


def start(seed: int, count: int) -> Tensor:
    return torch.stack(
        [torch.randn(CHANNELS, 2, 2, generator=one) for one in SemanticFirstPipeline.generators(seed, count)]
    )


@pytest.mark.parametrize("solver", ["euler", "heun", "ab3", "dopri5"])
def test_latents_that_the_callback_gives_back_are_gone_on_with(pipeline: SemanticFirstPipeline, solver: str) -> None:
    """Those of another run, put in after the second point, lead to where the other run led."""
    # Heun's steps and those of ab3, which begins anew, agree to rounding from there on.
    own, other = {"solver": solver, "seed": 1}, {"solver": "heun" if solver == "ab3" else solver, "seed": 2}
    kept: dict[int, Tensor] = {}

    def keep(pipe: Any, step: int, progress: float, tensors: dict[str, Tensor]) -> None:
        kept[step] = tensors["latents"].clone()

    def put_in(pipe: Any, step: int, progress: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": kept[step]} if step >= 1 else {}

    expected = pipeline.sample_latents([0, 1], callback_on_step_end=keep, **other)
    assert not torch.allclose(pipeline.sample_latents([0, 1], **own), expected, atol=1e-3)
    changed = pipeline.sample_latents([0, 1], callback_on_step_end=put_in, **own)
    assert torch.equal(changed, expected)
    once = pipeline.sample_latents(
        [0, 1], callback_on_step_end=lambda *a: {"latents": kept[1]} if a[1] == 1 else a[3], **own
    )
    # With one step left in the phase, or none, nothing but the latents matters.
    torch.testing.assert_close(once, expected, atol=1e-5, rtol=1e-5)


def test_what_the_callback_gives_back_or_asks_for_is_checked(pipeline: SemanticFirstPipeline) -> None:
    for answer, named in (
        ({"latents": torch.zeros(1, 2)}, ("(1, 2)", "(1, 7, 2, 2)")),
        ({"latents": 3}, ("int",)),
        (7, ("int",)),
        ({"latents": torch.full((1, CHANNELS, 2, 2), torch.nan)}, ("finite",)),
    ):
        with refusal("callback_on_step_end", *named):
            pipeline(0, callback_on_step_end=lambda *_, answer=answer: answer)
    with refusal("callback_on_step_end_tensor_inputs", "prompt_embeds", "latents"):
        pipeline(0, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])


def test_images_are_those_of_the_changed_latents(pipeline: SemanticFirstPipeline) -> None:
    other = pipeline.sample_latents(1, seed=3)
    images = pipeline(0, output="uint8", callback_on_step_end=lambda *a: {"latents": other} if a[1] == 3 else None)
    assert torch.equal(images.images, pipeline.decode(other))
