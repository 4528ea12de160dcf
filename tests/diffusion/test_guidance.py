"""Guidance: what it extrapolates, where, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.guidance import AutoGuidance, ClassifierFreeGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.diffusion.solver import CallCounter, integrate

CONDITIONS, SPACE = Conditions.numbered(9), LatentSpace(texture=3, semantic=2, grid=2)
X = torch.randn((3, 5, 2, 2), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


def _times(texture: float, semantic: float) -> tuple[Tensor, Tensor]:
    return torch.full((3,), texture), torch.full((3,), semantic)


def _model(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
    return x * (1 + labels[:, None, None, None]) + (t_semantic - 2 * t_texture)[:, None, None, None]


def _guide(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
    return x.cos() - (labels + t_texture * (1 - t_semantic))[:, None, None, None]


def _null(x: Tensor, t_texture: Tensor, t_semantic: Tensor) -> Tensor:
    return _model(x, t_texture, t_semantic, torch.full((3,), 9))


@settings(deadline=None)
@given(st.floats(0, 4), st.floats(0, 4))
def test_each_stream_is_extrapolated_by_its_own_scale(texture: float, semantic: float) -> None:
    times = _times(0.4, 0.7)
    for field, worse in (
        (ClassifierFreeGuidance(_model, CONDITIONS, GuidanceScale(texture, semantic), SPACE), _null(X, *times)),
        (AutoGuidance(_model, _guide, GuidanceScale(texture, semantic), SPACE), _guide(X, *times, LABELS)),
    ):
        better = _model(X, *times, LABELS)
        for found, good, bad, scale in zip(
            SPACE.views(field(X, *times, LABELS)),
            SPACE.views(better),
            SPACE.views(worse),
            (texture, semantic),
            strict=True,
        ):
            torch.testing.assert_close(found, bad + scale * (good - bad), atol=1e-4, rtol=1e-4)


def test_scale_one_is_the_model_itself_bit_for_bit_at_its_cost() -> None:
    times = _times(0.4, 0.7)
    model, guide = CallCounter(_model), CallCounter(_guide)
    expected = _model(X, *times, LABELS)
    cfg = ClassifierFreeGuidance(model, CONDITIONS, GuidanceScale(1, 1), SPACE)
    auto = AutoGuidance(model, guide, GuidanceScale(1, 1), SPACE)
    assert torch.equal(cfg(X, *times, LABELS), expected)
    assert torch.equal(auto(X, *times, LABELS), expected)
    assert (model.calls, guide.calls) == (2, 0)


def test_an_unguided_stream_is_the_models_bit_for_bit() -> None:
    times = _times(0.4, 0.7)
    found = AutoGuidance(_model, _guide, GuidanceScale(texture=2.0, semantic=1.0), SPACE)(X, *times, LABELS)
    expected = SPACE.views(_model(X, *times, LABELS))
    assert torch.equal(SPACE.views(found).semantic, expected.semantic)
    assert not torch.equal(SPACE.views(found).texture, expected.texture)


def test_classifier_free_guidance_is_one_call_on_a_doubled_batch() -> None:
    seen: list[tuple[torch.Size, list[int]]] = []

    def model(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        assert len(x) == len(t_texture) == len(t_semantic) == len(labels)
        seen.append((x.shape, labels.tolist()))
        return _model(x, t_texture, t_semantic, labels)

    ClassifierFreeGuidance(model, CONDITIONS, GuidanceScale(1.5, 1.5), SPACE)(X, *_times(0.4, 0.7), LABELS)
    assert seen == [(torch.Size((6, 5, 2, 2)), [0, 1, 2, 9, 9, 9])]


@pytest.mark.parametrize(
    ("texture", "semantic", "guided"),
    [(0.1, 0.2, ()), (0.1, 0.4, ("semantic",)), (0.4, 0.5, ("texture", "semantic")), (0.5, 0.9, ("texture",))],
)
def test_a_stream_is_guided_inside_the_interval_of_its_own_time(
    texture: float, semantic: float, guided: tuple[str, ...]
) -> None:
    times, guide = _times(texture, semantic), CallCounter(_guide)
    field = AutoGuidance(_model, guide, GuidanceScale(2.0, 2.0, (0.3, 0.6)), SPACE)
    found = SPACE.views(field(X, *times, LABELS))
    plain = SPACE.views(_model(X, *times, LABELS))
    for stream in ("texture", "semantic"):
        assert torch.equal(getattr(found, stream), getattr(plain, stream)) == (stream not in guided)
    assert guide.calls == (1 if guided else 0), "the guide is not asked where it is not needed"


def test_both_ends_of_the_interval_are_guided_and_an_end_at_one_has_none_beyond() -> None:
    scale = GuidanceScale(2.0, 2.0, (0.25, 0.5))
    for inside in (0.25, 0.5):
        assert scale.at(*_times(inside, 0.0)) is not None
    assert scale.at(*_times(0.2499, 0.5001)) is None
    past = GuidanceScale(2.0, 2.0, (0.25, 1.0)).at(*_times(1.2, 1.2))
    assert past is not None
    assert past.texture.tolist() == [2, 2, 2]


def test_a_start_at_zero_has_none_before_and_scales_are_of_the_times_own_dtype() -> None:
    before = GuidanceScale(2.0, 3.0, (0.0, 0.5)).at(torch.tensor([-0.1, 0.5]).double(), torch.tensor([0.0, 0.6]))
    assert before is not None
    assert (before.texture.tolist(), before.semantic.tolist()) == ([2, 2], [3, 1])
    assert (before.texture.dtype, before.semantic.dtype) == (torch.float64, torch.float32)


def test_only_a_limited_interval_asks_the_device_whether_anything_is_guided() -> None:
    times = torch.empty(3, device="meta"), torch.empty(3, device="meta")
    assert GuidanceScale(2.0, 1.0).at(*times) is not None
    with pytest.raises(RuntimeError):
        GuidanceScale(2.0, 1.0, (0.0, 0.9)).at(*times)


def test_images_of_one_batch_may_have_their_own_times() -> None:
    scale = GuidanceScale(2.0, 3.0, (0.5, 1.0)).at(torch.tensor([0.1, 0.6, 0.1]), torch.tensor([0.6, 0.6, 0.1]))
    assert scale is not None
    assert scale.texture.tolist() == [1, 2, 1]
    assert scale.semantic.tolist() == [3, 3, 1]


@pytest.mark.parametrize(
    ("texture", "semantic", "asked"), [(2.0, 1.0, 8), (1.0, 2.0, 8), (2.0, 2.0, 12), (1.0, 1.0, 0)]
)
@pytest.mark.parametrize("grid", ["phases", "one-span"])
def test_the_guide_is_not_asked_about_a_frozen_stream(texture: float, semantic: float, asked: int, grid: Any) -> None:
    """Of 12 steps with offset 0.5 four are on semantics alone and four on textures alone; nothing else changes."""
    guide = CallCounter(_guide)
    scale, schedule = GuidanceScale(texture, semantic), AsynchronousSchedule(0.5)

    def latents(velocity: VelocityField) -> Tensor:
        return integrate(velocity, X, LABELS, schedule, SPACE, solver="euler", steps=12, grid=grid)

    always = AutoGuidance(_model, guide, scale, SPACE)
    expected = latents(lambda *arguments: always(*arguments))
    guide.calls = 0
    assert torch.equal(latents(always), expected)
    assert guide.calls == pytest.approx(asked, abs=1 if grid == "one-span" else 0)


@pytest.mark.parametrize(
    ("texture", "semantic", "doubled"), [(2.0, 1.0, 8), (1.0, 2.0, 8), (2.0, 2.0, 12), (1.0, 1.0, 0)]
)
def test_the_null_class_is_not_asked_about_a_frozen_stream(texture: float, semantic: float, doubled: int) -> None:
    """Of 12 steps with offset 0.5 four are on semantics alone and four on textures alone; nothing else changes."""
    sizes: list[int] = []

    def model(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(x))
        return _model(x, t_texture, t_semantic, labels)

    def latents(velocity: VelocityField) -> Tensor:
        return integrate(velocity, X, LABELS, AsynchronousSchedule(0.5), SPACE, solver="euler", steps=12)

    always = ClassifierFreeGuidance(model, CONDITIONS, GuidanceScale(texture, semantic), SPACE)
    expected = latents(lambda *arguments: always(*arguments))
    sizes.clear()
    assert torch.equal(latents(always), expected)
    assert (len(sizes), sizes.count(2 * len(X))) == (12, doubled)
