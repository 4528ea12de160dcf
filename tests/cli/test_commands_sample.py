"""`sfd sample` as people type it: the reference's numbers, its checkpoints as they are, noise and labels from files."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from artifact_records import RECORDS
from command_line import (
    done,
    ema_checkpoint,
    empty_folder,
    files_below,
    ldm_checkpoint,
    refusal_of,
    sfd,
    statistics,
    training_checkpoint,
)
from model_loading import load_texture_vae
from PIL import Image
from reference_files import contents
from tiny_project import SIDE, tiny_settings, write_models, write_training_images

from sfd_cli.config import Settings
from sfd_cli.files import read_json, write_json
from sfd_cli.pipeline.seeds import balanced_labels, initial_noise
from sfd_cli.weights.registry import REGISTRY, Https, Weights

ALONE = ("--device", "cpu", "--workers", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


# The reference's numbers

ONE_SPAN = ("--steps", 20, "--time-grid", "one-span")
HINTS = {
    "sfd": ("--delta-t", 0.3, "--foreign-semantic-channels", 4),
    "sync": ("--delta-t", 0),
    "plain": ("--delta-t", 0, "--foreign-heads", 4),
}
CFG = ("--guidance", "cfg", "--scale", 1.5)
AUTO = ("--guidance", "autoguidance", "--guide", "guide.pt")
SAMPLES: dict[str, tuple[Any, ...]] = {
    "euler21": ("--solver", "euler"),
    "heun21": ("--solver", "heun"),
    "euler21_shift0.5": ("--solver", "euler", "--shift", 0.5),
    "euler21_cfg1.5": ("--solver", "euler", *CFG),
    "euler21_cfg1.5_from0.3": ("--solver", "euler", *CFG, "--interval-start", 0.3),
    "euler21_autoguidance1.5": ("--solver", "euler", *AUTO, "--scale", 1.5),
    "euler21_autoguidance_sem1.2_tex2.0": (
        *("--solver", "euler", *AUTO),
        *("--scale-semantic", 1.2, "--scale-texture", 2.0),
    ),
    "exact": ("--solver", "dopri5", "--rtol", 1e-6, "--atol", 1e-7, "--time-grid", "phases"),
}
CASES = [(name, key) for name in HINTS for key in SAMPLES if f"sample.{key}" in contents(f"dit_{name}")]


def save_given(name: str) -> tuple[Any, ...]:
    """The reference's noise and labels as files, and the flags that name them."""
    given = contents(f"dit_{name}")
    np.save("z.npy", given["sample.noise"].numpy())
    np.save("y.npy", given["sample.y"].numpy())
    return ("--noise", "z.npy", "--labels", "y.npy")


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_reference_checkpoint_gives_the_references_samples(name: str, key: str) -> None:
    ema_checkpoint(Path("dit.pt"), name)
    if "auto" in key:
        ema_checkpoint(Path("guide.pt"), name, "guide")
    check_sample(name, key)


@pytest.mark.parametrize("name", HINTS)
def test_a_training_checkpoint_is_sampled_by_its_averaged_weights(name: str) -> None:
    training_checkpoint(Path("dit.pt"), name)
    check_sample(name, "euler21")
    flags = (*save_given(name), *ONE_SPAN, *SAMPLES["euler21"], *HINTS[name], *ALONE)
    done("sample", "--checkpoint", "dit.pt", "--latents-out", "last.npy", "--weights", "model", *flags)
    assert np.abs(np.load("last.npy") - np.load("x.npy")).max() > 0.01


def check_sample(name: str, key: str) -> None:
    """Sample from the reference's noise and compare."""
    flags = (*save_given(name), *ONE_SPAN, *SAMPLES[key], *HINTS[name], *ALONE)
    done("sample", "--checkpoint", "dit.pt", "--latents-out", "x.npy", *flags)
    found, expected = np.load("x.npy"), contents(f"dit_{name}")[f"sample.{key}"].numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert not Path("data").exists(), "neither images nor a folder for them"


# Checkpoints of the reference code as they are

FEW = ("--num-images", 6, "--steps", 3, "--solver", "euler", *ALONE)
STATISTICS = ("--foreign-texture-statistics", "texture.pt", "--foreign-semantic-statistics", "semantic.pt")


def save_published() -> None:
    """All files that published images need, small."""
    training_checkpoint(Path("dit.pt"))
    ema_checkpoint(Path("guide.pt"), which="guide")
    ldm_checkpoint(Path("vae.ckpt"))
    statistics(Path("texture.pt"), 8)
    statistics(Path("semantic.pt"), 4)


def test_reference_files_give_the_very_images_of_the_models_imported_from_them() -> None:
    save_published()
    guided = ("--guidance", "autoguidance", "--scale", 2)
    as_they_are = ("--checkpoint", "dit.pt", "--guide", "guide.pt", "--texture-vae", "vae.ckpt", *STATISTICS)
    done("sample", *as_they_are, *guided, *FEW, "--samples", "as_they_are")
    statistics = ("--texture-statistics", "texture.pt", "--semantic-statistics", "semantic.pt")
    done("weights", "import", "dit.pt", "ours/dit", *statistics)
    done("weights", "import", "guide.pt", "ours/guide", "--semantic-channels", 4)
    done("weights", "import", "vae.ckpt", "ours/vae")
    imported = ("--checkpoint", "ours/dit", "--guide", "ours/guide", "--texture-vae", "ours/vae")
    done("sample", *imported, *guided, *FEW, "--samples", "imported")
    names = {f"{index:06d}.png" for index in range(6)} | {"samples.npz", "labels.json", "semantics.npy"}
    first, second = (files_below(Path(folder)) for folder in ("as_they_are", "imported"))
    assert first.keys() == second.keys() == names | set(RECORDS)
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    with Image.open("imported/000000.png") as image:
        assert image.size == (8, 8)
        assert np.asarray(image).std() > 0
    with np.load("imported/samples.npz") as archive:
        assert archive["arr_1"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_second_run_is_up_to_date_and_other_statistics_are_noticed() -> None:
    save_published()
    command = ("sample", "--checkpoint", "dit.pt", "--texture-vae", "vae.ckpt", *STATISTICS, *FEW)
    done(*command)
    before = files_below(Path("data/samples"))
    assert "data/samples is up to date" in done(*command).err
    assert files_below(Path("data/samples")) == before
    statistics(Path("texture.pt"), 8, mean=0.4)
    said = done(*command).err
    assert "starting afresh" in said
    (aside,) = Path("data").glob("samples.*")
    assert str(aside) in said
    assert files_below(aside) == before
    assert files_below(Path("data/samples"))["000000.png"] != before["000000.png"]


def entry(name: str, url: str, **more: Any) -> Weights:
    return Weights(name, name, Https(url), "a test", "MIT", **more)


@pytest.fixture
def registered(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Published files under registered names, on a server that is said how often it was asked."""
    save_published()
    served = here.with_name("served")
    here.rename(served)
    here.mkdir()
    monkeypatch.chdir(here)
    handler = functools.partial(Quiet, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        companions = {"statistics": ("tiny_texture.pt", "tiny_semantic.pt"), "hints": {"semantic_channels": 4}}
        entries = [
            entry("tiny_dit.pt", f"{address}/dit.pt", kind="dit", **companions),
            entry("tiny_guide.pt", f"{address}/guide.pt", kind="dit", **companions),
            entry("tiny_vae.ckpt", f"{address}/vae.ckpt", kind="vae"),
            entry("tiny_texture.pt", f"{address}/texture.pt", kind="statistics"),
            entry("tiny_semantic.pt", f"{address}/semantic.pt", kind="statistics"),
        ]
        for one in entries:
            monkeypatch.setitem(REGISTRY, one.name, one)
        yield str(served)
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


NAMED = ("--checkpoint", "tiny_dit.pt", "--texture-vae", "tiny_vae.ckpt", "--guide", "tiny_guide.pt")


@pytest.mark.parametrize("by_hand", [False, True])
def test_names_are_enough_for_registered_models_and_their_statistics(
    registered: str, tmp_path: Path, by_hand: bool
) -> None:
    cache = tmp_path / "SFD_CACHE"
    if by_hand:
        cache.mkdir()
        for name in ("dit.pt", "guide.pt", "vae.ckpt", "texture.pt", "semantic.pt"):
            shutil.move(Path(registered) / name, cache / f"tiny_{name}")
    done("sample", *NAMED, "--guidance", "autoguidance", *FEW)
    for name in ("dit.pt", "guide.pt", "vae.ckpt", "texture.pt", "semantic.pt"):
        shutil.copy(cache / f"tiny_{name}", name)
    as_they_are = ("--checkpoint", "dit.pt", "--guide", "guide.pt", "--texture-vae", "vae.ckpt", *STATISTICS)
    done("sample", *as_they_are, "--guidance", "autoguidance", *FEW, "--samples", "as_they_are")
    named, files = (files_below(Path(folder)) for folder in ("data/samples", "as_they_are"))
    assert named["samples.npz"] == files["samples.npz"]


def test_registered_weights_that_cannot_be_had_say_where_to_put_them(registered: str, tmp_path: Path) -> None:
    (Path(registered) / "texture.pt").unlink()
    error = refusal_of("sample", *NAMED, *FEW)
    assert "tiny_texture.pt" in str(error)
    assert str(tmp_path / "SFD_CACHE" / "tiny_texture.pt") in str(error)


# Noise and labels of one's own


def project(**sample: Any) -> Settings:
    """Our own small models, settings that name them in params.yaml, and what the seed would give as files."""
    settings = tiny_settings(Path(), sample=sample)
    write_models(settings)
    values = settings.model_dump(mode="json")
    Path("params.yaml").write_text(yaml.safe_dump(values))
    np.save("z.npy", initial_noise(0, range(12), (7, 2, 2)).numpy())
    np.save("y.npy", balanced_labels(range(12), range(3)).numpy())
    return settings


def images(folder: Path, count: int = 12) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{index:06d}.png")) for index in range(count)]).astype(int)


@pytest.mark.parametrize(
    "flags", [("--noise", "z.npy"), ("--labels", "y.npy"), ("--noise", "z.npy", "--labels", "y.npy")]
)
def test_what_the_seed_would_give_gives_the_same_images_from_files(flags: tuple[str, ...]) -> None:
    project()
    done("sample", "--samples", "seed")
    done("sample", *flags, "--samples", "given", "--num-images", 999)
    seed, given = files_below(Path("seed")), files_below(Path("given"))
    assert {name: digest for name, digest in seed.items() if name not in RECORDS} == {
        name: digest for name, digest in given.items() if name not in RECORDS
    }
    record = read_json(Path("given/settings.json"))
    assert record["settings"]["num_images"] == 12
    assert {"noise", "labels"} & record["inputs"].keys() == {flag[2:] for flag in flags if flag.startswith("--")}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", ">i8", "uint64"])
def test_labels_may_be_whole_numbers_of_any_kind(dtype: str) -> None:
    project()
    np.save("mine.npy", np.array([2, 2, 0], dtype))
    done("sample", "--labels", "mine.npy")
    assert read_json(Path("samples/labels.json")) == [2, 2, 0]


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64"])
def test_noise_may_be_floats_of_any_kind(dtype: str) -> None:
    project()
    noise = np.load("z.npy").astype("float16")
    np.save("half.npy", noise.astype("float32"))
    np.save("mine.npy", noise.astype(dtype))
    for name in ("half", "mine"):
        done("sample", "--noise", f"{name}.npy", "--latents-out", f"{name}-latents.npy")
    assert np.array_equal(np.load("half-latents.npy"), np.load("mine-latents.npy"))


def test_the_images_are_the_latents_decoded() -> None:
    settings = project()
    done("sample", "--noise", "z.npy", "--labels", "y.npy")
    assert done("sample", "--noise", "z.npy", "--labels", "y.npy", "--latents-out", "x/y/latents.npy").out.split() == [
        *("latents", "12", "x", "7", "x", "2", "x", "2", "file", "x/y/latents.npy")
    ]
    vae, _ = load_texture_vae(settings.paths.texture_vae)
    latents = torch.from_numpy(np.load("x/y/latents.npy"))
    with torch.inference_mode():
        decoded = (vae.decode(latents[:, :4] * 0.9 + 0.1).clamp(-1, 1) + 1) * 127.5
    assert np.abs(images(Path("samples")) - decoded.permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_the_batch_size_does_not_matter_for_given_noise(solver: str) -> None:
    project(solver=solver)
    for size in (1, 5, 64):
        flags = ("--noise", "z.npy", "--batch-size", size)
        done("sample", *flags, "--latents-out", f"{size}.npy")
        done("sample", *flags, "--samples", f"samples-{size}")
    for size in (1, 5):
        assert np.abs(np.load(f"{size}.npy") - np.load("64.npy")).max() < 1e-5
        assert np.abs(images(Path(f"samples-{size}")) - images(Path("samples-64"))).max() <= 1
    assert "up to date" in done("sample", "--noise", "z.npy", "--samples", "samples-5", "--batch-size", 7).err


def test_an_interrupted_run_goes_on_from_the_same_files(here: Path) -> None:
    project()
    done("sample", "--noise", "z.npy", "--labels", "y.npy")
    folder = Path("samples")
    before = files_below(folder)
    record = read_json(folder / "settings.json")
    write_json(folder / "settings.json", record | {"complete": False})
    kept = (folder / "000004.png").stat().st_mtime_ns
    for name in ("000003.png", "000011.png", "samples.npz"):
        (folder / name).unlink()
    said = done("sample", "--noise", "z.npy", "--labels", "y.npy").err
    assert "starting afresh" not in said
    assert files_below(folder) == before
    assert (folder / "000004.png").stat().st_mtime_ns == kept


def test_other_noise_puts_the_samples_aside_and_the_same_noise_elsewhere_does_not() -> None:
    project()
    done("sample", "--noise", "z.npy")
    before = files_below(Path("samples"))
    shutil.move("z.npy", "elsewhere.npy")
    assert "up to date" in done("sample", "--noise", "elsewhere.npy").err
    np.save("other.npy", np.load("elsewhere.npy")[:5] * 1.01)
    said = done("sample", "--noise", "other.npy").err
    assert "starting afresh" in said
    (aside,) = Path().glob("samples.*")
    assert files_below(aside) == before
    assert len(list(Path("samples").glob("*.png"))) == 5, "nothing of both mixed"


@pytest.mark.parametrize("unused", [("--seed", 3), ("--num-images", 3), ("--classes", "1")])
def test_settings_that_files_stand_for_do_not_make_finished_samples_stale(unused: tuple[Any, ...]) -> None:
    project()
    done("sample", "--noise", "z.npy", "--labels", "y.npy")
    assert "up to date" in done("sample", "--noise", "z.npy", "--labels", "y.npy", *unused).err


# Forked from a server that has imported the heavy libraries once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sfd_cli.stages.sample", "diffusers.models.autoencoders.autoencoder_kl"])


def run_alone(folder: str, arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    raise SystemExit(sfd(*arguments).code)


def run_together(*arguments: Any, slurm: bool = False) -> list[int]:
    """Exit codes of the command in two processes, as torchrun or `srun` starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    worlds = [
        step | {"MASTER_PORT": port, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        if slurm
        else meeting | {"WORLD_SIZE": "2", "RANK": str(rank)}
        for rank in range(2)
    ]
    started = [PROCESSES.Process(target=run_alone, args=(os.getcwd(), arguments, world)) for world in worlds]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


@pytest.mark.parametrize("slurm", [False, True])
def test_two_processes_write_the_latents_that_one_writes(slurm: bool) -> None:
    project(batch_size=2)
    command = ("sample", "--noise", "z.npy", "--labels", "y.npy", "--latents-out")
    done(*command, "one.npy")
    assert run_together(*command, "two.npy", slurm=slurm) == [0, 0]
    assert Path("one.npy").read_bytes() == Path("two.npy").read_bytes()
    assert not list(Path().glob(".*.tmp"))


def test_two_processes_end_together_on_a_mistake_and_leave_finished_samples_alone() -> None:
    project()
    done("sample")
    np.save("y.npy", np.array([0, 3]))
    before = files_below(Path())
    assert run_together("sample", "--labels", "y.npy") == [2, 2]
    assert files_below(Path()) == before


# The stages after it


def test_the_report_says_why_the_way_from_given_noise_is_not_shown() -> None:
    write_training_images(project())
    done("sample", "--noise", "z.npy")
    assert "fd_dinov2" in done("fid").out
    said = done("report").err
    assert "file of noise" in said
    page = Path("reports/index.html").read_text()
    assert "file of noise" in page
    assert not Path("reports/trajectory.png").exists()


def test_the_report_shows_the_way_of_samples_with_given_labels_and_of_reference_checkpoints() -> None:
    project()
    np.save("y.npy", np.array([2, 1, 1, 0, 2]))
    done("sample", "--labels", "y.npy")
    assert "not on the page: There are no scores" in done("report").err
    assert Path("reports/trajectory.png").exists()
    save_published()
    published = ("--texture-vae", "vae.ckpt", *STATISTICS, "--samples", "published")
    done("sample", "--checkpoint", "dit.pt", *published, *FEW)
    done("report", "--dit", "dit.pt", *published, "--reports", "reports-published")
    assert Path("reports-published/trajectory.png").exists()
    assert images(Path("samples"), 5).shape == (5, SIDE, SIDE, 3)
