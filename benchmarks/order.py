"""Two made-up worlds of latents, one in which semantics should lead and one in which the order is all the same.

An image has four parts. The texture of a part is one of the drawings of the image's kind, and all four parts must be
of one kind; the semantics are a code of the kind, in far fewer numbers, beside random signs, without which images of
one kind would be near-duplicates. To tell the kind from noisy textures takes all drawings of all kinds; to
draw textures of a known kind takes only its own. In the world `related` the code is that of the textures' kind, in
`unrelated` that of another kind drawn for itself, which tells nothing. A *mistake* is an image whose parts are of more
than one kind, each taken to be of the kind of the nearest drawing.

For either world `sfd learn-schedule` is asked what it prefers, and the same network is trained by `sfd train` along
several schedules and sampled along its own. A row takes half a minute; what is recorded is not run again, and what
`--keep` has kept in a folder goes on from there.

    python benchmarks/order.py --seeds 0 1 2 3
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, machine, save, table
from torch import Tensor

from sfd_cli.config import Settings, validate_settings
from sfd_cli.data.moments import Moments
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.files import read_json, write_json
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.stages import learn_schedule, train

SIDE, TEXTURE, CODE, SIGNS = 2, 32, 4, 4
KINDS, DRAWINGS = 16, 4
SPREAD = 0.1
"""Standard deviation of images around drawings and codes, whose values have 1."""

LAWS: dict[str, dict[str, Any]] = {
    "synchronous": {"delta_t": 0.0},
    "synchronous half as long": {"delta_t": 0.0, "steps": 500},  # as many draws as a stream gets along a large lead
    "lead -2": {"schedule": "lead", "lead": -2.0},
    "lead 1": {"schedule": "lead", "lead": 1.0},
    "lead 2": {"schedule": "lead", "lead": 2.0},
    "lead 2 jittered": {"schedule": "lead", "lead": 2.0, "lead_jitter": 2.0},
    "lead 4 jittered": {"schedule": "lead", "lead": 4.0, "lead_jitter": 2.0},
    "synchronous twice as long": {"delta_t": 0.0, "steps": 2000},
    "learned": {"schedule": "learned"},
    "learned twice as long": {"schedule": "learned", "steps": 2000},
    "learned jittered": {"schedule": "learned", "lead_jitter": 2.0},
}
NETWORK: dict[str, Any] = {
    "width": 64,
    "depth": 4,
    "heads": 4,
    "prediction": "data",
    "repa": "none",
    "objective": "corrected",
    "semantic_weight": 1.0,
    "cosine_weight": 0.0,
    "label_dropout": 0.0,
    "batch_size": 256,
    "learning_rate": 2e-3,
    "beta2": 0.95,
    "warmup_steps": 100,
    "decay": 0.5,
    "clip_norm": 1.0,
    "ema_decay": 0.99,
    "precision": "native",
    "compile": True,
    "sample_every": 0,
}


@dataclass(frozen=True)
class World:
    """A distribution of latents.

    Attributes:
        related: whether semantics are of the textures' kind.
        drawings: textures of a part (KINDS, DRAWINGS, TEXTURE).
        codes: semantics of an image (KINDS, CODE, SIDE, SIDE), without the signs.
    """

    related: bool
    drawings: Tensor
    codes: Tensor

    @classmethod
    def of(cls, related: bool) -> World:
        """The world with these drawings and codes, the same ones each time."""
        generator = torch.Generator().manual_seed(0)
        drawings = torch.randn(KINDS, DRAWINGS, TEXTURE, generator=generator)
        return cls(related, drawings, torch.randn(KINDS, CODE, SIDE, SIDE, generator=generator))

    def draw(self, count: int, seed: int) -> Tensor:
        """Composite latents (n, C, SIDE, SIDE): textures, the code, and signs."""
        generator = torch.Generator().manual_seed(seed)
        kinds, others = torch.randint(KINDS, (2, count), generator=generator)
        chosen = torch.randint(DRAWINGS, (count, SIDE**2), generator=generator)
        texture = self.drawings[kinds[:, None], chosen].transpose(1, 2).unflatten(2, (SIDE, SIDE))
        signs = torch.randint(2, (count, SIGNS, SIDE, SIDE), generator=generator) * 2.0 - 1
        exact = torch.cat((texture, self.codes[kinds if self.related else others], signs), dim=1)
        return (exact + SPREAD * torch.randn(exact.shape, generator=generator)) / math.hypot(1, SPREAD)

    def mistakes(self, latents: Tensor) -> float:
        """Share of images (n, C, SIDE, SIDE) whose parts are of more than one kind."""
        parts = latents[:, :TEXTURE].flatten(2).transpose(1, 2) * math.hypot(1, SPREAD)
        kinds = torch.cdist(parts, self.drawings.flatten(0, 1)[None]).argmin(dim=2) // DRAWINGS
        return float((kinds != kinds[:, :1]).any(dim=1).double().mean())


def store(folder: Path, latents: Tensor) -> None:
    """Latents as `sfd encode-latents` leaves them, of mean 0 and standard deviation 1."""
    fields = {"texture": Field((1, TEXTURE, SIDE, SIDE)), "semantic": Field((1, CODE + SIGNS, SIDE, SIDE))}
    values = latents[:, None].half().numpy()
    writer = StoreWriter(folder, fields, len(values), 4096, "made-up", {"image_size": SIDE})
    for shard in range(writer.shard_count):
        rows = writer.rows(shard)
        part = values[rows.start : rows.stop]
        writer.write_shard(shard, {"texture": part[:, :, :TEXTURE], "semantic": part[:, :, TEXTURE:]})
    channels, files = latents.shape[1], [f"{index}.png" for index in range(len(values))]
    statistics = {"mean": np.zeros(channels), "std": np.ones(channels)}
    writer.finish([0] * len(values), files, range(len(values)), ["all"], statistics)
    write_json(folder / "settings.json", {"fingerprint": "made-up", "complete": True, "settings": {}, "inputs": {}})


def settings_of(folder: Path, law: dict[str, Any], seed: int, steps: int, device: str) -> Settings:
    """Settings of a run in `folder`, whose latents, probe and schedule its runs share."""
    network = NETWORK | {"steps": steps, "checkpoint_every": steps}
    probe = {key: value for key, value in network.items() if key not in ("objective", "repa")}
    name = "-".join(str(value) for value in law.values())
    paths = {key: folder / key for key in ("latents", "probe", "schedule")}
    paths |= {"dit": folder / f"dit-{name}-{seed}", "metrics": folder / f"metrics-{name}-{seed}"}
    return validate_settings(
        {
            "runtime": {"device": device},
            "paths": {key: str(path) for key, path in paths.items()},
            "schedule": {"learn": True, "probe": probe},
            "dit": network | law | {"seed": seed},
            "sample": {"guidance": "none", "delta_t": None, "steps": 50},
        },
        "benchmarks/order.py",
    )


def sampled(settings: Settings, count: int) -> Tensor:
    """Composite latents (n, C, h, w) of a trained model, along the schedule that it was trained with, on the CPU."""
    sampler = SamplingModels.open(settings, images=False).load(settings.sample, torch.device(settings.runtime.device))
    noise = initial_noise(0, list(range(count)), sampler.space.shape).to(sampler.device)
    return sampler.solve(noise, torch.zeros(count, dtype=torch.long, device=sampler.device)).cpu()


def gaussian(latents: Tensor) -> Gaussian:
    """That of latents (n, C, h, w), all values of an image."""
    return Gaussian.of(Moments.of(latents.flatten(1).double().numpy(), scatter=True))


def run(world: World, folder: Path, law: str, seed: int, options: Any) -> dict[str, Any]:
    """Train and sample one row."""
    settings, started = settings_of(folder, LAWS[law], seed, options.steps, options.device), time.process_time()
    train.run(settings)
    latents, truth = sampled(settings, options.images), world.draw(options.images, seed=2)
    return {
        "dataset": name_of(world),
        "schedule": law,
        "seed": seed,
        "steps": settings.dit.steps,
        "mistakes": world.mistakes(latents),
        "distance": frechet_distance(gaussian(latents), gaussian(truth)),
        "mistakes of the data": world.mistakes(truth),
        "distance of the data": frechet_distance(gaussian(world.draw(options.images, seed=3)), gaussian(truth)),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def name_of(world: World) -> str:
    """As it is recorded."""
    return "related" if world.related else "unrelated"


def ask(folder: Path, options: Any) -> dict[str, Any]:
    """What `sfd learn-schedule` says."""
    learn_schedule.run(settings := settings_of(folder, {}, 0, options.steps, options.device))
    found: dict[str, Any] = read_json(settings.paths.metrics / "learn_schedule" / "metrics.json")
    return found


def main() -> None:
    """Run what is not recorded yet, and print the table."""
    parser = arguments(__doc__, timed=False)
    parser.add_argument("--worlds", nargs="+", default=["related", "unrelated"], help="[%(default)s]")
    parser.add_argument("--laws", nargs="+", default=list(LAWS), help="schedules [all]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of networks [0]")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps [%(default)s]")
    parser.add_argument("--images", type=int, default=4000, help="images that are scored [%(default)s]")
    parser.add_argument("--training-images", type=int, default=20_000, help="[%(default)s]")
    parser.add_argument("--keep", type=Path, help="folder of latents, probes and networks [none is kept]")
    options = parser.parse_args()
    keep = vars(options).pop("keep")  # it is not part of what was measured
    file = Path(options.out) / f"order-{torch.device(options.device).type}.json"
    known = json.loads(file.read_text()) if file.exists() else {"rows": [], "learned": {}}
    rows, learned = known["rows"], known["learned"]
    for name in options.worlds:
        world = World.of(related=name == "related")
        with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as made:
            folder = Path(made) / name
            if not (folder / "latents").exists():
                store(folder / "latents", world.draw(options.training_images, seed=1))
            if name not in learned or any(LAWS[law].get("schedule") == "learned" for law in options.laws):
                learned[name] = ask(folder, options)
            for seed in options.seeds:
                for law in options.laws:
                    if any((row["dataset"], row["schedule"], row["seed"]) == (name, law, seed) for row in rows):
                        continue
                    rows.append(run(world, folder, law, seed, options) | {"machine": machine(torch.device("cpu"))})
                    save("order", options, {"learned": learned, "rows": rows})
    table([{key: value for key, value in row.items() if key != "machine"} for row in rows])


if __name__ == "__main__":
    main()
