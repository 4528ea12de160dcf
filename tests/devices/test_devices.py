"""What the table of devices says, and that the package asks it alone."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import refusal

import sfd_cli
from sfd_cli import devices
from sfd_cli.data.prefetch import prefetched
from sfd_cli.devices import (
    DeviceKind,
    choose_device,
    described,
    doubled,
    finest,
    float32_products,
    group_backend,
    kind_of,
)
from sfd_cli.diffusion.schedule import AsynchronousSchedule, progress_of
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.errors import SettingError
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.networks.compilation import can_compile
from sfd_cli.networks.precision import choose_precision
from sfd_cli.tables import DEVICES

SOURCES = Path(sfd_cli.__file__).parent
CPU = torch.device("cpu")


def here(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """So many devices of each kind, and no others."""
    monkeypatch.setattr(DeviceKind, "count", lambda kind: counts.get(kind.name, int(kind.is_cpu)))
    monkeypatch.setattr(DeviceKind, "is_installed", True)
    monkeypatch.setattr(devices, "DEV", Path("/nowhere"))


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


@pytest.mark.parametrize("named", [None, "0", "1,0", "GPU-8932f937", "MIG-1"])
def test_auto_does_not_pass_over_a_gpu_that_pytorch_cannot_use(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.cuda, "init", lambda: _fail("The NVIDIA driver is too old (found 11040). Update it."))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with refusal("runtime.device", "cuda", "too old (found 11040)", "cpu"):
        choose_device("auto")
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with refusal("runtime.device", "built without cuda", "cpu"):
        choose_device("auto")


def _fail(problem: str) -> None:
    raise RuntimeError(problem)


@pytest.mark.parametrize("named", ["", "-1", "NoDevFiles"])
def test_auto_is_the_cpu_where_gpus_are_hidden(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert choose_device("auto") == CPU


def test_auto_is_the_cpu_where_a_gpu_is_not_this_process_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    (tmp_path / "nvidiactl").touch()  # the driver's, of no GPU
    (tmp_path / "nvidia0").mkdir()  # which cannot be opened for writing, whoever tries
    assert choose_device("auto") == CPU


def test_a_thread_that_works_ahead_has_the_devices_of_the_one_it_works_for(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.device("cuda", 3)
    chosen: list[tuple[bool, torch.device]] = []
    monkeypatch.setattr(DeviceKind, "selected", lambda kind: own if kind.name == "cuda" else None)

    def select(kind: DeviceKind, device: torch.device) -> None:
        chosen.append((threading.current_thread() is threading.main_thread(), device))

    monkeypatch.setattr(DeviceKind, "select", select)
    assert list(prefetched(range(5), 2)) == [0, 1, 2, 3, 4]
    assert chosen == [(False, own)]


def test_only_a_kind_that_is_in_use_is_asked_for_its_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    xpu = DEVICES["xpu"]
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.xpu, "current_device", lambda: _fail("woken up"))
    assert xpu.selected() is None
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.xpu, "current_device", lambda: 2)
    assert xpu.selected() == torch.device("xpu", 2)
    assert DEVICES["cpu"].selected() is None


def test_float32_products_are_tf32_only_in_the_block_and_only_where_there_is_any() -> None:
    def flags() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    with float32_products(torch.device("cuda"), tf32=True):
        assert flags() == ("high", True)
        with float32_products(torch.device("cuda"), tf32=False):
            assert flags() == ("highest", False)
        assert flags() == ("high", True)
    with pytest.raises(RuntimeError), float32_products(torch.device("cuda"), tf32=False):
        raise RuntimeError
    with float32_products(CPU, tf32=True):
        assert flags() == before
    assert flags() == before


def test_scores_are_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    seen: list[tuple[str, bool]] = []

    def compute(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return torch.zeros(2, 3)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    extractor = Extractor.of("any", 3, cuda, compute)
    images: Any = SimpleNamespace(to=lambda device: device)
    with float32_products(cuda, tf32=True):
        assert extractor(images)["pooled"].shape == (2, 3)
    assert seen == [("highest", False)]


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
