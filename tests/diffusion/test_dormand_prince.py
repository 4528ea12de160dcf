"""Our dopri5 beside torchdiffeq's: the same steps, the same calls and the same bits, and one wait a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl import rk_common

from sfd_cli.diffusion import dormand_prince as ours
from sfd_cli.diffusion.dormand_prince import dormand_prince

Field = Callable[[float, Tensor], Tensor]
WITHIN = (0.0, 1.3)


def field(seed: int, stiffness: float = 1.0, kink: float = math.inf) -> Field:
    """A field that mixes channels, and jumps at `kink`, so that steps before it are rejected."""
    weights = stiffness * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def slope(time: float, x: Tensor) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", weights.to(x.dtype), x.tanh())
        return mixed * (1 + time) * (1 if time < kink else -2)

    return slope


def start(dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def solved(
    monkeypatch: pytest.MonkeyPatch, by: str, slope: Field, x: Tensor, rtol: float, atol: float
) -> tuple[Tensor, list[float], list[float]]:
    """The solution by one of both, the times at which it called, and the error ratio of every step that it tried."""
    times: list[float] = []
    ratios: list[float] = []

    def called(time: Any, there: Tensor) -> Tensor:
        times.append(float(time))
        return slope(times[-1], there)

    module, name = (ours, "_error_ratio") if by == "ours" else (rk_common, "_compute_error_ratio")
    compute = getattr(module, name)

    def listed(*arguments: Any) -> Any:
        found = compute(*arguments)
        ratios.append(float(found))
        return found

    with monkeypatch.context() as patched, torch.inference_mode():
        patched.setattr(module, name, listed)
        if by == "ours":
            return dormand_prince(called, x, *WITHIN, rtol, atol), times, ratios
        ends = torch.tensor(WITHIN, dtype=torch.float64)
        return odeint(called, x, ends, rtol=rtol, atol=atol, method="dopri5")[-1], times, ratios


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rtol", "atol"), [(1e-2, 1e-2), (1e-3, 1e-6), (1e-5, 1e-8)])
@pytest.mark.parametrize(("stiffness", "kink"), [(0.5, math.inf), (2.0, math.inf), (1.0, 0.37)])
def test_every_step_is_torchdiffeqs_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, stiffness: float, kink: float, rtol: float, atol: float, dtype: torch.dtype
) -> None:
    slope, x = field(0, stiffness, kink), start(dtype)
    theirs, times, ratios = solved(monkeypatch, "theirs", slope, x, rtol, atol)
    found, called, judged = solved(monkeypatch, "ours", slope, x, rtol, atol)
    assert called == times
    assert judged == ratios
    assert len(called) == 2 + 6 * len(judged)
    assert (max(judged) > 1) == (kink == 0.37 or max(ratios) > 1)
    assert torch.equal(found, theirs)


def test_it_comes_within_the_tolerance_of_the_exact_solution() -> None:
    """dx/dT = a x cos(T): x exp(a sin T)."""
    x, rates = start(torch.float64), torch.linspace(-3, 3, 3, dtype=torch.float64)[:, None, None]
    found = dormand_prince(lambda time, y: rates * y * math.cos(time), x, 0.0, 2.0, 1e-9, 1e-11)
    torch.testing.assert_close(found, x * (rates * math.sin(2.0)).exp(), rtol=1e-7, atol=1e-9)


def test_a_field_that_stands_still_costs_as_little_as_torchdiffeqs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are 0, and so is the first slope: steps grow tenfold."""
    x = start(torch.float32)
    found, times, ratios = solved(monkeypatch, "ours", lambda _, y: torch.zeros_like(y), x, 1e-3, 1e-6)
    theirs = solved(monkeypatch, "theirs", lambda _, y: torch.zeros_like(y), x, 1e-3, 1e-6)
    assert (times, set(ratios)) == (theirs[1], {0.0})
    assert torch.equal(found, x)


@pytest.mark.parametrize(("value", "until"), [(math.nan, -1.0), (math.inf, -1.0), (math.nan, 0.0), (math.nan, 0.5)])
def test_a_slope_that_is_not_a_number_gives_none(value: float, until: float) -> None:
    def slope(time: float, x: Tensor) -> Tensor:
        return -x if time <= until else torch.full_like(x, value)

    assert dormand_prince(slope, start(torch.float32), *WITHIN, 1e-3, 1e-6).isnan().all()


def test_where_no_step_is_short_enough_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_error_ratio", lambda *_: 1e9)
    with pytest.raises(FloatingPointError, match=r"at T = 0\.5 "):
        dormand_prince(field(0), start(torch.float32), 0.5, 1.0, 1e-3, 1e-6)


class Watched(Tensor):
    """A tensor that tells when somebody waits for its numbers; what is computed from it is one too."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func in (Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.tolist, Tensor.cpu, Tensor.numpy):
            Watched.waits += 1
            return found.as_subclass(Tensor) if isinstance(found, Tensor) else found
        return found


@pytest.mark.parametrize(("rtol", "kink"), [(1e-3, math.inf), (1e-6, math.inf), (1e-4, 0.37)])
def test_a_step_waits_once_for_the_device(monkeypatch: pytest.MonkeyPatch, rtol: float, kink: float) -> None:
    monkeypatch.setattr(Watched, "waits", 0)
    found, _, ratios = solved(
        monkeypatch, "ours", field(0, kink=kink), start(torch.float32).as_subclass(Watched), rtol, 1e-6
    )
    assert isinstance(found, Watched)
    assert Watched.waits == len(ratios) + 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = start(torch.float32).cuda(), torch.eye(3, device="cuda") - 2
    slope = lambda time, y: torch.einsum("ij,bjhw->bihw", weights, y.tanh())  # noqa: E731
    dormand_prince(slope, x, *WITHIN, 1e-3, 1e-6)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, _, ratios = solved(monkeypatch, "ours", slope, x, 1e-3, 1e-6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= len(ratios) + 3  # two of the first step, one for the tableau
