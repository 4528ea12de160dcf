"""What each idea for a faster training step brings by itself, at the sizes of an S/1 network (width 384, 256 tokens).

Every row is one piece of work done two ways that give the same result (checked), forward and backward where it is a
part of the network. "present" is what `sfd train` does, the ratio says how much faster that is than the other way;
"of a step" is the present way's time, all blocks together, as a share of a whole step of ours in eager mode.

    python benchmarks/training_ideas.py
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import arguments, interleaved, ratios, save, table
from plain_dit import RMSNorm as WrittenOutNorm
from torch import Tensor, nn
from training_step import SIZES, Ours, build, make_problem

from sfd_cli.networks.lightning_dit import LightningDiTConfig, RMSNorm, rotary_tables, rotate
from sfd_cli.training.averages import EMA
from sfd_cli.training.optimisation import Optimisation

Part = Callable[..., Tensor]


def main(argv: list[str] | None = None) -> None:
    """Measure, print, save."""
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="S")
    parser.add_argument("--no-compile", action="store_true", help="only what needs no compiler")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    size = SIZES[options.size]
    batch = size.gpu_batch if device.type == "cuda" else size.cpu_batch
    problem = make_problem(size.network, batch, "fp32", device)
    ours = build("eager", problem)
    assert isinstance(ours, Ours)
    step = interleaved({"step": ours.step}, 3, 1, device)["step"].median
    rows = []
    for idea in (rotation, norm, attention, modulation):
        for compiled in [False] if options.no_compile else [False, True]:
            rows += parts(idea, size.network, batch, step, compiled, options)
    rows += optimiser(ours, step, options)
    rows += average(ours, step, options)
    table([{key: row[key] for key in ("idea", "present", "other", "ms", "of a step", "ratio")} for row in rows])
    save("training_ideas", options, {"step_seconds": step, "rows": rows})


def rotation(config: LightningDiTConfig, batch: int, device: torch.device) -> tuple[dict[str, Part], list[Tensor], int]:
    """Rotary positions of queries and keys: pairs swapped, complex numbers, or halves (other order of channels)."""
    cos, sin = (part.to(device) for part in rotary_tables(config.head_width, config.tokens_per_side))
    turns = torch.complex(cos[..., ::2], sin[..., 1::2]).contiguous()
    x = torch.randn(batch, config.tokens_per_side**2, config.heads, config.head_width, device=device)

    def by_complex(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    half_cos, half_sin = cos[..., ::2], sin[..., 1::2]

    def by_halves(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * half_cos - second * half_sin, second * half_cos + first * half_sin), dim=-1)

    def as_halves(x: Tensor) -> Tensor:
        return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)

    ways: dict[str, Part] = {"pairs": lambda x: rotate(x, cos, sin), "complex": by_complex, "halves": by_halves}
    # Halves want the channels in another order, which the weights would have to have.
    torch.testing.assert_close(by_halves(as_halves(x)), as_halves(ways["pairs"](x)))
    torch.testing.assert_close(by_complex(x), ways["pairs"](x))
    return ways, [x], 2 * config.depth


def norm(config: LightningDiTConfig, batch: int, device: torch.device) -> tuple[dict[str, Part], list[Tensor], int]:
    """RMSNorm of the tokens: PyTorch's, or written out."""
    x = torch.randn(batch, config.tokens_per_side**2, config.width, device=device)
    present, written_out = RMSNorm(config.width).to(device), WrittenOutNorm(config.width).to(device)
    torch.testing.assert_close(written_out(x), present(x))
    return {"F.rms_norm": present.forward, "written out": written_out.forward}, [x], 2 * config.depth


def attention(
    config: LightningDiTConfig, batch: int, device: torch.device
) -> tuple[dict[str, Part], list[Tensor], int]:
    """Attention itself: PyTorch's kernel, or products and a softmax."""
    shape = (batch, config.tokens_per_side**2, config.heads, config.head_width)
    inputs = [torch.randn(shape, device=device) for _ in range(3)]

    def present(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.transpose(1, 2) * config.head_width**-0.5) @ k.permute(0, 2, 3, 1)
        return scores.softmax(dim=-1) @ v.transpose(1, 2)

    torch.testing.assert_close(written_out(*inputs), present(*inputs))
    return {"kernel": present, "written out": written_out}, inputs, config.depth


def modulation(
    config: LightningDiTConfig, batch: int, device: torch.device
) -> tuple[dict[str, Part], list[Tensor], int]:
    """Shifts, scales and gates of all blocks: a matrix product each, or one with the matrices joined."""
    layers = nn.ModuleList(nn.Linear(config.width, 6 * config.width) for _ in range(config.depth)).to(device)
    condition = torch.randn(batch, config.width, device=device)

    def each(condition: Tensor) -> Tensor:
        return torch.stack([layer(condition) for layer in layers])

    def one(condition: Tensor) -> Tensor:
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        return F.linear(condition, weight, bias).unflatten(-1, (len(layers), -1)).transpose(0, 1)

    joined = nn.Linear(config.width, 6 * config.width * config.depth, device=device)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([layer.weight for layer in layers]))
        joined.bias.copy_(torch.cat([layer.bias for layer in layers]))

    def stored_as_one(condition: Tensor) -> Tensor:
        return joined(condition).unflatten(-1, (len(layers), -1)).transpose(0, 1)

    torch.testing.assert_close(one(condition), each(condition))
    torch.testing.assert_close(stored_as_one(condition), each(condition))
    return {"one each": each, "joined in every step": one, "stored as one": stored_as_one}, [condition], 1


def parts(
    idea: Callable[..., tuple[dict[str, Part], list[Tensor], int]],
    config: LightningDiTConfig,
    batch: int,
    step: float,
    compiled: bool,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Rows of one idea about a part of the network, which a step does `count` times, forward and backward."""
    device = torch.device(options.device)
    torch.compiler.reset()
    ways, inputs, count = idea(config, batch, device)
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def both_passes(way: Part) -> Callable[[], None]:
        runner = torch.compile(way) if compiled else way
        weight = torch.randn_like(way(*inputs))
        return lambda: runner(*inputs).backward(weight)

    timings = interleaved({name: both_passes(way) for name, way in ways.items()}, 3 * options.repetitions, 2, device)
    name = f"{idea.__name__}{', compiled' if compiled else ''}"
    return _rows(name, timings, step, count)


def optimiser(ours: Ours, step: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """AdamW with the gradient's norm and its check, against PyTorch's default without them."""
    model = ours.run.model
    other_model = copy.deepcopy(model)
    present = Optimisation(model, 0.999, 0.0, None)
    other = torch.optim.AdamW(other_model.parameters(), lr=1e-4, weight_decay=0.0)
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]

    def with_gradients(network: nn.Module) -> None:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def fused() -> None:
        with_gradients(model)
        present.step(1e-4)

    def default() -> None:
        with_gradients(other_model)
        other.step()

    timings = interleaved({"fused": fused, "default": default}, options.repetitions, 2, torch.device(options.device))
    for here, there in zip(model.parameters(), other_model.parameters(), strict=True):
        torch.testing.assert_close(here, there)
    return _rows("AdamW", timings, step, 1)


def average(ours: Ours, step: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The average of the weights: a few kernels for all, or a loop over the parameters."""
    model = ours.run.model
    ema = EMA(model, 0.9999)
    other = copy.deepcopy(ema.model)

    @torch.no_grad()
    def loop() -> None:
        for mean, parameter in zip(other.parameters(), model.parameters(), strict=True):
            mean.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)

    calls = {"foreach": lambda: ema.update(model), "loop": loop}
    timings = interleaved(calls, options.repetitions, 2, torch.device(options.device))
    for here, there in zip(ema.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(here, there)
    return _rows("average", timings, step, 1)


def _rows(idea: str, timings: dict[str, Any], step: float, count: int) -> list[dict[str, Any]]:
    present, *others = timings.values()
    return [
        {
            "idea": idea,
            "present": present.name,
            "other": other.name,
            "ms": round(1e3 * present.median, 3),
            "of a step": f"{present.median * count / step:.1%}",
            "ratio": "{median:.2f} ({low:.2f}-{high:.2f})".format(**ratios(other, present)),
            "seconds": {timing.name: timing.seconds for timing in (present, other)},
        }
        for other in others
    ]


if __name__ == "__main__":
    main()
