"""`sfd sample`: what it writes, what each image depends on, and how it goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifact_records import RECORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from model_loading import load_dit, load_texture_vae
from PIL import Image
from refusals import refusal
from safetensors.torch import load_file, save_file
from tiny_project import CLASSES, SIDE, tiny_settings, write_models

from sfd_cli.artifacts.sample_folder import SampleFolder, Samples
from sfd_cli.config import Sample, Settings
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import balanced_labels, initial_noise
from sfd_cli.stages import sample as stage


def _project(root: Path, **sample: Any) -> Settings:
    settings = tiny_settings(root, sample=sample)
    if not settings.paths.dit.exists():
        write_models(settings)
    return settings


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _images(folder: Path, count: int) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{index:06d}.png")) for index in range(count)])


def _write_guide(settings: Settings, scale: float = 0.05, **changes: Any) -> None:
    dit, _ = load_dit(settings.paths.dit)
    values = {**dit.config.__dict__, **changes}
    torch.manual_seed(1)
    guide = LightningDiT(LightningDiTConfig(**values))
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    weights = guide.state_dict()
    save_model(settings.paths.guide, "LightningDiT", guide.config, {"model": weights, "ema": weights}, {})


def _sampler(dit: LightningDiT, guide: LightningDiT | None = None, **sample: Any) -> Sampler:
    """A sampler of latents alone."""
    return Sampler(dit, Sample(**sample), dit.config.space, dit.config.conditions, guide)


def _loaded(settings: Settings) -> Sampler:
    return SamplingModels.open(settings).load(settings.sample, torch.device("cpu"))


# Forked from a server that has imported the heavy libraries once: a process starts in no time, and without threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sfd_cli.stages.sample", "diffusers.models.autoencoders.autoencoder_kl"])


def _run_alone(settings: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    stage.run(Settings.model_validate_json(settings))


def _start(settings: Settings, **environment: str) -> Any:
    """The stage in a process of its own."""
    process = PROCESSES.Process(target=_run_alone, args=(settings.model_dump_json(), environment))
    process.start()
    return process


def test_images_labels_and_npz_say_the_same(tmp_path: Path) -> None:
    settings = _project(tmp_path, num_images=10, batch_size=4)
    summary = stage.run(settings)
    folder = settings.paths.samples
    labels = [index % 3 for index in range(10)]
    assert {path.name for path in folder.iterdir()} == {
        *RECORDS,
        "labels.json",
        "samples.npz",
        "semantics.npy",
        *(f"{index:06d}.png" for index in range(10)),
    }
    assert read_json(folder / "labels.json") == labels
    with np.load(folder / "samples.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"], _images(folder, 10))
        assert archive["arr_1"].tolist() == labels
    assert _images(folder, 10).shape == (10, SIDE, SIDE, 3)
    assert len({image.tobytes() for image in _images(folder, 10)}) == 10
    assert summary["images"] == 10


def test_a_second_run_is_up_to_date_and_a_fresh_one_gives_equal_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    before = _contents(settings.paths.samples)
    capsys.readouterr()
    stage.run(settings)
    assert "up to date" in capsys.readouterr().err
    assert _contents(settings.paths.samples) == before
    again = settings.model_copy(update={"paths": settings.paths.model_copy(update={"samples": tmp_path / "again"})})
    stage.run(again)
    assert _contents(tmp_path / "again") == before


def test_lost_damaged_and_leftover_files_of_an_interrupted_run_are_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    folder = settings.paths.samples
    before = _contents(folder)
    record = read_json(folder / "settings.json")
    record["complete"] = False
    write_json(folder / "settings.json", record)
    (folder / "000003.png").unlink()
    (folder / "000009.png").write_bytes((folder / "000009.png").read_bytes()[:60])
    (folder / "samples.npz").unlink()
    (folder / ".000011.png.123.tmp").write_bytes(b"half")
    written: list[int] = []
    write = SampleFolder.write

    def noted(folder: SampleFolder, images: Iterable[tuple[int, np.ndarray]]) -> Iterator[int]:
        for index in write(folder, images):
            written.append(index)
            yield index

    monkeypatch.setattr(SampleFolder, "write", noted)
    stage.run(settings)
    assert written == [3, 9], "whole images are kept"
    assert _contents(folder) == before


def test_a_finished_folder_that_lost_a_file_is_repaired(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    before = _contents(settings.paths.samples)
    (settings.paths.samples / "000005.png").unlink()
    stage.run(settings)
    assert _contents(settings.paths.samples) == before


def test_the_semantics_of_the_images_are_kept_as_the_latent_store_has_them(tmp_path: Path) -> None:
    settings = _project(tmp_path, num_images=10, batch_size=4)
    stage.run(settings)
    kept = np.load(settings.paths.samples / "semantics.npy")
    stage.run(settings, latents_out=tmp_path / "latents.npy")
    expected = np.load(tmp_path / "latents.npy")[:, 4:].astype(np.float64) * 0.9 + 0.1
    assert (kept.dtype, kept.shape) == (np.float32, (10, 3, 2, 2))
    assert kept == pytest.approx(expected, abs=1e-6)
    assert Samples.open(settings.paths.samples).semantics == settings.paths.samples / "semantics.npy"


@pytest.mark.parametrize("harm", ["lost", "cut", "half a row", "of another run"])
def test_semantics_that_an_interrupted_run_left_half_written_are_made_again(tmp_path: Path, harm: str) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    folder = settings.paths.samples
    before, path = _contents(folder), folder / "semantics.npy"
    record = read_json(folder / "settings.json")
    write_json(folder / "settings.json", record | {"complete": False})
    kept = np.load(path)
    if harm == "lost":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif harm == "half a row":
        kept[4, -1, 1:] = np.nan
        np.save(path, kept)
    else:
        np.save(path, kept[:5])
    stage.run(settings)
    assert _contents(folder) == before


def test_a_finished_folder_of_before_semantics_were_kept_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    folder = settings.paths.samples
    (folder / "semantics.npy").unlink()
    record = read_json(folder / "settings.json")
    del record["facts"]["semantics"], record["files"]["semantics.npy"], record["seal"]
    write_json(folder / "settings.json", record)
    before = _contents(folder)
    capsys.readouterr()
    stage.run(settings)
    assert "up to date" in capsys.readouterr().err
    assert _contents(folder) == before
    assert Samples.open(folder).semantics is None


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    options = {"num_images": 200, "batch_size": 4, "steps": 4}
    whole = _project(tmp_path / "whole", **options)
    stage.run(whole)
    killed = _project(tmp_path / "killed", **options)
    folder = killed.paths.samples
    process = _start(killed)
    deadline = time.monotonic() + 60
    while not (folder / "000020.png").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not read_json(folder / "settings.json")["complete"]
    assert 20 < len(list(folder.glob("0*.png"))) < 200
    stage.run(killed)
    assert _contents(folder) == _contents(whole.paths.samples)


def test_in_bf16_latents_differ_by_its_rounding_and_stay_float32(tmp_path: Path) -> None:
    settings = _project(tmp_path, guidance="autoguidance")
    _write_guide(settings)
    dit, guide = (load_dit(path)[0] for path in (settings.paths.dit, settings.paths.guide))
    noise, labels = initial_noise(0, range(12), (7, 2, 2)), balanced_labels(range(12), range(3))

    def latents(rows: slice, **options: Any) -> torch.Tensor:
        options = {"guidance": "autoguidance", "solver": "ab3", "steps": 9} | options
        return _sampler(dit, guide, **options).solve(noise[rows], labels[rows])

    every = slice(None)
    full, half = latents(every), latents(every, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - full).square().mean().sqrt() < 2**-7
    assert (latents(slice(5), precision="bf16") - half[:5]).abs().max() < 2**-6, "whatever the batch"


@pytest.mark.parametrize("compile", [False, True])
def test_transformers_are_compiled_where_asked(tmp_path: Path, compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _project(tmp_path, guidance="autoguidance", compile=compile)
    _write_guide(settings)
    compiled: list[LightningDiT] = []
    monkeypatch.setattr(LightningDiT, "compile", lambda network, **options: compiled.append(network))
    sampler = _loaded(settings)
    assert compiled == ([sampler.dit, sampler.guide] if compile else [])


@pytest.mark.parametrize("solver", ["heun", "ab3", "dopri5"])
def test_an_image_does_not_depend_on_how_many_are_made_or_in_what_batches(tmp_path: Path, solver: str) -> None:
    found = {}
    for count, batch_size in ((12, 12), (12, 5), (7, 5)):
        settings = _project(tmp_path, solver=solver, num_images=count, batch_size=batch_size, guidance="cfg")
        folder = tmp_path / f"{count}-{batch_size}"
        paths = settings.paths.model_copy(update={"samples": folder})
        stage.run(settings.model_copy(update={"paths": paths}))
        found[count, batch_size] = _images(folder, count).astype(int)
    assert np.array_equal(found[7, 5], found[12, 5][:7]), "with equal batches bit for bit"
    assert np.abs(found[12, 5] - found[12, 12]).max() <= 1, "with others but for the rounding of a grey level"


def test_a_batch_size_may_change_and_another_setting_starts_afresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(_project(tmp_path))
    capsys.readouterr()
    for unused in ({"batch_size": 3}, {"compile": True}, {"rtol": 1e-5}, {"scale": 3.0}, {"interval_start": 0.5}):
        stage.run(_project(tmp_path, **unused))
        assert "up to date" in capsys.readouterr().err, unused
    for changed in ({"seed": 1}, {"steps": 5}, {"guidance": "cfg"}, {"num_images": 3}, {"precision": "bf16"}):
        stage.run(_project(tmp_path, **changed))
        assert "starting afresh" in capsys.readouterr().err, changed


def test_new_weights_make_new_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _project(tmp_path)
    stage.run(settings)
    dit, extra = load_dit(settings.paths.dit)
    weights = {name: tensor * 1.1 for name, tensor in dit.state_dict().items()}
    save_model(settings.paths.dit, "LightningDiT", dit.config, {"model": weights, "ema": weights}, extra)
    capsys.readouterr()
    stage.run(settings)
    assert "starting afresh" in capsys.readouterr().err


def test_guidance_changes_the_images_as_its_scales_say(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    _write_guide(settings)
    dit, _ = load_dit(settings.paths.dit)
    guide, _ = load_dit(settings.paths.guide)
    noise = initial_noise(0, range(4), (7, 2, 2))
    labels = balanced_labels(range(4), range(3))

    def latents(**options: Any) -> torch.Tensor:
        return _sampler(dit, guide, steps=6, **options).solve(noise, labels)

    plain = latents()
    for kind in ("cfg", "autoguidance"):
        assert torch.equal(latents(guidance=kind, scale=1.0), plain)
        assert torch.equal(
            latents(guidance=kind, scale=2.0), latents(guidance=kind, scale=7.0, scale_texture=2.0, scale_semantic=2.0)
        )
        assert not torch.allclose(latents(guidance=kind, scale=2.0), plain, atol=1e-3)
        assert not torch.allclose(
            latents(guidance=kind, scale=2.0), latents(guidance=kind, scale=2.0, scale_semantic=1.0), atol=1e-3
        )
    assert torch.allclose(
        latents(guidance="autoguidance", scale=0.0),
        _sampler(guide, steps=6).solve(noise, labels),
        atol=1e-4,
    )


def test_autoguidance_runs_as_a_stage(tmp_path: Path) -> None:
    settings = _project(tmp_path, guidance="autoguidance", scale=2.0)
    with pytest.raises(UserError) as caught:
        stage.run(settings)
    assert str(settings.paths.guide) in caught.value.subject
    _write_guide(settings)
    stage.run(settings)
    assert read_json(settings.paths.samples / "settings.json")["inputs"].keys() == {"dit", "texture_vae", "guide"}


def test_a_batch_larger_than_the_run_is_told_with_what_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(_project(tmp_path, num_images=2, batch_size=8))
    assert "--batch-size 2" in capsys.readouterr().err
    stage.run(_project(tmp_path, num_images=8, batch_size=8))
    assert "--batch-size" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sample", "warned"),
    [
        ({"guidance": "cfg", "scale": 6.7}, "6.7"),
        ({"guidance": "cfg", "scale": 1.5, "scale_semantic": 4.5}, "4.5"),
        ({"guidance": "cfg", "scale": 4.0}, None),
        ({"guidance": "none", "scale": 6.7}, None),
    ],
)
def test_a_scale_of_guidance_by_three_channels_is_warned_of(
    sample: dict[str, Any], warned: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(_project(tmp_path, num_images=2, batch_size=2, **sample))
    said = capsys.readouterr().err
    assert ("three channels" in said) == (warned is not None)
    assert f"scale of {warned or ''}" in said or warned is None


def test_an_offset_other_than_the_trained_one_is_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run(_project(tmp_path))
    assert "delta_t" not in capsys.readouterr().err
    stage.run(_project(tmp_path, delta_t=0.5))
    assert "sampling with delta_t 0.5, but the model was trained with delta_t 0.3" in capsys.readouterr().err


@pytest.mark.parametrize("delta_t", [0.0, 1.0])
def test_the_ends_of_the_range_of_offsets_work(tmp_path: Path, delta_t: float) -> None:
    settings = _project(tmp_path, delta_t=delta_t, num_images=2)
    stage.run(settings)
    images = _images(settings.paths.samples, 2)
    assert images.shape == (2, SIDE, SIDE, 3)
    assert images.std() > 0


def test_chosen_classes_take_turns(tmp_path: Path) -> None:
    settings = _project(tmp_path, classes=[2, 0], num_images=5)
    stage.run(settings)
    assert read_json(settings.paths.samples / "labels.json") == [2, 0, 2, 0, 2]


def test_the_grid_shows_the_first_images_also_when_up_to_date(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    for name in ("one.png", "two.png"):
        stage.run(settings, tmp_path / "pictures" / name)
    one, two = ((tmp_path / "pictures" / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    with Image.open(tmp_path / "pictures" / "one.png") as picture:
        assert min(picture.size) > 4 * SIDE


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    drawn = {"solver": "euler_maruyama", "class_labels": "random"}  # all that can hang on who draws it
    alone = _project(tmp_path / "alone", num_images=18, batch_size=4, **drawn)
    stage.run(alone)
    together = _project(tmp_path / "together", num_images=18, batch_size=4, **drawn)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        _start(together, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
        for rank in range(2)
    ]
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert _contents(together.paths.samples) == _contents(alone.paths.samples)


def test_a_latent_that_is_not_finite_ends_the_stage(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    dit, extra = load_dit(settings.paths.dit)
    weights = {name: tensor * float("nan") for name, tensor in dit.state_dict().items()}
    save_model(settings.paths.dit, "LightningDiT", dit.config, {"model": weights, "ema": weights}, extra)
    with refusal("sample", "0 to 7", kind=StageFailure):
        stage.run(settings)


def _save_dit_again(settings: Settings, extra: dict[str, Any] | None = None, **changes: Any) -> None:
    dit, found = load_dit(settings.paths.dit)
    network = LightningDiT(LightningDiTConfig(**{**dit.config.__dict__, **changes}))
    weights = network.state_dict()
    save_model(
        settings.paths.dit,
        "LightningDiT",
        network.config,
        {"model": weights, "ema": weights},
        {**found, **(extra or {})},
    )


@pytest.mark.parametrize(
    ("sample", "network", "extra", "subject", "named"),
    [
        ({}, {}, {"statistics": {}}, None, ("7 channels", "foreign")),
        ({}, {}, {"statistics": {"mean": [0.0] * 4, "std": [1.0] * 4}}, None, ("7 channels", "foreign")),
        ({}, {"semantic_channels": 4}, {}, "paths.texture_vae", ("decodes 4", "makes 3")),
        ({}, {"time_embedding": "single"}, {}, "sample.delta_t", ("use 0",)),
        ({"classes": [0, 3]}, {}, {}, "sample.classes", ("[3]", "0 to 2")),
        ({"classes": []}, {}, {}, "sample.classes", ("empty", "0 to 2")),
    ],
)
def test_models_and_settings_that_do_not_fit_are_named(
    tmp_path: Path,
    sample: dict[str, Any],
    network: dict[str, Any],
    extra: dict[str, Any],
    subject: str | None,
    named: tuple[str, ...],
) -> None:
    settings = _project(tmp_path, **sample)
    _save_dit_again(settings, extra, **network)
    with refusal(subject or settings.paths.dit, *named):
        stage.run(settings)


def test_a_guide_of_another_shape_is_named(tmp_path: Path) -> None:
    settings = _project(tmp_path, guidance="autoguidance")
    _write_guide(settings, num_classes=4)
    with refusal(settings.paths.guide, settings.paths.dit, "num_classes 4 instead of 3"):
        stage.run(settings)
    _write_guide(settings, semantic_channels=2)
    with refusal(settings.paths.guide, settings.paths.dit, "texture 5 instead of 4"):
        stage.run(settings)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    with pytest.raises(UserError) as caught:
        stage.run(settings)
    assert str(settings.paths.dit) in caught.value.subject
    write_models(settings)
    (settings.paths.dit / "ema.safetensors").unlink()
    with refusal(settings.paths.dit, "ema.safetensors", "model", "--weights"):
        stage.run(settings)


@settings(deadline=None)
@given(st.integers(0, 2**63), st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
def test_the_noise_of_an_image_depends_on_seed_and_index_alone(seed: int, indices: list[int]) -> None:
    together = initial_noise(seed, indices, (3, 2, 2))
    for row, index in zip(together, indices, strict=True):
        assert torch.equal(row, initial_noise(seed, [index], (3, 2, 2))[0])
    assert len({row.numpy().tobytes() for row in together}) == len(indices)


def test_noise_is_standard_normal_and_other_under_another_seed() -> None:
    noise = initial_noise(0, range(400), (4, 4, 4))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((noise[:-1] * noise[1:]).mean()) < 0.02, "neighbours are independent"
    assert not torch.equal(noise[:1], initial_noise(1, [0], (4, 4, 4)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True), st.integers(1, 5))
def test_labels_are_balanced(classes: list[int], rounds: int) -> None:
    labels = balanced_labels(range(rounds * len(classes)), classes).tolist()
    assert all(labels.count(one) == rounds for one in classes)


def test_textures_are_unnormalised_and_semantics_dropped(tmp_path: Path) -> None:
    settings = _project(tmp_path)
    vae, _ = load_texture_vae(settings.paths.texture_vae)
    latents = torch.randn((19, 7, 2, 2), generator=torch.Generator().manual_seed(0))
    mean, std = torch.linspace(-1, 1, 7), torch.linspace(0.5, 2, 7)
    space = LatentSpace(4, 3, 2, tuple(mean.tolist()), tuple(std.tolist()))
    sampler = replace(_loaded(settings), space=space)
    images = sampler.decode(latents)
    assert images.dtype == torch.uint8
    assert images.shape == (19, 3, SIDE, SIDE)
    latents[:, 4:] = 100.0
    assert torch.equal(sampler.decode(latents), images)
    mean, std = mean[:4].reshape(4, 1, 1), std[:4].reshape(4, 1, 1)
    with torch.inference_mode():
        expected = (vae.decode(latents[:, :4] * std + mean).clamp(-1, 1) + 1) * 127.5
    assert (images.float() - expected).abs().max() <= 0.51


def test_the_sampler_knows_the_classes_by_name(tmp_path: Path) -> None:
    sampler = _loaded(_project(tmp_path))
    assert list(sampler.conditions.names) == CLASSES


def test_batches_are_the_runs_own_whatever_is_wanted_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 of a run of 10: the last one is filled up, and the wanted images of each are those of the run."""
    sampler = _loaded(_project(tmp_path, batch_size=4, num_images=10))
    inputs = SampleInputs.open(sampler.sample)
    every = {}
    for indices, images in sampler.batches(inputs, range(10)):
        every |= dict(zip(indices, images, strict=True))
    assert list(every) == list(range(10))
    assert every[0].shape == (3, SIDE, SIDE)
    assert every[0].dtype == torch.uint8
    calls: list[list[int]] = []
    latents = Sampler.latents

    def noted(sampler: Sampler, inputs: SampleInputs, indices: Iterable[int], *watch: Any) -> torch.Tensor:
        calls.append(list(indices))
        return latents(sampler, inputs, indices, *watch)

    monkeypatch.setattr(Sampler, "latents", noted)
    some = list(sampler.batches(inputs, [1, 2, 9]))
    assert [indices for indices, _ in some] == [[1, 2], [9]]
    assert calls == [[0, 1, 2, 3], [8, 9, 10, 11]], "no batch of which nothing is wanted"
    for indices, images in some:
        for index, image in zip(indices, images, strict=True):
            assert torch.equal(image, every[index])
    two = [sampler.share(10, Processes(rank, 2)) for rank in range(2)]
    assert two == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]


def test_settings_json_is_all_that_says_how_samples_were_made(tmp_path: Path) -> None:
    settings = _project(tmp_path, guidance="cfg", scale_texture=2.0)
    stage.run(settings)
    record = json.loads((settings.paths.samples / "settings.json").read_text())
    assert record["complete"]
    assert record["settings"]["scale_texture"] == 2.0
    assert record["settings"]["scale_semantic"] == 1.5
    protocol = record["facts"].pop("protocol")
    assert record["facts"] == {"images": 12, "class_names": CLASSES, "semantics": True}
    assert (protocol["class_labels"], protocol["to_uint8"], protocol["scale_texture"]) == ("balanced", "round", 2.0)
    assert (record["settings"]["device"], record["settings"]["torch"]) == ("cpu", version("torch"))


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    settings = _project(tmp_path, guidance="autoguidance")
    _write_guide(settings)
    description = read_json(settings.paths.guide / "config.json")
    others = {"mean": [0.0] * 7, "std": [1.0] * 7}
    write_json(settings.paths.guide / "config.json", description | {"statistics": others})
    with refusal(settings.paths.guide, settings.paths.dit, "other statistics"):
        stage.run(settings)
    _write_guide(settings)
    description = read_json(settings.paths.dit / "config.json")
    write_json(settings.paths.dit / "config.json", description | {"texture_vae": "of another VAE"})
    with refusal(settings.paths.dit, settings.paths.texture_vae, "sfd encode-latents"):
        stage.run(settings)
    assert not list(settings.paths.samples.glob("*.png"))


@pytest.mark.parametrize("kinds", [("velocity", "data"), ("data", "velocity"), ("data", "data")])
def test_models_of_both_kinds_of_prediction_guide_one_another(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """Both give velocities, so the guided one is the usual sum; the solver's last step ends where it points."""
    settings = _project(tmp_path, guidance="autoguidance", scale=1.5, solver="euler", steps=2, delta_t=0.0)
    _save_dit_again(settings, prediction=kinds[0])
    _write_guide(settings, prediction=kinds[1])
    sampler = _loaded(settings)
    assert sampler.guide is not None
    inputs = SampleInputs.open(settings.sample)
    x = inputs.noise_of([0, 1], sampler.space.shape)
    for t in (0.0, 0.5):
        times, rows = (torch.full((2,), t), torch.full((2,), t)), torch.tensor([0, 1])
        better, worse = sampler.dit(x, *times, rows), sampler.guide(x, *times, rows)
        x = x + 0.5 * (worse + 1.5 * (better - worse))
    torch.testing.assert_close(sampler.latents(inputs, [0, 1]), x)


def test_samples_follow_the_law_that_the_transformer_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law = {"schedule": "lead", "lead": 1.5}
    settings = _project(tmp_path, delta_t=None, num_images=2)
    dit, facts = load_dit(settings.paths.dit)
    weights = {"model": dit.state_dict(), "ema": dit.state_dict()}
    facts = {key: value for key, value in facts.items() if key != "delta_t"} | {"schedule": law}
    save_model(settings.paths.dit, "LightningDiT", dit.config, weights, facts)
    stage.run(settings)
    assert "trained with" not in capsys.readouterr().err
    followed = _images(settings.paths.samples, 2)
    record = read_json(settings.paths.samples / "settings.json")["settings"]
    assert {key: record.get(key) for key in (*law, "delta_t")} == {**law, "delta_t": None}

    told = _project(tmp_path, **law, num_images=2)
    assert stage.run(told)["images"] == 2
    assert "afresh" not in capsys.readouterr().err  # they are these samples
    other = _project(tmp_path, delta_t=0.3, num_images=2)
    stage.run(other)
    assert (
        "sampling with delta_t 0.3, but the model was trained with schedule lead, lead 1.5" in capsys.readouterr().err
    )
    assert not np.array_equal(_images(other.paths.samples, 2), followed)


@pytest.mark.parametrize(
    "law", [{"schedule": "led"}, {"schedule": "lead", "lead": "far"}, {"schedule": 3}, {"unknown": 1}, "lead", [1]]
)
def test_a_folder_that_tells_of_no_law_is_refused(tmp_path: Path, law: Any) -> None:
    settings = _project(tmp_path, delta_t=None)
    _save_dit_again(settings, {"schedule": law})
    with refusal(settings.paths.dit, "schedule"):
        stage.run(settings)


@pytest.mark.parametrize("broken", ["weights", "overflow"])
def test_what_is_not_finite_on_the_way_to_a_png_is_a_failure_that_names_the_model(tmp_path: Path, broken: str) -> None:
    settings = _project(tmp_path)
    dit, vae = settings.paths.dit, settings.paths.texture_vae
    if broken == "weights":
        tensors = load_file(vae / "model.safetensors")
        tensors["autoencoder.decoder.conv_out.bias"] = torch.full_like(
            tensors["autoencoder.decoder.conv_out.bias"], torch.nan
        )
        save_file(tensors, vae / "model.safetensors", {"format": "pt"})
    else:
        description = read_json(dit / "config.json")
        description["statistics"]["std"][0] = 1e39  # a number in JSON, infinite in float32
        write_json(dit / "config.json", description)
    with refusal(vae if broken == "weights" else dit, "finite", kind=StageFailure):
        stage.run(settings)
    assert list(settings.paths.samples.glob("*.png")) == []
