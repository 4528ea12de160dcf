"""Speed of sampling at the recommended setting: solving, guidance, compiling, bf16, and `sfd sample` end to end.

The models are trained ones, as in sampling.py; the first of `--offsets` is taken. Three tables:

1. Solving: the reference's one-span dopri5 against the recommended setting, without guidance, with classifier-free
   guidance (two network calls, or one of both classes together) and with AutoGuidance; and with textures guided alone,
   where the null class need not be evaluated while they are frozen.
2. One network call: eager, compiled, in bf16.
3. `sfd sample` as a whole, which writes PNGs while it goes on sampling, against a plain loop that does one thing
   after another.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image
from sampling import BASELINE, RECOMMENDED, SCALE, Problem, load, parser, problem
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    GuidanceScale,
    VelocityField,
    extrapolate,
)
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.networks.precision import autocast
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.stages import sample as stage


@dataclass(frozen=True)
class TwoCalls:
    """Classifier-free guidance the plain way: the class, then the null class."""

    velocity: VelocityField
    conditions: Conditions
    scale: GuidanceScale
    space: LatentSpace

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        """See `VelocityField`."""
        conditional = self.velocity(x, t_texture, t_semantic, labels)
        unconditional = self.velocity(x, t_texture, t_semantic, self.conditions.unconditional(labels))
        scale = self.scale.at(t_texture, t_semantic)
        assert scale is not None
        return extrapolate(conditional, unconditional, scale, self.space)


def solving(sampler: Sampler, options: Any) -> list[dict[str, Any]]:
    """Images per second of a whole solution, in turn."""
    plain = problem(sampler, False, options.offsets[0], options.images)
    dit, conditions, space = sampler.dit, sampler.conditions, sampler.space
    both, textures = GuidanceScale(SCALE, SCALE), GuidanceScale(SCALE, 1.0)
    auto = AutoGuidance(dit, sampler.guide, both, space)
    alone = ClassifierFreeGuidance(dit, conditions, textures, space)

    def guided(velocity: VelocityField) -> Problem:
        return replace(plain, velocity=velocity)

    problems = {
        "no guidance, one-span dopri5 1e-3": plain,
        "no guidance": plain,
        "classifier-free, two calls": guided(TwoCalls(dit, conditions, both, space)),
        "classifier-free, one doubled": guided(ClassifierFreeGuidance(dit, conditions, both, space)),
        "AutoGuidance, one-span dopri5 1e-3": guided(auto),
        "AutoGuidance": guided(auto),
        # Hidden in a function, the guidance does not get which streams move.
        "textures guided, asked always": guided(lambda *arguments: alone(*arguments)),
        "textures guided, asked where they move": guided(alone),
    }
    how = {name: BASELINE if "dopri5" in name else RECOMMENDED for name in problems}

    def run(name: str) -> Tensor:
        return problems[name].latents(**how[name])

    agree(run("classifier-free, two calls"), run("classifier-free, one doubled"), "one doubled call and two calls")
    agree(run("textures guided, asked always"), run("textures guided, asked where they move"), "asking less")
    candidates: dict[str, Callable[[], object]] = {name: lambda name=name: run(name) for name in problems}
    timings = harness.interleaved(candidates, options.repetitions, device=torch.device(options.device))
    against = {
        "no guidance": "no guidance, one-span dopri5 1e-3",
        "classifier-free, one doubled": "classifier-free, two calls",
        "AutoGuidance": "AutoGuidance, one-span dopri5 1e-3",
        "textures guided, asked where they move": "textures guided, asked always",
    }
    return [
        {"calls": problems[name].solve(**how[name])[1]} | row(timings, name, against.get(name), options.images)
        for name in problems
    ]


def one_call(sampler: Sampler, options: Any) -> list[dict[str, Any]]:
    """Time of one network call on a batch, eager, compiled and in bf16."""
    here = problem(sampler, False, options.offsets[0], options.batch)
    compiled = deepcopy(sampler.dit)
    if not options.no_compile:
        compiled.compile(dynamic=False)
    device = here.noise.device
    times = [torch.full((options.batch,), t, device=device) for t in (0.3, 0.6)]

    def call(network: VelocityField, precision: Any) -> Tensor:
        with torch.inference_mode(), autocast(precision, device):
            return network(here.noise, *times, here.labels).float()

    eager = call(sampler.dit, "fp32")
    started = time.perf_counter()
    agree(eager, call(compiled, "fp32"), "compiled and eager")
    print(f"compiling took {time.perf_counter() - started:.1f} s")
    difference = (call(sampler.dit, "bf16") - eager).square().mean().sqrt() / eager.square().mean().sqrt()
    print(f"in bf16 a velocity is {float(difference):.2%} off")
    candidates: dict[str, Callable[[], object]] = {
        "eager": lambda: call(sampler.dit, "fp32"),
        "bf16": lambda: call(sampler.dit, "bf16"),
    }
    if not options.no_compile:
        candidates |= {"compiled": lambda: call(compiled, "fp32"), "compiled, bf16": lambda: call(compiled, "bf16")}
    timings = harness.interleaved(candidates, 3 * options.repetitions, device=device)
    return [row(timings, name, None if name == "eager" else "eager", options.batch) for name in timings]


def end_to_end(models: Path, options: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """`sfd sample` against a plain loop, both from loading the models to the last file; and the loop's parts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain_folder = Path(scratch) / "samples", Path(scratch) / "plain"
        settings = Settings.model_validate(
            {
                "runtime": {"device": options.device, "workers": 2},
                "paths": {name: models / name for name in ("dit", "guide", "texture_vae")}
                | {"samples": folder, "metrics": Path(scratch) / "metrics"},
                "sample": {
                    "delta_t": options.offsets[0],
                    "solver": RECOMMENDED["solver"],
                    "steps": RECOMMENDED["steps"],
                    "guidance": "autoguidance",
                    "scale": SCALE,
                    "num_images": options.count,
                    "batch_size": options.batch,
                },
            }
        )
        parts: dict[str, float] = {}

        def empty() -> None:
            for path in (folder, plain_folder):
                shutil.rmtree(path, ignore_errors=True)

        def plain() -> None:
            parts.clear()
            parts.update(plain_loop(settings, plain_folder))

        candidates: dict[str, Callable[[], object]] = {
            "plain loop": plain,
            "sfd sample": lambda: stage.run(settings),
        }
        timings = harness.interleaved(
            candidates, options.repetitions, device=torch.device(options.device), before=empty
        )
        stage.run(settings)
        plain_loop(settings, plain_folder)
        for index in range(options.count):
            ours, theirs = (np.asarray(Image.open(path / f"{index:06d}.png")) for path in (folder, plain_folder))
            assert np.array_equal(ours, theirs), f"image {index} differs"
        with np.load(folder / "samples.npz") as ours, np.load(plain_folder / "samples.npz") as theirs:
            assert np.array_equal(ours["arr_0"], theirs["arr_0"])
        print(f"sfd sample and the plain loop: {options.count} equal images, equal npz")
    return [
        row(timings, name, None if name == "plain loop" else "plain loop", options.count) for name in timings
    ], parts


def plain_loop(settings: Settings, folder: Path) -> dict[str, float]:
    """Sample, decode and write a batch, then the next; and the archive at the end. Seconds of each part."""
    parts = dict.fromkeys(("load", "solve", "decode", "write PNGs", "write npz"), 0.0)
    started = time.perf_counter()

    def done(part: str) -> None:
        nonlocal started
        parts[part] += time.perf_counter() - started
        started = time.perf_counter()

    sampler = SamplingModels.open(settings).load(settings.sample, torch.device(settings.runtime.device))
    inputs, vae = SampleInputs.open(settings.sample), sampler.require_texture_vae()
    statistics = (sampler.space.mean, sampler.space.std)
    mean, std = (torch.tensor(values, device=sampler.device)[:, None, None] for values in statistics)
    folder.mkdir()
    done("load")
    every = []
    for start in range(0, inputs.count, settings.sample.batch_size):
        batch = range(start, start + settings.sample.batch_size)  # the last one is filled up here too
        latents = sampler.latents(inputs, batch).clone()
        done("solve")
        with torch.inference_mode():
            textures = (latents * std + mean)[:, : vae.latent_channels]
            # In parts of 16, as there: a convolution may round differently in another batch.
            decoded = torch.cat([vae.decode(part) for part in textures.split(16)])
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        images = pixels.cpu().numpy()[: inputs.count - start]
        done("decode")
        for index, image in zip(batch, images, strict=False):
            Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{index:06d}.png")
        every.append(images)
        done("write PNGs")
    np.savez(folder / "samples.npz", arr_0=np.concatenate(every))
    done("write npz")
    return parts


def row(timings: dict[str, harness.Timing], name: str, baseline: str | None, images: int) -> dict[str, Any]:
    """A candidate's median, and how many times faster it is than its baseline."""
    faster = {"median": 1.0, "low": 1.0, "high": 1.0}
    if baseline is not None:
        faster = harness.ratios(timings[baseline], timings[name])
    return {
        "name": name,
        "ms": 1e3 * timings[name].median,
        "images/s": images / timings[name].median,
        "baseline": baseline or "",
        "times faster": faster["median"],
        "quartiles": [faster["low"], faster["high"]],
        "seconds": timings[name].seconds,
    }


def agree(one: Tensor, other: Tensor, what: str) -> None:
    """Check that two ways compute the same to rounding, and say so."""
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    print(f"{what}: equal within {float((one - other).abs().max()):.1e}")


def show(rows: list[dict[str, Any]]) -> None:
    """The table without the repetitions."""
    hidden = ("seconds", "quartiles")
    harness.table(
        [
            {key: value for key, value in one.items() if key not in hidden}
            | {"quartiles": "-".join(f"{value:.2f}" for value in one["quartiles"])}
            for one in rows
        ]
    )
    print()


def main() -> None:
    """Measure, print, save."""
    arguments = parser(__doc__, [0.3])
    arguments.set_defaults(images=16, repetitions=3)
    arguments.add_argument("--batch", type=int, default=32, help="images of a network call, and of `sfd sample` [32]")
    arguments.add_argument("--count", type=int, default=128, help="images of `sfd sample` [128]")
    arguments.add_argument("--no-compile", action="store_true", help="leave compiling out, which takes some seconds")
    options = arguments.parse_args()
    if torch.device(options.device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # as `sfd sample` does
    sampler = load(options.models, torch.device(options.device))
    solved = solving(sampler, options)
    show(solved)
    called = one_call(sampler, options)
    show(called)
    whole, parts = end_to_end(options.models, options)
    show(whole)
    print("plain loop, seconds:", ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()))
    harness.save(
        "sampling_speed", options, {"solving": solved, "one_call": called, "end_to_end": whole, "parts": parts}
    )


if __name__ == "__main__":
    main()
