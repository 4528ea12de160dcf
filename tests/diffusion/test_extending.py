"""A law and a solver that are added to the tables from outside work in settings, training, sampling and figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sfd_cli.config import DiT, Sample
from sfd_cli.data.store import Field
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.solver import Slope, Solver, Tolerance, integrate
from sfd_cli.pipeline.trajectory import Trajectory, pick_progress
from sfd_cli.report.parts import tell_phases
from sfd_cli.report.pictures import draw_trajectory
from sfd_cli.tables import SCHEDULES, SOLVERS
from sfd_cli.training.velocity_task import VelocityTask

SPACE = LatentSpace(texture=1, semantic=1, grid=1)
ROWS = torch.zeros(1, dtype=torch.int64)


@dataclass(frozen=True)
class SquaredPhase:
    """One stream alone, its time being the square of how far the phase is."""

    start: float
    end: float
    moves: Streams[bool]
    done: Streams[float]

    def times(self, progress: float) -> Streams[float]:
        u = (progress - self.start) / (self.end - self.start)
        return Streams(*(u**2 if moves else done for moves, done in zip(self.moves, self.done, strict=True)))

    def rates(self, progress: float) -> Streams[float]:
        length = self.end - self.start
        rate = 2 * (progress - self.start) / length**2
        return Streams(*(rate if moves else 0.0 for moves in self.moves))


@dataclass(frozen=True)
class OneAfterTheOther:
    """Semantics up to T = 0.5, then textures up to T = 2, both along a parabola."""

    end = 2.0
    phases = (
        SquaredPhase(0.0, 0.5, Streams(False, True), Streams(0.0, 0.0)),
        SquaredPhase(0.5, 2.0, Streams(True, False), Streams(0.0, 1.0)),
    )

    @classmethod
    def from_settings(cls, section: Any) -> OneAfterTheOther:
        return cls()

    def times(self, progress: Tensor) -> Streams[Tensor]:
        return Streams(((progress - 0.5) / 1.5).clamp(0, 1) ** 2, (progress / 0.5).clamp(0, 1) ** 2)


def midpoint(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Iterator[tuple[float, Tensor]]:
    """The explicit midpoint rule."""
    for start, end in pairwise(points):
        step = end - start
        x = x + step * slope(start + step / 2, x + step / 2 * slope(start, x))
        yield end, x


def careless(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Iterator[tuple[float, Tensor]]:
    """An adaptive solver that moves every stream and reports the tolerance."""
    yield points[-1], x + tolerance.rtol + 10 * tolerance.atol


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    SCHEDULES.add("one-after-the-other", OneAfterTheOther)
    SOLVERS.add("midpoint", Solver(midpoint))
    SOLVERS.add("careless", Solver(careless, is_adaptive=True, images_at_once=4))
    yield
    SCHEDULES.remove("one-after-the-other")
    SOLVERS.remove("midpoint")
    SOLVERS.remove("careless")


def _velocity(x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
    """v_z = 1 + t_z s and v_s = 3 t_s^2, whose flow from (z, s) at s = 0 ends at (z + 3/2, 1) where s comes first."""
    z, s = 1 + t_texture * x[:, 1, 0, 0], 3 * t_semantic**2
    return torch.stack((z, s), dim=1)[:, :, None, None]


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ab3", "midpoint", "dopri5"])
@pytest.mark.parametrize("grid", ["phases", "one-span"])
def test_every_solver_follows_a_law_from_outside(solver: str, grid: Any) -> None:
    sample = Sample(schedule="one-after-the-other", solver=solver)
    x = torch.tensor([2.0, 0.0], dtype=torch.float64)[None, :, None, None]
    points: list[tuple[float, Tensor]] = []
    found = integrate(
        _velocity,
        x,
        ROWS,
        schedule_of(sample),
        SPACE,
        solver=sample.solver,
        steps=400,
        grid=grid,
        rtol=1e-7,
        on_point=lambda progress, x: points.append((progress, x)),
    )
    bound = 5e-2 if solver == "euler" or grid == "one-span" else 2e-3
    assert found.flatten().tolist() == pytest.approx([3.5, 1.0], abs=bound)
    if grid == "phases":
        halfway = dict(points)[0.5]
        assert halfway[0, 0, 0, 0] == 2, "textures are frozen in the first phase"
        assert halfway[0, 1, 0, 0] == found[0, 1, 0, 0], "semantics are frozen in the second one"


def test_the_midpoint_rule_has_its_order_by_name() -> None:
    x = torch.zeros((1, 2, 1, 1), dtype=torch.float64)
    schedule = schedule_of(Sample(schedule="one-after-the-other"))
    errors = [
        (integrate(_velocity, x, ROWS, schedule, SPACE, solver="midpoint", steps=steps)[0, 1, 0, 0] - 1).abs().item()
        for steps in (80, 160)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_an_adaptive_solver_gets_the_tolerance_and_cannot_move_a_frozen_stream() -> None:
    x = torch.zeros(1, 2, 1, 1)
    schedule = schedule_of(Sample(schedule="one-after-the-other"))
    found = integrate(_velocity, x, ROWS, schedule, SPACE, solver="careless", rtol=0.5, atol=0.25)
    assert found.flatten().tolist() == [3.0, 3.0]


def test_solvers_say_which_settings_and_how_many_images_they_take() -> None:
    for name in ("euler", "heun", "ab2", "ab3", "midpoint"):
        assert SOLVERS[name].unused == {"rtol", "atol", "images_at_once", "last_step"}
        assert (SOLVERS[name].images_at_once, SOLVERS[name].is_stochastic) == (None, False)
    assert SOLVERS["careless"].unused == {"steps", "shift", "last_step"}
    assert (SOLVERS["careless"].images_at_once, SOLVERS["dopri5"].images_at_once) == (4, 16)
    assert (SOLVERS["dopri5"].is_adaptive, SOLVERS["dopri5"].is_stochastic) == (True, False)
    assert SOLVERS["euler_maruyama"].unused == {"rtol", "atol", "images_at_once"}
    assert SOLVERS["euler_maruyama"].is_stochastic


@pytest.mark.parametrize("setting", [{"schedule": "offst"}, {"solver": "midpiont"}])
def test_an_unknown_name_is_refused_with_the_nearest(setting: dict[str, str]) -> None:
    (key, wrong), near = next(iter(setting.items())), {"schedule": "offset", "solver": "midpoint"}
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(setting)
    (problem,) = caught.value.errors()
    assert problem["loc"] == (key,)
    assert repr(wrong) in problem["msg"]
    assert repr(near[key]) in problem["msg"]


class Recorder(nn.Module):
    """Predicts zero and keeps the times that it was given."""

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, *others: Any) -> Tensor:
        self.x, self.times = x, Streams(t_texture, t_semantic)
        return torch.zeros_like(x)


def test_training_draws_progress_and_times_of_a_law_from_outside() -> None:
    store = SimpleNamespace(
        fields={"texture": Field((2, 1, 1, 1)), "semantic": Field((2, 1, 1, 1))},
        statistics={"mean": np.zeros(2), "std": np.ones(2)},
        classes=["one"],
    )
    section = DiT(schedule="one-after-the-other", repa="none")
    task, network = VelocityTask(store, section, None, torch.device("cpu")), Recorder()  # type: ignore[arg-type]
    count = 1000
    draws = task.draw(torch.Generator().manual_seed(0), count)
    progress = 2 * draws["level"]
    assert 1.3 < progress.max() <= 2
    data = {name: torch.full((count, 1, 1, 1), 3.0) for name in ("texture", "semantic")}
    task.losses(network, data | {"labels": torch.zeros(count, dtype=torch.int64)}, draws)
    torch.testing.assert_close(network.times.semantic, (2 * progress).clamp(max=1) ** 2)
    torch.testing.assert_close(network.times.texture, ((progress - 0.5) / 1.5).clamp(min=0) ** 2)
    times = torch.stack(network.times, dim=1)[:, :, None, None]
    torch.testing.assert_close(network.x, 3 * times + (1 - times) * draws["noise"])


def test_figures_show_the_phases_of_a_law_from_outside(tmp_path: Path) -> None:
    schedule = schedule_of(Sample(schedule="one-after-the-other"))
    progress = pick_progress(schedule)
    assert progress == pytest.approx([0, 1 / 6, 1 / 3, 0.5, 1, 1.5, 2])
    story = tell_phases(schedule, semantics=True)
    assert story.index("0.5 only the semantic") < story.index("2 only the texture")
    points = len(progress)
    pictures = np.zeros((points, 1, 4, 4, 3), np.uint8), np.random.default_rng(0).random((points, 1, 3, 2, 2))
    draw_trajectory(tmp_path / "way.png", Trajectory(progress, *pictures, ["one"]), schedule)
    assert (tmp_path / "way.png").stat().st_size > 1000
