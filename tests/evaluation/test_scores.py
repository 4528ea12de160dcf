"""Scores and their baselines on features made by hand, where the right answer is known."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
from hand_made_features import fitted
from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.frechet import FRECHET, extrapolated, frechet_distance, standard_error
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.kid import kernel_distance
from sfd_cli.evaluation.metric import Compared, Reconstructed
from sfd_cli.evaluation.reasons import Scores
from sfd_cli.evaluation.scores import name_of, score, summarise
from sfd_cli.tables import METRICS

SEED = 5


def normal(count: int, width: int = 3, seed: int = 0, at: float = 0.0, spread: float = 1.0) -> Tensor:
    return at + spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def feature_set(rows: Tensor, seed: int = SEED) -> FeatureSet:
    """A feature set that got the rows in three batches."""
    features = FeatureSet(rows.shape[1], len(rows), seed)
    for batch in rows.tensor_split(3):
        features.update(batch)
    return features


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(fitted(a), fitted(b))


def in_first_half(count: int, seed: int = SEED) -> Tensor:
    """Which of `count` images a feature set puts into its first half."""
    numbered = feature_set(torch.arange(count, dtype=torch.float32)[:, None], seed)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[numbered.first_half_rows()[:, 0].long()] = True
    return chosen


def baselines(compared: Compared) -> Scores:
    """What stands beside the Fréchet distance."""
    scores, _ = FRECHET.compute(compared, Fid(seed=0))
    return {key: value for key, value in scores.items() if key not in ("fd", "fd_reason")}


def with_baselines(samples: Tensor, reference: Tensor, untrained: Tensor) -> Scores:
    return baselines(Compared(feature_set(samples), feature_set(reference), None, feature_set(untrained)))


def scored(
    samples: FeatureSet,
    reference: FeatureSet | None,
    neighbours: int,
    seed: int = 0,
    statistics: Gaussian | None = None,
) -> Scores:
    compared = Compared(samples, reference, statistics)
    return score({POOLED: compared}, Fid(neighbours=neighbours, seed=seed, baselines=False))[0]


def test_collapsed_samples_are_precise_and_recall_nothing() -> None:
    reference = normal(60)
    collapsed = reference[7] + normal(20, seed=1, at=1e-3, spread=1e-4)
    scores = scored(feature_set(collapsed), feature_set(reference), neighbours=3)
    assert (scores["precision"], scores["recall"]) == (1.0, 0.0)


def test_scattered_samples_recall_everything_and_are_not_precise() -> None:
    reference = normal(20, spread=1e-4)
    scattered = torch.cat((reference[:5] + 1e-5, normal(60, seed=1, at=50.0)))
    scores = scored(feature_set(scattered), feature_set(reference), neighbours=5)
    assert scores["precision"] == pytest.approx(5 / 65)
    assert scores["recall"] == 1.0


def test_the_halves_of_a_reference_sorted_by_class_are_random_and_near_each_other() -> None:
    sorted_by_class = torch.cat([normal(50, seed=label, at=10.0 * label) for label in range(4)])
    scores = with_baselines(normal(30), sorted_by_class, normal(30))
    by_position = distance(sorted_by_class[:100], sorted_by_class[100:])
    assert by_position > 1000
    assert scores["fd_halves"] < 0.05 * by_position
    first = in_first_half(200)
    assert first.sum() == 100
    assert scores["fd_halves"] == pytest.approx(distance(sorted_by_class[first], sorted_by_class[~first]), rel=1e-6)


def test_the_halves_differ_from_seed_to_seed_and_the_first_of_an_odd_number_is_the_smaller() -> None:
    one, other = in_first_half(41, seed=1), in_first_half(41, seed=2)
    assert (one.sum(), other.sum()) == (20, 20)
    assert not torch.equal(one, other)
    assert torch.equal(one, in_first_half(41, seed=1))


@pytest.mark.parametrize("count", [8, 20, 50])
def test_the_real_baseline_is_never_drawn_from_the_half_it_is_compared_with(count: int) -> None:
    first = in_first_half(40)
    reference = torch.where(first[:, None], 0.0, 10.0) + normal(40, spread=0.1)
    found = FRECHET.matched({"samples": feature_set(normal(count))}, feature_set(reference), seed=0)
    assert (found["images"], found["reference_images"]) == (min(count, 20), 20)
    # Three features that are 10 apart; one image of the other half among 20 would take off 29.
    assert found["real"] == pytest.approx(300, abs=5)


def test_the_rows_of_the_first_half_are_those_of_the_images_that_it_names() -> None:
    rows = normal(41)
    found = feature_set(rows)
    assert found.first_half_indices().tolist() == in_first_half(41).nonzero().flatten().tolist()
    assert torch.equal(found.first_half_rows(), rows[found.first_half_indices()])


def test_matched_distances_are_of_equally_many_random_images_to_the_second_half() -> None:
    reference, first = normal(40), in_first_half(40)
    sets = {"samples": feature_set(normal(12, seed=1)), "untrained": feature_set(normal(30, seed=2, at=4.0))}
    found = FRECHET.matched(sets, feature_set(reference), seed=3)
    assert found["images"] == 12
    assert found["samples"] == pytest.approx(distance(normal(12, seed=1), reference[~first]), rel=1e-6)
    assert found["untrained"] > 10 * found["samples"]
    assert found == FRECHET.matched(sets, feature_set(reference), seed=3)
    redrawn = FRECHET.matched(sets, feature_set(reference), seed=4)
    assert redrawn["samples"] == pytest.approx(found["samples"], rel=1e-9), "all samples are taken whatever the seed"
    assert redrawn["untrained"] != found["untrained"]
    assert redrawn["real"] != found["real"]


def test_matched_images_are_drawn_from_everywhere_and_not_from_the_first_class_alone() -> None:
    sorted_by_class = torch.cat([normal(100, seed=label, at=10.0 * label) for label in range(2)])
    found = FRECHET.matched({"samples": feature_set(normal(40, at=5.0))}, feature_set(sorted_by_class), seed=0)
    assert found["images"] == 40
    assert found["real"] < 10, "images of one class alone would be 75 away"


def test_an_untrained_model_is_far_away_and_the_samples_are_not() -> None:
    samples, reference, untrained = normal(60, seed=1), normal(80), normal(60, seed=2, at=10.0)
    scores = with_baselines(samples, reference, untrained)
    near = scored(feature_set(samples), feature_set(reference), neighbours=3)["fd"]
    assert near == pytest.approx(distance(samples, reference), rel=1e-6)
    assert scores["fd_untrained"] == pytest.approx(distance(untrained, reference), rel=1e-6)
    assert scores["fd_untrained"] > 100 * near
    assert scores["fd_matched"]["untrained"] > 100 * scores["fd_matched"]["samples"]


def reasons(scores: Scores) -> dict[str, str]:
    """The reasons in `scores`, each beside a score that is None."""
    found = {name.removesuffix("_reason"): value for name, value in scores.items() if name.endswith("_reason")}
    assert all(scores[name] is None for name in found)
    return found


def test_published_statistics_come_before_the_images_for_distances_and_the_images_serve_the_rest() -> None:
    samples, images, published = normal(30, seed=1), normal(40), normal(500, at=7.0)
    scores = scored(feature_set(samples), feature_set(images), 3, seed=2, statistics=fitted(published))
    kid = kernel_distance(samples, images, seed=2)
    assert scores["fd"] == pytest.approx(distance(samples, published), rel=1e-6)
    assert (scores["kid"], scores["kid_std"]) == (kid["mean"], kid["std"])
    assert 0 < scores["precision"] < 1
    assert set(scores) == {"fd", "fd_se", "fd_infinity", "kid", "kid_std", "precision", "recall"}
    assert scores["fd_infinity"] == extrapolated(samples, fitted(published), 2)
    assert scores["fd_se"] == standard_error(samples, fitted(samples), fitted(published))


def test_statistics_alone_give_the_distance_and_reasons_for_the_rest() -> None:
    samples, untrained, published = normal(30, seed=1), normal(30, seed=2, at=4.0), normal(500)
    scores = scored(feature_set(samples), None, 3, statistics=fitted(published))
    assert scores["fd"] == pytest.approx(distance(samples, published), rel=1e-6)
    assert set(scores) == {"fd", "fd_se", "fd_infinity"} | {
        name + end for name in ("kid", "precision", "recall") for end in ("", "_reason")
    }
    assert all("statistics only" in why for why in reasons(scores).values())
    found = baselines(Compared(feature_set(samples), None, fitted(published), feature_set(untrained)))
    assert found["fd_untrained"] == pytest.approx(distance(untrained, published), rel=1e-6)
    assert reasons(found).keys() == {"fd_halves", "fd_matched", "fd_reconstructed"}
    assert "no half of images to reconstruct" in reasons(found)["fd_reconstructed"]
    assert all("no images to halve" in reasons(found)[key] for key in ("fd_halves", "fd_matched"))


def test_without_a_reference_every_score_is_none_with_a_reason() -> None:
    samples = feature_set(normal(30))
    scores = scored(samples, None, neighbours=3)
    assert reasons(scores).keys() == {"fd", "kid", "precision", "recall"}
    assert all("neither images nor statistics" in why for why in reasons(scores).values())
    found = baselines(Compared(samples, None, None, samples))
    assert reasons(found).keys() == {"fd_untrained", "fd_reconstructed", "fd_halves", "fd_matched"}
    assert "neither images nor statistics" in reasons(found)["fd_untrained"]


def test_too_few_images_for_a_kth_neighbour_cost_precision_and_recall_only() -> None:
    scores = scored(feature_set(normal(5, width=2)), feature_set(normal(20, width=2, seed=1)), neighbours=5)
    assert reasons(scores).keys() == {"precision", "recall", "fd_infinity"}
    assert all("more than 5 images" in why for why in reasons(scores).values())
    assert all(isinstance(scores[name], float) for name in ("fd", "kid", "kid_std"))


def test_without_an_untrained_model_its_reason_stands_there_and_the_rest_is_scored() -> None:
    samples, reference = feature_set(normal(9)), feature_set(normal(20, seed=1))
    missing = {"why_untrained_is_missing": "no model", "why_reconstructed_is_missing": "no codec"}
    found = baselines(Compared(samples, reference, **missing))
    assert reasons(found) == {"fd_untrained": "no model", "fd_reconstructed": "no codec"}
    assert found["fd_matched"].keys() == {"images", "reference_images", "real", "samples"}


@pytest.mark.parametrize(("count", "enough"), [(3, False), (4, True)])
def test_four_images_make_two_halves(count: int, enough: bool) -> None:
    samples = feature_set(normal(9, width=1))
    found = baselines(Compared(samples, feature_set(normal(count, width=1)), None, samples))
    assert reasons(found).keys() == {"fd_reconstructed"} | (set() if enough else {"fd_halves", "fd_matched"})
    assert found["fd_untrained"] > 0


@pytest.mark.parametrize(
    ("metric", "inception", "other"),
    [
        ("fd", "fid", "fd_dinov2"),
        ("fd_untrained", "fid_untrained", "fd_dinov2_untrained"),
        ("kid", "kid", "kid_dinov2"),
        ("kid_std", "kid_std", "kid_dinov2_std"),
        ("fd_halves_reason", "fid_halves_reason", "fd_dinov2_halves_reason"),
    ],
)
def test_a_metric_is_named_as_the_field_does_or_after_its_extractor(metric: str, inception: str, other: str) -> None:
    assert (name_of("inception", metric), name_of("dinov2", metric)) == (inception, other)


def test_every_number_has_a_row_that_says_what_it_is_and_from_how_many_images() -> None:
    pairs, samples = "{compared[0]:,} samples against {compared[1]:,} images", "{samples:,} samples against {reference}"
    halves, untrained = "{compared[0]:,} against {compared[1]:,} images", "{untrained:,} images against {reference}"
    autoencoder, originals = (
        "of images through the autoencoder",
        "{compared[0]:,} against the same {compared[1]:,} as they were",
    )
    assert [astuple(score) for metric in METRICS for score in METRICS[metric].scores] == [
        ("fd", "Fréchet distance", samples, "", False),
        ("fd_untrained", "Fréchet distance of an untrained model", untrained, "", True),
        ("fd_reconstructed", f"Fréchet distance {autoencoder}", originals, "", True),
        ("fd_halves", "Fréchet distance between two halves of the data", halves, "", True),
        ("sfid", "Spatial Fréchet distance (sFID)", samples, "", False),
        ("sfid_untrained", "Spatial Fréchet distance (sFID) of an untrained model", untrained, "", True),
        ("sfid_reconstructed", f"Spatial Fréchet distance (sFID) {autoencoder}", originals, "", True),
        ("sfid_halves", "Spatial Fréchet distance (sFID) between two halves of the data", halves, "", True),
        ("inception_score", "Inception score", "{samples:,} samples", "inception_score_std", False),
        ("kid", "Kernel distance (KID)", pairs, "kid_std", False),
        ("precision", "Precision", pairs, "", False),
        ("recall", "Recall", pairs, "", False),
        ("cmmd", "CLIP discrepancy (CMMD)", pairs, "", False),
    ]


def test_baselines_come_with_the_score_where_the_settings_say_so() -> None:
    rows = normal(12, seed=1), normal(40), normal(30, seed=2, at=4.0)
    samples, reference, untrained = (feature_set(part) for part in rows)
    returned = normal(15, seed=3, spread=0.9)
    reconstructed = Reconstructed(feature_set(returned), fitted(normal(15, seed=6)))
    compared, options = Compared(samples, reference, None, untrained, reconstructed=reconstructed), Fid(seed=4)
    plain, _ = FRECHET.compute(compared, options.model_copy(update={"baselines": False}))
    error = standard_error(samples.rows, samples.gaussian(), reference.gaussian())
    infinity = extrapolated(samples.rows, reference.gaussian(), 4)
    assert plain == {"fd": pytest.approx(distance(*rows[:2]), rel=1e-6), "fd_se": error, "fd_infinity": infinity}
    found, counts = FRECHET.compute(compared, options)
    assert counts == {"fd_reference": 40, "fd_reconstructed": [15, 15], "fd_halves": [20, 20]}
    sets = {"samples": samples, "reconstructed": reconstructed.features, "untrained": untrained}
    assert found == plain | {
        "fd_untrained": pytest.approx(distance(rows[2], rows[1]), rel=1e-6),
        "fd_reconstructed": pytest.approx(distance(returned, normal(15, seed=6)), rel=1e-6),
        "fd_halves": frechet_distance(reference.half(0), reference.half(1)),
        "fd_matched": FRECHET.matched(sets, reference, seed=4),
    }
    assert found["fd_matched"] != FRECHET.matched(sets, reference, seed=5)


def summary(**options: Any) -> dict[str, Any]:
    """What `fid.json` says of two extractors, one with images and one with statistics alone, and of a missing one."""
    samples, images, untrained = normal(30, seed=1), normal(41), normal(20, seed=2, at=4.0)
    compared = {
        "inception": {
            POOLED: Compared(
                feature_set(samples), feature_set(images), None, feature_set(untrained) if options else None
            )
        },
        "wide": {POOLED: Compared(feature_set(normal(30, 40)), None, fitted(normal(500, 40)))},
    }
    found = [
        Extractor.of(name, width, torch.device("cpu"), torch.abs) for name, width in (("inception", 3), ("wide", 40))
    ]
    return summarise(compared, found, {"dinov2": "no weights"}, Fid(**options))


def test_a_summary_names_every_score_after_its_extractor_and_counts_the_images() -> None:
    scores = summary(baselines=True)
    assert scores["fid"] == pytest.approx(distance(normal(30, seed=1), normal(41)), rel=1e-6)
    assert scores["fd_wide"] == pytest.approx(distance(normal(30, 40), normal(500, 40)), rel=1e-4)
    assert scores["kid_wide"] is scores["fd_dinov2"] is scores["recall_dinov2"] is None
    assert scores["fd_dinov2_reason"] == "no weights"
    others = ("kid_dinov2_reason", "precision_dinov2_reason", "recall_dinov2_reason")
    assert all(scores[name] == "see fd_dinov2_reason" for name in others)
    assert scores["fid_matched"]["reference_images"] == 21
    assert scores["counts"] == {
        "samples": 30,
        "untrained": 20,
        "fid_reference": 41,
        "fid_halves": [20, 21],
        "fd_wide_reference": 500,
        **{key: [30, 41] for key in ("kid", "precision", "recall")},
    }
    (note,) = scores["notes"]
    assert note.startswith("30 samples are few for 40 wide features")


def test_a_summary_without_baselines_has_no_halves_and_one_metric_is_enough() -> None:
    scores = summary(baselines=False, scores=["kid"])
    assert set(scores) == {
        "kid",
        "kid_std",
        *(f"{name}{end}" for name in ("kid_wide", "kid_dinov2") for end in ("", "_reason")),
        "features",
        "counts",
        "notes",
    }
    assert scores["kid_dinov2_reason"] == "no weights"
    assert scores["counts"] == {"samples": 30, "untrained": 20, "kid": [30, 41]}
    assert "untrained" not in summary()["counts"]
    plain = summary(baselines=False)
    assert not any("halves" in name or "untrained" in name for name in plain)
    assert plain["counts"].keys() == {
        *("samples", "untrained", "fid_reference", "fd_wide_reference", "kid", "precision", "recall")
    }


def test_counts_of_what_is_not_there_are_none_or_nothing() -> None:
    samples, options = feature_set(normal(9)), Fid()
    alone = Compared(samples, None)
    assert (alone.untrained, alone.why_untrained_is_missing, alone.statistics) == (None, "", None)
    assert FRECHET.compute(alone, options)[1] == {"fd_reference": 0}
    assert METRICS["kid"].compute(alone, options)[1] == {}


@pytest.mark.parametrize(("samples", "notes"), [(2, 1), (3, 1), (4, 0)])
def test_samples_are_few_up_to_as_many_as_features(samples: int, notes: int) -> None:
    compared = {"inception": {POOLED: Compared(feature_set(normal(samples)), feature_set(normal(9)))}}
    extractors = [Extractor.of("inception", 3, torch.device("cpu"), torch.abs)]
    assert len(summarise(compared, extractors, {}, Fid(baselines=False))["notes"]) == notes
