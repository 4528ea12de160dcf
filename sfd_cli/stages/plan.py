"""`sfd plan`: what the pipeline will cost, from the settings and the manifest, before any of it is run."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.devices import choose_device, kind_of
from sfd_cli.networks.precision import Precision, choose_precision
from sfd_cli.training.costs import Cost, Costs, step_memory

# Assumed: the share of a large matrix product's speed that stages reach; trainings on an H100 report 0.3 to 0.5.
SHARE = 0.4
SIDE, SIDE_ON_CPU = 8192, 1024
MEASURED_SECONDS = 0.3


def run(settings: Settings) -> dict[str, Any]:
    """Images, bytes and hours of every stage, memory of a training step, and whether DVC keeps everything twice.

    Returns:
        The summary to print.

    Raises:
        UserError: the images are not prepared, or there is no such device.
    """
    folder = settings.paths.images
    manifest, device = ImageManifest.load(folder), choose_device(settings.runtime.device)
    prepared = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    costs = Costs(settings, len(manifest), len(manifest.classes), prepared)
    stages = costs.stages()
    speeds: dict[Precision, float] = {}

    def hours(cost: Cost) -> float:
        precision = choose_precision(cost.section.precision, device) if cost.section else "fp32"
        if precision not in speeds:
            speeds[precision] = matrix_speed(device, precision)
        return cost.operations / (SHARE * speeds[precision]) / 3600

    taken = {stage: hours(cost) for stage, cost in stages.items()}
    total = sum(cost.bytes for cost in stages.values())
    link = link_to_cache(Path())
    memory = {
        stage: _size(
            step_memory(costs.transformer(section), section, section.batch_size // section.micro_batches, bf16)
        )
        for stage, cost in stages.items()
        if (section := cost.section) is not None
        for bf16 in [choose_precision(section.precision, device) == "bf16"]
    }
    return {
        "stages": {stage: _row(cost.images, cost.bytes, taken[stage]) for stage, cost in stages.items()},
        "all": f"{_size(total)}, {_time(sum(taken.values()))}",
        "assumed": f"{SHARE:.0%} of the speed of matrix products on this {device.type}, as measured now",
        "memory of a training step, a whole batch on one device": memory,
        "checkpoints, beside what DVC keeps": f"{_size(sum(cost.checkpoint for cost in stages.values()))},"
        " and as much again while a stage trains",
        "kept by DVC": f"once: files and cache share their bytes ({link})"
        if link
        else f"twice, {_size(2 * total)} in all: this file system has no links that DVC is told to use",
    }


def matrix_speed(device: torch.device, precision: Precision) -> float:
    """Operations per second of large matrix products: the fastest of some, for other programs slow down the rest."""
    side = SIDE_ON_CPU if kind_of(device).is_cpu else SIDE
    matrix = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    float(torch.mm(matrix, matrix)[0, 0])
    fastest, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while (started := time.perf_counter()) < end:
        float(torch.mm(matrix, matrix)[0, 0])  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


def link_to_cache(folder: Path) -> str:
    """The kind of link by which DVC keeps a file of this project and of its cache as one; empty where it copies."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.fs import system

    try:
        with Repo(str(folder)) as repo:
            kinds, cache = repo.config["cache"].get("type") or ["reflink", "copy"], Path(repo.cache.local.path)
    except DvcException:
        return ""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as there, tempfile.TemporaryDirectory(dir=folder) as here:
        source = Path(there, "source")
        source.write_bytes(b"0")
        for kind in kinds:
            try:
                if kind == "copy":
                    return ""
                getattr(system, kind)(str(source), str(Path(here, "link")))
                return str(kind)
            except OSError:
                continue
    return ""


def _row(images: int, size: float, hours: float) -> str:
    return f"{images:>12,} images  {_size(size):>9}  {_time(hours):>9}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:,.1f} h"
