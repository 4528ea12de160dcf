"""params.yaml is checked once, and what is wrong is said in one sentence that names the key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import ValidationError
from refusals import refusal

from sfd_cli.config import (
    EDITS,
    LATER,
    DiT,
    Encoder,
    Features,
    Fid,
    Images,
    Latents,
    Sample,
    Section,
    SemVAE,
    Settings,
    TextureVAE,
    first_problem,
    identity,
    load_settings,
    section_type,
    validate_settings,
)
from sfd_cli.config.elsewhere import ELSEWHERE
from sfd_cli.config.start import Start
from sfd_cli.files import fingerprint
from sfd_cli.laws import law_of
from sfd_cli.pipeline.speed import settled
from sfd_cli.training import transformer
from sfd_cli.training.settings import with_precision

REPOSITORY = Path(__file__).parents[1]


def settings_from(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_settings(path)


def test_the_committed_params_are_valid_and_their_grids_match() -> None:
    settings = load_settings(REPOSITORY / "params.yaml")
    assert settings.images.size // settings.texture_vae.downsampling == settings.encoder.grid


def test_a_folder_without_params_or_an_empty_file_means_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings() == settings_from(tmp_path, "") == Settings()


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with refusal(tmp_path / "none.yaml", "does not exist"):
        load_settings(tmp_path / "none.yaml")


def test_a_flags_value_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("dit: {heads: 6, width: 384}\n")
    with refusal("dit.delta_t", "3.0") as caught:
        load_settings(path, {"dit": {"delta_t": 3.0}})
    assert "params.yaml" not in str(caught.value)
    with refusal("sample.classes", "[0]") as caught:
        load_settings(path, {"sample": {"classes": [[0]]}})
    assert "params.yaml" not in str(caught.value)
    with refusal("dit.heads", path, "dit.width"):
        load_settings(path, {"dit": {"width": 100}})
    with refusal("dit.steps", path):
        settings_from(tmp_path, "dit: {steps: 0}")


@pytest.mark.parametrize(
    ("section", "name", "here"),
    [
        ("dit", "proj_coeff", "dit.repa_weight"),
        ("sample", "cfg_scale", "sample.scale"),
        ("sample", "num_sampling_steps", "sample.steps"),
        ("sample", "per_proc_batch_size", "sample.batch_size"),
        ("dit", "semfirst_delta_t", "dit.delta_t or sample.delta_t"),
        ("sample", "num_inference_steps", "sample.steps"),
    ],
)
def test_names_of_other_code_are_told_what_they_are_called_here(
    tmp_path: Path, section: str, name: str, here: str
) -> None:
    with refusal(f"{section}.{name}", f"it is called {here} here"):
        settings_from(tmp_path, f"{section}: {{{name}: 1}}")


def test_every_name_of_other_code_leads_to_a_setting_and_is_none_itself() -> None:
    sections = {name: section_type(Settings, name).model_fields for name in Settings.model_fields}
    for name, keys in ELSEWHERE.items():
        for key in keys:
            section, _, field = key.partition(".")
            assert field in sections[section], key
            assert name not in sections[section], name


def test_flags_override_their_section_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sample: {delta_t: 0.1, seed: 7}\n")
    settings = load_settings(path, {"sample": {"delta_t": 0.5}})
    assert (settings.sample.delta_t, settings.sample.seed) == (0.5, 7)


WRONG: dict[str, tuple[str, ...]] = {
    "dit: {hedas: 6}": ("dit.hedas", "'heads'"),
    "ditt: {heads: 6}": ("ditt", "'dit'"),
    "dit: {steps: many}": ("dit.steps", "integer", "'many'"),
    "dit: 3": ("dit", "3"),
    "sample: {delta_t: 1.5}": ("sample.delta_t", "less than or equal to 1", "1.5"),
    "dit: {delta_t: -0.1}": ("dit.delta_t", "greater than or equal to 0"),
    "dit: {heads: 7}": ("dit.heads", "7 heads", "width 1152"),
    "guide: {width: 90, heads: 9}": ("guide.heads", "divisible by 4"),
    "semvae: {width: 100, heads: 3}": ("semvae.heads", "3 heads", "width 100"),
    "semvae: {compressor: pca, weights: a.pt}": ("semvae.weights", "a.pt", "compressor: vae", "pca"),
    "texture_vae: {compressor: pca, weights: a.pt}": ("texture_vae.weights", "a.pt", "compressor: vae", "pca"),
    "texture_vae: {compressor: pca, patch_size: 8, channels: 193}": ("texture_vae.channels", "192", "193"),
    "texture_vae: {decoder_channels: [32]}": ("texture_vae.decoder_channels", "compressor: pca", "vae", "[32]"),
    "texture_vae: {compressor: pca, decoder_channels: [32, 48]}": ("texture_vae.norm_groups", "32", "48", "decoder_c"),
    "texture_vae: {compressor: pca, decoder_channels: [32, 0]}": ("texture_vae.decoder_channels.1", "0"),
    "texture_vae: {compressor: pca, decoder_channels: [32, 32, 32, 32, 32, 32, 32], patch_size: 8}": (
        "texture_vae.decoder_channels",
        "7 levels",
        "128",
        "64",
        "images.size",
    ),
    "texture_vae: {compressor: pca, decoder_keep: 0}": ("texture_vae.decoder_keep", "0"),
    "texture_vae: {compressor: pca, decoder_noise: -1}": ("texture_vae.decoder_noise", "-1"),
    "texture_vae: {precision: fp16}": ("texture_vae.precision", "'bf16'", "'fp16'"),
    "texture_vae: {compressor: pca, patch_size: 12}": ("images.size", "64", "12", "60 or 72"),
    "texture_vae: {compressor: pca, patch_size: 4}": ("encoder.image_size", "8x8", "16x16", "224"),
    "encoder: {image_size: 56}": ("encoder.image_size", "4x4", "8x8", "112"),
    "encoder: {image_size: 57}": ("encoder.image_size", "57", "patch size 14", "56 or 70"),
    "encoder: {name: resnet50}": ("encoder.name", "'resnet50'", "patch size"),
    "images: {size: 60}": ("images.size", "60", "8", "56 or 64"),
    "dit: {patch_size: 3, repa: none}": ("dit.patch_size", "3", "8x8"),
    "dit: {patch_size: 2}": ("dit.repa", "patch_size is 2"),
    "dit: {repa_depth: 40}": ("dit.repa_depth", "40", "28 blocks"),
    "latents: {store_features: false}": ("dit.repa", "latents.store_features: true"),
    "dit: {holdout: 1}": ("dit.holdout", "less than 1"),
    "guide: {holdout: -0.1}": ("guide.holdout", "greater than or equal to 0"),
    "dit: {dispersive_weight: -0.5}": ("dit.dispersive_weight", "greater than or equal to 0"),
    "dit: {adapter: {rank: 16}}": ("dit.adapter", "init"),
    "dit: {init: a.pt, adapter: true}": ("dit.adapter", "true"),
    "dit: {init: a.pt, adapter: {rnk: 16}}": ("dit.adapter.rnk", "'rank'"),
    "dit: {init: a.pt, adapter: {rank: -1}}": ("dit.adapter.rank", "-1"),
    "dit: {init: a.pt, adapter: {alpha: 0}}": ("dit.adapter.alpha", "0"),
    "guide: {init: a.pt, width: 64, heads: 4, adapter: {rank: 65}}": ("guide.adapter.rank", "65", "width 64"),
    "dit: {dispersive_weight: .inf}": ("dit.dispersive_weight", "finite"),
    "dit: {dispersive_weight: 0.5, dispersive_depth: 29}": ("dit.dispersive_depth", "29", "28 blocks"),
    "dit: {dispersive_depth: 0}": ("dit.dispersive_depth", "greater than 0"),
    "guide: {dispersive_temperature: 0}": ("guide.dispersive_temperature", "greater than 0"),
    "dit: {dispersive_group: 1}": ("dit.dispersive_group", "greater than or equal to 2"),
    "dit: {dispersive_weight: 0.5, dispersive_group: 32, accumulate: 16}": (
        "dit.dispersive_group",
        "32",
        "16 images",
        "divisor of 16",
    ),
    "dit: {accumulate: 3}": ("dit.accumulate", "3", "batch_size 256"),
    "dit: {accumulate: 0}": ("dit.accumulate", "0", "auto"),
    "semvae: {accumulate: some}": ("semvae.accumulate", "'some'", "auto"),
    "texture_vae: {accumulate: true}": ("texture_vae.accumulate", "true"),
    "dit: {semantics: false}": ("dit.delta_t", "semantics is false", "use 0"),
    "dit: {semantics: false, delta_t: 0}": ("dit.time_embedding", "'dual'", "'single'"),
    "dit: {schedule: learned}": ("dit.schedule", "schedule.learn"),
    "dit: {time_embedding: single}": ("dit.time_embedding", "delta_t is 0.3"),
    "semvae: {compressor: none}": ("semvae.compressor", "'none'", "dit", "semantics: true"),
    "{guide: null, sample: {guidance: autoguidance}}": ("sample.guidance", "'autoguidance'", "paths.guide"),
    "texture_vae: {block_channels: [10, 32, 64, 64]}": ("texture_vae.norm_groups", "32", "10", "block_channels"),
    "texture_vae: {attention_levels: [4]}": ("texture_vae.attention_levels", "4", "from 0 to 3"),
    "sample: {interval_start: 0.8, interval_end: 0.2}": ("sample.interval_start", "0.8", "interval_end 0.2"),
    "images: {source: folder}": ("images.folder", "images.source is 'folder'"),
    "fid: {encoder: {wieghts: demo}}": ("fid.encoder.wieghts", "'weights'"),
    "sample: {delta_t: true}": ("sample.delta_t", "true"),
    "dit: {repa: off}": ("dit.repa", "false"),
    "fid: {encoder: {image_size: 85}}": ("fid.encoder.image_size", "85", "patch size 14", "84 or 98"),
    "dit: {steps: 0, batch_size: 0}": ("dit.steps", "0", "1 more problem"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_by_its_key_and_the_file(tmp_path: Path, text: str) -> None:
    key, *named = WRONG[text]
    with refusal(key, *named, tmp_path / "params.yaml") as caught:
        settings_from(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(("text", "named"), [("- a\n- b", ["list", "dit:"]), ("dit: [unclosed", ["YAML"])])
def test_a_file_that_holds_no_sections_is_told_by_its_path(tmp_path: Path, text: str, named: list[str]) -> None:
    with refusal(tmp_path / "params.yaml", *named):
        settings_from(tmp_path, text)


def test_flags_over_a_section_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("dit: 3")
    with refusal("dit", tmp_path / "params.yaml", "3"):
        load_settings(tmp_path / "params.yaml", {"dit": {"steps": 4}})


def test_a_problem_is_told_by_the_key_counted_from_the_section_in_hand() -> None:
    with pytest.raises(ValidationError) as caught:
        Fid.model_validate({"encoder": {"image_size": "wide"}})
    found = first_problem(caught.value, Fid)
    assert found.subject == "encoder.image_size"
    with pytest.raises(ValidationError) as caught:
        DiT.model_validate({"heads": 7})
    assert first_problem(caught.value, DiT).subject == "heads"


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


def test_principal_components_of_patches_promise_a_latent_pixel_a_patch() -> None:
    section = TextureVAE(compressor="pca", patch_size=4, channels=48, space_to_depth=2)
    assert (section.downsampling, section.latent_channels) == (4, 48)
    folded = TextureVAE(channels=6, space_to_depth=2)
    assert (folded.downsampling, folded.latent_channels) == (16, 24)


def test_levels_of_the_network_that_is_not_used_are_not_looked_at() -> None:
    section = TextureVAE(compressor="pca", decoder_channels=[24, 48], norm_groups=24)
    assert (section.norm_groups, section.block_channels) == (24, [32, 64, 64, 64])


# Of the identities of default settings, before any key in LATER was there.
IDENTITIES = {
    Features: "f7e8d45c6f3ca6c5",
    SemVAE: "83bfbaf0e804d014",
    TextureVAE: "ee232212efd70e6c",
    Latents: "f85dd076ad0ff6cd",
    DiT: "1a852202047fd628",
    Sample: "c73237871e3de5f4",
    Encoder: "14a7f373ea4a6cd7",
}


AUTO: dict[type[Section], dict[str, Any]] = {
    DiT: {"accumulate": 1, "compile": False},
    SemVAE: {"precision": "fp32"},
    Sample: {"precision": "fp32", "compile": False},
}
"""What `auto`, the default since, comes to on a CPU, and what went without saying before."""


@pytest.mark.parametrize("section", IDENTITIES, ids=lambda section: section.__name__)
def test_keys_that_came_later_leave_identities_as_they_were(section: type[Section]) -> None:
    """Artifacts made before there was a key go on: a new key needs its line in LATER, or makes them all again."""
    settings = section(**AUTO.get(section, {}))
    if isinstance(settings, Sample):  # samples are made by the law of their transformer, where no other is given
        settings = settings.with_law(None)
    assert fingerprint(identity(settings, mode="json"))[:16] == IDENTITIES[section]


def test_auto_comes_to_what_went_without_saying_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert {"accumulate", "compile"} <= transformer.FREE
    assert with_precision(SemVAE(), cpu).precision == AUTO[SemVAE]["precision"]
    assert settled(Sample(), cpu).model_dump(include={"precision", "compile"}) == AUTO[Sample]


NEW: dict[str, Any] = {
    "prediction": "data",
    "time_mean": -0.5,
    "optimizer": "muon",
    "muon_learning_rate": 0.1,
    "decay": 0.2,
    "ema_warmup": True,
    "objective": "corrected",
    "lead_jitter": 1.0,
    "leader_noise": 0.2,
    "holdout": 0.1,
    "dispersive_weight": 0.5,
    "dispersive_depth": 3,
    "dispersive_temperature": 1.0,
    "dispersive_group": 8,
    "keep_every": 1000,
    "init_classes": {"cat": [281, 282]},
    "statistics": "own",
    "init_learning_rate_scale": 0.5,
    "adapter": {"rank": 16, "alpha": None},
}
# A law's numbers take the place of the offset.
LAWS: list[dict[str, Any]] = [
    {"schedule": "lead", "lead": 1.0},
    {"schedule": "curve", "lead": 1.0, "lead_slope": 0.5},
    {"schedule": "knots", "knots": [0.5, 0.2]},
]


def test_a_later_key_is_part_of_an_identity_where_it_says_something_new() -> None:
    """Artifacts made before there was a key have none in their record, and go on."""
    assert identity(DiT()).keys() == DiT.model_fields.keys() - LATER[DiT].keys()
    for key, value in NEW.items():
        beside = {"init": "source"} if key in Start.model_fields or key == "adapter" else {}
        section = DiT(**{key: value}, **beside)
        assert identity(section, exclude={"init"}) == identity(DiT(), exclude={"init"}) | {key: value}
    for law in LAWS:
        assert identity(DiT(**law)) == {key: value for key, value in identity(DiT()).items() if key != "delta_t"} | law
    assert set(NEW).union(*LAWS) == LATER[DiT].keys()
    others = {section: keys for section, keys in LATER.items() if section is not Sample}
    assert all(keys.items() <= section().model_dump().items() for section, keys in others.items())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_times_have_a_finite_mean(value: float) -> None:
    with refusal("dit.time_mean", "finite"):
        validate_settings({"dit": {"time_mean": value}}, "params.yaml")


@pytest.mark.parametrize(
    ("levels", "key"),
    [
        ({"lowest": 2.5}, "lowest"),
        ({"highest_semantic": 2.3}, "highest_semantic"),
        ({"lowest": 0.5}, "highest_semantic"),
    ],
)
def test_levels_that_a_schedule_is_judged_at_are_in_order(levels: dict[str, float], key: str) -> None:
    with refusal(f"schedule.{key}", "2.2"):
        validate_settings({"schedule": levels}, "params.yaml")


def test_mirror_images_are_part_of_an_identity_where_they_are_left_out() -> None:
    """Artifacts made before they could be left out have no such key in their record, and go on."""
    assert identity(Images(), include={"mirror"}) == {}
    assert identity(Images(mirror=False), include={"mirror"}) == {"mirror": False}
    assert identity(Images(mirror=False), include={"size"}) == {"size": 64}
    assert [Images(mirror=mirror).flips for mirror in (True, False)] == [2, 1]


def test_dvc_asks_the_stages_that_leave_mirror_images_out_again_and_no_file_must_have_the_key() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for name in ("extract-features", "train-texture-vae", "encode-latents"):
        assert "images" in stages[name]["params"]


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        ({"delta_t": 0.2}, {"schedule": "offset", "delta_t": 0.2}),
        ({"lead": 2.0}, {"schedule": "curve", "lead": 2.0, "lead_slope": -0.5}),
        ({"schedule": "lead"}, {"schedule": "lead", "lead": 1.0}),
        ({"schedule": "offset", "delta_t": 0.1}, {"schedule": "offset", "delta_t": 0.1}),
    ],
)
@pytest.mark.parametrize("section", ["dit", "sample"])
def test_a_law_from_a_flag_takes_the_place_of_the_files_with_its_numbers(
    tmp_path: Path, section: str, flags: dict[str, Any], law: dict[str, Any]
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"{section}: {{schedule: curve, lead: 1.0, lead_slope: -0.5}}\n")
    assert law_of(getattr(load_settings(params, {section: flags}), section)) == law


def numbers(section: type[Section], before: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted key of every number in the settings, and whether it is a whole one."""
    for key, info in section.model_fields.items():
        kinds = {info.annotation, *get_args(info.annotation)}
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from numbers(kind, f"{before}{key}.")
        if {int, float} & kinds and list not in {get_origin(kind) for kind in kinds}:
            yield f"{before}{key}", int in kinds


@pytest.mark.parametrize(("key", "is_whole"), numbers(Settings))
def test_a_number_that_is_none_or_beyond_64_bits_is_refused_by_its_key(key: str, is_whole: bool) -> None:
    for value in [10**30, -(10**30)] if is_whole else [math.inf, -math.inf, math.nan]:
        nested: Any = value
        for name in reversed(key.split(".")):
            nested = {name: nested}
        with refusal(key):
            validate_settings(nested, "params.yaml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dit:\n  width: 64\nguide: null\ndit:\n  width: 96\n", ("'dit'", "1 and 4")),
        ("dit:\n  width: 64\n  heads: 4\n  width: 96\n", ("'width'", "2 and 4")),
        ("dit: {width: 64, 'width': 96}", ("'width'", "1 and 1")),
        ("dit: " + "[" * 1000 + "]" * 1000, ("nested too deep",)),
        ("dit: " + "{a: " * 1000 + "1" + "}" * 1000, ("nested too deep",)),
        ("dit: {width: " + "1" * 5000 + "}", ("not valid YAML",)),
    ],
    ids=["section", "key", "one line", "lists", "mappings", "digits"],
)
def test_a_file_that_cannot_be_taken_at_its_word_is_refused(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with refusal(path, *named):
        load_settings(path)


def test_a_key_may_override_what_is_merged_into_its_mapping(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("dit: &dit\n  width: 64\n  heads: 4\nguide:\n  <<: *dit\n  width: 32\n")
    settings = load_settings(path)
    assert settings.guide is not None
    assert (settings.dit.width, settings.guide.width, settings.guide.heads) == (64, 32, 4)


def test_classes_are_indices_names_or_none() -> None:
    assert Sample.model_validate({"classes": [3, "cat", None, "7"]}).classes == [3, "cat", "null", "7"]
    assert Sample.model_validate({"classes": None}).classes is None
    assert Sample.model_validate({"to_class": "null"}).to_class == "null"
    for value in ([True], [1.5], [[0]], "cat"):
        with refusal("sample.classes" if value == "cat" else "sample.classes.0"):
            validate_settings({"sample": {"classes": value}}, "params.yaml")


def test_what_is_done_to_one_runs_pictures_is_set_apart() -> None:
    edited = Sample.model_validate({"to_seed": 3, "start_time": 0.0, "steps": 7})
    assert edited.edits == {"start_time": 0.0, "to_seed": 3}
    assert edited.without_edits() == Sample(steps=7)
    assert identity(edited)["start_time"] == 0.0
    assert not set(EDITS) & identity(Sample()).keys()
    assert set(EDITS) <= LATER[Sample].keys()
