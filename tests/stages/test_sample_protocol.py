"""`sfd sample` by named protocols and by the SDE: what each image depends on, what is recorded, what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from tiny_project import tiny_settings, write_models

from sfd_cli.config import Sample, Settings
from sfd_cli.diffusion import dormand_prince
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import read_json
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import initial_noise, random_labels, step_noise
from sfd_cli.stages import sample as stage

SDE = {"solver": "euler_maruyama", "steps": 6}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = tiny_settings(tmp_path_factory.mktemp("project"))
    write_models(settings)
    return settings


def by(project: Settings, folder: Path, **sample: Any) -> Settings:
    """The project with other settings of `sample`, and another folder for samples."""
    given = {"delta_t": 0.3, "num_images": 8, "batch_size": 4} | sample
    paths = project.paths.model_copy(update={"samples": folder, "metrics": folder.with_name(f"{folder.name}-metrics")})
    return project.model_copy(update={"sample": Sample.model_validate(given), "paths": paths})


def loaded(project: Settings, **sample: Any) -> Sampler:
    settings = by(project, Path("nowhere"), **sample)
    return SamplingModels.open(settings).load(settings.sample, torch.device("cpu"))


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]).astype(int)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_image_by_the_sde_depends_on_seed_and_index_alone(project: Settings, tmp_path: Path) -> None:
    found = {}
    for count, batch_size in ((8, 8), (8, 3), (5, 3)):
        folder = tmp_path / f"{count}-{batch_size}"
        stage.run(by(project, folder, num_images=count, batch_size=batch_size, **SDE))
        found[count, batch_size] = images(folder)
    assert np.array_equal(found[5, 3], found[8, 3][:5])
    assert np.abs(found[8, 8] - found[8, 3]).max() <= 1, "but for the rounding of a grey level"
    stage.run(by(project, tmp_path / "other", seed=1, batch_size=8, **SDE))
    assert np.abs(images(tmp_path / "other") - found[8, 8]).max() > 1


def test_an_interrupted_run_by_the_sde_goes_on_to_the_same_bytes(project: Settings, tmp_path: Path) -> None:
    settings = by(project, tmp_path / "samples", **SDE)
    stage.run(settings)
    whole = contents(settings.paths.samples)
    for name in ("000001.png", "000006.png", "samples.npz"):
        (settings.paths.samples / name).unlink()
    stage.run(settings)
    assert contents(settings.paths.samples) == whole


def test_noise_of_a_file_takes_the_place_of_the_start_alone(project: Settings, tmp_path: Path) -> None:
    """What is drawn on the way is the seed's whatever the start: so the own start from a file changes nothing."""
    np.save(tmp_path / "own.npy", initial_noise(0, range(8), (7, 2, 2)).numpy())
    stage.run(by(project, tmp_path / "seed", **SDE))
    settings = by(project, tmp_path / "file", **SDE)
    stage.run(settings, noise=tmp_path / "own.npy")
    assert np.array_equal(images(tmp_path / "file"), images(tmp_path / "seed"))
    before = contents(tmp_path / "file")["samples.npz"]
    stage.run(by(project, tmp_path / "file", seed=1, **SDE), noise=tmp_path / "own.npy")
    assert contents(tmp_path / "file")["samples.npz"] != before, "another seed is another recipe"


@pytest.mark.parametrize(
    ("sample", "labels", "follows_seed"),
    [
        ({}, False, False),
        ({"class_labels": "random"}, False, True),
        ({"class_labels": "random"}, True, False),
        (SDE, True, True),
    ],
)
def test_the_seed_is_of_the_recipe_where_images_hang_on_it(
    sample: dict[str, Any],
    labels: bool,
    follows_seed: bool,
    project: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"noise": tmp_path / "z.npy"} | ({"labels": tmp_path / "y.npy"} if labels else {})
    np.save(tmp_path / "z.npy", initial_noise(0, range(4), (7, 2, 2)).numpy())
    np.save(tmp_path / "y.npy", np.array([2, 1, 0, 0]))
    for seed in (0, 1):
        stage.run(by(project, tmp_path / "samples", seed=seed, **sample), **files)
    assert ("up to date" in capsys.readouterr().err) != follows_seed
    protocol = read_json(tmp_path / "samples" / "settings.json")["facts"]["protocol"]
    assert protocol["class_labels"] == ("given" if labels else sample.get("class_labels", "balanced"))


def test_noise_of_steps_is_what_an_images_generator_draws_after_its_start() -> None:
    draw = step_noise(5, [3, 0], (7, 2, 2))
    first, second = draw(), draw()
    generator = SampleInputs(5, None, 1)
    assert not torch.equal(first, generator.noise_of([3, 0], (7, 2, 2)))
    alone = step_noise(5, [0], (7, 2, 2))
    assert torch.equal(alone()[0], first[1])
    assert torch.equal(alone()[0], second[1])
    many = torch.stack([draw() for _ in range(500)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
    assert abs((many[1:] * many[:-1]).mean()) < 0.02, "steps are independent"
    assert abs((many[:, 0] * many[:, 1]).mean()) < 0.02, "images are independent"


def test_random_labels_depend_on_seed_and_index_alone_and_are_uniform() -> None:
    classes = [4, 7, 9]
    labels = random_labels(0, range(3000), classes)
    assert labels.dtype == torch.int64
    assert random_labels(0, [17, 2], classes).tolist() == labels[[17, 2]].tolist()
    counts = np.array([int((labels == one).sum()) for one in classes])
    assert counts.sum() == 3000
    assert ((counts - 1000) ** 2 / 1000).sum() < 13.8, "chi-squared of two degrees at 0.001"
    assert len(set(counts.tolist())) > 1, "they are not balanced"
    assert not torch.equal(random_labels(1, range(3000), classes), labels)
    pairs = torch.stack((labels[:-1], labels[1:])).double()
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.06


def test_samples_of_random_labels_say_which_they_got(project: Settings, tmp_path: Path) -> None:
    stage.run(by(project, tmp_path / "samples", class_labels="random", steps=2))
    found = read_json(tmp_path / "samples" / "labels.json")
    assert found == random_labels(0, range(8), range(3)).tolist() != [index % 3 for index in range(8)]


def test_truncated_pixels_are_the_levels_below(project: Settings) -> None:
    latents = torch.randn((6, 7, 2, 2), generator=torch.Generator().manual_seed(0))
    rounded, below = (loaded(project, to_uint8=how).decode(latents).int() for how in ("round", "truncate"))
    sampler = loaded(project)
    vae = sampler.require_texture_vae()
    with torch.inference_mode():
        exact = (vae.decode(sampler.space.split(latents).texture).clamp(-1, 1).double() + 1) * 127.5
    assert torch.equal(below, exact.float().floor().int())
    assert torch.equal(rounded, exact.float().round().int())
    assert set((rounded - below).unique().tolist()) == {0, 1}


def test_guided_channels_are_the_first_ones_of_both_streams(project: Settings) -> None:
    noise, labels = initial_noise(0, range(3), (7, 2, 2)), torch.tensor([0, 1, 2])

    def step(**sample: Any) -> torch.Tensor:
        """What one Euler step of both streams comes to."""
        chosen = {"solver": "euler", "steps": 1, "delta_t": 0.0, "guidance": "cfg", "scale": 3.0} | sample
        return loaded(project, **chosen).solve(noise, labels)

    plain, guided = step(guidance="none"), step()
    assert (guided - plain).abs().amin(dim=(0, 2, 3)).min() > 0
    for channels in (1, 3, 4, 6):
        found = step(guidance_channels=channels)
        assert torch.allclose(found[:, :channels], guided[:, :channels], atol=1e-6)
        assert torch.allclose(found[:, channels:], plain[:, channels:], atol=1e-6)
    assert torch.allclose(step(guidance_channels=7), guided, atol=1e-6)


def test_a_tolerance_that_no_step_keeps_ends_with_a_sentence(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = loaded(project, solver="dopri5", rtol=1e-9)
    monkeypatch.setattr(dormand_prince, "_error_ratio", lambda *_: 1e9)
    monkeypatch.setattr(dormand_prince, "_next_step", lambda *_: 0.0)
    with refusal("sample.solver", "dopri5", "1e-09", kind=StageFailure):
        sampler.latents(SampleInputs.open(sampler.sample), [0])


def test_images_that_share_dopri5s_steps_are_as_many_as_asked_for(project: Settings) -> None:
    assert loaded(project, solver="dopri5", batch_size=64).batch_size == 16
    assert loaded(project, solver="dopri5", batch_size=64, images_at_once=4).batch_size == 4
    assert loaded(project, solver="ab3", batch_size=64, images_at_once=4).batch_size == 64
    assert loaded(project, protocol="sfd").batch_size == 4
    inputs = SampleInputs(0, None, 6)

    def latents(**sample: Any) -> torch.Tensor:
        sampler = loaded(project, solver="dopri5", rtol=1e-2, atol=1e-2, **sample)
        return torch.cat([part for _, part in sampler.latent_batches(inputs, range(6))])

    sampler = loaded(project, solver="dopri5", rtol=1e-2, atol=1e-2)
    by_hand = torch.cat([sampler.latents(inputs, range(first, first + 2)) for first in (0, 2, 4)])
    assert torch.equal(latents(images_at_once=2), by_hand)
    assert not torch.equal(latents(images_at_once=3), by_hand), "the others of the group decide as well"


@pytest.mark.parametrize("protocol", ["sfd", "lightningdit", "sit", "repa", "redi"])
def test_a_protocol_runs_as_a_stage_and_its_record_stands_beside_the_samples(
    protocol: str, project: Settings, tmp_path: Path
) -> None:
    few = {} if protocol == "sfd" else {"steps": 5}
    stage.run(by(project, tmp_path / "samples", protocol=protocol, guidance="cfg", scale=1.5, num_images=4, **few))
    record = read_json(tmp_path / "samples" / "settings.json")
    resolved, settings = record["facts"]["protocol"], record["settings"]
    assert (settings["protocol"], settings["device"], settings["torch"]) == (protocol, "cpu", version("torch"))
    expected = {
        "sfd": {"class_labels": "balanced", "solver": "dopri5", "images_at_once": 4, "time_grid": "one-span"}
        | {"guidance_channels": "all", "rtol": 1e-3},
        "lightningdit": {"solver": "euler", "shift": 0.3, "guidance_channels": 3, "interval_start": 0.125},
        "sit": {"class_labels": "random", "solver": "euler_maruyama", "last_step": 0.04, "guidance_channels": 3},
        "repa": {"to_uint8": "truncate", "interval_start": 0.3, "interval_end": 1.0, "guidance_channels": "all"},
        "redi": {"to_uint8": "round", "scale_texture": 1.5, "scale_semantic": 1.0, "guidance_channels": "all"},
    }[protocol]
    assert {key: resolved[key] for key in expected} == expected
    assert resolved["precision"] == "fp32"
    assert ("steps" in resolved) == (protocol != "sfd")
    assert ("last_step" in resolved) == (resolved["solver"] == "euler_maruyama")
    assert ("rtol" in resolved) == (resolved["solver"] == "dopri5")


def test_the_name_of_a_protocol_decides_nothing_beside_its_settings(
    project: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(by(project, tmp_path / "samples", protocol="sfd", num_images=2))
    capsys.readouterr()
    own = {"solver": "dopri5", "time_grid": "one-span", "images_at_once": 4}
    stage.run(by(project, tmp_path / "samples", num_images=2, **own))
    assert "up to date" in capsys.readouterr().err
    stage.run(by(project, tmp_path / "samples", num_images=2, **own | {"images_at_once": 16}))
    assert "images_at_once 4 -> unset" in capsys.readouterr().err, (
        "which is how it was recorded before it was a setting"
    )


@pytest.mark.parametrize(
    ("sample", "subject", "named"),
    [
        ({"protocol": "sit", "guidance": "cfg", "guidance_channels": 8}, "sample.guidance_channels", ("8", "7")),
        ({"protocol": "repa", "time_grid": "one-span"}, "sample.time_grid", ("euler_maruyama", "phases")),
    ],
)
def test_a_protocol_that_the_model_cannot_follow_is_refused_before_anything_is_written(
    sample: dict[str, Any], subject: str, named: tuple[str, ...], project: Settings, tmp_path: Path
) -> None:
    with refusal(subject, *named):
        stage.run(by(project, tmp_path / "samples", **sample))
    assert not (tmp_path / "samples").exists()


def test_three_guided_channels_of_two_are_refused_by_the_protocols_name() -> None:
    config = LightningDiTConfig(in_channels=2, semantic_channels=0, grid=2, num_classes=3, width=8, depth=1, heads=1)
    network = LightningDiT(config)
    two_channels = Sampler(network, Sample(delta_t=0.0), config.space, config.conditions, name="small")
    for protocol in ("sit", "lightningdit"):
        with refusal("sample.guidance_channels", "3 channels", f"protocol {protocol}", "2 of small", kind=UserError):
            replace(two_channels, sample=Sample(protocol=protocol, guidance="cfg", delta_t=0.0))
    replace(two_channels, sample=Sample(protocol="sit", delta_t=0.0))  # without guidance there is nothing to follow


def test_a_scale_for_three_channels_is_not_warned_of_where_three_are_guided(
    project: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run(by(project, tmp_path / "samples", guidance="cfg", scale=6.7, guidance_channels=3, steps=2))
    assert "three channels" not in capsys.readouterr().err
