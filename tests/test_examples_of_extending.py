"""docs/extending.md is true: what it shows is run as it stands there, added to the tables from outside, and used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from command_line import done, sfd
from model_loading import load_semantic
from pydantic import ValidationError
from refusals import refusal
from stand_ins import score_by
from tiny_project import random_images, tiny_settings, write_features, write_models, write_training_images

from sfd_cli import AsynchronousSchedule, LatentSpace, integrate, presets
from sfd_cli.config import Fid, Sample, Settings, first_problem, load_settings
from sfd_cli.data.images import ImageManifest, ImageReader, image_files
from sfd_cli.devices import choose_device, finest
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.files import read_json
from sfd_cli.networks.precision import choose_precision
from sfd_cli.pipeline.protocol import differences, effective_settings, protocol_record
from sfd_cli.report.score_table import score_tables
from sfd_cli.stages import fid, train_semvae
from sfd_cli.tables import (
    COMPRESSORS,
    DEVICES,
    FORMATS,
    IMAGE_SOURCES,
    METRICS,
    PROTOCOLS,
    SCHEDULES,
    SOLVERS,
    STAGES,
    TRACKERS,
    Table,
)
from sfd_cli.weights.models import read_latent_statistics

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"^## (.*?)$.*?```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
SPACE = LatentSpace(texture=1, semantic=1, grid=1)


def example(heading: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code below a heading as a module that can be imported by its name."""
    module = ModuleType("of_another_package")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLES[heading], heading, "exec"), module.__dict__)
    return module


@contextmanager
def added(table: Table, name: str, place: str) -> Iterator[None]:
    table.add(name, place)
    try:
        yield
    finally:
        table.remove(name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_is_short(heading: str) -> None:
    lines = [line for line in EXAMPLES[heading].splitlines() if line and not re.match(r"from|import|#", line)]
    assert 0 < len(lines) <= 15


def test_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A schedule law", monkeypatch)
    with added(SCHEDULES, "sequential", "of_another_package:Sequential"):
        schedule = schedule_of(Sample(schedule="sequential", delta_t=0.3))
        assert schedule.end == 2
        assert [stream.tolist() for stream in schedule.times(torch.tensor([0.5, 1.5]))] == [[0.0, 0.5], [0.5, 1.0]]
        assert [phase.moves for phase in schedule.phases] == [(False, True), (True, False)]
    with pytest.raises(ValidationError):
        Sample(schedule="sequential")


def test_a_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A solver", monkeypatch)

    def velocity(x: torch.Tensor, t_texture: torch.Tensor, t_semantic: torch.Tensor, rows: torch.Tensor) -> Any:
        """dx/dT = x: after one unit of its own time each stream is e times what it was."""
        return x

    noise, rows = torch.ones(1, 2, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with added(SOLVERS, "midpoint", "of_another_package:MIDPOINT"):
        assert Sample(solver="midpoint").solver == "midpoint"
        ends = [
            integrate(velocity, noise, rows, AsynchronousSchedule(0.0), SPACE, solver="midpoint", steps=steps)
            for steps in (10, 20)
        ]
    coarse, fine = ((end - torch.e).abs().max().item() for end in ends)
    assert fine < 2e-3
    assert coarse / fine == pytest.approx(4, rel=0.1), "of order two"


def test_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A protocol", monkeypatch)
    with added(PROTOCOLS, "ours", "of_another_package:OURS"):
        sample = Sample(protocol="ours", guidance="cfg", seed=3)
        assert (sample.solver, sample.steps, sample.time_grid) == ("euler", 50, "phases")
        record = protocol_record(effective_settings(sample))
        assert differences("ours", record, 50_000, "adm_imagenet256") == []
        assert len(differences("ours", record | {"steps": 49}, 50_000, "adm_imagenet256")) == 1


def test_a_compressor(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example("A compressor", monkeypatch)
    with added(COMPRESSORS, "random", "of_another_package:RANDOM"):
        settings = tiny_settings(here, semvae={"compressor": "random", "channels": 3, "seed": 5})
        write_features(settings)
        scores = train_semvae.run(settings)
        model, facts = load_semantic(settings.paths.semvae)
        tokens = torch.randn(2, 4, 12)
        channels, _ = model.encode(tokens)
        assert channels.shape == (2, 4, 3)
        again, _ = model.encode(model.decode(channels))
        torch.testing.assert_close(again, channels)
        assert facts["held_out"]["mse"] == scores["mse"]


def test_an_image_source(monkeypatch: pytest.MonkeyPatch) -> None:
    example("An image source", monkeypatch)
    with added(IMAGE_SOURCES, "greys", "of_another_package:greys"):
        said = done("prepare-data", "--source", "greys", "--size", 64).out
        assert "images" in said
        images = ImageReader(ImageManifest.load(Path("data/images")), 64).read([0, 1])
        assert images.float().mean(dim=(1, 2, 3)).tolist() == [128, 255]


def test_a_checkpoint_format(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A checkpoint format", monkeypatch)
    torch.save({"mu": torch.tensor([0.25, -1.0]), "sigma": torch.tensor([2.0, 0.5])}, "stats.pt")
    with added(FORMATS, "mu_sigma", "of_another_package:MU_SIGMA"):
        found = read_latent_statistics("stats.pt")
        assert (found.mean, found.std) == ((0.25, -1.0), (2.0, 0.5))
        done("weights", "import", "stats.pt", "ours")
    assert read_latent_statistics("ours") == found
    assert sfd("weights", "import", "stats.pt", "again").code == 2


def test_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example("A metric", monkeypatch)
    settings = tiny_settings(tmp_path)
    write_training_images(settings)
    write_models(settings)
    random_images(settings.paths.samples, [f"{index}.png" for index in range(6)], seed=2, brightness=0.8)

    def colour(images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))

    extractor = Extractor.of("dinov2", 3, torch.device("cpu"), colour)
    score_by(monkeypatch, lambda: extractor)
    with (
        added(METRICS, "nearest", "of_another_package:NEAREST"),
        added(METRICS, "shift", "of_another_package:SHIFT"),
    ):
        chosen = settings.model_copy(update={"fid": Fid(scores=["nearest", "shift"], inception="none")})
        found = fid.run(chosen)
        whole = read_json(settings.paths.metrics / "fid.json")
        rows = {row["name"]: row["source"] for row in score_tables(whole)["rows"]}
    folders = (settings.paths.samples, settings.paths.images)
    samples, real = (torch.cat([colour(part) for part in ImageFiles(image_files(path)).batches(8)]) for path in folders)
    nearest = (samples[:, None] - real).square().sum(dim=2).sqrt().min(dim=1).values.mean().item()
    assert found["nearest_dinov2"] == pytest.approx(nearest, rel=1e-4)
    shift = (samples.mean(0) - real.mean(0)).square().sum().item()
    assert found["shift_dinov2"] == pytest.approx(shift, rel=1e-4)
    assert {"real", "samples", "untrained"} <= found["shift_dinov2_matched"].keys()
    assert found["counts"] == {
        "samples": 6,
        "nearest_dinov2": [6, 24],
        "shift_dinov2_reference": 24,
        "shift_dinov2_halves": [12, 12],
        "shift_dinov2_reconstructed": [6, 6],
        "untrained": 6,
    }
    assert rows == {
        "Distance to the nearest image, DINOv2": "6 samples against 24 images",
        "Distance of means, DINOv2": "6 samples against 24 reference images",
        "Distance of means of an untrained model, DINOv2": "6 images against 24 reference images",
        "Distance of means of images through the autoencoder, DINOv2": "6 against the same 6 as they were",
        "Distance of means between two halves of the data, DINOv2": "12 against 12 images",
    }
    with pytest.raises(ValidationError):
        Fid(scores=["nearest"])


def test_a_tracker(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example("A tracker", monkeypatch)
    rows = here / "metrics" / "dit" / "plots" / "metrics" / "loss.tsv"
    rows.parent.mkdir(parents=True)
    rows.write_text("step\tloss\n2\t0.5\n4\t0.25\n")
    (here / "metrics" / "fid.json").write_text('{"fd": 9.5}')
    with added(TRACKERS, "lines", "of_another_package:LINES"):
        assert Settings.model_validate({"metrics": {"trackers": ["lines"]}}).metrics.trackers == ["lines"]
        done("track", "--to", "lines")
    (file,) = (here / "metrics" / "trackers").glob("dit-*.jsonl")
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.25},
        {"step": 4, "scores": {"fd": 9.5}},
    ]


def test_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A device", monkeypatch)
    with added(DEVICES, "hpu", "of_another_package:GAUDI"):
        with refusal("runtime.device", "habana_frameworks"):
            choose_device("hpu")
        assert choose_precision("auto", torch.device("hpu")) == "bf16"
        assert finest(torch.device("hpu")) == torch.float32
    assert choose_precision("auto", torch.device("hpu")) == "fp32"


def test_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "presets")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "first-look.yaml").write_text(EXAMPLES["A preset"])
    assert done("preset", "list").out == "first-look  SFD-S for a first look: two epochs\n"
    done("preset", "use", "first-look")
    assert (load_settings().dit.steps, load_settings().grid) == (10_000, 16)


def test_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    example("A stage", monkeypatch)
    Path("some").mkdir()
    Path("some/000000.png").touch()
    with added(STAGES, "count-samples", "of_another_package:COUNT"):
        assert "count-samples" in done("--help").out
        assert done("count-samples", "--samples", "some").out == "samples  1\n"
    assert sfd("count-samples").code == 2


@pytest.mark.parametrize(
    ("key", "wrong", "nearest"),
    [("sample.solver", "ab4", "ab3"), ("dit.schedule", "ofset", "offset"), ("images.source", "foldr", "folder")],
)
def test_a_name_that_is_in_no_table_is_refused_with_the_nearest(key: str, wrong: str, nearest: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({section: {name: wrong}})
    found = first_problem(caught.value)
    assert (found.subject, nearest in found.remedy) == (key, True)
