"""params.yaml is checked once, and what is wrong is said in one sentence that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sfd_cli.config import Encoder, Settings, load_settings
from sfd_cli.errors import UserError

REPOSITORY = Path(__file__).parents[1]


def settings_from(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_settings(path)


def test_the_committed_params_are_valid_and_their_grids_match() -> None:
    settings = load_settings(REPOSITORY / "params.yaml")
    assert settings.images.size // settings.texture_vae.downsampling == settings.encoder.grid


def test_a_missing_or_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "none.yaml") == settings_from(tmp_path, "") == Settings()


def test_flags_override_their_section_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sample: {delta_t: 0.1, seed: 7}\n")
    settings = load_settings(path, {"sample": {"delta_t": 0.5}})
    assert (settings.sample.delta_t, settings.sample.seed) == (0.5, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dit: {hedas: 6}", ["dit.hedas", "did you mean 'heads'"]),
        ("ditt: {heads: 6}", ["ditt", "did you mean 'dit'"]),
        ("dit: {steps: many}", ["dit.steps", "integer", "'many'"]),
        ("dit: 3", ["dit", "3"]),
        ("sample: {delta_t: 1.5}", ["sample.delta_t", "less than or equal to 1", "1.5"]),
        ("dit: {delta_t: -0.1}", ["dit.delta_t", "greater than or equal to 0"]),
        ("dit: {heads: 7}", ["dit.heads", "7 heads do not divide width 1152"]),
        ("guide: {width: 90, heads: 9}", ["guide.heads", "divisible by 4"]),
        ("semvae: {width: 100, heads: 3}", ["semvae.heads", "3 heads do not divide"]),
        ("encoder: {image_size: 56}", ["encoder.image_size", "4x4", "8x8", "112 would match"]),
        ("encoder: {image_size: 57}", ["encoder.image_size", "multiple of the patch size 14"]),
        ("encoder: {name: resnet50}", ["encoder.name", "patch size"]),
        ("images: {size: 60}", ["images.size", "multiple", "8"]),
        ("dit: {patch_size: 3, repa: none}", ["dit.patch_size", "does not divide the 8x8 grid"]),
        ("dit: {patch_size: 2}", ["dit.repa", "patch_size is 2"]),
        ("dit: {repa_depth: 40}", ["dit.repa_depth", "past the last of 28 blocks"]),
        ("latents: {store_features: false}", ["dit.repa", "store_features"]),
        ("dit: {accumulate: 3}", ["dit.accumulate", "does not divide batch_size 256"]),
        ("dit: {semantics: false}", ["dit.delta_t", "semantics is false"]),
        ("dit: {time_embedding: single}", ["dit.time_embedding", "delta_t is 0.3"]),
        ("texture_vae: {block_channels: [10, 32, 64, 64]}", ["texture_vae.norm_groups", "does not divide 10"]),
        ("texture_vae: {attention_levels: [4]}", ["texture_vae.attention_levels", "4 is not one of the 4 levels"]),
        ("sample: {interval_start: 0.8, interval_end: 0.2}", ["sample.interval_start", "after interval_end"]),
        ("images: {source: folder}", ["images.folder"]),
        ("fid: {encoder: {wieghts: demo}}", ["fid.encoder.wieghts", "did you mean 'weights'"]),
        ("sample: {delta_t: true}", ["sample.delta_t", "than true"]),
        ("dit: {repa: off}", ["dit.repa", "than false"]),
        ("fid: {encoder: {image_size: 85}}", ["fid.encoder.image_size", "multiple of the patch size 14"]),
        ("- a\n- b", ["sections", "list"]),
        ("dit: [unclosed", ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_that_names_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        settings_from(tmp_path, text)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(tmp_path / "params.yaml"))
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("dinov2_vitb14_reg", 14),
        ("vit_base_patch16_224.mae", 16),
        ("vit_base_patch16_clip_224.openai", 16),
        ("vit_base_patch16_siglip_256.webli", 16),
        ("vit_small_patch16_dinov3.lvd1689m", 16),
    ],
)
def test_the_patch_size_is_read_from_the_encoders_name(name: str, patch: int) -> None:
    assert Encoder(name=name, image_size=patch * 16).grid == 16


@pytest.mark.parametrize(
    "path",
    [REPOSITORY / "params.yaml", *(REPOSITORY / "sfd_cli" / "presets").glob("*.yaml")],
    ids=lambda path: path.stem,
)
def test_every_setting_that_the_dag_depends_on_is_in_the_file_because_dvc_asks_for_it(path: Path) -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        for parameter in stage.get("params", []):
            section, *key = parameter.split(".")
            written = yaml.safe_load(path.read_text())
            assert section in written
            assert all(name in written[section] for name in key)
