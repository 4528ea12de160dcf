"""The embedded Runge-Kutta pair of Dormand and Prince (1980), order 5 and 4, with the steps that torchdiffeq takes.

Published samples were made with torchdiffeq's dopri5, so this is its method to the last detail: the tableau with
Shampine's midpoint, the first step of Hairer, Norsett and Wanner (Solving Ordinary Differential Equations I, II.4),
control by the root mean square of the error, the quartic through the step that goes beyond the end. On a CPU it gives
the same bits. But there times and step sizes are tensors on the solution's device, and nearly every comparison of two
waits for it; here they are numbers on the host, and an attempted step waits once, for the norm of its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SAFETY, LONGEST, SHORTEST = 0.9, 10.0, 0.2
"""A step is at most so much longer, or shorter, than the one before."""
C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last row is the solution of order 5 as well: its slope is the first of the next step."""
ERROR = (
    35 / 384 - 1951 / 21600,
    0.0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 - -12231 / 42400,
    11 / 84 - 649 / 6300,
    -1.0 / 60.0,
)
MIDDLE = (
    6025192743 / 30085553152 / 2,
    0.0,
    51252292925 / 65400821598 / 2,
    -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2,
    -1776094331 / 19743644256 / 2,
    11237099 / 235043384 / 2,
)
TABLE = (*(row + (0.0,) * (len(ERROR) - len(row)) for row in A), ERROR, MIDDLE)


def dormand_prince(
    slope: Callable[[float, Tensor], Tensor], x: Tensor, start: float, end: float, rtol: float, atol: float
) -> Tensor:
    """The solution at `end` of dx/dT = slope(T, x) from `x` at `start`.

    Args:
        slope: (T, x) to a tensor like x. T is a number that x's format has.
        x: any shape; the error that decides the steps is over all of it together.
        start: T of `x`.
        end: above `start`. The last step goes beyond it, and the slope is asked for there.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        x at `end`; not a number anywhere where a slope on the way was not finite.

    Raises:
        FloatingPointError: a step would be too short to get on: the tolerance is below what rounding allows.
    """
    *stages, error, middle = torch.tensor(TABLE, dtype=torch.float64).to(x.dtype).to(x.device)
    time, here = start, slope(_rounded(start, x), x)
    step = _first_step(slope, start, x, here, rtol, atol)
    while math.isfinite(step):
        ahead = time + step
        if ahead <= time:
            raise FloatingPointError(f"at T = {time:.6g} a step of {step:.3g} is too short to get on")
        length, slopes = _rounded(step, x), x.new_empty(*x.shape, len(ERROR))
        slopes[..., 0] = here
        for stage, (fraction, weights) in enumerate(zip(C, stages, strict=True), 1):
            there = x + (slopes[..., :stage] * (weights[:stage] * length)).sum(-1)
            slopes[..., stage] = slope(_time(time, step, fraction, x), there)
        ratio = _error_ratio((slopes * (error * length)).sum(-1), x, there, rtol, atol)
        if ratio <= 1 and ahead >= end:
            between = x + (slopes * (middle * length)).sum(-1)
            share = _rounded((end - time) / (ahead - time), x)
            return _quartic(x, there, between, slopes[..., 0], slopes[..., -1], length, share)
        if ratio <= 1:
            time, x, here = ahead, there, slopes[..., -1]
        step = _next_step(step, ratio)
    return torch.full_like(x, torch.nan)


def _rounded(value: float, like: Tensor) -> float:
    """The nearest number in a tensor's format."""
    return torch.tensor(value, dtype=like.dtype).item()


def _time(time: float, step: float, fraction: float, like: Tensor) -> float:
    """Where in a step a slope is taken, in the format of the solution; at the step's end, just before it."""
    if fraction == 1:
        end = torch.tensor(time + step, dtype=like.dtype)
        return torch.nextafter(end, end - 1).item()
    return (
        torch.tensor(time, dtype=like.dtype)
        + torch.tensor(fraction, dtype=like.dtype) * torch.tensor(step, dtype=like.dtype)
    ).item()


def _norm(values: Tensor) -> Tensor:
    """Root mean square, on the values' device."""
    return values.abs().pow(2).mean().sqrt()


def _first_step(
    slope: Callable[[float, Tensor], Tensor], start: float, x: Tensor, here: Tensor, rtol: float, atol: float
) -> float:
    """Length of the first step, by one more slope; not a number where slopes are not finite. Waits twice."""
    scale = atol + x.abs() * rtol
    size, first = torch.stack([_norm(x / scale), _norm(here / scale)]).cpu()
    small = torch.tensor(1e-6, dtype=x.dtype)
    trial = small if size < 1e-5 or first < 1e-5 else (0.01 * size / first).abs()
    then = slope(_rounded(start + trial.item(), x), x + trial * here)
    second = (_norm((then - here) / scale).cpu() / trial).abs()
    if not (first.isfinite() and second.isfinite()):
        return math.nan
    if first <= 1e-15 and second <= 1e-15:
        length = torch.maximum(small, trial * 1e-3)
    else:
        length = ((0.01 / torch.maximum(first, second)) ** (1 / 5)).abs()
    return torch.minimum(100 * trial, length).item()


def _error_ratio(error: Tensor, before: Tensor, after: Tensor, rtol: float, atol: float) -> float:
    """The error of a step over the allowed one: where an attempted step waits for the device."""
    return _norm(error / (atol + rtol * torch.maximum(before.abs(), after.abs()))).item()


def _next_step(step: float, ratio: float) -> float:
    """Length of the step after one whose error was `ratio` of the allowed one."""
    if ratio == 0:
        return step * LONGEST
    # PyTorch's power, whose last bit may be another than the standard library's.
    root = (torch.tensor(ratio, dtype=torch.float64) ** torch.tensor(1 / 5, dtype=torch.float64)).item()
    if math.isnan(root):
        return math.nan
    return step * min(LONGEST, max(SAFETY / root, 1.0 if ratio < 1 else SHORTEST))


def _quartic(
    start: Tensor, end: Tensor, middle: Tensor, first: Tensor, last: Tensor, length: float, share: float
) -> Tensor:
    """At `share` of a step, the polynomial of order 4 with its two ends, their slopes and its middle."""
    fourth = 2 * length * (last - first) - 8 * (end + start) + 16 * middle
    third = length * (5 * first - 3 * last) + 18 * start + 14 * end - 32 * middle
    second = length * (last - 4 * first) - 11 * start - 5 * end + 16 * middle
    total, power = start + share * (length * first), share
    for coefficient in (second, third, fourth):
        power = _rounded(power * share, start)
        total = total + power * coefficient
    return total
