"""Mistakes at the command line: an error that names what, where and what to do, exit code 2, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import (
    done,
    ema_checkpoint,
    files_below,
    ldm_checkpoint,
    refusal_of,
    statistics,
    training_checkpoint,
)
from reference_files import contents, part
from refusals import require_refusal

QKV = "blocks.1.attn.qkv.weight"


class Code:
    """Pickles into a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def save_models(folder: Path) -> None:
    """Files that are right, and files that are wrong, each in one way."""
    training_checkpoint(folder / "dit.pt")
    ema_checkpoint(folder / "ema.pt")
    ema_checkpoint(folder / "sync.pt", "sync")
    ema_checkpoint(folder / "plain.pt", "plain")
    ldm_checkpoint(folder / "vae.ckpt")
    ldm_checkpoint(folder / "vae6.ckpt", 6)
    for name, channels in (("texture", 8), ("semantic", 4), ("six", 6)):
        statistics(folder / f"{name}.pt", channels)
    weights = part("dit_sfd", "model.")
    torch.save({"model_state_dict": part("semvae", "model."), "input_dim": 48}, folder / "semvae.pt")
    torch.save({"ema": weights, "callback": Code()}, folder / "code.pt")
    torch.save({"ema": {key: value for key, value in weights.items() if key != QKV}}, folder / "missing.pt")
    torch.save({"ema": weights | {"blocks.1.attn.gate": torch.ones(2)}}, folder / "extra.pt")
    torch.save({"ema": weights | {QKV: torch.ones(2, 3)}}, folder / "shape.pt")
    torch.save([1, 2], folder / "list.pt")
    (folder / "cut.pt").write_bytes((folder / "dit.pt").read_bytes()[:50_000])
    (folder / "empty.pt").touch()


def save_arrays(folder: Path) -> None:
    noise = contents("dit_sfd")["sample.noise"].numpy()
    not_a_number = noise.copy()
    not_a_number[1, 0, 0, 0] = np.nan
    arrays: dict[str, Any] = {
        "z": noise,
        "small": noise[..., :3, :3],
        "flat": noise[0],
        "integers": noise.astype(int),
        "nan": not_a_number,
        "huge": noise.astype(float) * 1e40,
        "none": noise[:0],
        "objects": np.array([noise, None], object),
        "y": contents("dit_sfd")["sample.y"].numpy(),
        "high": np.array([0, 10, 3]),
        "negative": np.array([0, -1, 3]),
        "floats": np.array([0.0, 1.0, 2.0]),
        "column": np.zeros((3, 1), int),
        "two": np.array([1, 2]),
        "unlabelled": np.zeros(0, int),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "z.npz", noise)
    (folder / "cut.npy").write_bytes((folder / "z.npy").read_bytes()[:1000])
    (folder / "cut.npz").write_bytes((folder / "z.npz").read_bytes()[:1000])
    (folder / "text.npy").write_text("0.1 0.2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_models(folder)
    save_arrays(folder)
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(autouse=True)
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("SFD_CACHE", str(files.with_name("cache")))


ALONE = ("--device", "cpu", "--steps", 2)
TOLD = ("--foreign-texture-statistics", "texture.pt", "--foreign-semantic-statistics", "semantic.pt")
LATENTS = ("--foreign-semantic-channels", 4, "--latents-out", "x.npy", *ALONE)
IMAGES = ("--texture-vae", "vae.ckpt", *TOLD, "--num-images", 2, *ALONE)
AUTO = ("--guidance", "autoguidance", "--guide")


# By the file, whose name is the subject: what the error must name beside it.
CHECKPOINTS = {
    "cut": ("damaged", "copy it again"),
    "empty": ("damaged", "copy it again"),
    "semvae": ("SemanticVAE", "LightningDiT", "the path"),
    "texture": ("LatentStatistics", "LightningDiT", "the path"),
    "code": ("posix.system", "torch.save(model.state_dict()"),
    "missing": ("LightningDiT", f"{QKV} is missing"),
    "extra": ("LightningDiT", "blocks.1.attn.gate is unknown"),
    "shape": ("LightningDiT", f"{QKV} is (2, 3) instead of (192, 64)"),
    "list": ("a list", "state_dict()"),
    "nowhere": ("does not exist", "`sfd weights list`"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("flags", [LATENTS, IMAGES])
def test_a_checkpoint_that_will_not_do(name: str, flags: tuple[Any, ...]) -> None:
    require_refusal(refusal_of("sample", "--checkpoint", f"{name}.pt", *flags), f"{name}.pt", *CHECKPOINTS[name])
    assert not Path("executed").exists()


# Arguments after `sfd sample --checkpoint`: the subject, and what the error must name beside it.
SAMPLING: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("dit.pt", *IMAGES, "--texture-vae", "semvae.pt"): ("semvae.pt", "SemanticVAE", "TextureVAE"),
    ("dit.pt", *IMAGES, "--texture-vae", "away.ckpt"): ("away.ckpt", "does not exist"),
    ("dit.pt", *IMAGES, "--texture-vae", "vae6.ckpt"): ("paths.texture_vae", "decodes 6", "dit.pt makes 8"),
    ("dit.pt", *IMAGES, TOLD[0], "six.pt"): ("dit.pt", "10 channels", "12 channels", TOLD[0]),
    ("dit.pt", *IMAGES, TOLD[2], "six.pt"): ("dit.pt", "14 channels", "12 channels", TOLD[2]),
    ("dit.pt", *IMAGES, TOLD[0], "dit.pt"): ("dit.pt", "LightningDiT", "LatentStatistics"),
    ("dit.pt", *IMAGES, TOLD[0], "away.pt"): ("away.pt", "does not exist"),
    ("dit.pt", "--texture-vae", "vae.ckpt", "--foreign-semantic-channels", 4, *ALONE): (
        "dit.pt",
        "no latent statistics for 12 channels",
        "--foreign-texture-statistics and --foreign-semantic-statistics",
    ),
    ("dit.pt", "--latents-out", "x.npy"): ("dit.pt", "foreign.semantic_channels (--foreign-semantic-channels)"),
    ("plain.pt", "--latents-out", "x.npy", "--delta-t", 0): ("plain.pt", "foreign.heads (--foreign-heads)"),
    ("plain.pt", "--latents-out", "x.npy", "--delta-t", 0, "--foreign-heads", 7): ("plain.pt", "7 heads", "width 64"),
    ("dit.pt", "--latents-out", "x.npy", "--foreign-semantic-channels", 40): ("dit.pt", "12 channels", "40"),
    ("ema.pt", *LATENTS, "--weights", "model"): ("ema.pt", "model", "ema", "--weights"),
    ("sync.pt", *LATENTS[2:], "--delta-t", 0.3): ("sample.delta_t", "sync.pt has no semantic channels", "use 0"),
    ("sync.pt", *LATENTS, "--delta-t", 0.3): ("sample.delta_t", "sync.pt has one time", "use 0"),
    ("dit.pt", *LATENTS, *AUTO, "plain.pt", "--foreign-guide-heads", 4): ("plain.pt", "dit.pt", "grid 8 instead of 4"),
    ("dit.pt", *LATENTS, *AUTO, "sync.pt"): ("sample.delta_t", "sync.pt has one time", "use 0"),
    ("dit.pt", *LATENTS, *AUTO, "away.pt"): ("away.pt", "does not exist"),
    ("dit.pt", *LATENTS[:2], "--latents-out", "z.npy"): ("--latents-out", "z.npy exists", "another name"),
    ("dit.pt", *LATENTS[:2], "--latents-out", "x.npz"): ("--latents-out", "x.npz", ".npy"),
    ("dit.pt", *LATENTS[:2], "--latents-out", "z.npy/x.npy"): ("--latents-out", "z.npy is not a folder"),
    ("dit.pt", *LATENTS, "--classes", "0,10"): ("sample.classes", "[10]", "classes 0 to 9"),
    ("dit.pt", *IMAGES, "--classes", "-1"): ("sample.classes", "[-1]", "classes 0 to 9"),
}


@pytest.mark.parametrize("arguments", SAMPLING, ids=lambda arguments: " ".join(map(str, arguments))[:80])
def test_models_and_flags_that_do_not_fit(arguments: tuple[Any, ...]) -> None:
    require_refusal(refusal_of("sample", "--checkpoint", *arguments), *SAMPLING[arguments])


WRITE = "numpy.save"
ARRAYS = {
    ("--labels", "high.npy"): ("labels", "[10]", "classes 0 to 9"),
    ("--labels", "negative.npy"): ("labels", "[-1]", "classes 0 to 9"),
    ("--labels", "floats.npy"): ("floats.npy", "float64", "(3,)", "whole numbers of shape (N,)"),
    ("--labels", "column.npy"): ("column.npy", "int64", "(3, 1)", "whole numbers of shape (N,)"),
    ("--labels", "unlabelled.npy"): ("unlabelled.npy", "is empty", "at least one"),
    ("--labels", "z.npy"): ("z.npy", "float32", "(3, 12, 4, 4)", "whole numbers of shape (N,)"),
    ("--labels", "away.npy"): ("away.npy", "does not exist"),
    ("--noise", "small.npy"): ("noise", "(3, 12, 3, 3)", "(N, 12, 4, 4)"),
    ("--noise", "flat.npy"): ("flat.npy", "float32", "(12, 4, 4)", "floats of shape (N, C, h, w)"),
    ("--noise", "integers.npy"): ("integers.npy", "int64", "(3, 12, 4, 4)", "floats"),
    ("--noise", "nan.npy"): ("noise", "image 1", "float32", "standard normal"),
    ("--noise", "huge.npy"): ("noise", "image 0", "float32", "standard normal"),
    ("--noise", "none.npy"): ("none.npy", "is empty", "at least one"),
    ("--noise", "objects.npy"): ("objects.npy", "not a whole .npy", WRITE),
    ("--noise", "cut.npy"): ("cut.npy", "not a whole .npy", WRITE),
    ("--noise", "cut.npz"): ("cut.npz", "not a whole .npy", WRITE),
    ("--noise", "text.npy"): ("text.npy", "not a whole .npy", WRITE),
    ("--noise", "z.npz"): ("z.npz", "archive", "one array", WRITE),
    ("--noise", "z.npy", "--labels", "two.npy"): ("two.npy", "2 labels", "3 images"),
}


@pytest.mark.parametrize("given", ARRAYS, ids=" ".join)
@pytest.mark.parametrize("flags", [LATENTS, IMAGES])
def test_noise_and_labels_that_will_not_do(given: tuple[str, ...], flags: tuple[Any, ...]) -> None:
    require_refusal(refusal_of("sample", "--checkpoint", "dit.pt", *flags, *given), *ARRAYS[given])


IMPORTS: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("cut.pt", "out"): ("cut.pt", "damaged"),
    ("code.pt", "out"): ("code.pt", "posix.system"),
    ("missing.pt", "out", "--semantic-channels", 4): ("missing.pt", f"{QKV} is missing"),
    ("extra.pt", "out", "--semantic-channels", 4): ("extra.pt", "blocks.1.attn.gate is unknown"),
    ("dit.pt", "out", "--semantic-channels", 4, "--heads", 3): ("--heads", "is 3", "q/k norms", "4 heads", "dit.pt"),
    ("dit.pt", "out", "--semantic-channels", 3, "--semantic-statistics", "semantic.pt"): (
        "--semantic-channels",
        "is 3",
        "statistics are of 4",
        "dit.pt",
    ),
    ("sync.pt", "out", "--delta-t", 0.5): ("--delta-t", "is 0.5", "one time", "sync.pt"),
    ("plain.pt", "out", "--heads", 4, "--repa-depth", 2): ("--repa-depth", "is 2", "REPA projector", "plain.pt"),
    ("vae.ckpt", "out", "--heads", 3): ("--heads", "vae.ckpt", "TextureVAE", "leave it"),
    ("semvae.pt", "out", "--heads", 4, "--delta-t", 0): ("--delta-t", "semvae.pt", "SemanticVAE", "leave it"),
    ("vae.ckpt", "out", "--num-classes", 3, "--encoder", "x"): (
        "--encoder and --num-classes",
        "vae.ckpt",
        "latent shards",
    ),
    ("away.pt", "out"): ("away.pt", "no file, no folder", "`sfd weights list`"),
    ("folder", "out"): ("folder", "diffusers", "config.json"),
    ("semvae.pt", "out"): ("semvae.pt", "semvae.heads", "`sfd weights import --heads`"),
    ("semvae.pt", "out", "--heads", 7): ("semvae.pt", "7 heads", "width 64"),
    ("plain.pt", "out"): ("plain.pt", "foreign.heads", "`sfd weights import --heads`"),
    ("dit.pt", "out"): ("dit.pt", "`sfd weights import --semantic-channels`"),
    ("adm_imagenet256", "out"): ("adm_imagenet256", "metrics", "a transformer or ", "`sfd weights list`"),
    ("vae.ckpt", "folder"): ("folder", "exists already", "another name"),
    ("vae.ckpt", "z.npy"): ("z.npy", "exists already", "another name"),
    ("vae.ckpt", "z.npy/out"): ("z.npy/out/config.json", "Not a directory", "another path"),
    ("vae.ckpt", "out", "--texture-statistics", "texture.pt"): ("vae.ckpt", "TextureVAE", "only a transformer"),
    ("dit.pt", "out", "--semantic-statistics", "semantic.pt", "--texture-statistics", "six.pt"): (
        "dit.pt",
        "12 channels",
        "statistics are of 10",
    ),
}


@pytest.mark.parametrize("arguments", IMPORTS, ids=lambda arguments: " ".join(map(str, arguments)))
def test_files_that_cannot_be_imported(arguments: tuple[Any, ...]) -> None:
    require_refusal(refusal_of("weights", "import", *arguments), *IMPORTS[arguments])
    assert not Path("executed").exists()


OTHERS: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("weights", "export", "folder", "out.pt"): ("folder", "no whole model", "config.json"),
    ("weights", "export", "away", "out.pt"): ("away", "does not exist"),
    ("weights", "export", "dit.pt", "out.pt"): ("dit.pt", "is a file", "model folder or latent store"),
    ("weights", "info", "sfd_x"): ("sfd_x", "published weights", "did you mean 'sfd_xl'?"),
    ("weights", "verify", "sfd_x"): ("sfd_x", "published weights", "did you mean 'sfd_xl'?"),
    ("preset", "use", "imagenet256-x"): ("imagenet256-x", "preset", "did you mean 'imagenet256-xl'?"),
    ("preset", "show", "zzz"): ("zzz", "preset", "known: demo, "),
    ("preset", "use", "imagenet256-xl", "--images", "away"): ("--images", "away is no folder", "zip, tar, parquet"),
    ("preset", "use", "imagenet256-xl", "--images", "z.npy"): ("--images", "z.npy is no folder", "zip, tar, parquet"),
    ("preset", "use", "demo", "--params", "folder"): ("folder", "Is a directory"),
}


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_other_commands(arguments: tuple[Any, ...]) -> None:
    require_refusal(refusal_of(*arguments), *OTHERS[arguments])


@pytest.mark.parametrize(
    ("mistake", "subject"),
    [
        (("--labels", "high.npy"), "labels"),
        (("--noise", "small.npy"), "noise"),
        (("--checkpoint", "semvae.pt"), "semvae.pt"),
        (("--checkpoint", "shape.pt"), "shape.pt"),
        (("--texture-vae", "vae6.ckpt"), "paths.texture_vae"),
        ((TOLD[0], "six.pt"), "dit.pt"),
        (("--classes", "77"), "sample.classes"),
        ((*AUTO, "plain.pt", "--foreign-guide-heads", "4"), "plain.pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_leaves_finished_samples_where_they_are(
    mistake: tuple[str, ...], subject: str, tmp_path_factory: pytest.TempPathFactory, files: Path
) -> None:
    samples = tmp_path_factory.getbasetemp() / "finished" / "samples"
    command = ("sample", "--checkpoint", "dit.pt", *IMAGES, "--samples", samples)
    done(*command)
    before = files_below(samples.parent)
    assert {"samples/settings.json", "samples/000001.png"} <= before.keys()
    require_refusal(refusal_of(*command, *mistake), subject)
    assert files_below(samples.parent) == before
    assert "up to date" in done(*command).err


def test_a_folder_imported_without_statistics_or_last_weights_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no latent statistics" in done("weights", "import", files / "ema.pt", "ours", "--semantic-channels", 4).err
    images = ("--texture-vae", files / "vae.ckpt", "--num-images", 2, *ALONE)
    error = refusal_of("sample", "--checkpoint", "ours", *images)
    flags = "--texture-statistics and --semantic-statistics of `sfd weights import`"
    require_refusal(error, "ours", "no latent statistics for 12 channels", flags)
    for output in (images, ("--latents-out", "x.npy")):
        error = refusal_of("sample", "--checkpoint", "ours", "--weights", "model", *output)
        require_refusal(error, "ours", "model.safetensors", "weights present: ema", "--weights")
