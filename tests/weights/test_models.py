"""Models by whatever names them: how foreign files are read by what is told, and what that does to fingerprints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import done, ema_checkpoint, ldm_checkpoint, refused, statistics
from PIL import Image

from sfd_cli.artifacts.fingerprints import (
    dit_fingerprint,
    semvae_fingerprint,
    texture_vae_fingerprint,
    upstream_fingerprint,
)
from sfd_cli.config import Settings, validate_settings
from sfd_cli.errors import UserError
from sfd_cli.formats.convert import dit_to_reference, semantic_vae_to_reference
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.weights.models import open_dit
from sfd_cli.weights.registry import REGISTRY
from sfd_cli.weights.visual_encoders import encoder_file

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(**sections: dict[str, object]) -> Settings:
    return validate_settings(sections, "test")


def test_the_transformer_tells_how_a_foreign_latent_is_folded_whatever_params_yaml_says(here: Path) -> None:
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


def test_what_is_told_of_a_foreign_compressor_is_in_its_fingerprint(here: Path) -> None:
    torch.manual_seed(0)
    config = SemanticVAEConfig(feature_width=12, channels=3, width=16, depth=1, heads=2)
    torch.save({"model_state_dict": semantic_vae_to_reference(config, SemanticVAE(config).state_dict())}, "semvae.pt")
    prints = {
        semvae_fingerprint(told(paths={"semvae": "semvae.pt"}, semvae={"heads": heads, "width": 16}))
        for heads in (2, 4)
    }
    assert len(prints) == 2
    vae = ldm_checkpoint(here / "vae.ckpt", 2)
    assert texture_vae_fingerprint(vae, 1) != texture_vae_fingerprint(vae, 2)


def test_hints_that_change_nothing_leave_the_fingerprint_as_it_is(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    statistics(here / "a.pt", 8)
    statistics(here / "b.pt", 4)
    both = {"texture_statistics": "a.pt", "semantic_statistics": "b.pt"}
    plain = dit_fingerprint(told(paths={"dit": "dit.pt"}, foreign=both), "dit")
    more = both | {"semantic_channels": 4, "delta_t": 0.2}
    assert dit_fingerprint(told(paths={"dit": "dit.pt"}, foreign=more), "dit") == plain
    statistics(here / "a.pt", 8, mean=0.3)
    assert dit_fingerprint(told(paths={"dit": "dit.pt"}, foreign=both), "dit") != plain


def test_transformer_and_guide_are_told_their_heads_each(here: Path) -> None:
    for name, width in (("dit", 64), ("guide", 32)):
        config = LightningDiTConfig(
            2, 4, 3, width=width, depth=1, heads=2, qk_norm=False, rope=False, time_embedding="single"
        )
        torch.save({"ema": dit_to_reference(config, LightningDiT(config).state_dict())}, f"{name}.pt")
    paths = {"dit": "dit.pt", "guide": "guide.pt"}
    settings = told(paths=paths, foreign={"heads": 4, "guide_heads": 2})
    assert open_dit(settings)[0].config.heads == 4
    assert open_dit(settings, "guide")[0].config.heads == 2
    with pytest.raises(UserError, match="heads"):
        open_dit(told(paths=paths, foreign={"heads": 4}), "guide")


def test_a_guide_with_statistics_may_guide_a_checkpoint_without(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    ema_checkpoint(here / "guide.pt", which="guide")
    statistics(here / "a.pt", 8)
    statistics(here / "b.pt", 4)
    done("weights", "import", "guide.pt", "guide", "--texture-statistics", "a.pt", "--semantic-statistics", "b.pt")
    arguments = ["--checkpoint", "dit.pt", "--guide", "guide", "--guidance", "autoguidance", "--num-images", 1]
    done("sample", *arguments, "--foreign-semantic-channels", 4, "--steps", 2, "--latents-out", "x.npy")


def test_no_picture_is_promised_of_latents(here: Path) -> None:
    ema_checkpoint(here / "dit.pt")
    assert "--grid" in refused("sample", "--checkpoint", "dit.pt", "--latents-out", "x.npy", "--grid", "g.png")


def test_an_encoders_weights_may_be_a_registered_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = REGISTRY["dinov2_vits14_reg"]
    (here / entry.file).write_bytes(b"weights")
    monkeypatch.setenv("SFD_CACHE", str(here))
    settings = told(encoder={"name": "dinov2_vits14_reg", "weights": "dinov2_vits14_reg"})
    assert encoder_file(settings.encoder) == here / entry.file


def test_latent_shards_where_a_store_is_wanted_are_known(here: Path) -> None:
    (here / "latents_rank00_shard000.safetensors").touch()
    with pytest.raises(UserError, match="sfd weights import"):
        upstream_fingerprint(here, "sfd encode-latents")
