"""Mistakes at the command line: one sentence that says what, where and what to do, exit code 2, and nothing written."""

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
    refused,
    statistics,
    training_checkpoint,
)
from reference_files import contents, part

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

CHECKPOINTS = {
    "cut": ("cut.pt is damaged or truncated", "fetch or copy it again"),
    "empty": ("empty.pt is damaged or truncated", "fetch or copy it again"),
    "semvae": ("semvae.pt holds a SemanticVAE, but a LightningDiT is wanted", "check the path"),
    "texture": ("texture.pt holds a LatentStatistics, but a LightningDiT is wanted", "check the path"),
    "code": ("code.pt asks for posix.system, which is code and not data", "torch.save(model.state_dict()"),
    "missing": ("missing.pt: ", f"does not fit a LightningDiT: {QKV} is missing"),
    "extra": ("extra.pt: ", "blocks.1.attn.gate is unknown"),
    "shape": ("shape.pt: ", f"{QKV} is (2, 3) instead of (192, 64)"),
    "list": ("list.pt holds a list, not weights by name", "save its state_dict()"),
    "nowhere": ("nowhere.pt does not exist, and is no name in `sfd weights list`", "check it"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("flags", [LATENTS, IMAGES])
def test_a_checkpoint_that_will_not_do(name: str, flags: tuple[Any, ...]) -> None:
    sentence = refused("sample", "--checkpoint", f"{name}.pt", *flags)
    assert all(words in sentence for words in CHECKPOINTS[name])
    assert not Path("executed").exists()


SAMPLING: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("dit.pt", *IMAGES, "--texture-vae", "semvae.pt"): ("semvae.pt holds a SemanticVAE, but a TextureVAE is wanted",),
    ("dit.pt", *IMAGES, "--texture-vae", "away.ckpt"): ("away.ckpt does not exist",),
    ("dit.pt", *IMAGES, "--texture-vae", "vae6.ckpt"): (
        "dit.pt makes 8 texture channels, but the texture VAE decodes 6",
    ),
    ("dit.pt", *IMAGES, TOLD[0], "six.pt"): ("dit.pt has no latent statistics for 12 channels, only for 10",),
    ("dit.pt", *IMAGES, TOLD[2], "six.pt"): ("dit.pt has no latent statistics for 12 channels, only for 14",),
    ("dit.pt", *IMAGES, TOLD[0], "dit.pt"): ("dit.pt holds a LightningDiT, but a LatentStatistics is wanted",),
    ("dit.pt", *IMAGES, TOLD[0], "away.pt"): ("away.pt does not exist",),
    ("dit.pt", "--texture-vae", "vae.ckpt", "--foreign-semantic-channels", 4, *ALONE): (
        "dit.pt has no latent statistics for 12 channels, and",
        "--foreign-texture-statistics and --foreign-semantic-statistics",
    ),
    ("dit.pt", "--latents-out", "x.npy"): ("dit.pt: ", "give `semantic_channels` (--foreign-semantic-channels"),
    ("plain.pt", "--latents-out", "x.npy", "--delta-t", 0): ("plain.pt: ", "give `heads` (--foreign-heads"),
    ("plain.pt", "--latents-out", "x.npy", "--delta-t", 0, "--foreign-heads", 7): (
        "width 64 must be divisible by",
        "7",
    ),
    ("dit.pt", "--latents-out", "x.npy", "--foreign-semantic-channels", 40): ("40 of the checkpoint's 12 channels",),
    ("ema.pt", *LATENTS, "--weights", "model"): ("ema.pt holds no 'model' weights, only ema", "--weights ema"),
    ("sync.pt", *LATENTS[2:], "--delta-t", 0.3): ("sync.pt has no semantic channels", "use 0"),
    ("sync.pt", *LATENTS, "--delta-t", 0.3): ("sync.pt has one time for both streams", "use 0"),
    ("dit.pt", *LATENTS, *AUTO, "plain.pt", "--foreign-guide-heads", 4): (
        "plain.pt cannot guide dit.pt: its grid is 8",
    ),
    ("dit.pt", *LATENTS, *AUTO, "sync.pt"): ("sync.pt has one time for both streams", "delta_t 0 only"),
    ("dit.pt", *LATENTS, *AUTO, "away.pt"): ("away.pt does not exist",),
    ("dit.pt", *LATENTS[:2], "--latents-out", "z.npy"): ("z.npy exists already", "give another name"),
    ("dit.pt", *LATENTS[:2], "--latents-out", "x.npz"): ("--latents-out: x.npz must end in .npy",),
    ("dit.pt", *LATENTS[:2], "--latents-out", "z.npy/x.npy"): ("z.npy", "Not a directory", "give another path"),
    ("dit.pt", *LATENTS, "--classes", "0,10"): ("sample.classes: [10] will not do", "classes 0 to 9"),
    ("dit.pt", *IMAGES, "--classes", "-1"): ("sample.classes: [-1] will not do", "classes 0 to 9"),
}


@pytest.mark.parametrize("arguments", SAMPLING, ids=lambda arguments: " ".join(map(str, arguments))[:80])
def test_models_and_flags_that_do_not_fit(arguments: tuple[Any, ...]) -> None:
    sentence = refused("sample", "--checkpoint", *arguments)
    assert all(words in sentence for words in SAMPLING[arguments])


ARRAYS = {
    ("--labels", "high.npy"): "[10] will not do; the network knows classes 0 to 9",
    ("--labels", "negative.npy"): "[-1] will not do; the network knows classes 0 to 9",
    ("--labels", "floats.npy"): "floats.npy is float64 of shape (3,); expected whole numbers of shape (N,)",
    ("--labels", "column.npy"): "column.npy is int64 of shape (3, 1); expected whole numbers of shape (N,)",
    ("--labels", "unlabelled.npy"): "unlabelled.npy is empty; give at least one image",
    ("--labels", "z.npy"): "z.npy is float32 of shape (3, 12, 4, 4); expected whole numbers",
    ("--labels", "away.npy"): "away.npy does not exist",
    ("--noise", "small.npy"): "shape (3, 12, 3, 3), but the network takes (N, 12, 4, 4)",
    ("--noise", "flat.npy"): "flat.npy is float32 of shape (12, 4, 4); expected floats of shape (N, C, h, w)",
    ("--noise", "integers.npy"): "integers.npy is int64 of shape (3, 12, 4, 4); expected floats",
    ("--noise", "nan.npy"): "image 1 is not finite in float32; give standard normal noise",
    ("--noise", "huge.npy"): "image 0 is not finite in float32; give standard normal noise",
    ("--noise", "none.npy"): "none.npy is empty; give at least one image",
    ("--noise", "objects.npy"): "objects.npy is not a whole .npy file of numbers; write it with numpy.save",
    ("--noise", "cut.npy"): "cut.npy is not a whole .npy file of numbers; write it with numpy.save",
    ("--noise", "cut.npz"): "cut.npz is not a whole .npy file of numbers; write it with numpy.save",
    ("--noise", "text.npy"): "text.npy is not a whole .npy file of numbers; write it with numpy.save",
    ("--noise", "z.npz"): "z.npz is an archive of arrays; give one array, saved with numpy.save",
    ("--noise", "z.npy", "--labels", "two.npy"): "2 labels for 3 images of noise; give as many",
}


@pytest.mark.parametrize("given", ARRAYS, ids=" ".join)
@pytest.mark.parametrize("flags", [LATENTS, IMAGES])
def test_noise_and_labels_that_will_not_do(given: tuple[str, ...], flags: tuple[Any, ...]) -> None:
    assert ARRAYS[given] in refused("sample", "--checkpoint", "dit.pt", *flags, *given)


IMPORTS: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("cut.pt", "out"): ("cut.pt is damaged or truncated",),
    ("code.pt", "out"): ("code.pt asks for posix.system",),
    ("missing.pt", "out", "--semantic-channels", 4): ("missing.pt: ", f"{QKV} is missing"),
    ("extra.pt", "out", "--semantic-channels", 4): ("extra.pt: ", "gate is unknown"),
    ("dit.pt", "out", "--semantic-channels", 4, "--heads", 3): ("dit.pt: --heads 3, but", "q/k norms are of 4 heads"),
    ("dit.pt", "out", "--semantic-channels", 3, "--semantic-statistics", "semantic.pt"): (
        "dit.pt: --semantic-channels 3, but the statistics are of 4",
    ),
    ("sync.pt", "out", "--delta-t", 0.5): ("sync.pt: --delta-t 0.5, but it has one time for both streams",),
    ("plain.pt", "out", "--heads", 4, "--repa-depth", 2): ("plain.pt: --repa-depth 2, but it has no REPA projector",),
    ("vae.ckpt", "out", "--heads", 3): ("vae.ckpt holds a TextureVAE, for which --heads can do nothing", "leave it"),
    ("semvae.pt", "out", "--heads", 4, "--delta-t", 0): ("semvae.pt holds a SemanticVAE, for which --delta-t can do",),
    ("vae.ckpt", "out", "--num-classes", 3, "--encoder", "x"): (
        "vae.ckpt is no folder of latent shards, for which --encoder and --num-classes can do nothing",
    ),
    ("away.pt", "out"): ("away.pt is no file, no folder and no name in `sfd weights list`",),
    ("folder", "out"): ("folder is no folder of diffusers",),
    ("semvae.pt", "out"): ("semvae.pt: ", "give `heads` (--heads of `sfd weights import`)"),
    ("semvae.pt", "out", "--heads", 7): ("semvae.pt: 7 heads do not divide",),
    ("plain.pt", "out"): ("plain.pt: ", "give `heads` (", "--heads of `sfd weights import`"),
    ("dit.pt", "out"): ("dit.pt: ", "--semantic-channels of `sfd weights import`"),
    ("adm_imagenet256", "out"): ("adm_imagenet256 is a file for metrics, but a transformer or ",),
    ("vae.ckpt", "folder"): ("folder exists already", "give another name"),
    ("vae.ckpt", "z.npy"): ("z.npy exists already", "give another name"),
    ("vae.ckpt", "z.npy/out"): ("z.npy", "Not a directory", "give another path"),
    ("vae.ckpt", "out", "--texture-statistics", "texture.pt"): ("vae.ckpt holds a TextureVAE", "only a transformer"),
    ("dit.pt", "out", "--semantic-statistics", "semantic.pt", "--texture-statistics", "six.pt"): (
        "the latent statistics are of 10 channels, but the transformer has 12",
    ),
}


@pytest.mark.parametrize("arguments", IMPORTS, ids=lambda arguments: " ".join(map(str, arguments)))
def test_files_that_cannot_be_imported(arguments: tuple[Any, ...]) -> None:
    sentence = refused("weights", "import", *arguments)
    assert all(words in sentence for words in IMPORTS[arguments])
    assert not Path("executed").exists()


OTHERS: dict[tuple[Any, ...], tuple[str, ...]] = {
    ("weights", "export", "folder", "out.pt"): ("folder holds no whole model",),
    ("weights", "export", "away", "out.pt"): ("away does not exist",),
    ("weights", "export", "dit.pt", "out.pt"): ("dit.pt is a file; give the model folder or latent store",),
    ("weights", "info", "sfd_x"): ("no published weights are called 'sfd_x'; did you mean 'sfd_xl'?",),
    ("weights", "verify", "sfd_x"): ("no published weights are called 'sfd_x'; did you mean 'sfd_xl'?",),
    ("preset", "use", "imagenet256-x"): ("no preset is called 'imagenet256-x'; did you mean 'imagenet256-xl'?",),
    ("preset", "show", "zzz"): ("no preset is called 'zzz'; known: demo, ",),
    ("preset", "use", "demo", "--images", "folder"): ("--images: the preset 'demo' brings its own images",),
    ("preset", "use", "imagenet256-xl", "--images", "away"): ("--images: away is not a folder; give one with",),
    ("preset", "use", "imagenet256-xl", "--images", "z.npy"): ("--images: z.npy is not a folder; give one with",),
    ("preset", "use", "demo", "--params", "folder"): ("folder cannot be used (Is a directory)",),
}


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_other_commands(arguments: tuple[Any, ...]) -> None:
    sentence = refused(*arguments)
    assert all(words in sentence for words in OTHERS[arguments])


@pytest.mark.parametrize(
    "mistake",
    [
        ("--labels", "high.npy"),
        ("--noise", "small.npy"),
        ("--checkpoint", "semvae.pt"),
        ("--checkpoint", "shape.pt"),
        ("--texture-vae", "vae6.ckpt"),
        (TOLD[0], "six.pt"),
        ("--classes", "77"),
        (*AUTO, "plain.pt", "--foreign-guide-heads", "4"),
    ],
    ids=" ".join,
)
def test_a_mistake_leaves_finished_samples_where_they_are(
    mistake: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, files: Path
) -> None:
    samples = tmp_path_factory.getbasetemp() / "finished" / "samples"
    command = ("sample", "--checkpoint", "dit.pt", *IMAGES, "--samples", samples)
    done(*command)
    before = files_below(samples.parent)
    assert {"samples/settings.json", "samples/000001.png"} <= before.keys()
    refused(*command, *mistake)
    assert files_below(samples.parent) == before
    assert "up to date" in done(*command).err


def test_a_folder_imported_without_statistics_or_last_weights_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = done("weights", "import", files / "ema.pt", "ours", "--semantic-channels", 4).err
    assert "no latent statistics were given" in said
    images = ("--texture-vae", files / "vae.ckpt", "--num-images", 2, *ALONE)
    sentence = refused("sample", "--checkpoint", "ours", *images)
    assert "ours has no latent statistics for 12 channels" in sentence
    assert "--texture-statistics and --semantic-statistics of `sfd weights import`" in sentence
    for output in (images, ("--latents-out", "x.npy")):
        sentence = refused("sample", "--checkpoint", "ours", "--weights", "model", *output)
        assert "ours/model.safetensors does not exist (weights present: ema)" in sentence
