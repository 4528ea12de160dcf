"""What the table of devices says, and that the package asks it alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refusal

import sfd_cli
from sfd_cli import devices
from sfd_cli.devices import (
    DeviceKind,
    choose_device,
    described,
    doubled,
    finest,
    group_backend,
    kind_of,
)
from sfd_cli.diffusion.schedule import AsynchronousSchedule, progress_of
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.errors import SettingError
from sfd_cli.networks.compilation import can_compile
from sfd_cli.networks.precision import choose_precision
from sfd_cli.processes import Processes, require_memory
from sfd_cli.tables import DEVICES

SOURCES = Path(sfd_cli.__file__).parent
CPU = torch.device("cpu")


def here(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """So many devices of each kind, and no others."""
    monkeypatch.setattr(DeviceKind, "count", lambda kind: counts.get(kind.name, int(kind.is_cpu)))
    monkeypatch.setattr(DeviceKind, "is_installed", True)


def test_no_module_but_the_table_asks_which_device_it_is() -> None:
    asks = re.compile(r"""\.type\s*[=!]=|\.is_cuda|torch\.(cuda|xpu|mps|npu)\b|==\s*["'](cuda|cpu|mps|xpu|npu)["']""")
    found = {
        str(path.relative_to(SOURCES)): match.group()
        for path in SOURCES.rglob("*.py")
        if path.name != "devices.py" and (match := asks.search(path.read_text()))
    }
    assert found == {}


def test_every_entry_is_named_as_pytorch_names_it() -> None:
    assert list(DEVICES) == ["cuda", "npu", "xpu", "mps", "cpu"]
    assert [DEVICES[name].name for name in DEVICES] == list(DEVICES)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({}, "cpu"),
        ({"cuda": 1}, "cuda"),
        ({"npu": 8}, "npu"),
        ({"xpu": 1, "npu": 1}, "npu"),
        ({"xpu": 1}, "xpu"),
        ({"mps": 1}, "cpu"),  # by name only
        ({"cuda": 2, "npu": 1, "xpu": 1, "mps": 1}, "cuda"),
    ],
)
def test_auto_is_the_first_kind_that_is_here(
    there: dict[str, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, **there)
    asked: list[str] = []
    monkeypatch.setattr(devices.torch, "device", lambda name: asked.append(name) or name)
    assert choose_device("auto") == chosen
    assert asked == [chosen]


def test_a_device_whose_package_is_missing_is_told_with_the_package() -> None:
    with refusal("runtime.device", "'npu'", "torch_npu"):
        choose_device("npu")
    with refusal("runtime.device", "'npu:1'", "torch_npu"):
        choose_device("npu:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:"])
def test_what_is_no_device_is_told(name: str) -> None:
    with refusal("runtime.device", repr(name), "cuda"):
        choose_device(name)


def test_a_device_beyond_those_that_are_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, cuda=2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with refusal("runtime.device", "cuda:2", "cuda devices: 2"):
        choose_device("cuda:2")


def test_the_cpu_is_always_here() -> None:
    assert DEVICES["cpu"].count() == 1
    assert choose_device("cpu") == CPU
    assert described(CPU) == "cpu"
    assert kind_of(CPU).peak_memory(CPU) is None


@pytest.mark.parametrize(
    ("there", "backend"),
    [
        ({}, "gloo"),
        ({"cuda": 8}, "cpu:gloo,cuda:nccl"),
        ({"npu": 8}, "cpu:gloo,npu:hccl"),
        ({"xpu": 1}, "cpu:gloo,xpu:xccl"),
        ({"mps": 1}, "gloo"),
    ],
)
def test_a_process_group_goes_by_what_is_here(
    there: dict[str, int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, **there)
    assert group_backend() == backend


def test_processes_do_not_share_a_kind_that_has_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, mps=1)
    monkeypatch.setattr(DeviceKind, "select", lambda kind, device: None)
    assert Processes().device("mps") == torch.device("mps", 0)
    with refusal("runtime.device", "mps", 2):
        Processes(rank=1, count=2, local_rank=1).device("mps")


def test_every_process_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, cuda=4)
    chosen: list[torch.device] = []
    monkeypatch.setattr(DeviceKind, "select", lambda kind, device: chosen.append(device))
    assert Processes(rank=3, count=4, local_rank=3).device("cuda") == torch.device("cuda", 3)
    assert Processes(rank=3, count=4, local_rank=3).device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 3), torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("kind", "auto"), [("cuda", "bf16"), ("npu", "bf16"), ("xpu", "bf16"), ("mps", "fp32"), ("cpu", "fp32")]
)
def test_auto_precision_is_the_tables(kind: str, auto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfd_cli.networks.precision.kind_of", lambda device: DEVICES[kind])
    assert choose_precision("auto", CPU) == auto


def test_bf16_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfd_cli.networks.precision.kind_of", lambda device: DeviceKind("cpu", autocast=()))
    with pytest.raises(SettingError) as refused:
        choose_precision("bf16", CPU)
    assert refused.value.subject == "precision"
    assert choose_precision("fp32", CPU) == "fp32"


def test_what_no_compiler_writes_for_runs_uncompiled_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfd_cli.networks.compilation.kind_of", lambda device: DEVICES["npu"])
    assert not can_compile(CPU)
    assert "npu" in capsys.readouterr().err


def test_memory_that_is_needed_is_compared_with_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceKind, "memory", lambda kind, device: 4 * 10 * 6)
    require_memory(10, (2, 3), CPU)
    with pytest.raises(SettingError):
        require_memory(11, (2, 3), CPU)


@pytest.fixture
def _without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = replace(DEVICES["cpu"], float64=False)
    monkeypatch.setitem(DEVICES._places, "cpu", coarse)


@pytest.mark.usefixtures("_without_float64")
def test_without_float64_scores_are_computed_in_it_on_the_cpu_and_steps_in_float32() -> None:
    values = torch.tensor([1.0, 1e-9])
    assert doubled(values).dtype == torch.float64
    assert finest(CPU) == torch.float32
    assert finest(torch.device("meta")) == torch.float64


def test_times_without_float64_are_those_with_it_to_its_rounding(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    times = TrainingTimes(AsynchronousSchedule(0.3), "corrected", 0.0, 0.4, 0.0)
    generator = torch.Generator().manual_seed(0)
    draws = {"level": times.draw_level(512, generator)} | times.draw_further(512, generator)
    fine, fine_weights = times.of(draws)
    exact = progress_of(times.schedule, draws["level"], draws["by_texture"])
    request.getfixturevalue("_without_float64")
    coarse, coarse_weights = times.of(draws)
    assert fine_weights is not None
    assert coarse_weights is not None
    for a, b in zip([*fine, *fine_weights], [*coarse, *coarse_weights], strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(
        progress_of(times.schedule, draws["level"], draws["by_texture"]), exact, rtol=0, atol=1e-6
    )
