"""The door to models: conversion into the cache, hints and fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, ema_checkpoint, ldm_checkpoint, refusal_of, statistics
from PIL import Image
from refusals import refusal
from tiny_project import tiny_settings, write_models
from torch import nn

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.config import Settings, validate_settings
from sfd_cli.files import fingerprint, read_json
from sfd_cli.formats.format import Hints, ModelParts
from sfd_cli.formats.model_folder import save_model
from sfd_cli.formats.reference_dit import dit_to_reference
from sfd_cli.formats.reference_semantic_vae import semantic_vae_to_reference
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.tables import COMPRESSORS
from sfd_cli.training.compressors import Compressor
from sfd_cli.weights import models
from sfd_cli.weights.models import open_dit, open_model, open_semantic
from sfd_cli.weights.registry import REGISTRY
from sfd_cli.weights.visual_encoders import encoder_file

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(**sections: dict[str, object]) -> Settings:
    return validate_settings(sections, "test")


def test_the_transformer_tells_how_the_latent_of_another_code_is_folded_whatever_params_yaml_says(here: Path) -> None:
    """The repository's params.yaml folds the demo's own texture VAE 2 x 2."""
    shutil.copy(REPOSITORY / "params.yaml", here)
    ema_checkpoint(here / "dit.pt")
    statistics(here / "a.pt", 8)
    statistics(here / "b.pt", 4)
    arguments = ["--checkpoint", "dit.pt", "--guidance", "none", "--num-images", 1, "--steps", 2]
    arguments += ["--foreign-texture-statistics", "a.pt", "--foreign-semantic-statistics", "b.pt"]
    for channels in (8, 2):  # as it is, and 2 x 2 folded
        vae = ldm_checkpoint(here / f"vae{channels}.ckpt", channels)
        done("sample", *arguments, "--texture-vae", vae, "--samples", f"samples{channels}")
    sides = [Image.open(here / f"samples{channels}" / "000000.png").size[0] for channels in (8, 2)]
    assert sides == [8, 16]


def semantic_vae(path: Path) -> SemanticVAE:
    torch.manual_seed(0)
    network = SemanticVAE(SemanticVAEConfig(feature_width=12, channels=3, width=16, depth=1, heads=2))
    torch.save({"model_state_dict": semantic_vae_to_reference(network.config, network.state_dict())}, path)
    return network


SEMVAE: dict[str, object] = {"width": 16, "depth": 1, "channels": 3, "heads": 2}


def test_hints_are_in_the_fingerprint_of_what_is_converted_by_them(here: Path) -> None:
    semantic_vae(here / "semvae.pt")
    prints = {
        open_semantic(settings_of(paths={"semvae": "semvae.pt"}, semvae=SEMVAE | {"heads": heads})).fingerprint
        for heads in (2, 4)
    }
    assert len(prints) == 2
    vae = ldm_checkpoint(here / "vae.ckpt", 2)
    prints = {open_model(vae, TextureVAE, Hints(space_to_depth=side)).fingerprint for side in (1, 2)}
    assert len(prints) == 2


def test_hints_that_change_nothing_leave_the_fingerprint_as_it_is(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    statistics(here / "a.pt", 8)
    statistics(here / "b.pt", 4)
    both: dict[str, object] = {"texture_statistics": "a.pt", "semantic_statistics": "b.pt"}
    plain = open_dit(settings_of(paths={"dit": "dit.pt"}, foreign=both)).fingerprint
    more = both | {"semantic_channels": 4, "delta_t": 0.3}
    assert open_dit(settings_of(paths={"dit": "dit.pt"}, foreign=more)).fingerprint == plain
    statistics(here / "a.pt", 8, mean=0.3)
    assert open_dit(settings_of(paths={"dit": "dit.pt"}, foreign=both)).fingerprint != plain


def converted(cache: Path) -> list[Path]:
    """Model folders in the cache, and whatever else was left beside them."""
    return sorted(path for path in (cache / "converted").iterdir() if path.suffix != ".lock")


@pytest.fixture
def cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFD_CACHE", str(here / "cache"))
    return here / "cache"


def test_a_file_of_other_code_is_converted_once_whatever_hints_its_format_does_not_use(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = ldm_checkpoint(here / "vae.ckpt", 2)
    first = open_model(vae, TextureVAE, Hints(space_to_depth=2))
    monkeypatch.setattr(models, "read_file", lambda *_: pytest.fail("converted again"))
    useless = Hints(space_to_depth=2, heads=3, delta_t=0.1, tiles=2, sizes={"width": 3})
    assert open_model(vae, TextureVAE, useless).folder == first.folder
    vae.rename(here / "moved.ckpt")
    assert open_model(here / "moved.ckpt", TextureVAE, useless).fingerprint == first.fingerprint
    assert converted(cache) == [first.folder]


def test_what_was_converted_is_a_model_folder_like_any_other(here: Path, cache: Path) -> None:
    network = semantic_vae(here / "semvae.pt")
    model = open_model("semvae.pt", SemanticVAE, Hints(heads=2, tiles=2))
    assert model.load().config == dataclasses.replace(network.config, tiles=2)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in model.load().state_dict().items())
    assert open_model(model.folder, SemanticVAE, Hints(heads=99)).fingerprint == model.fingerprint
    description = read_json(model.folder / "config.json")
    digest = hashlib.sha256((model.folder / "model.safetensors").read_bytes()).hexdigest()
    # The formula is recorded in older model folders.
    assert model.fingerprint == fingerprint({"description": description, "weights": digest})


def test_a_conversion_cut_short_leaves_nothing_that_is_taken_for_a_model(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = ldm_checkpoint(here / "vae.ckpt", 2)

    def killed(parts: ModelParts, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_parts", killed)
        with pytest.raises(KeyboardInterrupt):
            open_model(vae, TextureVAE)
    assert converted(cache) == [], "a full disk is not left fuller"
    open_model(vae, TextureVAE).load()
    assert [path.name.startswith(".") for path in converted(cache)] == [False]


def test_a_converted_model_that_is_no_longer_whole_is_converted_again(here: Path, cache: Path) -> None:
    vae = ldm_checkpoint(here / "vae.ckpt", 2)
    first = open_model(vae, TextureVAE)
    (first.folder / "config.json").unlink()
    again = open_model(vae, TextureVAE)
    again.load()
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)


def test_processes_that_need_the_same_model_convert_it_once(
    here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = ldm_checkpoint(here / "vae.ckpt", 2)
    real, calls = models.read_file, []

    def counted(*arguments: Any) -> ModelParts:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(models, "read_file", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: open_model(vae, TextureVAE).folder, range(4)))
    assert (len(set(folders)), len(calls)) == (1, 1)


@dataclasses.dataclass(frozen=True)
class FirstTokensConfig:
    """A compressor of another package: the first channels as they are."""

    feature_width: int
    channels: int
    tiles: int = 1


class FirstTokens(nn.Module):
    def __init__(self, config: FirstTokensConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(()))


def test_a_compressor_of_another_package_is_opened_like_ours(here: Path) -> None:
    config = FirstTokensConfig(feature_width=12, channels=3)
    network = FirstTokens(config)
    network.scale.data.fill_(2.5)
    save_model(here / "semvae", "FirstTokens", config, {"model": network.state_dict()}, {})
    settings = settings_of(paths={"semvae": "semvae"})
    with refusal("semvae", "FirstTokens", "SemanticVAE or SemanticPCA"):
        open_semantic(settings)
    entry = Compressor(
        FirstTokens, FirstTokensConfig, check=lambda *_: None, fit=lambda _: pytest.fail("fitted"), is_trained=False
    )
    COMPRESSORS.add("first-tokens", entry)
    try:
        loaded: Any = open_semantic(settings).load()
    finally:
        COMPRESSORS.remove("first-tokens")
    assert isinstance(loaded, FirstTokens)
    assert (loaded.config, loaded.scale.item()) == (config, 2.5)


@pytest.mark.parametrize("key", ["width", "depth", "channels"])
def test_a_semantic_vae_of_another_size_than_the_heads_were_given_for_is_refused(here: Path, key: str) -> None:
    semantic_vae(here / "semvae.pt")
    settings = settings_of(paths={"semvae": "semvae.pt"}, semvae=SEMVAE | {key: 8})
    with refusal("semvae.pt", f"{key} 8", "semvae.channels 3", "semvae.width 16", "semvae.depth 1", "semvae.heads"):
        open_semantic(settings)


def test_transformer_and_guide_are_told_their_heads_each(here: Path) -> None:
    for name, width in (("dit", 64), ("guide", 32)):
        config = LightningDiTConfig(
            2, 4, 3, width=width, depth=1, heads=2, qk_norm=False, rope=False, time_embedding="single"
        )
        torch.save({"ema": dit_to_reference(config, LightningDiT(config).state_dict())}, f"{name}.pt")
    paths = {"dit": "dit.pt", "guide": "guide.pt"}
    settings = settings_of(paths=paths, foreign={"heads": 4, "guide_heads": 2})
    assert open_dit(settings).load().config.heads == 4
    assert open_dit(settings, "guide").load().config.heads == 2
    with refusal("guide.pt", "heads"):
        open_dit(settings_of(paths=paths, foreign={"heads": 4}), "guide")


def test_a_guide_with_statistics_may_guide_a_checkpoint_without(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    ema_checkpoint(here / "guide.pt", which="guide")
    statistics(here / "a.pt", 8)
    statistics(here / "b.pt", 4)
    done("weights", "import", "guide.pt", "guide", "--texture-statistics", "a.pt", "--semantic-statistics", "b.pt")
    arguments = ["--checkpoint", "dit.pt", "--guide", "guide", "--guidance", "autoguidance", "--num-images", 1]
    done("sample", *arguments, "--foreign-semantic-channels", 4, "--steps", 2, "--latents-out", "x.npy")


def test_hints_for_files_of_other_code_are_not_looked_for_where_there_is_none(here: Path) -> None:
    settings = tiny_settings(here, foreign={"texture_statistics": "away.pt", "semantic_statistics": "away.pt"})
    write_models(settings)
    assert open_dit(settings).load().config.grid == 2


def test_no_picture_is_promised_of_latents(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    error = refusal_of("sample", "--checkpoint", "dit.pt", "--latents-out", "x.npy", "--grid", "g.png")
    assert "--grid" in str(error)


def test_an_encoders_weights_may_be_a_registered_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = REGISTRY["dinov2_vits14_reg"]
    (here / entry.file).write_bytes(b"weights")
    monkeypatch.setenv("SFD_CACHE", str(here))
    settings = settings_of(encoder={"name": "dinov2_vits14_reg", "weights": "dinov2_vits14_reg"})
    assert encoder_file(settings.encoder) == here / entry.file


def test_latent_shards_where_a_store_is_wanted_are_known(here: Path) -> None:
    (here / "latents_rank00_shard000.safetensors").touch()
    with refusal(here, "`sfd weights import`"):
        finished(here, "sfd encode-latents")
