"""The validation error of a transformer: by stream and by part of the schedule, of held-out and of training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from two_processes import in_two_processes

from sfd_cli.config import DiT
from sfd_cli.data.near_duplicates import Split
from sfd_cli.data.store import Field
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.laws import KnotSchedule, LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule, linear_phase
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.training import validation
from sfd_cli.training.validation import Validation, parts_of
from sfd_cli.training.velocity_task import VelocityTask

COUNT, GRID, TEXTURE, SEMANTIC = 14, 2, 3, 2
SPLIT = Split(training=np.arange(2, 14), held_out=np.array([0, 1, 5, 9, 13]), control=np.array([2, 3, 6, 10, 12]))
MEAN, STD = np.linspace(-1, 1, 5), np.linspace(1, 3, 5)


class Latents:
    """A store in memory, of images that are every other one of an image set."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        shapes = {"texture": (2, TEXTURE, GRID, GRID), "semantic": (2, SEMANTIC, GRID, GRID)}
        self.arrays = {
            name: generator.normal(size=(COUNT, *shape)).astype(np.float16) for name, shape in shapes.items()
        }
        self.fields = {name: Field(shape) for name, shape in shapes.items()}
        self.statistics = {"mean": MEAN, "std": STD}
        self.labels, self.indices = np.arange(COUNT) % 3, 2 * np.arange(COUNT)
        self.classes = ["a", "b", "c"]

    def read(self, field: str, indices: np.ndarray, flips: np.ndarray) -> np.ndarray:
        return self.arrays[field][indices, flips]


def network(semantic: int, **config: Any) -> LightningDiT:
    """A small network whose velocity is not zero and depends on both times and on the class."""
    torch.manual_seed(0)
    model = LightningDiT(
        LightningDiTConfig(GRID, TEXTURE + semantic, 3, semantic, width=16, depth=1, heads=2, **config)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def validator(processes: Processes | None = None, **section: Any) -> Validation:
    settings = DiT(repa="none", holdout=0.3, precision="fp32", **section)
    task = VelocityTask(Latents(), settings, None, torch.device("cpu"))  # type: ignore[arg-type]
    return Validation(task, settings, SPLIT, processes or Processes())


def plain_error(model: LightningDiT, rows: np.ndarray, progress: list[float], delta_t: float) -> list[float]:
    """Mean squared velocity error of (textures, semantics): image by image, one time after the other."""
    store, totals = Latents(), ([], [])
    semantic, by_data = model.config.semantic_channels, model.config.prediction == "data"
    for row in rows.tolist():
        raw = np.concatenate([store.arrays["texture"][row, 0], store.arrays["semantic"][row, 0]]).astype(np.float64)
        data = ((raw - MEAN[:, None, None]) / STD[:, None, None])[: TEXTURE + semantic]
        state = np.random.SeedSequence([0, 2 * row]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        noise = torch.randn(data.shape, generator=generator).double().numpy()
        for at in progress:
            t_z, t_s = max(at - delta_t, 0.0), min(at, 1.0)
            t = np.array([t_z] * TEXTURE + [t_s] * semantic)[:, None, None]
            x = t * data + (1 - t) * noise
            with torch.no_grad():
                found = model(
                    torch.from_numpy(x).float()[None],
                    torch.tensor([t_z]),
                    torch.tensor([t_s]),
                    torch.tensor([row % 3]),
                    False,
                )[0].numpy()
            u = (data - x) / np.maximum(1 - t, 0.05) if by_data else data - noise
            for stream, channels in enumerate((slice(0, TEXTURE), slice(TEXTURE, None))):
                totals[stream].append(np.mean((found[channels] - u[channels]) ** 2) if semantic or not stream else 0)
    return [float(np.mean(total)) for total in totals]


def midpoints(start: float, end: float) -> list[float]:
    return [start + (end - start) * part / 8 for part in (1, 3, 5, 7)]


def test_errors_are_those_of_a_plain_loop_by_stream_and_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "BATCH", 4)
    model = network(SEMANTIC)
    found = validator(delta_t=0.3)(model)
    expected = {}
    for name, rows in (("validation", SPLIT.held_out), ("training", SPLIT.control)):
        alone = plain_error(model, rows, midpoints(0, 0.3), 0.3)[1]
        texture, semantic = plain_error(model, rows, midpoints(0.3, 1), 0.3)
        last = plain_error(model, rows, midpoints(1, 1.3), 0.3)[0]
        expected |= {
            f"{name}_semantic_alone": alone,
            f"{name}_semantic_both": semantic,
            f"{name}_texture_both": texture,
            f"{name}_texture_alone": last,
            f"{name}_texture": 0.7 * texture + 0.3 * last,
            f"{name}_semantic": 0.3 * alone + 0.7 * semantic,
        }
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 5) for value in found.values()}) == len(found), "no two may be alike by chance"


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("semantic", [SEMANTIC, 0])
def test_where_both_streams_always_move_errors_are_by_thirds_of_progress(prediction: str, semantic: int) -> None:
    embedding = "dual" if semantic else "single"
    model = network(semantic, prediction=prediction, time_embedding=embedding)
    section = {"prediction": prediction, "semantics": bool(semantic), "time_embedding": embedding}
    found = validator(delta_t=0.0, **section)(model)
    expected = {}
    for name, rows in (("validation", SPLIT.held_out), ("training", SPLIT.control)):
        thirds = [plain_error(model, rows, midpoints(i / 3, (i + 1) / 3), 0.0) for i in range(3)]
        for stream, key in enumerate(("texture", "semantic") if semantic else ("texture",)):
            errors = [third[stream] for third in thirds]
            expected |= {f"{name}_{key}_{part}": e for part, e in zip(("early", "middle", "late"), errors, strict=True)}
            expected[f"{name}_{key}"] = float(np.mean(errors))
    assert found == pytest.approx(expected, rel=1e-4)


class Knowing(nn.Module):
    """A network that knows the velocity of every image, but for what it adds in each stream where that moves."""

    def __init__(self, by_data: bool) -> None:
        super().__init__()
        arrays = [values[:, 0] for values in Latents().arrays.values()]
        raw = torch.from_numpy(np.concatenate(arrays, axis=1)).float()
        self.data = (raw - torch.from_numpy(MEAN).float()[:, None, None]) / torch.from_numpy(STD).float()[:, None, None]
        self.rows = torch.from_numpy(np.concatenate((SPLIT.held_out, SPLIT.control)))
        self.by_data = by_data

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor, project: bool) -> Tensor:
        assert not project
        t = torch.stack([t_texture] * TEXTURE + [t_semantic] * SEMANTIC, dim=1)[:, :, None, None]
        added = torch.where(self.rows < 5, 0.5, 2.0)[:, None, None, None]
        left = (1 - t).clamp(min=0.05 if self.by_data else 1e-9)
        return (self.data[self.rows] - x) / left + added


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_what_is_added_to_the_true_velocity_is_the_error_and_a_frozen_stream_has_none(prediction: str) -> None:
    found = validator(delta_t=1.0, prediction=prediction)(Knowing(prediction == "data"))
    # Two of the five held-out images and two of the five others are among the first five.
    error = (2 * 0.25 + 3 * 4) / 5
    names = ("texture", "texture_alone", "semantic", "semantic_alone")
    expected = {f"{prefix}_{name}": error for prefix in ("validation", "training") for name in names}
    assert found == pytest.approx(expected, rel=1e-3)


class Curved:
    """A schedule of many phases, the textures standing still in two of them and both streams in one."""

    end = 2.0
    phases = (
        linear_phase(0.0, 0.2, Streams(0.0, 1.0), Streams(0.0, 0.0)),
        linear_phase(0.2, 0.6, Streams(1.0, 0.5), Streams(-0.2, 0.1)),
        linear_phase(0.6, 1.2, Streams(0.0, 0.5), Streams(0.4, 0.1)),
        linear_phase(1.2, 1.4, Streams(0.0, 0.0), Streams(0.4, 0.7)),
        linear_phase(1.4, 2.0, Streams(1.0, 0.5), Streams(-1.0, 0.0)),
    )

    def times(self, progress: Tensor) -> Streams[Tensor]:
        raise NotImplementedError


def test_phases_in_which_the_same_streams_move_are_one_part() -> None:
    alone, both = parts_of(Curved())  # type: ignore[arg-type]
    assert (alone.name, alone.moves, alone.length) == ("alone", (False, True), pytest.approx(0.8))
    assert alone.progress == pytest.approx([0.1, 0.7, 0.9, 1.1])
    assert (both.name, both.moves, both.length) == ("both", (True, True), pytest.approx(1.0))
    assert both.progress == pytest.approx([0.325, 0.575, 1.625, 1.875])


@pytest.mark.parametrize(
    ("delta_t", "parts"),
    [
        (0.0, [("early", 0, 1 / 3), ("middle", 1 / 3, 2 / 3), ("late", 2 / 3, 1)]),
        (0.3, [("alone", 0, 0.3), ("both", 0.3, 1), ("alone", 1, 1.3)]),
        (1.0, [("alone", 0, 1), ("alone", 1, 2)]),
    ],
)
def test_the_parts_of_an_offset_are_its_phases(delta_t: float, parts: list[tuple[str, float, float]]) -> None:
    found = parts_of(AsynchronousSchedule(delta_t))
    assert [part.name for part in found] == [name for name, _, _ in parts]
    for part, (_, start, end) in zip(found, parts, strict=True):
        assert part.length == pytest.approx(end - start)
        assert part.progress == pytest.approx(midpoints(start, end))


@pytest.mark.parametrize("law", [LeadSchedule(0.7), LeadSchedule(-1, 0.5), KnotSchedule(((0.5, 0.2), (0.6, 0.9)))])
def test_a_law_under_which_no_stream_stands_still_has_thirds(law: Schedule) -> None:
    parts = parts_of(law)
    assert [part.name for part in parts] == ["early", "middle", "late"]
    assert all(part.moves == (True, True) for part in parts)
    spread = [progress for part in parts for progress in part.progress]
    assert spread == pytest.approx([law.end * (2 * place + 1) / 24 for place in range(12)])


def test_textures_may_be_first() -> None:
    first, both, last = parts_of(KnotSchedule(((0.0, 0.4), (0.6, 1.0))))
    assert (first.name, first.moves, first.progress) == ("alone", (True, False), pytest.approx(midpoints(0, 0.4)))
    assert (both.name, both.moves, both.progress) == ("both", (True, True), pytest.approx(midpoints(0.4, 1.0)))
    assert (last.name, last.moves, last.progress) == ("alone", (False, True), pytest.approx(midpoints(1.0, 1.4)))


class Hurried(Curved):
    """Half as long in progress as the times are: textures and semantics move for 0.25 and 0.5."""

    end = 0.5
    phases = (
        linear_phase(0.0, 0.25, Streams(0.0, 2.0), Streams(0.0, 0.0)),
        linear_phase(0.25, 0.5, Streams(4.0, 2.0), Streams(-1.0, 0.0)),
    )

    def times(self, progress: Tensor) -> Streams[Tensor]:
        return Streams((4 * progress - 1).clamp(min=0), 2 * progress)


def test_the_whole_is_the_mean_of_the_parts_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "schedule_of", lambda section: Hurried())
    found = validator()(network(SEMANTIC))
    assert found["validation_semantic"] == pytest.approx(
        (found["validation_semantic_alone"] + found["validation_semantic_both"]) / 2
    )
    assert found["validation_texture"] == pytest.approx(found["validation_texture_both"])
    assert "validation_texture_alone" not in found


def test_two_processes_find_the_very_numbers_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "BATCH", 3)
    model = network(SEMANTIC)
    alone = validator()
    expected, errors = alone(model), alone.errors(model)
    assert (errors.shape, errors.dtype) == ((10, 12, 2), torch.float64)

    def work(processes: Processes) -> Any:
        mine = validator(processes)
        return mine(model), mine.errors(model).numpy()

    for means, found in in_two_processes(tmp_path, work):
        assert means == expected
        assert np.array_equal(found, errors.numpy())


def test_one_process_of_several_computes_its_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "BATCH", 3)
    monkeypatch.setattr(Processes, "sum", lambda self, values: values)
    model = network(SEMANTIC)
    parts = [validator(Processes(rank, 3, rank)).errors(model) for rank in range(3)]
    assert [part.flatten(1).any(dim=1).sum().item() for part in parts] == [4, 3, 3]
    assert torch.equal(sum(parts), validator().errors(model))


def test_validation_draws_from_no_global_generator_and_changes_no_network() -> None:
    model = network(SEMANTIC)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    check = validator()
    assert check(model) == check(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_noise_and_times_are_those_of_the_image_whatever_the_seed_and_the_times_of_training() -> None:
    model = network(SEMANTIC)
    assert validator(seed=0)(model) == validator(seed=5, time_mean=-1.0, batch_size=8, label_dropout=0.9)(model)


def test_bf16_is_the_precision_of_training() -> None:
    seen = []

    def recorded(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor, project: bool) -> Tensor:
        seen.append((x.flatten(1) @ x.flatten(1).T).dtype)
        return torch.zeros_like(x)

    settings = DiT(repa="none", precision="bf16")
    task = VelocityTask(Latents(), settings, None, torch.device("cpu"))  # type: ignore[arg-type]
    Validation(task, settings, SPLIT, Processes()).errors(recorded)  # type: ignore[arg-type]
    assert set(seen) == {torch.bfloat16}
