"""What the number format changes of sampled images, and what dopri5 costs beside torchdiffeq's.

The models are trained ones, `--models` of a finished project. Two tables:

1. The same images in fp32 and in bf16: grey levels between them, and beside that what twice the steps change, which is
   the error of the solver; and the time of a batch, turn by turn. On CUDA also with float32 products, not TF32's.
2. dopri5 here and by torchdiffeq, on the same problem, on a CPU to the same bits: the time of a solution; and on CUDA
   how often each asks the device for a number, which waits for all that was asked of it before.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfd_cli.config import Settings
from sfd_cli.diffusion.dormand_prince import dormand_prince
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler

ASKING = ("_local_scalar_dense", "is_nonzero")


class Asked(TorchDispatchMode):
    """Counts how often a device is asked for a number."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ASKING and args[0].device == self.device:
            self.count += 1
        return func(*args, **(kwargs or {}))


def in_formats(sampler: Sampler, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Grey levels between the images of each format and those in fp32, and how many times as fast a batch is."""
    formats = ["fp32", "bf16", *(["ieee"] if options.device == "cuda" else [])]
    samplers = {
        name: replace(sampler, sample=sampler.sample.model_copy(update={"precision": name})) for name in formats
    }
    finer = {"steps": 2 * sampler.sample.steps, "precision": "fp32"}
    samplers["fp32, twice the steps"] = replace(sampler, sample=sampler.sample.model_copy(update=finer))
    inputs, indices = SampleInputs.open(sampler.sample), range(options.images)
    latents = {name: one.latents(inputs, indices) for name, one in samplers.items()}
    images = {name: one.decode(latents[name]).double() for name, one in samplers.items()}
    candidates: dict[str, Callable[[], object]] = {
        name: lambda one=one: one.latents(inputs, indices) for name, one in samplers.items() if name in formats
    }
    timings = harness.interleaved(candidates, options.repetitions, 0, torch.device(options.device))
    rows = []
    for name in samplers:
        apart = (images[name] - images["fp32"]).abs()
        found = {
            "format": name,
            "grey levels, mean": apart.mean().item(),
            "above 1, share": (apart > 1).double().mean().item(),
            "grey levels, 99.9 %": apart.flatten().quantile(0.999).item() if apart.numel() < 2**24 else None,
            "latents, RMSE": (latents[name] - latents["fp32"]).square().mean().sqrt().item(),
        }
        if name in timings:
            faster = harness.ratios(timings["fp32"], timings[name])
            found |= {"times as fast": faster["median"], "quartiles": [faster["low"], faster["high"]]}
        rows.append(found | ({} if name in timings else {"times as fast": "", "quartiles": ""}))
    return rows


def by_dopri5(sampler: Sampler, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a solution here and by torchdiffeq, and how often each asks for a number."""
    from torchdiffeq import odeint

    inputs, device = SampleInputs.open(sampler.sample), torch.device(options.device)
    count = min(options.images, 4)
    noise = inputs.noise_of(range(count), sampler.space.shape).to(device)
    labels = inputs.rows_of(range(count), sampler.conditions).to(device)
    calls = 0

    def slope(time: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        times = torch.full((count,), min(float(time), 1.0), device=device)
        return sampler.dit(x, times, times, labels)

    @torch.inference_mode()
    def theirs() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
            return odeint(slope, noise, ends, rtol=1e-3, atol=1e-6, method="dopri5")[-1]

    @torch.inference_mode()
    def ours() -> Tensor:
        return dormand_prince(slope, noise, 0.0, 1.0, 1e-3, 1e-6)

    solvers: dict[str, Callable[[], Tensor]] = {"torchdiffeq": theirs, "sfd": ours}
    rows, found = [], {}
    for name, solve in solvers.items():
        calls = 0
        with Asked(device) as asked:
            found[name] = solve()
        rows.append({"dopri5": name, "network calls": calls, "asks": asked.count if device.type == "cuda" else ""})
    if device.type == "cpu":
        assert torch.equal(found["sfd"], found["torchdiffeq"]), "other bits than torchdiffeq's"
    timings = harness.interleaved(dict(solvers), options.repetitions, 0, device)
    for row in rows:
        faster = harness.ratios(timings["torchdiffeq"], timings[row["dopri5"]])
        row |= {"seconds": timings[row["dopri5"]].median, "times as fast": faster["median"]}
        row["quartiles"] = [faster["low"], faster["high"]]
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of dit, guide, texture_vae")
    parser.add_argument("--images", type=int, default=32, help="of the batch [%(default)s]")
    parser.set_defaults(repetitions=3)
    options = parser.parse_args()
    settings = Settings.model_validate(
        {
            "runtime": {"device": options.device},
            "paths": {name: options.models / name for name in ("dit", "guide", "texture_vae")},
            "sample": {"guidance": "autoguidance", "num_images": options.images, "batch_size": options.images},
        }
    )
    device = torch.device(options.device)
    sampler = SamplingModels.open(settings).load(settings.sample, device)
    formats, solvers = in_formats(sampler, options), by_dopri5(sampler, options)
    harness.table(formats)
    print()
    harness.table(solvers)
    harness.save("sampling_precision", options, {"formats": formats, "dopri5": solvers})


if __name__ == "__main__":
    main()
