"""Features of images: what the extractors compute, and which images' rows are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from refusals import refusal
from torch import Tensor, nn

from sfd_cli.config import Encoder
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation import features as features_module
from sfd_cli.evaluation import vision_transformers as module
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.features import FeatureSet, extract

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class FixedImages:
    """IMAGES in batches of these sizes whatever is asked for, announced as `count`."""

    sizes: int | list[int]
    count: int = 11

    def batches(self, size: int) -> Iterator[Tensor]:
        assert size >= 1
        return iter(IMAGES.split(self.sizes))


def brightness(images: Tensor) -> Tensor:
    return images.double().mean(dim=(2, 3))


def corners(images: Tensor) -> Tensor:
    return torch.stack((images[:, 0, 0, 0], images[:, 0, -1, -1]), dim=1).half()


class FakeEncoder(nn.Module):
    """Patch tokens of NaN, and a class token that is the image's first pixel."""

    feature_width = 3

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(images), 4, 3), torch.nan), images[:, :, 0, 0]


def test_the_encoders_extractor_gives_class_tokens_of_images_between_zero_and_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "load_visual_encoder", lambda config: (asked.append(config), FakeEncoder())[1])
    config = Encoder()
    extractor = module.class_token_extractor(config, CPU)
    assert asked == [config]
    assert (extractor.name, extractor.widths, extractor.device) == ("dinov2_vits14_112", {POOLED: 3}, CPU)
    torch.testing.assert_close(extractor(IMAGES)[POOLED], IMAGES[:, :, 0, 0] / 255)


def test_an_extractor_gives_every_kind_of_features_from_one_pass_or_those_that_are_wanted() -> None:
    passes: list[int] = []

    def compute(images: Tensor) -> dict[str, Tensor]:
        passes.append(len(images))
        return {"means": brightness(images), "corners": corners(images)}

    both = Extractor("both", {"means": 3, "corners": 2}, CPU, compute)
    found = extract(FixedImages(4), "samples", [both], 4, seed=0)["both"]
    assert passes == [4, 4, 3]
    assert torch.equal(found["means"].rows, brightness(IMAGES).float())
    assert torch.equal(found["corners"].rows, corners(IMAGES).float())
    assert both.only({"corners", "others"})(IMAGES).keys() == {"corners"}


def test_images_and_encoder_go_to_the_extractors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, encoder, device = [], nn.Linear(1, 1), torch.device("meta")
    encoder.feature_width = 3  # type: ignore[assignment]
    monkeypatch.setattr(module, "load_visual_encoder", lambda config: encoder)
    assert module.class_token_extractor(Encoder(), device).device == device
    assert encoder.weight.device == device
    Extractor.of("any", 1, device, lambda images: (seen.append(images.device), torch.zeros(11, 1))[1])(IMAGES)
    assert seen == [device]


@pytest.mark.parametrize("size", [1, 4, 11])
def test_every_extractor_sees_every_image_once_and_in_order(size: int) -> None:
    extractors = [Extractor.of("brightness", 3, CPU, brightness), Extractor.of("corners", 2, CPU, corners)]
    found = extract(FixedImages(size), "samples", extractors, size, seed=3)
    assert found.keys() == {"brightness", "corners"}
    assert torch.equal(found["brightness"][POOLED].rows, brightness(IMAGES).float())
    assert torch.equal(found["corners"][POOLED].rows, corners(IMAGES).float())
    assert [features[POOLED].count for features in found.values()] == [11, 11]
    expected = FeatureSet(3, 11, seed=3)
    expected.update(brightness(IMAGES).float())
    assert torch.equal(found["brightness"][POOLED].first_half_rows(), expected.first_half_rows())


@pytest.mark.parametrize("count", [10, 12])
def test_more_or_fewer_images_than_expected_give_no_features(count: int) -> None:
    with refusal("samples", count, 11, kind=StageFailure):
        extract(FixedImages(4, count), "samples", [Extractor.of("brightness", 3, CPU, brightness)], 4, seed=0)


def test_a_surplus_is_noticed_before_it_is_turned_into_features() -> None:
    seen: list[int] = []
    counting = Extractor.of("brightness", 3, CPU, lambda images: (seen.append(len(images)), brightness(images))[1])
    with refusal("samples", 8, 11, kind=StageFailure):
        extract(FixedImages([4, 4, 3], 8), "samples", [counting], 4, seed=0)
    assert seen == [4, 4]


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(spoilt: float) -> None:
    def compute(images: Tensor) -> Tensor:
        found = brightness(images)
        found[-1, 1] = spoilt
        return found

    with refusal("samples", "brightness", "up to 4", kind=StageFailure):
        extract(FixedImages(4), "samples", [Extractor.of("brightness", 3, CPU, compute)], 4, seed=0)


def kept_rows(monkeypatch: pytest.MonkeyPatch, seed: int) -> FeatureSet:
    monkeypatch.setattr(features_module, "ROWS_KEPT", 15)
    features = FeatureSet(1, 40, seed)
    for batch in torch.arange(40.0)[:, None].split(7):
        features.update(batch)
    return features


def test_of_more_images_than_rows_are_kept_random_ones_are_and_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    features, again, other = (kept_rows(monkeypatch, seed) for seed in (1, 1, 2))
    kept = features.rows[:, 0].tolist()
    assert (len(kept), features.count) == (15, 40)
    assert kept == sorted(set(kept)), "in the order of the images"
    assert max(kept) > 15
    assert kept != other.rows[:, 0].tolist()
    assert kept == again.rows[:, 0].tolist()
    assert features.gaussian().mean.tolist() == [19.5]
    monkeypatch.setattr(features_module, "ROWS_KEPT", 40)
    whole = FeatureSet(1, 40, 1)
    whole.update(torch.arange(40.0)[:, None])
    first = set(whole.first_half_rows()[:, 0].tolist())
    assert features.first_half_rows()[:, 0].tolist() == [row for row in kept if row in first]
