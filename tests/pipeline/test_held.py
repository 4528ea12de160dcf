"""Given parts of latents: where they end, what is drawn beside them, and that nothing changes where nothing is new."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import refusal
from tiny_project import SEMANTIC, TEXTURE, tiny_settings, write_models
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.pipeline.arguments import as_sample
from sfd_cli.pipeline.held import Held, Rectangle, StreamNames, part_of, way_of
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import initial_noise

LAWS: list[dict[str, Any]] = [
    {"delta_t": 0.3},
    {"delta_t": 0.0},
    {"schedule": "lead", "lead": 2.0},
    {"schedule": "knots", "knots": [0.4, 0.0, 0.4, 0.2]},
]
PARTS: list[tuple[StreamNames, Rectangle | None, bool]] = [
    ("semantics", None, True),
    ("textures", None, True),
    ("both", (0, 0, 0, 1), True),
    ("semantics", (0, 1, 1, 1), False),
]
LABELS = torch.tensor([2, 0])


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    settings = tiny_settings(tmp_path_factory.mktemp("project"), sample={"guidance": "cfg", "steps": 7})
    write_models(settings)
    sampler = SamplingModels.open(settings).load(settings.sample, torch.device("cpu"))
    for parameter in sampler.dit.parameters():
        parameter.data *= 5  # so that a velocity hangs on all that the network sees
    return sampler


def sampled_by(sampler: Sampler, **changes: Any) -> Sampler:
    return replace(sampler, sample=as_sample(sampler.sample.model_dump(), changes, "num_images", "weights", "compile"))


def noise(sampler: Sampler, seed: int) -> Tensor:
    return initial_noise(seed, range(2), sampler.space.shape)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab3", "dopri5"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_what_is_held_ends_exactly_where_it_is_to_end(sampler: Sampler, law: dict[str, Any], solver: str) -> None:
    chosen = sampled_by(sampler, solver=solver, **law)
    given = torch.randn(2, *sampler.space.shape, generator=torch.Generator().manual_seed(5))
    for part in PARTS:
        mask = part_of(sampler.space, *part)
        held = Held(mask, noise(sampler, 1), given)
        found = chosen.solve(noise(sampler, 0), LABELS, held=held)
        assert torch.equal(torch.where(mask, found, given), given)
        recorded = chosen.record(noise(sampler, 0), LABELS, held=held)
        assert torch.equal(recorded.latents, found)
        assert torch.equal(recorded.points[0][1], torch.where(mask, noise(sampler, 1), noise(sampler, 0)))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_what_goes_straight_is_at_each_streams_time_between_noise_and_end(
    sampler: Sampler, law: dict[str, Any]
) -> None:
    chosen = sampled_by(sampler, solver="ab3", steps=60, **law)
    given, start = torch.ones(2, *sampler.space.shape), noise(sampler, 1)
    mask, points = part_of(sampler.space, "both", (0, 1, 0, 0)), []
    chosen.solve(noise(sampler, 0), LABELS, lambda *point: points.append(point), Held(mask, start, given))
    schedule = schedule_of(chosen.sample)
    for progress, x in points:
        times = schedule.times(torch.tensor([progress]))
        time = chosen.space.spread(times)
        expected = (1 - time) * start + time * given
        torch.testing.assert_close(x[..., 0], expected[..., 0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ab3"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_on_the_same_noise_what_is_drawn_beside_a_held_part_is_what_it_was(
    sampler: Sampler, law: dict[str, Any], solver: str
) -> None:
    chosen = sampled_by(sampler, solver=solver, **law)
    original = chosen.record(noise(sampler, 0), LABELS)
    for part in PARTS:
        held = original.held(part_of(sampler.space, *part), chosen.sample)
        again = chosen.solve(noise(sampler, 0), LABELS, held=held)
        torch.testing.assert_close(again, original.latents, rtol=1e-5, atol=1e-5)


def test_a_straight_line_in_place_of_the_way_it_went_is_another_picture(sampler: Sampler) -> None:
    """So the test above is of the way, not only of its ends."""
    original = sampler.record(noise(sampler, 0), LABELS)
    held = replace(original.held(part_of(sampler.space, "semantics"), sampler.sample), slopes=None)
    again = sampler.solve(noise(sampler, 0), LABELS, held=held)
    assert (again - original.latents).abs().max() > 1e-2


def test_a_part_of_nothing_changes_nothing(sampler: Sampler) -> None:
    own = sampler.solve(noise(sampler, 0), LABELS)
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    for held in (
        Held(nothing, noise(sampler, 1), torch.ones_like(own)),
        sampler.record(noise(sampler, 1), LABELS).held(nothing, sampler.sample),
    ):
        assert torch.equal(sampler.solve(noise(sampler, 0), LABELS, held=held), own)
    assert torch.equal(sampler.record(noise(sampler, 0), LABELS).latents, own)


def test_textures_drawn_anew_beside_kept_semantics_are_others_and_go_with_them(sampler: Sampler) -> None:
    first, other = (sampler.record(noise(sampler, seed), LABELS) for seed in (0, 1))
    semantics = part_of(sampler.space, "semantics")
    again = sampler.solve(noise(sampler, 1), LABELS, held=first.held(semantics, sampler.sample))
    texture, semantic = sampler.space.views(again)
    assert torch.equal(semantic, sampler.space.views(first.latents).semantic)
    for one in (first, other):
        assert (texture - sampler.space.views(one.latents).texture).abs().max() > 1e-2


def test_a_picture_with_a_kept_part_can_be_kept_in_turn(sampler: Sampler) -> None:
    space = sampler.space
    first = sampler.record(noise(sampler, 0), LABELS)
    held = first.held(part_of(space, "semantics"), sampler.sample)
    second = sampler.record(noise(sampler, 1), LABELS, held=held)
    third = sampler.record(noise(sampler, 2), LABELS, held=second.held(part_of(space, "textures"), sampler.sample))
    assert torch.equal(space.views(third.latents).texture, space.views(second.latents).texture)
    same = second.held(part_of(space, "textures"), sampler.sample)
    again = sampler.solve(noise(sampler, 0), LABELS, held=same)
    torch.testing.assert_close(space.views(again).texture, space.views(second.latents).texture)


@pytest.mark.parametrize("change", [{"steps": 8}, {"delta_t": 0.2}, {"solver": "heun"}, {"shift": 0.5}])
def test_by_other_settings_a_kept_part_goes_straight_and_still_ends_where_it_did(
    sampler: Sampler, change: dict[str, Any]
) -> None:
    first, chosen = sampler.record(noise(sampler, 0), LABELS), sampled_by(sampler, **change)
    held = first.held(part_of(sampler.space, "semantics"), chosen.sample)
    assert held.slopes is None
    found = chosen.solve(noise(sampler, 0), LABELS, held=held)
    assert torch.equal(sampler.space.views(found).semantic, sampler.space.views(first.latents).semantic)


def test_another_scale_of_guidance_is_no_other_way(sampler: Sampler) -> None:
    other = sampled_by(sampler, scale=3.0, guidance="none")
    assert way_of(other.sample) == way_of(sampler.sample)
    first = sampler.record(noise(sampler, 0), LABELS)
    assert first.held(part_of(sampler.space, "semantics"), other.sample).slopes is not None


def test_steps_of_an_adaptive_solver_are_never_repeated(sampler: Sampler) -> None:
    chosen = sampled_by(sampler, solver="dopri5")
    first = chosen.record(noise(sampler, 0), LABELS)
    assert first.held(part_of(sampler.space, "semantics"), chosen.sample).slopes is None


def test_the_network_is_not_called_where_all_that_moves_is_held(sampler: Sampler) -> None:
    """Euler, delta_t 0.3 in 13 steps: three of semantics alone, seven of both, three of textures alone."""
    chosen = sampled_by(sampler, solver="euler", steps=13, guidance="none", delta_t=0.3)
    first = chosen.record(noise(sampler, 0), LABELS)
    calls: list[int] = []
    hook = chosen.dit.register_forward_hook(lambda *_: calls.append(1))
    try:
        for streams, expected in (("semantics", 10), ("textures", 10), ("both", 0)):
            held = first.held(part_of(sampler.space, streams), chosen.sample)  # type: ignore[arg-type]
            for one in (held, replace(held, slopes=None)):
                calls.clear()
                chosen.solve(noise(sampler, 1), LABELS, held=one)
                assert len(calls) == expected
    finally:
        hook.remove()


def test_a_recording_has_every_point_and_tells_of_them_on_the_way(sampler: Sampler) -> None:
    told, plain = [], []
    recorded = sampler.record(noise(sampler, 0), LABELS, lambda progress, x: told.append(progress))
    sampler.solve(noise(sampler, 0), LABELS, lambda progress, x: plain.append((progress, x)))
    assert told == [progress for progress, _ in plain] == [progress for progress, _ in recorded.points]
    for (_, x), (_, kept) in zip(plain, recorded.points, strict=True):
        assert torch.equal(x, kept)


def test_parts_are_channels_and_cells() -> None:
    space = LatentSpace(TEXTURE, SEMANTIC, 4)
    textures, semantics = part_of(space, "textures"), part_of(space, "semantics")
    assert (textures[0, :TEXTURE].all(), textures[0, TEXTURE:].any()) == (True, False)
    assert torch.equal(semantics, ~textures)
    assert part_of(space).all()
    corner = part_of(space, "both", (1, 2, 3, 3))
    assert corner[0, 0].nonzero().tolist() == [[1, 3], [2, 3]]
    assert torch.equal(corner, ~part_of(space, "both", (1, 2, 3, 3), inside=False))
    assert part_of(space, "semantics", (1, 2, 3, 3)).sum() == 2 * SEMANTIC


def test_beside_a_solver_that_draws_noise_nothing_can_be_held(sampler: Sampler) -> None:
    first = sampler.record(noise(sampler, 0), LABELS)
    drawing = sampled_by(sampler, solver="euler_maruyama")
    held = first.held(part_of(sampler.space, "semantics"), drawing.sample)
    for run in (drawing.solve, drawing.record):
        with refusal("sample.solver", "euler_maruyama", "kept"):
            run(noise(sampler, 0), LABELS, held=held)
    assert torch.equal(drawing.record(noise(sampler, 0), LABELS).latents, drawing.solve(noise(sampler, 0), LABELS))
