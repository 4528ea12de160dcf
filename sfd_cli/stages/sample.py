"""`sfd sample`: images from noise, as PNGs and an ADM-format npz."""

from __future__ import annotations

import os
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

from sfd_cli.artifacts.fingerprints import finished_model
from sfd_cli.artifacts.output import StageOutput
from sfd_cli.artifacts.sample_files import (
    LABELS,
    NPZ,
    image_path,
    is_whole_folder,
    is_whole_png,
    remove_leftovers,
    write_archive,
    write_png,
)
from sfd_cli.config import Sample, Settings
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.files import read_json
from sfd_cli.messages import say
from sfd_cli.pipeline.inputs import SampleInputs, images_at_once
from sfd_cli.pipeline.sampler import Flow, Sampler, guidance_scale
from sfd_cli.processes import Processes
from sfd_cli.weights.models import open_dit, open_texture_vae

STAGE = "sample"
# Batches whose PNGs may still be in the making while the device goes on.
WRITTEN_BEHIND = 2
GRID_IMAGES = 36


def run(
    settings: Settings,
    grid: Path | None = None,
    noise: Path | None = None,
    labels: Path | None = None,
    latents_out: Path | None = None,
) -> dict[str, Any]:
    """Write `000000.png` ..., `labels.json` and `samples.npz`; under torchrun the processes take batches in turn.

    Image i depends on the seed and i alone, and an interrupted run goes on to the same bytes.

    Args:
        settings: the sections `sample`, `foreign`, `paths` and `runtime` are read.
        grid: also draw the first images with their classes, as one PNG.
        noise: `.npy` of float (N, C, h, w) to start from, instead of noise drawn from the seed.
        labels: `.npy` of int (N,), instead of classes in turn.
        latents_out: write the normalised composite latents, float32 (N, C, h, w), to this `.npy`, and no images;
            neither a texture VAE nor latent statistics are needed then.

    Returns:
        The summary to print; empty in all processes but the first.

    Raises:
        UserError: a model is missing, or models and settings do not fit together.
        StageFailure: a latent is not finite.
    """
    inputs = SampleInputs.open(settings.sample, noise, labels)
    processes = Processes.join()
    if latents_out is not None:
        if grid is not None:
            raise UserError("--grid: --latents-out writes no images to draw; leave one of them out")
        return _write_latents(settings, inputs, latents_out, processes)
    folder = settings.paths.samples
    output = _output(settings, inputs)
    # Entering makes room by putting other samples aside, so what would fail does so before.
    sampler = None if processes.broadcast(output.recorded()) else _load(settings, inputs, processes)
    with output if processes.is_main else nullcontext():
        if processes.broadcast(output.complete and is_whole_folder(folder, inputs.count)):
            if processes.is_main:
                say(f"{folder} is up to date")
        else:
            sampler = sampler or _load(settings, inputs, processes)
            if processes.is_main:
                remove_leftovers(folder)
            processes.barrier()
            _write_images(sampler, inputs, folder, processes, settings.runtime.workers)
            processes.barrier()
            if processes.is_main:
                all_labels = inputs.labels_of(range(inputs.count), sampler.flow.dit.config.num_classes).tolist()
                write_archive(folder, all_labels, settings.runtime.workers)
                output.finish(images=inputs.count, class_names=sampler.class_names)
    if not processes.is_main:
        return {}
    return _summary(folder, output.facts["class_names"], grid)


def effective_settings(sample: Sample) -> dict[str, Any]:
    """The settings that bear on the images, so that changing another leaves finished samples as they are.

    The batch size and compiling move an image by rounding only, so that a run short of memory may go on with smaller
    batches.
    """
    settings = sample.model_dump(exclude={"batch_size", "compile", "scale", "interval_start", "interval_end"})
    unused = {"steps", "shift"} if sample.solver == "dopri5" else {"rtol", "atol"}
    if sample.guidance == "none":
        unused |= {"scale_texture", "scale_semantic"}
    else:
        scale = guidance_scale(sample)
        settings |= {"scale_texture": scale.texture, "scale_semantic": scale.semantic, "interval": scale.interval}
    return {key: value for key, value in settings.items() if key not in unused}


def _output(settings: Settings, given: SampleInputs) -> StageOutput:
    sample, paths = settings.sample.model_copy(update={"num_images": given.count}), settings.paths
    inputs = dict(given.fingerprints) | {
        "dit": finished_model(open_dit(settings), "sfd train"),
        "texture_vae": finished_model(open_texture_vae(settings), "sfd train-texture-vae"),
    }
    if sample.guidance == "autoguidance":
        inputs["guide"] = finished_model(open_dit(settings, "guide"), "sfd train-guide")
    chosen, inert = effective_settings(sample), sample.model_dump(include={"batch_size", "compile"})
    for name, array in (("seed", given.noise), ("classes", given.labels)):
        if array is not None:
            inert[name] = chosen.pop(name)
    return StageOutput(paths.samples, STAGE, chosen, inputs, paths.metrics, inert)


def _load(settings: Settings, inputs: SampleInputs, processes: Processes) -> Sampler:
    """The models, checked against one another and the inputs."""
    sampler = Sampler.load(settings, processes.device(choose_device(settings.runtime.device)))
    prepare(sampler.flow, inputs, processes)
    return sampler


def prepare(flow: Flow, inputs: SampleInputs, processes: Processes) -> None:
    """Check the inputs, warn of an offset the model does not know, and choose the precision of products.

    Raises:
        UserError: noise of another shape than the network's, or a class it does not know.
    """
    inputs.require_fit(flow.shape, flow.dit.config.num_classes)
    trained, asked = flow.about.get("delta_t"), flow.sample.delta_t
    if processes.is_main and trained is not None and trained != asked:
        say(f"sampling with delta_t {asked}, but the model was trained with {trained}")
    if flow.device.type == "cuda":
        # Full float32 products gain nothing over the published numbers, which were made with TF32.
        torch.set_float32_matmul_precision("high")


def _batches(sample: Sample, count: int, processes: Processes) -> tuple[int, list[range]]:
    """Images of one call of the solver, and this process's share of the calls."""
    size = images_at_once(sample)
    starts = range(0, count, size)[processes.rank :: processes.count]
    return size, [range(start, min(start + size, count)) for start in starts]


def _progress(batches: list[range], processes: Processes) -> tqdm:
    total = sum(map(len, batches))
    return tqdm(total=total, desc="sampling", unit="image", disable=None if processes.is_main else True)


def _write_latents(settings: Settings, inputs: SampleInputs, path: Path, processes: Processes) -> dict[str, Any]:
    """Write the latents of all images, each process its batches of one mapped file, which gets its name at the end."""
    if path.suffix != ".npy" or path.exists():
        problem = "exists already; remove it or give another name" if path.exists() else "must end in .npy"
        raise UserError(f"--latents-out: {path} {problem}")
    flow = Flow.load(settings, processes.device(choose_device(settings.runtime.device)))
    prepare(flow, inputs, processes)
    # Named after the first process, so that two runs to one path do not write into each other's file.
    temporary = path.with_name(f".{path.name}.{processes.broadcast(os.getpid())}.tmp")
    shape = (inputs.count, *flow.shape)
    try:
        if processes.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        processes.barrier()
        file = np.lib.format.open_memmap(temporary, "r+")
        size, batches = _batches(flow.sample, inputs.count, processes)
        with _progress(batches, processes) as bar:
            for batch in batches:
                latents = flow.latents(inputs, range(batch.start, batch.start + size))
                file[batch.start : batch.stop] = latents[: len(batch)].cpu().numpy()
                bar.update(len(batch))
        file.flush()
        processes.barrier()
        if processes.is_main:
            temporary.rename(path)
    finally:
        if processes.is_main:
            temporary.unlink(missing_ok=True)
    return {"latents": " x ".join(map(str, shape)), "file": str(path)} if processes.is_main else {}


def _write_images(sampler: Sampler, inputs: SampleInputs, folder: Path, processes: Processes, workers: int) -> None:
    """Write this process's share of the PNGs, keeping those that are whole."""
    size, batches = _batches(sampler.flow.sample, inputs.count, processes)
    with ThreadPoolExecutor(max(workers, 1)) as pool, _progress(batches, processes) as bar:
        writing: deque[list[Future[None]]] = deque()
        for wanted in batches:
            missing = _missing(folder, wanted, pool.map)
            if missing:
                # The last batch is filled up with images past the end: one shape, and no image's numerics change.
                images = sampler.images(inputs, range(wanted.start, wanted.start + size))
                writing.append(
                    [
                        pool.submit(write_png, image_path(folder, index), images[index - wanted.start])
                        for index in missing
                    ]
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
