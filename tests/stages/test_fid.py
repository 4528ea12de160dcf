"""`sfd fid`: which images are scored, against what, and what is said where a number cannot be had."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made_features import fitted
from PIL import Image
from pydantic import ValidationError
from refusals import refusal
from stand_ins import put, score_by
from tiny_project import CLASSES, SIDE, random_images, tiny_settings, write_models, write_training_images

from sfd_cli.config import Fid, Sample, Settings
from sfd_cli.data.images import image_files
from sfd_cli.evaluation import extractors
from sfd_cli.evaluation import features as features_module
from sfd_cli.evaluation.cmmd import clip_discrepancy
from sfd_cli.evaluation.extractor import EMBEDDING, POOLED, Extractor
from sfd_cli.evaluation.features import extract
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.evaluation.npz import open_npz
from sfd_cli.files import read_json, write_json
from sfd_cli.machine import machine
from sfd_cli.stages import fid
from sfd_cli.weights.registry import REGISTRY

WIDTH = 12


def crude(name: str = "dinov2", width: int = WIDTH) -> Extractor:
    """An extractor cheap enough for tests: fixed random projections of the pixels."""
    weights = torch.randn(3 * SIDE * SIDE, width, generator=torch.Generator().manual_seed(width)) / 30
    return Extractor.of(name, width, torch.device("cpu"), lambda images: (images.float() / 255).flatten(1) @ weights)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with 24 training images, tiny networks and 12 finished samples, scored by a crude extractor."""
    settings = tiny_settings(tmp_path)
    write_training_images(settings)
    write_models(settings)
    write_samples(settings)
    score_by(monkeypatch, crude)
    return settings


def write_samples(settings: Settings, count: int = 12, complete: bool = True) -> None:
    folder = settings.paths.samples
    random_images(folder, [f"{index:06d}.png" for index in range(count)], seed=2, brightness=0.8)
    write_json(folder / "labels.json", [index % 3 for index in range(count)])
    record = {"num_images": count, "solver": "euler", "steps": 4, "guidance": "none", "delta_t": 0.3}
    facts = {"fingerprint": "f" * 64, "complete": complete, "facts": {"class_names": CLASSES}}
    write_json(folder / "settings.json", {**facts, "settings": record})


def crude_features(files: list[Path]) -> torch.Tensor:
    return torch.cat([crude()(batch)[POOLED] for batch in ImageFiles(files, SIDE).batches(5)])


def used(settings: Settings) -> dict[str, Any]:
    """What `fid.json` says was compared."""
    return dict(read_json(settings.paths.metrics / "fid.json")["used"])


def with_fid(settings: Settings, **section: Any) -> Settings:
    return settings.model_copy(update={"fid": settings.fid.model_copy(update=section)})


def test_the_distance_is_that_of_all_samples_to_all_training_images(settings: Settings) -> None:
    result = fid.run(settings)
    folders = (settings.paths.samples, settings.paths.images)
    expected = frechet_distance(*(fitted(crude_features(image_files(folder))) for folder in folders))
    assert result["fd_dinov2"] == pytest.approx(expected, rel=1e-6)
    assert result["counts"]["samples"] == 12
    assert result["counts"]["fd_dinov2_reference"] == 24
    assert result["counts"]["kid_dinov2"] == [12, 24]
    assert {"kid_dinov2", "precision_dinov2", "recall_dinov2"} <= set(result)


def test_the_untrained_model_and_the_halves_stand_beside_the_score_with_their_counts(settings: Settings) -> None:
    result = fid.run(settings)
    assert result["fd_dinov2_untrained"] > 0
    assert result["fd_dinov2_halves"] > 0
    assert result["counts"]["untrained"] == 12
    assert result["counts"]["fd_dinov2_halves"] == [12, 12]


def test_matched_distances_compare_equally_many_images_with_one_half_of_the_data(settings: Settings) -> None:
    write_samples(settings, count=9)
    found = fid.run(settings)["fd_dinov2_matched"]
    assert (found["images"], found["reference_images"]) == (9, 12)
    assert {"real", "samples", "untrained"} <= set(found)


def test_only_the_chosen_metrics_are_computed_with_the_numbers_they_have_beside_others(settings: Settings) -> None:
    everything, some = fid.run(settings), fid.run(with_fid(settings, scores=["precision_recall", "kid"]))
    chosen = {"kid_dinov2", "kid_dinov2_std", "precision_dinov2", "recall_dinov2"}
    scores = {key for key in some if not key.endswith("_reason")} - {"counts", "notes", "file", "autoencoders"}
    assert scores == chosen | {"kid"}
    assert {key: some[key] for key in chosen} == {key: everything[key] for key in chosen}
    assert "fid.inception: none" in some["kid_reason"]
    with pytest.raises(ValidationError) as caught:
        Fid(scores=["kernel_distance"])
    assert caught.value.errors()[0]["loc"] == ("scores", 0)


def test_what_is_printed_is_the_scores_and_what_is_compared_by_is_a_file_of_its_own(settings: Settings) -> None:
    result, metrics = fid.run(settings), settings.paths.metrics
    whole = read_json(metrics / "fid.json")
    again = {key for key in whole if str(whole.get(f"{key}_reason", whole[key])).startswith("see ")}
    assert {"kid", "kid_reason", "precision", "recall"} <= again
    told = {key: value for key, value in whole.items() if key not in {"used", "machine", "features"} | again}
    assert result == told | {"file": str(metrics / "fid.json")}
    assert (result["fid"], result["fid_reason"]) == (None, "switched off (fid.inception: none)")
    assert whole["used"]["settings"]["neighbours"] == 3
    assert whole["machine"] == machine()
    keys = ["fd_dinov2"]
    assert read_json(metrics / "scores.json") == {key: result[key] for key in keys}


def test_scoring_twice_gives_the_same_bytes(settings: Settings) -> None:
    fid.run(settings)
    first = (settings.paths.metrics / "fid.json").read_bytes()
    fid.run(settings)
    assert (settings.paths.metrics / "fid.json").read_bytes() == first


def test_a_score_that_cannot_be_computed_is_null_with_the_reason(settings: Settings) -> None:
    result = fid.run(settings)
    assert result["fid"] is None
    assert "fid.inception: none" in result["fid_reason"]
    shutil.rmtree(settings.paths.dit)
    result = fid.run(settings)
    assert result["fd_dinov2"] > 0
    assert result["fd_dinov2_untrained"] is None
    assert "models" in result["fd_dinov2_untrained_reason"] or "dit" in result["fd_dinov2_untrained_reason"]
    assert "untrained" not in result["counts"]


def test_where_samples_are_not_by_the_protocol_that_they_name_is_told(settings: Settings) -> None:
    record = read_json(settings.paths.samples / "settings.json")
    assert not any("protocol" in note for note in fid.run(settings)["notes"]), "none is named"
    assert used(settings)["protocol"] | {"name": None, "solver": "euler", "steps": 4} == used(settings)["protocol"]

    made = {"protocol": "lightningdit", "guidance": "cfg", "scale_texture": 6.7, "scale_semantic": 6.7}
    made |= {"interval": [0.125, 1.0], "guidance_channels": 3, "class_labels": "random", "shift": 0.3, "steps": 100}
    made |= {"device": "cpu", "torch": "2.0", "precision": "fp32", "time_grid": "phases"}
    write_json(settings.paths.samples / "settings.json", record | {"settings": record["settings"] | made})
    told = [note for note in fid.run(settings)["notes"] if "protocol lightningdit" in note]
    assert len(told) == 3
    parts = [("steps", "249", "100"), ("training", "adm_imagenet256"), ("50000", "12")]
    assert all(part in note for note, named in zip(told, parts, strict=True) for part in named)
    found = used(settings)["protocol"]
    assert found | {"name": "lightningdit", "device": "cpu", "torch": "2.0", "precision": "fp32"} == found

    by_settings = settings.model_copy(update={"sample": Sample(protocol="sit")})
    write_json(settings.paths.samples / "settings.json", record)
    told = fid.run(by_settings)["notes"]
    assert sum("sample.solver is euler_maruyama; here it is euler" in note for note in told) == 1, "what is asked for"


def test_baselines_can_be_left_out(settings: Settings) -> None:
    result = fid.run(with_fid(settings, baselines=False))
    assert result["fd_dinov2"] > 0
    assert not [key for key in result if "untrained" in key or "halves" in key or "reconstructed" in key]
    assert "autoencoders" not in result


def test_inception_that_cannot_be_reached_is_a_reason_and_not_a_failure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(extractors.urllib.request, "urlopen", unreachable)
    result = fid.run(with_fid(settings, inception="auto"))
    assert result["fid"] is None
    assert "no route to host" in result["fid_reason"]
    assert str(tmp_path / "cache") not in result["fid_reason"]
    assert result["fd_dinov2"] > 0


def test_with_inception_the_same_images_give_fid_kid_precision_and_recall(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(extractors, "optional_weights", lambda name: weights)
    monkeypatch.setattr(extractors, "inception_extractor", lambda path, device: crude("inception", 10))
    result = fid.run(with_fid(settings, inception="auto"))
    assert all(isinstance(result[key], float) for key in ("fid", "kid", "precision", "recall", "fid_untrained"))
    assert result["counts"]["fid_reference"] == 24
    assert used(settings)["inception"]["file"] == "inception.pth"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the networks of FD-DINOv2 and CMMD and their weights; gives the names of those asked for."""
    asked: list[str] = []
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    clip = crude("clip", 6)
    embedding = Extractor("clip", {EMBEDDING: 6}, clip.device, lambda images: {EMBEDDING: clip(images)[POOLED]})
    monkeypatch.setattr(extractors, "optional_weights", lambda name: (asked.append(name), weights)[1])
    monkeypatch.setattr(extractors, "load_visual_encoder", lambda encoder: asked.append(encoder.name))
    monkeypatch.setattr(extractors, "edm2_extractor", lambda network, device: crude())
    monkeypatch.setattr(extractors, "encoder_fingerprint", lambda encoder: "f" * 64)
    monkeypatch.setattr(extractors, "clip_extractor", lambda path, device: embedding)
    return asked


def test_fd_dinov2_and_cmmd_are_computed_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: list[str]
) -> None:
    settings = tiny_settings(tmp_path)
    write_training_images(settings)
    write_samples(settings)
    put(monkeypatch, "encoder", lambda: crude("mine", 4))
    result = fid.run(with_fid(settings, dinov2="auto", clip="auto", baselines=False))
    assert published == ["dinov2_vitl14", "dinov2_vitl14", "clip_vitl14_336"]
    samples, real = (torch.cat([*images.batches(8)]) for images in scored_and_real(settings))
    distance = frechet_distance(*(fitted(crude()(images)[POOLED]) for images in (samples, real)))
    assert result["fd_dinov2"] == pytest.approx(distance, rel=1e-6)
    embedded = [crude("clip", 6)(images)[POOLED] for images in (samples, real)]
    assert result["cmmd"] == pytest.approx(clip_discrepancy(*embedded), rel=1e-9)
    assert result["counts"]["cmmd"] == [12, 24]
    assert set(read_json(settings.paths.metrics / "scores.json")) == {"fd_mine", "fd_dinov2", "cmmd"}
    whole = used(settings)
    assert (whole["dinov2"]["name"], whole["dinov2"]["image_size"]) == ("dinov2_vitl14", 224)
    assert whole["clip"]["file"] == "weights.pth"


def scored_and_real(settings: Settings) -> list[ImageFiles]:
    return [ImageFiles(sorted(path.rglob("*.png"))) for path in (settings.paths.samples, settings.paths.images)]


def test_exactly_the_number_of_samples_asked_for_is_scored_or_none(settings: Settings) -> None:
    assert fid.run(with_fid(settings, num_images=7))["counts"]["samples"] == 7
    with refusal("fid.num_images", "13", "12"):
        fid.run(with_fid(settings, num_images=13))


def test_unfinished_or_incomplete_samples_are_not_scored(settings: Settings) -> None:
    (settings.paths.samples / "000004.png").unlink()
    with refusal(settings.paths.samples / "000004.png", "sfd sample"):
        fid.run(settings)
    write_samples(settings, complete=False)
    with refusal(settings.paths.samples, "sfd sample"):
        fid.run(settings)
    assert not (settings.paths.metrics / "fid.json").exists()


def test_one_image_on_either_side_is_not_scored(settings: Settings, tmp_path: Path) -> None:
    with refusal("samples", 2, 1):
        fid.run(with_fid(settings, num_images=1))
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, SIDE, SIDE, 3), np.uint8))
    with refusal("fid.reference", 2, 1):
        fid.run(with_fid(settings, reference=tmp_path / "one.npz"))


def test_a_damaged_or_odd_sample_is_named(settings: Settings) -> None:
    path = settings.paths.samples / "000007.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refusal(path):
        fid.run(settings)
    Image.new("RGB", (SIDE + 1, SIDE)).save(path)
    with refusal(path, "17x16", settings.paths.samples / "000000.png", "16x16"):
        fid.run(settings)


def test_a_folder_that_somebody_else_filled_can_be_scored(settings: Settings, tmp_path: Path) -> None:
    random_images(tmp_path / "theirs", [f"x/{index}.png" for index in range(10)], seed=5)
    theirs = settings.model_copy(update={"paths": settings.paths.model_copy(update={"samples": tmp_path / "theirs"})})
    assert fid.run(theirs)["counts"]["samples"] == 10


def test_an_npz_of_images_a_folder_and_the_training_set_are_the_same_reference(
    settings: Settings, tmp_path: Path
) -> None:
    files = image_files(settings.paths.images)
    stacked = np.stack([np.asarray(Image.open(path)) for path in files])
    expected = fid.run(settings)["fd_dinov2"]
    for name, save in (("plain", np.savez), ("compressed", np.savez_compressed)):
        path = tmp_path / f"{name}.npz"
        save(path, arr_0=stacked, arr_1=np.zeros(len(stacked)))
        assert fid.run(with_fid(settings, reference=path))["fd_dinov2"] == pytest.approx(expected, rel=1e-9)
    from_folder = fid.run(with_fid(settings, reference=settings.paths.images))
    assert from_folder["fd_dinov2"] == pytest.approx(expected, rel=1e-9)


def test_a_registered_reference_batch_is_taken_by_its_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = np.stack([np.asarray(Image.open(path)) for path in image_files(settings.paths.images)])
    np.savez(tmp_path / "batch.npz", arr_0=stacked)
    entry = replace(REGISTRY["adm_imagenet256"], file="batch.npz", sha256=None, size=None)
    monkeypatch.setitem(REGISTRY, "adm_imagenet256", entry)
    monkeypatch.setenv("SFD_CACHE", str(tmp_path))
    expected = fid.run(settings)["fd_dinov2"]
    named = fid.run(with_fid(settings, reference=Path("adm_imagenet256")))
    assert named["fd_dinov2"] == pytest.approx(expected, rel=1e-9)
    assert used(settings)["fd_dinov2_reference"] == str(tmp_path / "batch.npz")


def test_an_npz_with_both_gives_distances_from_its_statistics_and_the_rest_from_its_images(
    settings: Settings, tmp_path: Path
) -> None:
    stacked = np.stack([np.asarray(Image.open(path)) for path in image_files(settings.paths.images)])
    path = tmp_path / "both.npz"
    np.savez(path, arr_0=stacked, mu=np.full(WIDTH, 50.0), sigma=np.eye(WIDTH), count=1000)
    plain, both = fid.run(settings), fid.run(with_fid(settings, reference=path))
    assert both["fd_dinov2"] > plain["fd_dinov2"] + 1000
    assert both["kid_dinov2"] == plain["kid_dinov2"]
    assert (both["counts"]["fd_dinov2_reference"], both["counts"]["kid_dinov2"]) == (1000, [12, 24])


def test_published_statistics_give_the_distance_and_null_for_what_needs_images(
    settings: Settings, tmp_path: Path
) -> None:
    expected = fid.run(settings)["fd_dinov2"]
    rows = crude_features(image_files(settings.paths.images)).double().numpy()
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    result = fid.run(with_fid(settings, reference=path))
    assert result["fd_dinov2"] == pytest.approx(expected, rel=1e-6)
    assert result["counts"]["fd_dinov2_reference"] is None
    for key in ("kid_dinov2", "precision_dinov2", "recall_dinov2", "fd_dinov2_halves"):
        assert result[key] is None
        assert result[f"{key}_reason"]


def test_statistics_of_other_features_leave_dinov2_the_training_images(settings: Settings, tmp_path: Path) -> None:
    expected = fid.run(settings)["fd_dinov2"]
    path = tmp_path / "inception.npz"
    np.savez(path, mu=np.zeros(10), sigma=np.eye(10), count=50_000)
    result = fid.run(with_fid(settings, reference=path))
    assert result["fd_dinov2"] == pytest.approx(expected, rel=1e-9)
    assert "training images" in used(settings)["fd_dinov2_reference"]


def named(found: Extractor, weights: str) -> Extractor:
    """An extractor that says which weights it has."""
    return replace(found, identity={"encoder": {"fingerprint": weights}})


@pytest.fixture
def distances_alone(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Only Fréchet distances of features whose weights are known, and a cache of its own."""
    monkeypatch.setenv("SFD_CACHE", str(tmp_path / "cache"))
    score_by(monkeypatch, lambda: named(crude(), "a"))
    return with_fid(settings, scores=["fd"], baselines=False)


def remove_training_images(settings: Settings) -> Path:
    """The first of them; the manifest stays."""
    files = image_files(settings.paths.images)
    for file in files:
        file.unlink()
    return files[0]


def test_the_training_images_are_looked_at_once_for_distances_alone(distances_alone: Settings) -> None:
    first, stored = fid.run(distances_alone), (distances_alone.paths.metrics / "fid.json").read_bytes()
    remove_training_images(distances_alone)
    assert fid.run(distances_alone) == first
    assert (distances_alone.paths.metrics / "fid.json").read_bytes() == stored
    write_samples(distances_alone, count=10)
    assert fid.run(distances_alone)["fd_dinov2"] != first["fd_dinov2"]


def test_a_run_with_every_score_leaves_the_same_statistics(distances_alone: Settings) -> None:
    expected = fid.run(with_fid(distances_alone, scores=["fd", "kid"], baselines=True))["fd_dinov2"]
    remove_training_images(distances_alone)
    assert fid.run(distances_alone)["fd_dinov2"] == expected


@pytest.mark.parametrize("more", [{"scores": ["fd", "kid"]}, {"baselines": True}], ids=["rows", "halves"])
def test_what_needs_the_images_looks_at_them_again(distances_alone: Settings, more: dict[str, Any]) -> None:
    fid.run(distances_alone)
    missing = remove_training_images(distances_alone)
    with refusal(missing):
        fid.run(with_fid(distances_alone, **more))


def test_statistics_are_of_these_images_and_weights_alone(
    distances_alone: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fid.run(distances_alone)
    score_by(monkeypatch, lambda: named(crude(), "b"))
    write_training_images(distances_alone, count=21)
    others = fid.run(distances_alone)
    assert others["counts"]["fd_dinov2_reference"] == 21
    missing = remove_training_images(distances_alone)
    score_by(monkeypatch, lambda: named(crude(), "a"))
    with refusal(missing):
        fid.run(distances_alone)


def test_nothing_is_kept_of_weights_without_a_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFD_CACHE", str(tmp_path / "cache"))
    fid.run(with_fid(settings, scores=["fd"], baselines=False))
    assert not (tmp_path / "cache" / "reference_statistics").exists()


def test_a_reference_that_is_none_is_refused_in_one_sentence(settings: Settings, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.npz", tmp_path / "broken.npz"
    np.savez(empty, labels=np.arange(4))
    broken.write_bytes(b"PK\x03\x04 not an archive")
    with refusal(empty, "uint8", "mu, sigma", "labels (4,)"):
        open_npz(empty)
    with refusal(broken):
        open_npz(broken)
    with refusal(tmp_path / "absent.npz", "fid.reference"):
        open_npz(tmp_path / "absent.npz")
    with refusal("fid.reference", tmp_path / "absent", "`sfd weights list`"):
        fid.run(with_fid(settings, reference=tmp_path / "absent"))


def test_statistics_that_are_not_finite_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    for mean, covariance in ((np.full(3, np.nan), np.eye(3)), (np.zeros(3), np.eye(4))):
        np.savez(path, mu=mean, sigma=covariance)
        with refusal(path, "mu", "sigma"):
            open_npz(path)


def test_an_npz_that_ends_early_gives_no_number(tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    np.savez(path, arr_0=np.zeros((6, 4, 4, 3), np.uint8))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("arr_0.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content[:-50])
    images, _ = open_npz(path)
    assert images is not None
    with refusal(path, "arr_0.npy", 4, 6):
        list(images.batches(4))


@dataclass(frozen=True)
class FixedImages:
    """Images in memory."""

    images: torch.Tensor

    @property
    def count(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        return iter(self.images.split(size))


def test_more_images_than_rows_are_kept_still_count_in_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (40, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    everything = extract(FixedImages(images), "images", [crude()], 7, seed=0)["dinov2"][POOLED]
    monkeypatch.setattr(features_module, "ROWS_KEPT", 10)
    capped = extract(FixedImages(images), "images", [crude()], 7, seed=0)["dinov2"][POOLED]
    assert (len(everything.rows), len(capped.rows), capped.count) == (40, 10, 40)
    np.testing.assert_allclose(capped.gaussian().covariance, everything.gaussian().covariance)


def test_scores_that_no_extractor_at_hand_gives_are_refused_and_others_do_without_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusal("fid.scores", "inception_score", "fid.inception: none"):
        fid.run(with_fid(settings, scores=["inception_score"]))
    assert not (settings.paths.metrics / "fid.json").exists()

    def logits(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": crude("inception", 5)(images)[POOLED]}

    inception = Extractor("inception", {"logits": 5}, torch.device("cpu"), logits)
    put(monkeypatch, "inception", lambda: inception)
    result = fid.run(with_fid(settings, scores=["inception_score"]))
    assert result["inception_score"] >= 1
    assert not [key for key in result if "dinov2" in key]


def test_inception_weights_that_hold_more_than_tensors_are_not_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"weights": Payload()}, tmp_path / "inception.pth")
    with refusal(tmp_path / "inception.pth"):
        extractors.inception_extractor(tmp_path / "inception.pth", torch.device("cpu"))
    assert not (tmp_path / "executed").exists()


def test_the_real_encoder_gives_its_class_token() -> None:
    config = tiny_settings(Path()).fid.encoder
    extractor = extractors.class_token_extractor(config, torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    found = extractor(images)[POOLED]
    assert found.shape == (2, 384)
    assert not torch.allclose(found[0], found[1])
