"""`sfd report`: what is on the page, that it needs nothing else, and what it says when things are missing."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from stand_ins import score_by
from tiny_project import CLASSES, SIDE, tiny_settings, write_models, write_training_images

from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import Settings
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.evaluation.curve import ScoredSample, write_rows
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.files import read_json, write_json
from sfd_cli.pipeline.trajectory import Trajectory, follow_samples, nearest, pick_progress
from sfd_cli.report.curves import COLOURS, Curve, draw_curves, read_curves, read_validation, smooth
from sfd_cli.report.page import Marks, draw_ruler
from sfd_cli.report.parts import along_training, losses, spread_over_classes, tell_phases
from sfd_cli.report.pictures import draw_trajectory, principal_colours, shorten
from sfd_cli.report.tables import facts, setting_tables
from sfd_cli.stages import fid, report, sample


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project that has been sampled, scored and reported on."""
    settings = tiny_settings(tmp_path_factory.mktemp("project"))
    write_training_images(settings)
    write_models(settings)
    sample.run(settings)
    log = settings.paths.metrics / "dit" / "plots" / "metrics"
    log.mkdir(parents=True)
    validated = {"validation_texture": 2.0, "validation_texture_both": 2.5, "training_texture": 1.0}
    for name, scale in {"loss": 3.0, "velocity_mse": 1.0, "learning_rate": 1e-4, **validated}.items():
        rows = [f"{step}\t{scale / (1 + step)}\n" for step in range(0, 100, 5)]
        (log / f"{name}.tsv").write_text("".join([f"step\t{name}\n", *rows]))
    weights = torch.randn(3 * SIDE * SIDE, 6, generator=torch.Generator().manual_seed(0)) / 30
    crude = Extractor.of("dinov2", 6, torch.device("cpu"), lambda images: images.float().flatten(1) @ weights)
    with pytest.MonkeyPatch.context() as patch:
        score_by(patch, lambda: crude)
        fid.run(settings)
    report.run(settings)
    return settings


@pytest.fixture(scope="module")
def page(finished: Settings) -> str:
    return (finished.paths.reports / "index.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects tags with their attributes, and checks that what opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_whole_file_that_refers_to_nothing_outside(page: str) -> None:
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements.found}
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(http" not in page
    assert sum(tag == "img" for tag, _ in elements.found) == 2


def test_every_id_on_the_page_is_there_once(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_shows_scores_with_their_counts_between_floor_and_ceiling(finished: Settings, page: str) -> None:
    scores = read_json(finished.paths.metrics / "fid.json")
    for key in ("fd_dinov2", "fd_dinov2_untrained", "fd_dinov2_halves"):
        assert f"{scores[key]:.4g}" in page
    assert "12 samples against 24 reference images" in page
    assert "12 against 12 images" in page
    assert f"samples {scores['fd_dinov2_matched']['samples']:.4g}" in page
    assert "No Inception scores: switched off" in page


def test_the_page_shows_what_the_autoencoders_lose_and_where_that_is_on_the_ruler(
    finished: Settings, page: str
) -> None:
    scores = read_json(finished.paths.metrics / "fid.json")
    texture = scores["autoencoders"]["texture"]
    assert f"{scores['fd_dinov2_reconstructed']:.4g}" in page
    assert "12 against the same 12 as they were" in page
    assert f"real through the autoencoder {scores['fd_dinov2_matched']['reconstructed']:.4g}</text>" in page
    for key, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        assert f'<td>Texture codec: {label}</td><td class="number">{texture[key]:.4g}</td>' in page
    assert f"{texture['images']} images {texture['those']}" in page
    assert "Texture codec, LPIPS: none; its weights are not here" in page
    assert "Semantic VAE, cosine to patch tokens: none" in page
    assert "No decoded semantics scores" in page


def test_marks_stand_on_the_ruler_by_the_logarithm_of_their_distance() -> None:
    def places(picture: str) -> list[float]:
        return [float(found) for found in re.findall(r'cx="([0-9.]+)"', picture)]

    real, untrained, autoencoder, samples = places(draw_ruler(Marks(10.0, 100.0, 1000.0, 100_000.0)))
    assert (real, untrained) == (24, 616)
    assert autoencoder == pytest.approx(24 + 592 / 4, abs=0.1)
    assert samples == pytest.approx(24 + 592 / 2, abs=0.1)
    assert len(places(draw_ruler(Marks(10.0, None, 1000.0, 100_000.0)))) == 3
    assert places(draw_ruler(Marks(0.0, None, 10.0, 10_000.0)))[0] == 24, "a distance of 0 has a place"
    assert places(draw_ruler(Marks(5.0, None, 1.0, 50.0)))[2] == 24, "samples may be nearer than real images"


def test_the_page_shows_losses_and_settings(page: str) -> None:
    assert "velocity mse" in page
    assert "learning rate</text>" not in page
    assert "offset by which semantics lead textures" in page


def test_nothing_on_the_page_depends_on_the_clock(finished: Settings, page: str) -> None:
    write_json(finished.paths.metrics / "timings" / "train.json", [{"seconds": 40.0, "resumed": False}])
    report.run(finished)
    assert (finished.paths.reports / "index.html").read_text(encoding="utf-8") == page


def test_errors_on_held_out_images_have_a_picture_for_each_stream_there_is(finished: Settings, page: str) -> None:
    log = finished.paths.metrics / "dit"
    assert [curve.name for curve in read_curves(log)] == ["loss", "velocity mse"]
    held_out, training = read_validation(log, "texture")
    assert [curve.name for curve in held_out] == ["validation texture", "validation texture both"]
    assert [(curve.name, curve.values[1]) for curve in training] == [("training texture", pytest.approx(1 / 6))]
    assert read_validation(log, "semantic") == ([], [])
    assert page.count(">validation texture both</text>") == 1
    assert "Diffusion transformer, texture error, held out" in page
    assert "Diffusion transformer, semantic error" not in page


def test_losses_that_fall_below_zero_leave_the_others_their_logarithmic_scale(tmp_path: Path) -> None:
    log = tmp_path / "dit" / "plots" / "metrics"
    log.mkdir(parents=True)
    for name, values in (("loss", [1, 0.5, 0]), ("mse", [1, 0.1, 0.01]), ("dispersive", [-1, -2, -2.7])):
        (log / f"{name}.tsv").write_text(f"step\t{name}\n" + "".join(f"{s}\t{v}\n" for s, v in enumerate(values)))
    together, apart = losses(tmp_path)
    shown = [re.findall(r">(loss|mse|dispersive)</text>", picture) for picture in (together, apart)]
    assert shown == [["mse"], ["loss", "dispersive"]]
    assert ">0.02</text>" in together  # ticks at 1, 2 and 5
    assert "Diffusion transformer, what falls below zero" in apart


def test_the_errors_of_training_images_are_dashed_in_the_colours_of_those_held_out() -> None:
    steps = np.arange(3)
    pair = [Curve("a", steps, steps + 1.0), Curve("b", steps, steps + 2.0)]
    without, picture = draw_curves("t", pair, "i"), draw_curves("t", pair, "i", dashed=pair)
    assert "stroke-dasharray" not in without
    dashed = re.findall(r"stroke-dasharray[^>]*stroke: (#\w+)", picture)
    assert dashed == list(COLOURS[:2])


def test_scores_along_the_training_have_a_picture_for_each_distance_as_it_was_found(tmp_path: Path) -> None:
    assert along_training(tmp_path) == []
    scores = [{"fid": 9.0 - value, "fd_dinov2": 90.0 - value, "recall": 0.5} for value in range(8)]
    rows = [ScoredSample(model="abcd"[place // 2], seed=place % 2, scores=one) for place, one in enumerate(scores)]
    models = {10: "a", 20: "b", 30: "c", 40: "d"}
    folder = tmp_path / "curve"
    folder.mkdir()
    write_rows(folder, rows, {10: "a"}, [0])
    assert along_training(tmp_path) == []  # one point is no curve
    write_rows(folder, rows, models, [0])
    once = along_training(tmp_path)
    assert [re.findall(r">(Fréchet[^<]*)</text>", picture) for picture in once] == [
        ["Fréchet distance (fid)"],
        ["Fréchet distance (fd_dinov2)"],
    ]
    assert not any("stroke-dasharray" in picture for picture in once)
    write_rows(folder, rows, models, [0, 1])
    assert all(picture.count("stroke-dasharray") == 1 for picture in along_training(tmp_path))
    (folder / "curve.tsv").write_text("step\tfid_mean\n10\tx\n")
    with refusal(folder / "curve.tsv", "sfd curve"):
        along_training(tmp_path)


def test_a_page_with_scores_along_the_training_shows_them(finished: Settings, page: str) -> None:
    folder = finished.paths.metrics / "curve"
    folder.mkdir()
    rows = [ScoredSample(model=model, seed=0, scores={"fd_dinov2": 3.0}) for model in "ab"]
    write_rows(folder, rows, {10: "a", 20: "b"}, [0])
    report.run(finished)
    shown = (finished.paths.reports / "index.html").read_text(encoding="utf-8")
    shutil.rmtree(folder)
    assert "Along the training" in shown
    assert "Along the training" not in page


def test_settings_on_the_page_are_those_that_made_the_artifact(finished: Settings) -> None:
    changed = finished.model_copy(update={"sample": finished.sample.model_copy(update={"steps": 77})})
    report.run(changed)
    text = (finished.paths.reports / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<td><code>steps</code></td><td><code>4</code></td>", text)
    assert "<code>77</code>" not in text


def test_scores_of_other_samples_are_not_passed_off_as_of_these(finished: Settings) -> None:
    warning = "These scores are of other samples"
    report.run(finished)
    page = finished.paths.reports / "index.html"
    assert warning not in page.read_text(encoding="utf-8")
    path = finished.paths.metrics / "fid.json"
    scores = read_json(path)
    write_json(path, scores | {"used": scores["used"] | {"samples": "elsewhere 0123"}})
    report.run(finished)
    assert warning in page.read_text(encoding="utf-8")
    write_json(path, scores)


def test_the_pictures_are_written_beside_the_page_and_repeat_byte_for_byte(finished: Settings) -> None:
    names = ("samples.png", "trajectory.png")
    first = [(finished.paths.reports / name).read_bytes() for name in names]
    report.run(finished)
    assert [(finished.paths.reports / name).read_bytes() for name in names] == first


def test_a_trajectory_ends_in_the_very_images_that_were_sampled(finished: Settings) -> None:
    samples = Samples.open(finished.paths.samples)
    trajectory, schedule = follow_samples(finished, samples, [1, 5])
    assert trajectory.progress[0] == 0
    assert trajectory.progress[-1] == schedule.end
    assert trajectory.captions == [CLASSES[1], CLASSES[2]]
    for position, index in enumerate((1, 5)):
        png = np.asarray(Image.open(samples.files[index])).astype(int)
        assert np.abs(trajectory.textures[-1, position] - png).max() <= 1


def test_semantics_move_first_and_textures_last(finished: Settings) -> None:
    trajectory, schedule = follow_samples(finished, Samples.open(finished.paths.samples), [0])
    early = trajectory.progress.index(schedule.delta_t)
    done = trajectory.progress.index(1.0)
    assert (trajectory.textures[early] == trajectory.textures[0]).all()
    assert (trajectory.semantics[early] != trajectory.semantics[0]).any()
    assert (trajectory.semantics[done] == trajectory.semantics[-1]).all()
    assert (trajectory.textures[done] != trajectory.textures[-1]).any()


def test_a_page_made_too_early_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(tmp_path)
    report.run(settings)
    text = (settings.paths.reports / "index.html").read_text(encoding="utf-8")
    assert "run `sfd sample` first" in text
    assert "run `sfd fid`" in text
    assert "No training has been logged yet" in text
    assert "run `sfd fid`" in capsys.readouterr().err


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, report={"title": "<script>alert(1)</script>"})
    report.run(settings)
    text = (settings.paths.reports / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_broken_log_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "plots" / "metrics"
    folder.mkdir(parents=True)
    (folder / "loss.tsv").write_text("step\tloss\n1\tnot a number\n")
    with refusal(folder / "loss.tsv"):
        read_curves(tmp_path)


def test_the_grid_takes_classes_evenly_and_sorted() -> None:
    labels = [index % 3 for index in range(30)]
    chosen = spread_over_classes(labels, 7)
    assert [labels[index] for index in chosen] == [0, 0, 0, 1, 1, 2, 2]
    assert len(set(chosen)) == 7
    assert spread_over_classes(list(range(100)), 4) == [0, 25, 50, 75]
    assert spread_over_classes([0, 1], 36) == [0, 1]


def test_principal_colours_mean_the_same_at_every_point() -> None:
    generator = np.random.default_rng(0)
    final = generator.normal(size=(2, 5, 4, 4))
    colours = principal_colours(np.stack([generator.normal(size=final.shape), final, final]))
    assert colours.shape == (3, 2, 4, 4, 3)
    assert (colours[1] == colours[2]).all()
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert colours[-1].std(axis=(0, 1, 2)).min() > 0.1


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_than_three_semantic_channels_have_colours_too(channels: int) -> None:
    latents = np.random.default_rng(0).normal(size=(2, 1, channels, 4, 4))
    assert principal_colours(latents).shape == (2, 1, 4, 4, 3)


def test_the_phases_are_told_as_they_are() -> None:
    semantics, both, textures = "only the semantic latent moves", "both latents move", "only the texture latent moves"
    start = "Sampling runs along one progress T"
    for offset, story in (
        (0.3, f"{start}: up to T = 0.3 {semantics}, up to T = 1 {both}, up to T = 1.3 {textures}."),
        (0.0, f"{start}: up to T = 1 {both}."),
        (1.0, f"{start}: up to T = 1 {semantics}, up to T = 2 {textures}."),
    ):
        assert tell_phases(AsynchronousSchedule(offset), semantics=True) == story
    alone = tell_phases(AsynchronousSchedule(0.0), semantics=False)
    assert alone.startswith(start)
    assert "semantic" not in alone


def test_without_semantics_a_trajectory_shows_textures_alone(tmp_path: Path) -> None:
    heights = {}
    for channels in (0, 3):
        semantics = np.random.default_rng(0).normal(size=(2, 1, channels, 4, 4))
        trajectory = Trajectory([0.0, 1.0], np.zeros((2, 1, 8, 8, 3), np.uint8), semantics, ["a"])
        draw_trajectory(tmp_path / "trajectory.png", trajectory, AsynchronousSchedule(0.0))
        heights[channels] = Image.open(tmp_path / "trajectory.png").height
    assert heights[0] < heights[3]


def test_a_system_without_guide_and_semantics_is_described_without_them(tmp_path: Path) -> None:
    transformer = {"semantics": False, "time_embedding": "single", "delta_t": 0.0, "repa": "none"}
    settings = tiny_settings(tmp_path, dit=transformer).model_copy(update={"guide": None})
    write_json(
        settings.paths.samples / "settings.json",
        {"fingerprint": "made", "settings": {"solver": "dopri5", "guidance": "cfg"}},
    )
    notes = {fact["name"]: fact["note"] for fact in facts(settings)}
    assert notes == {"Samples": "dopri5, guidance cfg"}
    (guide,) = [table for table in setting_tables(settings) if table["name"] == "guide"]
    assert guide["rows"] == [("guide", "null")]
    settings.paths.samples.joinpath("settings.json").unlink()
    report.run(settings)
    page = (settings.paths.reports / "index.html").read_text(encoding="utf-8")
    assert "two streams" not in page


@pytest.mark.parametrize(
    ("offset", "gain", "subtitle", "note"),
    [
        (0.3, 1.0, "textures following", "semantics lead textures by this much"),
        (0.0, 0.4, "textures smaller", "semantics lead textures by this much, and by +0.92 in logit time"),
        (0.0, 1.0, "is compared with", "semantics lead textures by this much"),
    ],
)
def test_the_page_says_what_puts_semantics_ahead(
    tmp_path: Path, offset: float, gain: float, subtitle: str, note: str
) -> None:
    latents = {"texture_scale": "stream", "texture_gain": gain}
    settings = tiny_settings(tmp_path, dit={"delta_t": offset}, latents=latents)
    write_json(
        settings.paths.samples / "settings.json",
        {"fingerprint": "made", "settings": {"solver": "ab3", "delta_t": offset}},
    )
    found = next(fact for fact in facts(settings) if fact["name"] == "Offset delta_t")
    assert (found["value"], found["note"].startswith(note)) == (str(offset), True)
    assert ("logit" in found["note"]) == (gain != 1)
    settings.paths.samples.joinpath("settings.json").unlink()
    report.run(settings)
    assert subtitle in (settings.paths.reports / "index.html").read_text(encoding="utf-8")


def test_the_cosine_of_principal_components_is_not_called_a_vaes(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, semvae={"compressor": "pca"})
    write_json(settings.paths.metrics / "semvae.json", {"cosine": 0.9})
    assert [fact["name"] for fact in facts(settings)] == ["Principal components"]


def test_the_fidelity_of_components_of_patches_is_not_called_a_vaes(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, texture_vae={"compressor": "pca", "patch_size": 8})
    write_json(settings.paths.metrics / "texture_vae.json", {"psnr": 25.0})
    assert [fact["name"] for fact in facts(settings)] == ["Pixel components"]


@pytest.mark.parametrize(("recorded", "shown"), [(None, "pca"), ({"steps": 3}, "vae"), ({"compressor": "pca"}, "pca")])
def test_a_record_that_does_not_name_a_later_setting_means_its_first_value(
    tmp_path: Path, recorded: dict[str, object] | None, shown: str
) -> None:
    settings = tiny_settings(tmp_path, texture_vae={"compressor": "pca", "patch_size": 8})
    if recorded is not None:
        write_json(settings.paths.texture_vae / "settings.json", {"fingerprint": "made", "settings": recorded})
    (table,) = [table for table in setting_tables(settings) if table["name"] == "texture_vae"]
    assert dict(table["rows"])["compressor"] == shown


def test_points_shown_are_ends_of_phases_and_points_inside_whatever_the_offset() -> None:
    assert pick_progress(AsynchronousSchedule(0.0)) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    shown = pick_progress(AsynchronousSchedule(0.3))
    assert {0.0, 0.3, 1.0, 1.3} <= set(shown)
    assert shown == sorted(shown)
    assert nearest([0.0, 0.5, 1.0], [0.0, 0.1, 0.6, 1.0]) == [0.0, 0.5, 1.0]


def test_a_running_mean_keeps_constants_and_length() -> None:
    assert smooth(np.full(7, 2.0)) == pytest.approx(np.full(7, 2.0))
    assert len(smooth(np.arange(100.0))) == 100
    assert smooth(np.array([1.0])) == pytest.approx([1.0])


def test_long_class_names_are_cut_to_fit() -> None:
    assert shorten("tench, Tinca tinca") == "tench"
    assert shorten("a_very_long_class_name_indeed") == "a very long class…"
