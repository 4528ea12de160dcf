"""How fast training goes: images per second, and how much of the device's peak the model's arithmetic takes (MFU)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sfd_cli.devices import kind_of
from sfd_cli.networks.precision import Precision

# Dense peak in TFLOP/s of (bf16, fp32), from the vendors' data sheets; a name matches where it starts so.
# bf16 is with float32 accumulation. The longer name comes first.
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA H100 NVL": (835.0, 60.0),
    "NVIDIA H100": (989.4, 66.9),
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA A100": (312.0, 19.5),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
    "NVIDIA GeForce RTX 3090": (71.0, 35.6),
}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Peak FLOP/s of the device in `precision`, None where it is not known."""
    name = kind_of(device).title(device) or ""
    for prefix, (bf16, fp32) in PEAKS.items():
        if name.startswith(prefix):
            return 1e12 * (bf16 if precision == "bf16" else fp32)
    return None


def memory(device: torch.device) -> int:
    """Bytes that this process has had at once: of the GPU's memory, or of the machine's."""
    if (peak := kind_of(device).peak_memory(device)) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def training_flops(forward: Callable[[nn.Module], object], build: Callable[[], nn.Module]) -> int:
    """FLOPs of a forward and backward pass, a multiplication and an addition being two.

    `build` and `forward`, which makes its own inputs, run on the meta device: nothing is computed. The backward pass
    counts twice the forward pass; recomputed activations do not count, as is the custom for MFU.
    """
    with torch.device("meta"), torch.no_grad():
        module = build()
        # Imported here, for it brings Triton along: most of a second, which every command would pay.
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            forward(module)
    return 3 * counter.get_total_flops()


class Throughput:
    """Images per second over all processes, between readings and without the pauses.

    Args:
        flops_per_image: of a forward and backward pass; without it, or on a device of unknown peak, no MFU.
        peak: FLOP/s that all devices together could do, None where it is not known.
    """

    def __init__(self, flops_per_image: int | None, peak: float | None) -> None:
        self._flops_per_image = flops_per_image
        self._peak = peak
        self._started = time.perf_counter()

    def read(self, images: int) -> dict[str, float]:
        """`images_per_second` and, where known, `mfu`, of `images` since the last reading; starts over."""
        now = time.perf_counter()
        rate = images / (now - self._started)
        self._started = now
        if self._flops_per_image is None or self._peak is None:
            return {"images_per_second": rate}
        return {"images_per_second": rate, "mfu": rate * self._flops_per_image / self._peak}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - began
