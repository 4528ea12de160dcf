"""`sfd sample` of named classes, the null label, strips and pictures: files, records, resuming, refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import done, files_below, refusal_of, sfd
from model_loading import load_dit
from PIL import Image
from refusals import refusal
from tiny_project import CLASSES, SIDE, TEXTURE
from trained_pipeline import project

from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import Sample, Settings
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.pipeline.trajectory import recorded_sample
from sfd_cli.stages import sample as stage

FEW: dict[str, Any] = {"num_images": 6, "batch_size": 3, "steps": 4, "solver": "ab3", "delta_t": 0.3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("project")
    settings = project(root)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    mask = np.zeros((2 * SIDE, SIDE), np.uint8)
    mask[SIDE // 2 : SIDE, : SIDE // 2] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return settings


def root_of(settings: Settings) -> Path:
    return settings.paths.dit.parent


def by(settings: Settings, folder: Path, **sample: Any) -> Settings:
    """The project with other settings of `sample`, and another folder for samples."""
    paths = settings.paths.model_copy(update={"samples": folder, "metrics": folder.with_name(f"{folder.name}-metrics")})
    return settings.model_copy(update={"sample": Sample.model_validate(FEW | sample), "paths": paths})


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))])


def latents(settings: Settings, folder: Path, **inputs: Path) -> np.ndarray:
    file = folder.with_suffix(".npy")
    stage.run(settings, latents_out=file, **inputs)
    return np.load(file)


def pictures(settings: Settings) -> dict[str, dict[str, Any]]:
    root = root_of(settings)
    image = {"image": root / "picture.png"}
    return {
        "names": {"classes": ["triangles", 0]},
        "null": {"classes": ["null", "circles"]},
        "seeds": {"classes": ["squares"], "to_seed": 5},
        "classes": {"classes": ["squares"], "to_class": "circles"},
        "keep": image | {"keep": "semantics"},
        "start": image | {"start_time": 0.6},
        "mask": image | {"mask": root / "mask.png", "keep": "textures"},
    }


KINDS = ("names", "null", "seeds", "classes", "keep", "start", "mask")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_is_made_again_to_the_same_bytes(kind: str, made: Settings, tmp_path: Path) -> None:
    settings = by(made, tmp_path / "samples", **pictures(made)[kind])
    stage.run(settings)
    folder = settings.paths.samples
    before = contents(folder)
    for name in ("000001.png", "000005.png", "samples.npz", "labels.json"):
        (folder / name).unlink()
    write_json(folder / "settings.json", read_json(folder / "settings.json") | {"complete": False})
    stage.run(settings)
    assert contents(folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size_give_the_same_images(kind: str, made: Settings, tmp_path: Path) -> None:
    found = []
    for size in (2, 4, 6):
        stage.run(by(made, tmp_path / f"{size}", **pictures(made)[kind] | {"batch_size": size}))
        found.append(pixels(tmp_path / f"{size}").astype(int))
    assert all(np.abs(other - found[0]).max() <= 1 for other in found[1:]), "but for the rounding of a grey level"


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_object_makes_the_same_images(kind: str, made: Settings, tmp_path: Path) -> None:
    asked = pictures(made)[kind]
    pipeline = SemanticFirstPipeline.from_settings(made, encoder=True)
    pipeline.set_progress_bar_config(disable=True)
    classes = asked.get("classes", CLASSES)
    labels = [classes[index % len(classes)] for index in range(6)]
    call = {key: value for key, value in (FEW | asked).items() if key not in ("num_images", "classes")}
    own = pipeline.sample_latents(labels, **call).numpy()
    assert np.array_equal(own, latents(by(made, tmp_path / "samples", **asked), tmp_path / "own"))


def test_classes_by_name_are_those_by_index(made: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = by(made, tmp_path / "samples", classes=["triangles", "circles"])
    stage.run(settings)
    assert read_json(settings.paths.samples / "labels.json") == [2, 0, 2, 0, 2, 0]
    capsys.readouterr()
    stage.run(by(made, tmp_path / "samples", classes=[2, 0]))
    assert "up to date" in capsys.readouterr().err
    assert read_json(settings.paths.samples / "settings.json")["settings"]["classes"] == [2, 0]


def test_the_null_label_has_a_label_and_a_name_of_its_own(made: Settings, tmp_path: Path) -> None:
    settings = by(made, tmp_path / "samples", classes=["null", "squares"])
    summary = stage.run(settings, tmp_path / "grid.png")
    assert summary["grid"]
    samples = Samples.open(settings.paths.samples)
    assert samples.labels == [3, 1] * 3
    assert samples.class_names == [*CLASSES, "null"]
    record = read_json(settings.paths.samples / "settings.json")
    assert record["settings"]["classes"] == ["null", 1]
    assert recorded_sample(settings.sample, samples).classes == ["null", 1]


def test_the_ends_of_a_strip_are_ordinary_samples_byte_for_byte(made: Settings, tmp_path: Path) -> None:
    """In the places that they have in the strip; its batches are of three."""
    stage.run(by(made, tmp_path / "strip", classes=["squares"], to_class=0, to_seed=5), tmp_path / "strip.png")
    for name, seed, label, index in (("first", 0, 1, 0), ("last", 5, 0, 5)):
        np.save(tmp_path / "z.npy", np.repeat(initial_noise(seed, [0], (7, 2, 2)).numpy(), 6, axis=0))
        stage.run(by(made, tmp_path / name, classes=[label]), noise=tmp_path / "z.npy")
        assert np.array_equal(pixels(tmp_path / name)[index], pixels(tmp_path / "strip")[index])
    stage.run(by(made, tmp_path / "own", classes=[1], num_images=3))
    assert np.array_equal(pixels(tmp_path / "own")[0], pixels(tmp_path / "strip")[0])
    assert read_json(tmp_path / "strip" / "labels.json") == [1, 1, 1, 0, 0, 0]
    facts = read_json(tmp_path / "strip" / "settings.json")["facts"]
    assert facts["strip"] == {"seeds": [0, 5], "classes": [1, 0]}
    with Image.open(tmp_path / "strip.png") as grid:
        assert grid.width > 4 * grid.height, "one row"


def test_from_the_beginning_of_a_picture_samples_are_ordinary_ones_and_from_its_end_the_picture(
    made: Settings, tmp_path: Path
) -> None:
    image = root_of(made) / "picture.png"
    stage.run(by(made, tmp_path / "plain"))
    stage.run(by(made, tmp_path / "begin", image=image, start_time=0.0))
    assert np.array_equal(pixels(tmp_path / "begin"), pixels(tmp_path / "plain"))
    stage.run(by(made, tmp_path / "end", image=image, start_time=1.0))
    pipeline = SemanticFirstPipeline.from_settings(made, encoder=True)
    encoded = pipeline.encode(Image.open(image)).repeat(3, 1, 1, 1)
    own = pipeline.decode(encoded).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels(tmp_path / "end"), np.concatenate([own, own]))


def test_kept_semantics_are_the_pictures_in_what_is_kept_beside_the_images(made: Settings, tmp_path: Path) -> None:
    stage.run(by(made, tmp_path / "samples", **pictures(made)["keep"]))
    pipeline = SemanticFirstPipeline.from_settings(made, encoder=True)
    encoded = pipeline.encode(Image.open(root_of(made) / "picture.png"))[:, TEXTURE:]
    kept = np.load(tmp_path / "samples" / "semantics.npy")
    assert kept == pytest.approx(np.repeat(encoded.numpy() * 0.9 + 0.1, 6, axis=0), abs=1e-6)


@pytest.mark.parametrize("kind", ["seeds", "keep", "mask"])
def test_a_png_and_the_record_say_what_was_done(kind: str, made: Settings, tmp_path: Path) -> None:
    asked = pictures(made)[kind]
    stage.run(by(made, tmp_path / "samples", **asked))
    record = read_json(tmp_path / "samples" / "settings.json")
    with Image.open(tmp_path / "samples" / "000002.png") as image:
        said = json.loads(image.text["sfd"])  # type: ignore[attr-defined]
    assert said["index"] == 2
    assert said["inputs"] == record["inputs"]
    files = {key for key in asked if key in ("image", "mask")}
    for key in asked.keys() - files - {"classes"}:
        assert said["sample"][key] == record["settings"][key] == asked[key]
    for key in files:
        digest = hashlib.sha256(asked[key].read_bytes()).hexdigest()
        assert said["inputs"][key] == digest
        assert record["settings"][key] == str(asked[key])
        assert key not in said["sample"], "where a file lies makes no image"
    assert said.get("place") == (0.4 if kind == "seeds" else None)
    assert ({"semvae", "encoder"} <= record["inputs"].keys()) == bool(files)


def test_ordinary_samples_are_as_they_were_without_a_word_in_them(made: Settings, tmp_path: Path) -> None:
    stage.run(by(made, tmp_path / "samples", classes=["circles"]))
    record = read_json(tmp_path / "samples" / "settings.json")
    assert not {"keep", "start_time", "to_seed", "to_class", "image", "mask"} & record["settings"].keys()
    assert record["inputs"].keys() == {"dit", "texture_vae"}
    with Image.open(tmp_path / "samples" / "000000.png") as image:
        assert not image.text  # type: ignore[attr-defined]


def test_another_picture_of_the_same_name_makes_other_samples_and_the_same_elsewhere_does_not(
    made: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((root_of(made) / "picture.png").read_bytes())
    stage.run(by(made, tmp_path / "samples", image=tmp_path / "a.png", keep="semantics"))
    stage.run(by(made, tmp_path / "samples", image=tmp_path / "b.png", keep="semantics"))
    assert "up to date" in capsys.readouterr().err
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "b.png")
    stage.run(by(made, tmp_path / "samples", image=tmp_path / "b.png", keep="semantics"))
    assert "starting afresh" in capsys.readouterr().err


def test_the_way_of_samples_that_are_not_from_noise_alone_is_not_drawn(made: Settings, tmp_path: Path) -> None:
    stage.run(by(made, tmp_path / "samples", **pictures(made)["keep"]))
    samples = Samples.open(tmp_path / "samples")
    with refusal(samples.description, "keep", "image"):
        recorded_sample(made.sample, samples)


@pytest.mark.parametrize(
    ("sample", "subject", "named"),
    [
        ({"classes": ["circle"]}, "sample.classes", ("'circle'", "'circles'")),
        ({"classes": ["xyz", 0]}, "sample.classes", ("'xyz'", "'squares'")),
        ({"classes": [3]}, "sample.classes", ("[3]", "0 to 2")),
        ({"to_seed": 3}, "sample.classes", ("all",)),
        ({"to_seed": 3, "classes": [0, 1]}, "sample.classes", ("2",)),
        ({"to_class": "squars", "classes": [0]}, "sample.to_class", ("'squares'",)),
        ({"to_class": "circles", "classes": [0]}, "sample.to_class", ("'circles'",)),
        ({"to_class": 1, "classes": [0], "num_images": 1}, "sample.num_images", ()),
        ({"image": "nowhere.png", "keep": "semantics"}, "sample.image", ("nowhere.png",)),
        ({"image": "text.png", "keep": "semantics"}, "sample.image", ("text.png",)),
        ({"image": "small.png", "mask": "picture.png"}, "sample.mask", ("16 x 16", "16 x 32")),
        ({"image": "picture.png", "mask": "soft.png"}, "sample.mask", ("100",)),
        ({"image": "picture.png"}, "sample.image", ("start_time",)),
        ({"keep": "semantics"}, "sample.keep", ("sample.image",)),
        ({"image": "picture.png", "keep": "semantics", "solver": "euler_maruyama"}, "sample.solver", ("ab3",)),
    ],
    ids=str,
)
def test_mistakes_are_refused_and_nothing_is_written(
    sample: dict[str, Any], subject: str, named: tuple[str, ...], made: Settings, tmp_path: Path
) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "small.png")
    Image.new("L", (SIDE, 2 * SIDE), 100).save(tmp_path / "soft.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "picture.png").write_bytes((root_of(made) / "picture.png").read_bytes())
    placed = {key: tmp_path / value if key in ("image", "mask") else value for key, value in sample.items()}
    before = files_below(tmp_path)
    with refusal(subject, *named):
        stage.run(by(made, tmp_path / "samples", **placed))
    assert files_below(tmp_path) == before


def test_files_of_noise_and_labels_take_no_part_in_strips(made: Settings, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.zeros((3, 7, 2, 2), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, 1]))
    with refusal("sample.to_seed", "noise"):
        stage.run(by(made, tmp_path / "samples", to_seed=3, classes=[0]), noise=tmp_path / "z.npy")
    with refusal("labels", "2"):
        stage.run(by(made, tmp_path / "samples", to_class=2), labels=tmp_path / "y.npy")
    assert not (tmp_path / "samples").exists()


def test_a_model_without_semantics_keeps_no_stream_and_needs_no_encoder(made: Settings, tmp_path: Path) -> None:
    _, facts = load_dit(made.paths.dit)
    config = LightningDiTConfig(2, TEXTURE, 3, 0, width=32, depth=1, heads=2, time_embedding="single")
    network = LightningDiT(config)
    statistics = {"mean": [0.1] * TEXTURE, "std": [0.9] * TEXTURE}
    facts = facts | {"statistics": statistics, "delta_t": 0.0}
    save_model(tmp_path / "dit", "LightningDiT", config, {"ema": network.state_dict()}, facts)
    settings = by(made, tmp_path / "samples", image=root_of(made) / "picture.png", start_time=0.5, delta_t=0.0)
    paths = settings.paths.model_copy(update={"dit": tmp_path / "dit", "semvae": tmp_path / "none"})
    settings = settings.model_copy(update={"paths": paths})
    stage.run(settings)
    assert len(pixels(tmp_path / "samples")) == 6
    kept = settings.sample.model_copy(update={"keep": "semantics"})
    with refusal("sample.keep", tmp_path / "dit"):
        stage.run(settings.model_copy(update={"sample": kept}))


def test_the_flags_are_one_each(made: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = made.model_dump(mode="json", include={"paths", "images", "encoder", "texture_vae", "semvae", "runtime"})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(plain | {"sample": FEW}))
    image, mask = root_of(made) / "picture.png", root_of(made) / "mask.png"
    for number, flags in enumerate(
        (
            ("--classes", "null,squares,0"),
            ("--classes", "squares", "--to-seed", 4),
            ("--classes", "squares", "--to-class", "null"),
            ("--classes", "1", "--to-class", 2),
            ("--image", image, "--keep", "semantics"),
            ("--image", image, "--start-time", 0.4),
            ("--image", image, "--mask", mask),
        )
    ):
        done("sample", *flags, "--samples", f"{number}")
        assert len(list(Path(f"{number}").glob("*.png"))) == 6
    assert read_json(Path("0/labels.json")) == [3, 1, 0] * 2
    assert read_json(Path("3/labels.json")) == [1, 1, 1, 2, 2, 2]
    assert refusal_of("sample", "--image", image, "--start-time", 2).subject == "--start-time"
    assert "'squares'" in refusal_of("sample", "--classes", "square").remedy
    assert "--start-time" in sfd("sample", "--strength", 0.3).err
