"""What `auto` of the section `sample` is on a device, and that the record says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from tiny_project import tiny_settings, write_models

from sfd_cli.config import Sample
from sfd_cli.devices import CUDA, DeviceKind
from sfd_cli.networks import precision as formats
from sfd_cli.pipeline import sampler, speed
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.protocol import effective_settings
from sfd_cli.pipeline.speed import settled

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that is of CUDA's kind, and is not used."""
    for module in (speed, formats):
        monkeypatch.setattr(module, "kind_of", lambda _: CUDA)
    return META


def test_on_a_cpu_all_is_as_it_was_before_there_was_auto() -> None:
    before = Sample(precision="fp32", compile=False)
    assert settled(Sample(), CPU, 10**6) == before
    assert effective_settings(settled(Sample(), CPU)) == effective_settings(before)
    assert (
        settled(Sample(precision="bf16", compile=True), CPU).model_dump()
        == Sample(precision="bf16", compile=True).model_dump()
    )


@pytest.mark.parametrize(
    ("sample", "images", "precision", "compiled"),
    [
        ({}, 4_999, "bf16", False),
        ({}, 5_000, "bf16", True),
        ({"compile": False}, 50_000, "bf16", False),
        ({"compile": True}, 1, "bf16", True),
        ({"precision": "fp32"}, 1, "fp32", False),
        ({"precision": "ieee"}, 1, "ieee", False),
        ({"protocol": "sfd"}, 50_000, "fp32", True),
        ({"protocol": "sfd", "precision": "auto"}, 1, "bf16", False),
    ],
)
def test_on_a_gpu_it_is_what_is_fast_and_by_a_protocol_what_the_figures_were_made_with(
    gpu: torch.device, sample: dict[str, Any], images: int, precision: str, compiled: bool
) -> None:
    found = settled(Sample.model_validate(sample), gpu, images)
    assert (found.precision, found.compile) == (precision, compiled)
    assert settled(found, gpu) == found


def test_a_device_without_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "kind_of", lambda _: DeviceKind("old", autocast=()))
    assert settled(Sample(), META).precision == "fp32"
    with refusal("sample.precision", "old"):
        settled(Sample(precision="bf16"), META)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", True), ("ieee", False)])
def test_ieee_alone_samples_and_decodes_without_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tf32: bool
) -> None:
    settings = tiny_settings(tmp_path, sample={"steps": 2, "precision": precision})
    write_models(settings)
    drawn = SamplingModels.open(settings).load(settings.sample, CPU)
    asked: list[bool] = []

    @contextmanager
    def asking(device: torch.device, tf32: bool) -> Iterator[None]:
        asked.append(tf32)
        yield

    monkeypatch.setattr(sampler, "float32_products", asking)
    space = drawn.space
    latents = drawn.solve(torch.randn(1, space.channels, space.grid, space.grid), torch.zeros(1, dtype=torch.long))
    drawn.decode(latents)
    assert asked == [tf32, tf32]
