"""Kinds of devices: what must be known of each beside what PyTorch does alike on all; see the table DEVICES."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.tables import DEVICES

HALVES = (torch.float16, torch.bfloat16)
SETTING = "runtime.device"
DEV = Path("/dev")


@dataclass(frozen=True)
class DeviceKind:
    """A kind of device.

    Attributes:
        name: as PyTorch calls it.
        package: that brings it to PyTorch, imported when it is asked for; None where PyTorch has it itself.
        backend: of the process group between such devices; None where several processes cannot train on them. What
            lies on the CPU goes by gloo beside it.
        is_auto: whether `runtime.device: auto` takes one that is here.
        autocast: number formats that matrix products can be computed in.
        auto_bf16: whether `precision: auto` is bf16 there.
        tf32: whether it has TF32 products, which sampling takes as the published numbers did.
        channels_last: whether its convolutions work on images whose channels lie beside each other in memory.
        files: pattern below /dev of what the system's driver makes for every device, also for those that PyTorch cannot
            use; None where nothing tells.
        hides: the environment's variable by which a user hides devices from PyTorch.
        pinned: whether batches are read into pinned memory, which it copies from by itself.
        float64: whether it computes in float64; elsewhere scores are computed on the CPU.
        compiles: whether `torch.compile` writes code for it.
        auto_compile: whether `compile: auto` compiles there.
    """

    name: str
    package: str | None = None
    backend: str | None = None
    is_auto: bool = False
    autocast: tuple[torch.dtype, ...] = HALVES
    auto_bf16: bool = False
    tf32: bool = False
    channels_last: bool = False
    files: str | None = None
    hides: str | None = None
    pinned: bool = False
    float64: bool = True
    compiles: bool = True
    auto_compile: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether it is the machine itself, whose memory is the machine's."""
        return self.name == "cpu"

    @property
    def module(self) -> Any:
        """PyTorch's module of it, `torch.cuda` and the like."""
        if self.package is not None:
            importlib.import_module(self.package)
        return torch.get_device_module(self.name)

    @property
    def is_installed(self) -> bool:
        """Whether PyTorch knows it here, be there one or none."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def count(self) -> int:
        """How many are here."""
        if self.is_cpu:
            return 1
        return int(self.module.device_count()) if self.is_installed else 0

    def select(self, device: torch.device) -> None:
        """Make a device the current one of its kind, where there may be several."""
        if hasattr(self.module, "set_device"):
            self.module.set_device(device)

    def selected(self) -> torch.device | None:
        """The current device of this thread, where PyTorch has begun to use the kind; None elsewhere.

        It asks nothing that would wake a device up.
        """
        module: Any = None if self.is_cpu or not self.is_installed else getattr(torch, self.name, None)
        if not all(hasattr(module, name) for name in ("is_initialized", "set_device", "current_device")):
            return None
        return torch.device(self.name, module.current_device()) if module.is_initialized() else None

    def unseen(self) -> str | None:
        """Why PyTorch has none although the system has (a clause); None where it has some, or they were hidden."""
        if self.files is None or self.count() or self._are_hidden():
            return None
        if not any(_may_open(file) for file in sorted(DEV.glob(self.files))):
            return None
        if self.package is None and not getattr(torch.backends, self.name).is_built():
            return f"PyTorch {torch.__version__} is built without {self.name}"
        try:
            self.module.init()
        except (RuntimeError, AssertionError) as error:
            return " ".join(str(error).split(". ")[0].split()).rstrip(".")
        return f"PyTorch {torch.__version__} finds none"

    def _are_hidden(self) -> bool:
        """Whether the user names no device in the variable that says which ones PyTorch may see."""
        named = None if self.hides is None else os.environ.get(self.hides)
        return named is not None and re.match(r"\s*(\d|GPU-|MIG-)", named) is None

    def title(self, device: torch.device) -> str | None:
        """What its maker calls it, e.g. NVIDIA H100 80GB HBM3; None where nothing tells."""
        tell = None if self.is_cpu else getattr(self.module, "get_device_name", None)
        return None if tell is None else str(tell(device))

    def peak_memory(self, device: torch.device) -> int | None:
        """Bytes that this process has had there at once; None where it is the machine's memory, or nothing tells."""
        tell = None if self.is_cpu else getattr(self.module, "max_memory_allocated", None)
        return None if tell is None else int(tell(device))

    def release(self, device: torch.device) -> None:
        """Give back what PyTorch keeps of its memory for later, and forget its peak, as far as it has either."""
        for name, arguments in (("empty_cache", ()), ("reset_peak_memory_stats", (device,))):
            if not self.is_cpu and (call := getattr(self.module, name, None)) is not None:
                call(*arguments)

    def memory(self, device: torch.device) -> int:
        """Bytes of its memory: its own, or the machine's."""
        tell = getattr(self.module, "get_device_properties", None)
        if not self.is_cpu and tell is not None:
            return int(tell(device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


CUDA = DeviceKind(
    "cuda",
    backend="nccl",
    is_auto=True,
    auto_bf16=True,
    tf32=True,
    channels_last=True,
    files="nvidia[0-9]*",
    hides="CUDA_VISIBLE_DEVICES",
    pinned=True,
    auto_compile=True,
)
"""NVIDIA's, and AMD's by ROCm, which PyTorch calls the same."""
NPU = DeviceKind(
    "npu", "torch_npu", backend="hccl", is_auto=True, auto_bf16=True, pinned=True, float64=False, compiles=False
)
"""Ascend NPUs, which the paper's figures are of; matrix products in float64 they have none."""
XPU = DeviceKind("xpu", backend="xccl", is_auto=True, auto_bf16=True, pinned=True, float64=False)
"""Intel's GPUs, of which not all have float64."""
MPS = DeviceKind("mps", float64=False, compiles=False)
"""GPUs of Apple's processors: by name only, for not every operation is there."""
CPU = DeviceKind("cpu", backend="gloo")


def kind_of(device: torch.device) -> DeviceKind:
    """The kind of a device; one that no entry tells of, such as meta, is taken for one that can do everything."""
    kind: DeviceKind = DEVICES[device.type] if device.type in DEVICES else DeviceKind(device.type)
    return kind


def _may_open(file: Path) -> bool:
    """Whether a device's file is this process's to use; a batch system gives some to one job and some to another."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def choose_device(name: str) -> torch.device:
    """The device that `runtime.device` names; `auto` is the first kind of the table that is here.

    Raises:
        UserError: no such device here; or by `auto` one that PyTorch cannot use, as under a driver too old for it.
    """
    if name == "auto":
        kinds = [kind for kind in map(DEVICES.__getitem__, DEVICES) if kind.is_auto]
        for kind in kinds:
            if kind.count():
                return torch.device(kind.name)
        for kind in kinds:
            if (why := kind.unseen()) is not None:
                problem = f"'auto' finds {kind.name} devices that PyTorch cannot use ({why})"
                remedy = "install a PyTorch and a driver that fit each other, or set it to cpu to compute without them"
                raise UserError(SETTING, problem, remedy)
        return torch.device(CPU.name)
    known: DeviceKind | None = DEVICES[kind] if (kind := name.partition(":")[0]) in DEVICES else None
    if known is not None and not known.is_installed:
        problem = f"{name!r} needs the package {known.package}, which is not installed"
        raise UserError(SETTING, problem, "install the one that is made for this PyTorch, or use auto or cpu")
    try:
        if known is not None:
            _ = known.module  # which makes its name known to PyTorch
        device = torch.device(name)
    except RuntimeError:
        raise UserError(SETTING, f"{name!r} is not a device", f"use auto, {', '.join(DEVICES)} or cuda:N") from None
    if known is not None and not known.is_cpu and (device.index or 0) >= known.count():
        problem = f"{name!r} is not here ({known.name} devices: {known.count()})"
        raise UserError(SETTING, problem, "use auto or cpu")
    return device


def group_backend() -> str:
    """What a process group on this machine goes by: gloo between CPUs, and each kind of device's own."""
    kinds = [kind for kind in map(DEVICES.__getitem__, DEVICES) if kind.backend and kind.count()]
    own = [f"{kind.name}:{kind.backend}" for kind in kinds if not kind.is_cpu]
    return ",".join([f"cpu:{CPU.backend}", *own]) if own else str(CPU.backend)


def described(device: torch.device) -> str:
    """What a device is, e.g. `cpu` or `cuda: NVIDIA H100 80GB HBM3`; nothing that names the machine."""
    title = kind_of(device).title(device)
    return device.type if title is None else f"{device.type}: {title}"


def finest(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have none."""
    return torch.float64 if kind_of(device).float64 else torch.float32


def doubled(values: Tensor) -> Tensor:
    """The values in float64, on their device, or on the CPU where that has none."""
    return (values if kind_of(values.device).float64 else values.cpu()).double()


def here_too() -> Callable[[], None]:
    """What a new thread calls to have the current devices of the thread that calls this; its own would be the first."""
    chosen = [(kind, device) for kind in map(DEVICES.__getitem__, DEVICES) if (device := kind.selected()) is not None]

    def select() -> None:
        for kind, device in chosen:
            kind.select(device)

    return select


@contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """A block in which float32 products and convolutions are TF32's (10 bits of mantissa) or float32's own (23).

    It changes nothing on devices that have no TF32. Afterwards all is as it was.
    """
    if not kind_of(device).tf32:
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
