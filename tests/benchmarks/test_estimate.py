"""What ImageNet would take: the page is as the script writes it, and its arithmetic is that of counted operations."""

from __future__ import annotations

import estimate
import pytest
from imagenet_costs import ASSUMED, BF16, GPUS, IMAGES, Estimate, Stage, averaging, estimate_of
from refusals import refusal

from sfd_cli.config import load_settings
from sfd_cli.tables import STAGES


@pytest.fixture(scope="module")
def xl() -> Estimate:
    return estimate_of("imagenet256-xl")


@pytest.mark.slow  # networks of both sizes are counted: half a minute
def test_the_page_is_as_the_script_writes_it() -> None:
    page = estimate.PAGE.read_text()
    assert estimate.written(page) == page, "docs/performance.md is out of date: python benchmarks/estimate.py"


def test_a_page_without_marks_is_refused() -> None:
    with refusal(estimate.PAGE):
        estimate.written("# Performance\n")


def test_every_stage_that_works_on_images_has_its_hours(xl: Estimate) -> None:
    names = [stage.name for stage in xl.stages]
    assert names == [name for name in xl.counted if name in names] == [*xl.counted]
    assert all(stage.hours(gpus) > 0 for stage in xl.stages for gpus in GPUS)


def test_the_semantic_vae_takes_its_operations_over_the_speed_of_its_number_format(xl: Estimate) -> None:
    section = xl.settings.semvae
    assert (section.precision, section.compile) == ("auto", "auto"), "which is bf16, compiled, on CUDA"
    stage = next(stage for stage in xl.stages if stage.name == "train-semvae")
    # By hand: 4 + 4 blocks of width 768 on 256 tokens, of 15.6 GFLOP each way an image, three times for training.
    assert sum(stage.operations.values()) == pytest.approx(3 * 31.2e9 * 64e6, rel=0.01)
    traffic = 1e6 * 56 * xl.semantic_numbers / ASSUMED.hbm
    assert stage.hours(1) == pytest.approx((5.99e18 / (BF16 * ASSUMED.compiled) + traffic) / 3600, rel=0.02)


def test_a_step_on_more_gpus_comes_down_to_the_traffic_of_weights_and_gradients(xl: Estimate) -> None:
    stage, numbers = xl.training("train", xl.settings.dit), xl.numbers(xl.settings.dit)
    assert stage.step is not None
    assert stage.step[1] > stage.step[8] > stage.step[64] > numbers * ASSUMED.weight_traffic / ASSUMED.hbm
    assert stage.step[1] / stage.step[8] < 8
    assert stage.step[64] > averaging(numbers, 64)[1]


def test_a_ring_sends_every_gradient_nearly_twice() -> None:
    assert averaging(1_000_000, 1) == (0, 0)
    assert averaging(1_000_000, 8)[0] == pytest.approx(2 * 7 / 8 * 4e6)
    assert averaging(1_000_000, 64)[0] == pytest.approx(2 * 63 / 64 * 4e6)


def test_the_slowest_resource_sets_the_pace_and_what_follows_comes_on_top() -> None:
    stage = Stage("encode-latents", {}, gpu=3600, cores=7200, disk=1800, after=360)
    assert STAGES["encode-latents"].shares
    assert (stage.pace(1), stage.hours(1)) == ("CPU", pytest.approx(2.1))
    # Eight GPUs have one machine's disk, 64 have eight.
    assert (stage.pace(8), stage.hours(8)) == ("disk", pytest.approx(0.6))
    assert (stage.pace(64), stage.hours(64)) == ("disk", pytest.approx(0.5 / 8 + 0.1))


def test_latents_of_imagenet_are_63_gb(xl: Estimate) -> None:
    assert xl.latent_bytes * IMAGES == pytest.approx(IMAGES * 2 * 48 * 256 * 2)
    assert load_settings(estimate.REPOSITORY / "sfd_cli" / "presets" / "imagenet256-xl.yaml").images.flips == 2
