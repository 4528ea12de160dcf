"""The number format that a network computes in; weights, optimiser state and averages stay float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sfd_cli.devices import float32_products, kind_of
from sfd_cli.errors import SettingError

T = TypeVar("T")
Precision = Literal["fp32", "bf16"]
FrozenPrecision = Literal["fp32", "tf32", "bf16"]
"""Of networks that are not trained: TF32 is float32 whose products have the mantissas of float16."""

# As PyTorch calls them: matrix units of Intel since 2023, and vector products of AMD since Zen 4.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def choose_precision(name: Literal["auto", "native", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 on CUDA and its like and fp32 elsewhere; `native` also on a CPU that multiplies matrices in it.

    Raises:
        SettingError: the device has no bf16.
    """
    kind = kind_of(device)
    if name == "auto" or name == "native":
        has_units = kind.auto_bf16 or (name == "native" and kind.is_cpu and _cpu_multiplies_bf16())
        return "bf16" if has_units else "fp32"
    if name == "bf16" and torch.bfloat16 not in kind.autocast:
        raise SettingError("precision", f"{kind.name} devices have no bf16", "use auto or fp32")
    return name


def choose_frozen_precision(name: Literal["auto", "fp32", "tf32", "bf16"], device: torch.device) -> FrozenPrecision:
    """`auto` is TF32 where there is any, which is as fine as what is stored of a network, float16; fp32 elsewhere.

    Raises:
        SettingError: the device has no such products.
    """
    kind = kind_of(device)
    if name == "auto":
        return "tf32" if kind.tf32 else "fp32"
    if name == "tf32" and not kind.tf32:
        raise SettingError("precision", f"{kind.name} devices have no TF32", "use auto or fp32")
    return "tf32" if name == "tf32" else choose_precision(name, device)


@contextmanager
def frozen(precision: FrozenPrecision, device: torch.device) -> Iterator[None]:
    """A block for networks that are not trained, each of them `computing` in this format.

    By `fp32` nothing is in TF32, not even convolutions, which are by PyTorch's default.
    """
    with torch.inference_mode(), float32_products(device, precision == "tf32"):
        yield


def computing(network: Callable[..., T], precision: FrozenPrecision, device: torch.device) -> Callable[..., T]:
    """A network whose products are in this format within a block that is `frozen` in it, whatever else is around."""

    def compute(*arrays: Tensor) -> T:
        with autocast("bf16" if precision == "bf16" else "fp32", device):
            return network(*arrays)

    return compute


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16 (AMX or AVX512-BF16); elsewhere bf16 is slower than fp32.

    PyTorch before 2.10 cannot tell, which counts as no.
    """
    tell = getattr(torch.cpu, "get_capabilities", None)
    return tell is not None and any(tell().get(one) for one in BF16_INSTRUCTIONS)


def cpu_instructions() -> str:
    """What networks compute with on this CPU, as `AVX512, bf16`, where `native` is bf16.

    Machines whose processors have one name differ in it, and results with them.
    """
    return torch.backends.cpu.get_cpu_capability() + (", bf16" if _cpu_multiplies_bf16() else "")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A block in which matrix products run in `precision`; bf16 needs no loss scaling.

    Nothing changes on devices that have no autocast, such as meta.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
