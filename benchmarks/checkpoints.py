"""How long does training stand still for a checkpoint? Written in the loop, and copied there and written beside it.

Both write the same bytes, which is checked. The state is one of AdamW with averages: four tensors a weight.

    python benchmarks/checkpoints.py
    python benchmarks/checkpoints.py --device cuda --weights 675          # SFD-XL: 10.9 GB
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import arguments, interleaved, ratios, save, table

from sfd_cli.training import checkpoint_writer
from sfd_cli.training.checkpoint_writer import CheckpointWriter
from sfd_cli.training.checkpoints import MODEL, Checkpoints, TrainingState

ROWS = 1024


def state_of(weights: float, device: torch.device) -> TrainingState:
    """A state of so many million weights, in tensors of four million."""
    generator = torch.Generator(device).manual_seed(0)
    count = max(round(weights / 4), 1)

    def drawn(names: list[str]) -> dict[str, torch.Tensor]:
        shape = (ROWS, round(weights * 1e6 / count / ROWS))
        return {name: torch.rand(shape, generator=generator, device=device) for name in names}

    names = [str(number) for number in range(count)]
    moments = drawn([f"{name}.{moment}" for name in names for moment in ("exp_avg", "exp_avg_sq")])
    return TrainingState(1, drawn(names), drawn(names), moments)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds that the loop stands still for, both ways."""
    device = torch.device(options.device)
    state = state_of(options.weights, device)
    in_loop, beside = (Checkpoints(folder / name) for name in ("loop", "beside"))
    with CheckpointWriter(beside) as writer:
        candidates = {"written in the loop": lambda: in_loop.save(state), "copied": lambda: writer.save(state)}
        timings = interleaved(candidates, options.repetitions, device=device, before=writer.wait)
    for file in in_loop.path(1).iterdir():
        assert (beside.path(1) / file.name).read_bytes() == file.read_bytes(), file.name
    loop, copied = timings.values()
    found = beside.load(1, is_checked=True)
    mapped = str(beside.path(1) / MODEL) in Path("/proc/self/maps").read_text()
    megabytes = sum(tensor.nbytes for tensor in found.tensors) / 1e6
    rows = [
        {"candidate": timing.name, "seconds": timing.median, "spread": timing.spread} for timing in timings.values()
    ]
    table([{"candidate": row["candidate"], "seconds": row["seconds"]} for row in rows])
    ratio = ratios(loop, copied)
    print(f"{megabytes:,.0f} MB: {ratio['median']:.1f} times shorter ({ratio['low']:.1f} to {ratio['high']:.1f})")
    return {
        "megabytes": megabytes,
        "candidates": rows,
        "seconds": {timing.name: timing.seconds for timing in timings.values()},
        "ratio": ratio,
        "a loaded checkpoint is mapped, not copied": mapped,
    }


def main() -> None:
    """Measure and save."""
    parser = arguments(__doc__)
    parser.add_argument("--weights", type=float, default=40, help="millions of weights [%(default)s]")
    options = parser.parse_args()
    checkpoint_writer.LARGE = 0
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        result = measured(options, Path(folder))
    save("checkpoints", options, result)


if __name__ == "__main__":
    main()
