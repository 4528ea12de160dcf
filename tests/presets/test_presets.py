"""Every system of the paper is a preset whose settings hold and whose networks have the published sizes."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from sfd_cli.config import Settings, load_settings
from sfd_cli.laws import LEARNED, law_of
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.tables import PROTOCOLS
from sfd_cli.training import texture_vae_task
from sfd_cli.training.inherit import settled
from sfd_cli.weights.registry import REGISTRY

REPOSITORY = Path(__file__).parents[2]
PRESETS = REPOSITORY / "sfd_cli" / "presets"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
# The others bring their own images.
IMAGENET = [name for name in NAMES if name not in {"demo", "fashion-mnist", "finetune-sfd-xl"}]
# Millions, as published: SFD's README and table 1 (B, L, XL, XXL), DiT's table 1 (XL/2; S is DiT-S/2's 33 M, which
# SwiGLU and a smaller patch hardly change). SFD's supplement has 682.77 M for XL with the REPA projector of 8.1 M and
# with the fixed positions counted, so the published sizes are without it.
PUBLISHED = {
    "imagenet256-s": 33,
    "imagenet256-b": 130,
    "imagenet256-l": 458,
    "imagenet256-xl": 675,
    "imagenet256-xl-learned": 675,
    "imagenet256-1p0b": 1028,
    "imagenet512-xl": 675,
    "lightningdit-xl1": 675,
    "lightningdit-xl1-repa": 675,
    "dit-xl2": 675,
    "redi": 675,
    "redi-sfd": 675,
    "vavae-sfd": 675,
}


@cache
def preset(name: str) -> Settings:
    return load_settings(PRESETS / f"{name}.yaml")


@cache
def systems() -> ModuleType:
    spec = importlib.util.spec_from_file_location("systems", REPOSITORY / "docs" / "systems.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["systems"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def texture_vae_parameters(settings: Settings) -> int:
    with torch.device("meta"):
        network = TextureVAE(texture_vae_task.network_config(settings.texture_vae))
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_valid_and_says_what_it_is_in_its_first_line(name: str) -> None:
    settings = preset(name)
    assert not settings.needs_encoder or settings.encoder.grid == settings.grid
    first, *_ = (PRESETS / f"{name}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert first.count("(") == first.count(")")


@pytest.mark.parametrize(
    ("name", "grid"),
    [("imagenet256-xl", 16), ("imagenet512-xl", 32), ("dit-xl2", 32), ("redi", 16), ("demo", 4), ("fashion-mnist", 4)],
)
def test_presets_have_the_latent_grid_of_their_systems(name: str, grid: int) -> None:
    assert preset(name).grid == grid


@pytest.mark.parametrize("name", IMAGENET)
def test_an_imagenet_preset_imports_registered_weights_and_asks_for_the_users_images(name: str) -> None:
    settings = preset(name)
    assert settings.texture_vae.weights in REGISTRY
    assert settings.semvae.weights is None or settings.semvae.weights in REGISTRY
    assert settings.images.folder == Path("/path/to/imagenet/train")
    assert str(settings.fid.reference) in REGISTRY


@pytest.mark.parametrize("name", IMAGENET)
def test_a_preset_samples_and_guides_along_the_law_that_it_trains_with(name: str) -> None:
    settings = preset(name)
    trained = law_of(settings.dit)
    assert law_of(settings.sample.with_law(trained)) == trained
    assert (settings.guide is not None) == (settings.sample.guidance == "autoguidance")
    if settings.guide is not None:
        assert law_of(settings.guide) == trained
    assert settings.schedule.learn == (trained["schedule"] == LEARNED)


def test_a_learned_schedule_costs_less_than_a_hundredth_of_the_run_that_follows_it() -> None:
    """The probe's training, and a forward pass of every held-out image at every pair of levels with every draw."""
    settings = preset("imagenet256-xl-learned")
    learning, probe = settings.schedule, settings.schedule.probe
    assert learning.learn
    per_image, of_probe = (
        systems().flops_per_image(systems().architecture(settings, section)) for section in (settings.dit, probe)
    )
    training = of_probe * probe.steps * probe.batch_size
    judging = of_probe / 3 * probe.holdout * 1_281_167 * learning.levels**2 * learning.draws
    assert training + judging < 0.01 * per_image * settings.dit.steps * settings.dit.batch_size
    guide = settings.guide
    assert guide is not None
    assert (probe.width, probe.depth, probe.heads) == (guide.width, guide.depth, guide.heads)
    # Judging is by averaged weights, of which the first ones must be no part to speak of.
    assert probe.ema_decay**probe.steps < 1e-3
    assert probe.holdout * 1_281_167 > 5_000


def test_the_demo_is_the_committed_params() -> None:
    assert (PRESETS / "demo.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()


def test_the_guide_trained_by_itself_is_the_guide_of_the_presets() -> None:
    alone = preset("imagenet256-guide-b")
    for name in ("imagenet256-xl", "imagenet256-1p0b"):
        # How long it is trained is published per guided model; a run goes on from 60k to 70k to 120k steps.
        steps = {"imagenet256-xl": 70_000, "imagenet256-1p0b": 60_000}[name]
        assert preset(name).guide == alone.dit.model_copy(update={"steps": steps})
        for section in ("images", "encoder", "features", "semvae", "texture_vae", "latents"):
            assert getattr(preset(name), section) == getattr(alone, section)


def test_presets_of_one_comparison_differ_only_in_what_is_compared() -> None:
    def differences(one: str, other: str) -> set[str]:
        texts = [yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) for name in (one, other)]
        flat = [{(s, k): v for s, keys in text.items() for k, v in (keys or {}).items()} for text in texts]
        keys = flat[0].keys() | flat[1].keys()
        return {f"{s}.{k}" for s, k in keys if flat[0].get((s, k)) != flat[1].get((s, k))} - {"report.title"}

    assert differences("redi", "redi-sfd") == {"dit.delta_t", "dit.time_embedding", "sample.delta_t"}
    assert {key for key in differences("imagenet256-xl", "vavae-sfd") if key[:5] not in {"guide", "sampl"}} == {
        "texture_vae.weights"
    }
    learned = {f"{section}.{key}" for section in ("dit", "guide") for key in ("delta_t", "schedule", "objective")}
    learned |= {"sample.delta_t", "schedule.learn", "schedule.probe"}
    assert differences("imagenet256-xl", "imagenet256-xl-learned") == learned
    assert differences("imagenet256-l", "imagenet256-b") == {"dit.width", "dit.depth", "dit.heads"}
    assert {key for key in differences("lightningdit-xl1", "lightningdit-xl1-repa") if key.startswith("dit.")} == {
        "dit.repa",
        "dit.repa_depth",
        "dit.repa_weight",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_transformers_have_the_published_sizes(name: str) -> None:
    settings = preset(name)
    count = systems().count_parameters(systems().architecture(settings, settings.dit))
    assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_guides_are_b_models() -> None:
    for name in IMAGENET:
        settings = preset(name)
        if settings.guide is not None:
            count = systems().count_parameters(systems().architecture(settings, settings.guide))
            assert count / 1e6 == pytest.approx(130, rel=0.01)


def test_folding_the_latent_is_patching_it() -> None:
    settings = preset("redi")
    folded = systems().architecture(settings, settings.dit.model_copy(update={"semantics": False}))
    patched = systems().architecture(preset("dit-xl2"), preset("dit-xl2").dit)
    assert (folded.patch_size, folded.in_channels, patched.patch_size, patched.in_channels) == (1, 16, 2, 4)
    assert systems().count_parameters(folded) == systems().count_parameters(patched)
    assert systems().flops_per_image(folded) == systems().flops_per_image(patched)


def test_the_arithmetic_of_dit_xl2_is_the_published() -> None:
    """118.6 billion multiply-adds of a forward pass (arXiv 2212.09748, table 1); ours are FLOPs and thrice as many."""
    flops = systems().flops_per_image(systems().architecture(preset("dit-xl2"), preset("dit-xl2").dit))
    assert flops / (3 * 2 * 1e9) == pytest.approx(118.6, rel=0.01)


@pytest.mark.parametrize(("name", "millions"), [("imagenet256-xl", 69.84), ("vavae-sfd", 69.84), ("dit-xl2", 83.65)])
def test_the_texture_vaes_have_the_sizes_of_the_published_architectures(name: str, millions: float) -> None:
    assert texture_vae_parameters(preset(name)) / 1e6 == pytest.approx(millions, rel=0.002)


def test_the_semantic_vae_has_the_published_size() -> None:
    """58 M, half of it encoder (SFD's supplement); its file is three times as large, Adam's two moments included."""
    section = preset("imagenet256-xl").semvae
    with torch.device("meta"):
        model = SemanticVAE(SemanticVAEConfig(768, section.channels, section.width, section.depth, section.heads))
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    decoder = sum(parameter.numel() for parameter in model.decoder.parameters())
    assert (round(encoder / 1e6), round(decoder / 1e6)) == (29, 29)
    assert 3 * 4 * (encoder + decoder) == pytest.approx(695_233_434, rel=1e-3)


def test_the_documented_rows_are_the_computed_ones() -> None:
    text = (REPOSITORY / "docs" / "systems.md").read_text()
    for row in systems().rows():
        assert str(row) in text, f"docs/systems.md is out of date: python docs/systems.py prints {row}"
    for name in IMAGENET:
        assert f"| `{name}` |" in text


FOLDERS = [*IMAGENET, "finetune-sfd-xl"]
# The others take PyTorch's meta device some seconds together.
AT_ONCE = {"imagenet256-xl", "imagenet512-xl"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in FOLDERS]
)
def test_a_preset_says_what_memory_a_gpu_needs_and_it_is_what_is_computed(name: str) -> None:
    memory = systems().memory(name)
    text = (REPOSITORY / "docs" / "systems.md").read_text()
    assert str(memory) in text, f"docs/systems.md is out of date: python docs/systems.py prints {memory}"
    header, _, _ = (PRESETS / f"{name}.yaml").read_text().partition("\n\n")
    assert memory.header in header, f"{name}.yaml is out of date: it should say\n{memory.header}"
    # With what a trial leaves free: on eight GPUs of 80 GB, at 512 px in parts, and image by image on one of 24.
    assert memory.share < 0.92 * 80 or name == "imagenet512-xl"
    assert memory.least < 0.92 * 24


def test_every_preset_of_a_folder_says_what_memory_a_gpu_needs() -> None:
    for name in NAMES:
        said = "Memory of a GPU, computed and not measured" in (PRESETS / f"{name}.yaml").read_text()
        assert said == (preset(name).images.source == "folder"), name
        assert said == (name in FOLDERS)


def test_what_is_alive_at_once_is_counted_until_it_is_let_go() -> None:
    with torch.device("meta"), systems().Alive() as alive:
        first = torch.empty(1000)
        second = first + 1
        view = second[:10]
        del first, second
        assert (alive.bytes, alive.peak) == (4000, 8000), "what a view is of is alive"
        third = torch.empty(500)
        del view, third
        assert alive.bytes == 0
    assert alive.peak == 8000


def test_fine_tuning_starts_from_published_models_of_the_same_architecture_and_latents() -> None:
    """Whatever a `Source` compares: sizes, times, what is predicted, channels; and their statistics are inherited."""
    own, published = preset("finetune-sfd-xl"), preset("imagenet256-xl")
    for section, theirs in ((own.dit, published.dit), (own.guide, published.guide)):
        assert section is not None
        assert theirs is not None
        assert systems().architecture(own, section) == systems().architecture(published, theirs)
        assert law_of(section) == law_of(theirs)
        assert REGISTRY[str(section.init)].kind == "dit"
        assert REGISTRY[str(section.init)].statistics == ("sfd_texture_statistics", "sfd_semantic_statistics")
        assert settled(section).statistics == "init"
        assert section.ema_decay**section.steps < 0.4, "the average is not mostly of the source"
    assert own.texture_vae.weights == published.texture_vae.weights == "sdvae_f16d32"
    assert own.semvae.weights == "sfd_semvae"
    assert own.semvae.model_copy(update={"weights": None}).width == published.semvae.width
    assert own.encoder == published.encoder
    assert own.fid.reference is None, "own images are compared with own images"
    assert law_of(own.sample.with_law(law_of(own.dit))) == law_of(own.dit)


def test_what_fine_tuning_is_documented_to_cost_is_what_is_computed() -> None:
    text = (REPOSITORY / "docs" / "finetune.md").read_text()
    for row in systems().finetune_rows():
        assert row in text, f"docs/finetune.md is out of date: python docs/systems.py prints {row}"
    for memory in systems().finetune_memory().values():
        assert f"{memory:.0f} GB" in text, memory


def test_the_documented_protocols_are_the_records() -> None:
    text = (REPOSITORY / "docs" / "systems.md").read_text()
    rows = systems().protocol_rows()
    assert len(rows) == len(list(PROTOCOLS))
    for row in rows:
        assert row in text, f"docs/systems.md is out of date: python docs/systems.py prints {row}"


def test_every_row_of_published_figures_names_its_protocol() -> None:
    text = (REPOSITORY / "docs" / "systems.md").read_text()
    table = text.split("## Published figures")[1].split("\n\n")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert len(cells) > 20
    for system, named, protocol, *_ in cells:
        known = protocol.split("`")[1] if protocol.startswith("`") else None
        assert known in PROTOCOLS or protocol == "DDPM, not here", system
        # Where the figure is of the preset itself, a run of it says where it departs from that figure's protocol.
        if named.startswith("`") and known == "sfd":
            assert preset(named.split("`")[1]).sample.protocol == known, system
