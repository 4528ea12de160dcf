"""What is told of a store of known streams: levels, accuracy, warnings, and how a law compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_stores import normal, store_of
from refusals import refusal

from sfd_cli.diffusion.laws import LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.evaluation import inspection
from sfd_cli.evaluation.inspection import Chosen, inspect_store, law_against_level, warnings_of_oracle


def labels_of(count: int, classes: int = 3) -> list[int]:
    return [index % classes for index in range(count)]


def found_in(folder: Path, texture: float = 1.0, semantic: float = 1.0, told: float = 0.0, **store: Any) -> Any:
    """Of 480 images in three classes; textures and semantics of these sizes, semantics telling the class by `told`."""
    labels = labels_of(480)
    meaning = torch.eye(3)[torch.tensor(labels)][:, :, None, None] * told
    raw = normal(480, 4) * texture, (normal(480, 3, seed=1) + meaning) * semantic
    return inspect_store(store_of(folder, *raw, labels, **store))


def test_textures_twice_as_large_as_semantics_need_a_lead_of_ln_2_to_draw_level(tmp_path: Path) -> None:
    found = found_in(tmp_path, texture=2.0)
    for share in ("0.25", "0.5", "0.75"):
        level = found["levels"][share]
        assert level["lead"] == pytest.approx(math.log(2), abs=4 * level["lead_standard_error"])
        assert 0 < level["lead_standard_error"] < 0.03
    assert found["levels"]["0.5"]["semantic"] == pytest.approx(0, abs=0.05)
    assert found["parity"]["lead"] == pytest.approx([math.log(2)] * 19, abs=0.1)
    earlier, *others = found["warnings"]
    assert "0.6" in earlier
    assert "before semantics" in earlier
    assert all("no more informative" in warning for warning in others)


def test_streams_are_seen_as_the_transformer_sees_them(tmp_path: Path) -> None:
    plain, scaled = found_in(tmp_path / "plain"), found_in(tmp_path / "scaled", mean=5.0, std=0.5)
    for name in ("texture", "semantic"):
        difference = scaled["levels"]["0.5"][name] - plain["levels"]["0.5"][name]
        assert difference == pytest.approx(-math.log(2), abs=0.001)  # half the std, twice as large


def test_semantics_that_tell_the_class_give_no_warning(tmp_path: Path) -> None:
    found = found_in(tmp_path, texture=0.5, told=3.0)
    accuracy = found["accuracy"]
    assert found["warnings"] == []
    assert accuracy["chance"] == pytest.approx(1 / 3)
    assert accuracy["whole"]["semantic"] > 0.95
    assert accuracy["whole"]["texture"] < 0.45
    for at in (accuracy["whole"], accuracy["half_resolved"]):
        assert at["difference"] == pytest.approx(at["semantic"] - at["texture"])
    assert accuracy["semantic"][0] < 0.45 < 0.95 < accuracy["semantic"][-1]


def test_textures_that_tell_the_class_as_well_are_warned_about(tmp_path: Path) -> None:
    labels = labels_of(300)
    semantic = normal(300, 3) + 2 * torch.eye(3)[torch.tensor(labels)][:, :, None, None]
    found = inspect_store(store_of(tmp_path, semantic, semantic, labels))
    assert found["levels"]["0.5"]["lead"] == found["levels"]["0.5"]["lead_standard_error"] == 0
    for at in (found["accuracy"]["whole"], found["accuracy"]["half_resolved"]):
        assert (at["difference"], at["difference_standard_error"]) == (0, 0)
    assert ["no more informative" in warning for warning in found["warnings"]] == [True, True]


def test_the_standard_error_of_a_difference_is_that_of_pairs_and_of_clusters() -> None:
    right = {"texture": torch.tensor([1.0, 0.0, 0.0, 1.0]), "semantic": torch.tensor([1.0, 1.0, 0.0, 1.0])}
    right = {name: values.double() for name, values in right.items()}
    found = inspection._compared(right, torch.arange(4))
    assert found["difference"] == 0.25
    assert found["difference_standard_error"] == pytest.approx(math.sqrt(0.75) / 4)  # of -1, 3, -1, -1 quarters
    together = inspection._compared(right, torch.tensor([0, 1, 0, 0]))
    assert together["difference_standard_error"] == pytest.approx(math.sqrt(2 * 0.75**2) / 4)


def test_near_duplicates_are_in_one_fold_and_folds_about_as_large(tmp_path: Path) -> None:
    clusters = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 7, 8])
    folds = inspection.folds_of(clusters, 3)
    assert 2 <= min(torch.bincount(folds)) <= max(torch.bincount(folds)) <= 4
    assert inspection.folds_of(torch.arange(40), 0).bincount().tolist() == [10] * 4
    assert all(len(folds[clusters == cluster].unique()) == 1 for cluster in range(9))
    assert not torch.equal(folds, inspection.folds_of(clusters, 4))
    # Pairs that share their semantics, of labels that nothing tells: a twin would tell them.
    labels = [int(label) for label in torch.randint(2, (60,), generator=torch.Generator().manual_seed(0))] * 2
    textures, semantics = (normal(60, 8, seed=seed).repeat(2, 1, 1, 1) for seed in (0, 1))
    found = inspect_store(store_of(tmp_path, textures, semantics, labels))
    assert (found["images"], found["clusters"]) == (120, 60)
    assert found["accuracy"]["whole"]["texture"] < 0.75


def test_one_class_has_no_accuracy(tmp_path: Path) -> None:
    found = inspect_store(store_of(tmp_path, normal(40, 2), normal(40, 2, seed=1)))
    assert found["accuracy"] is None
    assert found["classes"] == 1


def test_images_too_large_to_be_taken_whole_are_taken_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found_in(tmp_path / "whole", texture=2.0)
    monkeypatch.setattr(inspection, "MOST_VALUES", 15)
    found = found_in(tmp_path / "positions", texture=2.0)
    assert (whole["covariance_of"], found["covariance_of"]) == ("whole images", "positions, averaged")
    assert (len(whole["spectra"]["texture"]), len(found["spectra"]["texture"])) == (16, 4)
    # Where positions are not correlated, both are the same.
    assert found["levels"]["0.5"]["lead"] == pytest.approx(whole["levels"]["0.5"]["lead"], abs=0.03)
    assert found["information"]["texture"] == pytest.approx(whole["information"]["texture"], rel=0.05)


def test_of_many_images_and_classes_some_are_looked_at_that_are_evenly_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MOST_CLASSES", 3)
    labels = [index // 10 for index in range(90)]  # sorted by class
    chosen = Chosen.of(store_of(tmp_path, normal(90, 1), None, labels), 15)
    assert chosen.classes == 3
    assert torch.bincount(chosen.labels).tolist() == [5, 5, 5]
    assert sorted({int(row) // 10 for row in chosen.rows}) == [0, 4, 8]


def test_the_same_store_gives_the_same_numbers(tmp_path: Path) -> None:
    store = store_of(tmp_path, normal(60, 2), normal(60, 2, seed=1), labels_of(60))
    assert inspect_store(store) == inspect_store(store)
    assert inspect_store(store, seed=1) != inspect_store(store)


def test_stores_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    with refusal(tmp_path / "none", "no semantics"):
        inspect_store(store_of(tmp_path / "none", normal(40, 2), None))
    with refusal(tmp_path / "few", 20, 32):
        inspect_store(store_of(tmp_path / "few", normal(20, 2), normal(20, 2)))
    with refusal(tmp_path / "same", "semantic"):
        inspect_store(store_of(tmp_path / "same", normal(40, 2), torch.ones(40, 2, 2, 2)))
    with refusal(tmp_path / "twins", "near-duplicates"):
        inspect_store(store_of(tmp_path / "twins", normal(40, 2), normal(2, 2).repeat(20, 1, 1, 1)))
    with refusal(tmp_path / "infinite", "texture", "finite"):
        inspect_store(store_of(tmp_path / "infinite", normal(40, 2) / 0, normal(40, 2)))


def level(texture: float, semantic: float) -> dict[str, Any]:
    return {"levels": {"0.5": {"texture": texture, "semantic": semantic, "lead": semantic - texture}}}


def test_a_law_is_compared_with_what_draws_level_where_the_streams_are_half_resolved() -> None:
    lead = law_against_level(LeadSchedule(0.7), level(-0.4, -0.1))
    assert lead["ahead"] == pytest.approx(0.7 - 0.3, abs=1e-6)
    assert lead["lead"] == pytest.approx([0.7] * 399)
    offset = law_against_level(AsynchronousSchedule(0.3), level(-0.2, 0.2))
    assert offset["ahead"] == pytest.approx(2 * math.log(1.3 / 0.7) - 0.4, abs=1e-3)  # at mean logit time 0
    assert law_against_level(AsynchronousSchedule(0.0), level(0.2, -0.3))["ahead"] == pytest.approx(0.5)


def test_a_law_on_which_the_streams_never_are_together_has_no_lead() -> None:
    assert law_against_level(AsynchronousSchedule(1.0), level(0.0, 0.0))["ahead"] is None


def test_an_oracle_that_gains_nothing_is_warned_about() -> None:
    found = {"real_semantics": 70.0, "sampled_semantics": 75.0, "gain": 5.0, "gain_standard_error": 2.0}
    assert warnings_of_oracle(found) == []
    (warning,) = warnings_of_oracle(found | {"gain_standard_error": 3.0})
    assert "70 against 75 (gain +5 +- 3)" in warning
