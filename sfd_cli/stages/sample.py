"""`sfd sample`: images from noise, as PNGs and an ADM-format npz."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sfd_cli.config import Sample, Settings
from sfd_cli.engine.distributed import Processes
from sfd_cli.files import read_json
from sfd_cli.stages.device import choose_device
from sfd_cli.stages.output import StageOutput, say
from sfd_cli.stages.sample_files import (
    LABELS,
    NPZ,
    image_path,
    is_whole_folder,
    is_whole_png,
    remove_leftovers,
    write_archive,
    write_png,
)
from sfd_cli.stages.sampler import (
    Sampler,
    balanced_labels,
    decode_textures,
    guidance_scale,
    initial_noise,
    sample_latents,
)
from sfd_cli.stages.upstream import dit_fingerprint, model_fingerprint

__all__ = ["balanced_labels", "decode_textures", "initial_noise", "run", "sample_latents"]

STAGE = "sample"
# dopri5's step size comes from all images integrated together: a fixed group keeps image i from depending on the
# batch size.
DOPRI5_GROUP = 16
# Batches whose PNGs may still be in the making while the device goes on.
WRITTEN_BEHIND = 2
GRID_IMAGES = 36


def run(settings: Settings, grid: Path | None = None) -> dict[str, Any]:
    """Write `000000.png` ..., `labels.json` and `samples.npz`; under torchrun the processes take batches in turn.

    Image i depends on the seed and i alone, and an interrupted run goes on to the same bytes.

    Args:
        settings: the sections `sample`, `paths` and `runtime` are read.
        grid: also draw the first images with their classes, as one PNG.

    Returns:
        The summary to print; empty in all processes but the first.

    Raises:
        UserError: a model is missing, or models and settings do not fit together.
        StageFailure: a latent is not finite.
    """
    sample, folder = settings.sample, settings.paths.samples
    output = _output(settings)
    processes = Processes.join()
    with output if processes.first else nullcontext():
        if processes.hear_first(output.complete and is_whole_folder(folder, sample.num_images)):
            if processes.first:
                say(f"{folder} is up to date")
        else:
            sampler = Sampler.load(settings, processes.device(choose_device(settings.runtime.device)))
            if processes.first:
                _warn_of_offset(sampler)
                remove_leftovers(folder)
            processes.wait()
            _write_images(sampler, folder, processes, settings.runtime.workers)
            processes.wait()
            if processes.first:
                labels = balanced_labels(range(sample.num_images), sampler.classes).tolist()
                write_archive(folder, labels, settings.runtime.workers)
                output.finish(images=sample.num_images, class_names=sampler.class_names)
    if not processes.first:
        return {}
    return _summary(folder, output.facts["class_names"], grid)


def effective_settings(sample: Sample) -> dict[str, Any]:
    """The settings that bear on the images, so that changing another leaves finished samples as they are.

    The batch size moves an image by rounding only, so that a run short of memory may go on with a smaller one.
    """
    settings = sample.model_dump(exclude={"batch_size", "scale", "interval_start", "interval_end"})
    unused = {"steps", "shift"} if sample.solver == "dopri5" else {"rtol", "atol"}
    if sample.guidance == "none":
        unused |= {"scale_texture", "scale_semantic"}
    else:
        scale = guidance_scale(sample)
        settings |= {"scale_texture": scale.texture, "scale_semantic": scale.semantic, "interval": scale.interval}
    return {key: value for key, value in settings.items() if key not in unused}


def _output(settings: Settings) -> StageOutput:
    sample, paths = settings.sample, settings.paths
    inputs = {
        "dit": dit_fingerprint(settings, "dit"),
        "texture_vae": model_fingerprint(paths.texture_vae, "sfd train-texture-vae"),
    }
    if sample.guidance == "autoguidance":
        inputs["guide"] = dit_fingerprint(settings, "guide")
    inert = {"batch_size": sample.batch_size}
    return StageOutput(paths.samples, STAGE, effective_settings(sample), inputs, paths.metrics, inert)


def _warn_of_offset(sampler: Sampler) -> None:
    trained, asked = sampler.training_delta_t, sampler.sample.delta_t
    if trained is not None and trained != asked:
        say(f"sampling with delta_t {asked}, but the model was trained with {trained}")


def _write_images(sampler: Sampler, folder: Path, processes: Processes, workers: int) -> None:
    """Write this process's share of the PNGs, keeping those that are whole."""
    sample = sampler.sample
    size = DOPRI5_GROUP if sample.solver == "dopri5" else sample.batch_size
    starts = range(0, sample.num_images, size)[processes.rank :: processes.count]
    total = sum(min(size, sample.num_images - start) for start in starts)
    if next(iter(sampler.dit.parameters())).is_cuda:
        # Full float32 products gain nothing over the published numbers, which were made with TF32.
        torch.set_float32_matmul_precision("high")
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        tqdm(total=total, desc="sampling", unit="image", disable=None if processes.first else True) as bar,
    ):
        writing: deque[list[Future[None]]] = deque()
        for start in starts:
            wanted = range(start, min(start + size, sample.num_images))
            missing = _missing(folder, wanted, pool.map)
            if missing:
                # The last batch is filled up with images past the end: one shape, and no image's numerics change.
                images = sampler.images(range(start, start + size))
                writing.append(
                    [pool.submit(write_png, image_path(folder, index), images[index - start]) for index in missing]
                )
            while len(writing) > WRITTEN_BEHIND:
                _wait_for(writing.popleft())
            bar.update(len(wanted))
        for futures in writing:
            _wait_for(futures)


def _missing(folder: Path, wanted: range, in_threads: Callable[..., Any]) -> list[int]:
    """Indices whose PNG is not there or not whole."""
    present = [index for index in wanted if image_path(folder, index).exists()]
    if not present:
        return list(wanted)
    whole = in_threads(is_whole_png, [image_path(folder, index) for index in present])
    kept = {index for index, is_whole in zip(present, whole, strict=True) if is_whole}
    return [index for index in wanted if index not in kept]


def _wait_for(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def _summary(folder: Path, class_names: list[str], grid: Path | None) -> dict[str, Any]:
    from sfd_cli.report.pictures import draw_samples

    labels = read_json(folder / LABELS)
    summary = {"images": len(labels), "classes": len(set(labels)), "folder": str(folder), "npz": str(folder / NPZ)}
    if grid is not None:
        images = []
        for index in range(min(GRID_IMAGES, len(labels))):
            with Image.open(image_path(folder, index)) as image:
                images.append(np.asarray(image))
        draw_samples(grid, images, [class_names[label] for label in labels[: len(images)]])
        summary["grid"] = str(grid)
    return summary
