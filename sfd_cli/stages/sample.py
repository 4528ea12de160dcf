"""`sfd sample`: images from noise, as PNGs and an ADM-format npz."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sfd_cli import __version__
from sfd_cli.artifacts.kept_semantics import KeptSemantics
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.artifacts.sample_folder import LABELS, NPZ, SampleFolder, read_png
from sfd_cli.config import Sample, Settings, identity
from sfd_cli.data.images import evenly_spaced
from sfd_cli.devices import choose_device, described
from sfd_cli.diffusion.conditions import NULL, Conditions
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import read_as
from sfd_cli.laws import DEFAULT_LAW, law_of
from sfd_cli.messages import say
from sfd_cli.pipeline.class_labels import plainly
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.protocol import effective_settings, protocol_record
from sfd_cli.pipeline.sampler import Sampler, guidance_scale
from sfd_cli.pipeline.source_image import RunSource, SourceImage
from sfd_cli.pipeline.speed import settled
from sfd_cli.pipeline.strip import Strip
from sfd_cli.progress import progress
from sfd_cli.tables import SOLVERS
from sfd_cli.weights.models import conditions_of, space_of

GRID_IMAGES = 36
STRIP_COLUMNS = 16
LARGE_SCALE = 4.0


def run(
    settings: Settings,
    grid: Path | None = None,
    noise: Path | None = None,
    labels: Path | None = None,
    latents_out: Path | None = None,
) -> dict[str, Any]:
    """Write `000000.png` ..., `labels.json` and `samples.npz`; under torchrun the processes take batches in turn.

    Image i depends on the seed and i alone, and an interrupted run goes on to the same bytes. Where the transformer has
    semantics, `semantics.npy` keeps the semantic latents of the images, which are scored too.

    Args:
        settings: the sections `sample`, `foreign`, `paths`, `texture_vae` and `runtime` are read; with an image also
            `semvae` and `encoder`.
        grid: also draw the first images with their classes, as one PNG.
        noise: `.npy` of float (N, C, h, w) to start from, instead of noise drawn from the seed.
        labels: `.npy` of int (N,), instead of classes in turn.
        latents_out: write the normalised composite latents, float32 (N, C, h, w), to this `.npy`, and no images, for
            which neither a texture VAE nor latent statistics are needed.

    Returns:
        The summary to print.

    Raises:
        UserError: a model is missing, or models and settings do not fit together.
        StageFailure: a latent is not finite.
    """
    sample, runtime, paths = settings.sample, settings.runtime, settings.paths
    inputs, image = SampleInputs.open(sample, noise, labels), SourceImage.open(sample)
    if latents_out is not None:
        _require_new_file(latents_out, grid)
    models = SamplingModels.open(settings, images=latents_out is None or image is not None)
    source = RunSource.open(settings, image, space_of(models.dit).semantic)
    device, share = choose_device(runtime.device), inputs.count // Processes.join().count
    sample = settled(sample.with_law(models.trained_law), device, share)
    load = partial(_load, models, sample, inputs, source, runtime.device)
    if latents_out is not None:
        return _write_latents(load, inputs, latents_out)
    recipe = _recipe(paths.samples, sample, inputs, models, source, runtime.device)
    folder = SampleFolder(paths.samples, runtime.threads, _about(recipe, inputs) if sample.edits else None)
    return produce(
        recipe,
        load,
        partial(_write_images, inputs, folder, _protocol(recipe, inputs)),
        metrics=paths.metrics,
        is_done=lambda facts: folder.is_whole(facts["images"]),
        can_mend=lambda _: True,
        tell=partial(_summary, folder, inputs.strip, grid),
    )


def _recipe(
    folder: Path,
    sample: Sample,
    inputs: SampleInputs,
    models: SamplingModels,
    source: RunSource | None,
    device: str,
) -> Recipe:
    """What decides the images' bytes; settings that a file replaces are free."""
    chosen = effective_settings(sample.model_copy(update={"num_images": inputs.count}))
    free = identity(sample, include={"protocol", "batch_size", "compile"})
    free |= {"device": described(choose_device(device)), "torch": version("torch")}
    replaced = {"classes", "class_labels"} if inputs.labels is not None else set()
    if not inputs.draws_from_seed(SOLVERS[sample.solver].is_stochastic):
        replaced |= {"seed"}
    for name in replaced & chosen.keys():
        free[name] = chosen.pop(name)
    conditions = conditions_of(models.dit)
    if "classes" in chosen and (rows := inputs.chosen(conditions)) is not None:
        chosen["classes"] = plainly(rows, conditions)
    if inputs.strip is not None and "to_class" in chosen:
        inputs.strip.require_fit(conditions)
        chosen["to_class"] = plainly(inputs.strip.ends(conditions), conditions)[1]
    free |= {key: str(value) for key, value in sample.edits.items() if key in ("image", "mask")}
    read = dict(inputs.fingerprints) | models.fingerprints() | ({} if source is None else source.fingerprints())
    return Recipe("sample", folder, chosen, read, free)


def _protocol(recipe: Recipe, inputs: SampleInputs) -> dict[str, Any]:
    """The record of the protocol, beside which a reader need not know what goes without saying in the settings."""
    given = {"class_labels": "given"} if inputs.labels is not None else {}
    return protocol_record(recipe.settings) | given


def _about(recipe: Recipe, inputs: SampleInputs) -> Callable[[int], dict[str, Any]]:
    """What the PNG of an image says of how it was made; the same for equal recipes."""

    def about(index: int) -> dict[str, Any]:
        place = {} if inputs.strip is None else {"place": inputs.strip.place(index)}
        return {"version": __version__, "sample": recipe.settings, "inputs": recipe.inputs, "index": index} | place

    return about


def _load(
    models: SamplingModels,
    sample: Sample,
    inputs: SampleInputs,
    source: RunSource | None,
    device: str,
    processes: Processes,
) -> Sampler:
    """The models on this process's device, checked against one another and the inputs."""
    here = processes.device(device)
    try:
        require_memory(sample.batch_size, models.dit.config.space.shape, here)
    except SettingError as error:
        raise UserError(f"sample.{error.subject}", error.problem, error.remedy) from None
    sampler = models.load(sample, here)
    inputs.require_fit(sampler.space, sampler.conditions)
    if source is not None:
        sampler = source.placed(sampler)
    if processes.is_main:
        _remark(sampler, sample, inputs.count)
    return sampler


def _remark(sampler: Sampler, sample: Sample, count: int) -> None:
    """Say what may not be meant."""
    own, trained = law_of(sample), sampler.trained_law
    if trained not in (None, own):
        say(f"sampling with {_told(own)}, but the model was trained with {_told(trained)}")
    if count < sampler.batch_size:
        say(
            f"a batch of {sampler.batch_size} is computed for {count} images, to give each the bytes that it has in a"
            f" longer run; --batch-size {count} takes less time and moves them by rounding"
        )
    scale = guidance_scale(sample)
    if sample.guidance != "none" and scale.channels is None and max(scale.texture, scale.semantic) > LARGE_SCALE:
        say(
            f"a guidance scale of {max(scale.texture, scale.semantic):g} is large: other code's scales above"
            f" {LARGE_SCALE:g} are for guidance of three channels alone (--guidance-channels 3), and here it is of all"
        )


def _told(law: Mapping[str, Any]) -> str:
    """A law in words: `delta_t 0.3`, or `schedule curve, lead 1.0, lead_slope 0.5`."""
    return ", ".join(f"{key} {value}" for key, value in law.items() if (key, value) != ("schedule", DEFAULT_LAW))


def _write_images(
    inputs: SampleInputs, folder: SampleFolder, protocol: dict[str, Any], processes: Processes, sampler: Sampler
) -> Facts:
    """Write this process's share of the PNGs, keeping those that are whole, and then the npz of all.

    Before the PNG of an image its semantic latent is written, so that what has a PNG has both.
    """
    space, semantics = sampler.space, None
    if space.semantic:
        semantics = KeptSemantics(folder.path, (inputs.count, space.semantic, space.grid, space.grid))
        if processes.is_main:
            semantics.prepare()
        processes.barrier()
    share = sampler.share(inputs.count, processes)
    unkept = semantics.missing(share) if semantics is not None else []
    wanted = sorted({*folder.missing(share), *unkept})

    def images() -> Iterator[tuple[int, np.ndarray]]:
        for indices, batch, latents in sampler.batches_with_semantics(inputs, wanted):
            if semantics is not None:
                semantics.write(indices, latents.cpu().numpy())
            yield from zip(indices, batch.permute(0, 2, 3, 1).contiguous().cpu().numpy(), strict=True)

    silent = not processes.is_main
    for _ in progress(folder.write(images()), "sampling", len(wanted), unit="image", silent=silent):
        pass
    processes.barrier()
    if processes.is_main:
        folder.finish(inputs.labels_of(range(inputs.count), sampler.conditions).tolist())
    names = list(sampler.conditions.names)
    if sampler.conditions.nothing in inputs.labels_of(range(inputs.count), sampler.conditions):
        names.append(NULL)
    facts = {"images": inputs.count, "class_names": names, "protocol": protocol}
    if inputs.strip is not None:
        facts["strip"] = inputs.strip.as_plain(sampler.conditions)
    return facts | ({"semantics": True} if semantics is not None else {})


def _require_new_file(path: Path, grid: Path | None) -> None:
    """Raise UserError unless latents can be written to `path`, and there is no grid to draw."""
    if grid is not None:
        raise UserError("--grid", "--latents-out writes no images to draw", "leave one of them out")
    if path.suffix != ".npy":
        raise UserError("--latents-out", f"{path} does not end in .npy", "give such a name")
    if path.exists():
        raise UserError("--latents-out", f"{path} exists already", "remove it or give another name")
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise UserError("--latents-out", f"{nearest} is not a folder", "give another path")


def _write_latents(load: Callable[[Processes], Sampler], inputs: SampleInputs, path: Path) -> dict[str, Any]:
    """Write the latents of all images, each process its share of one mapped file, which gets its name at the end."""
    processes = Processes.join()
    sampler = load(processes)
    # Named after the first process, so that two runs to one path do not write into each other's file.
    temporary = path.with_name(f".{path.name}.{processes.broadcast(os.getpid())}.tmp")
    shape = (inputs.count, *sampler.space.shape)
    try:
        if processes.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        processes.barrier()
        file = np.lib.format.open_memmap(temporary, "r+")
        share = sampler.share(inputs.count, processes)
        with progress(total=len(share), doing="sampling", unit="image", silent=not processes.is_main) as bar:
            for indices, latents in sampler.latent_batches(inputs, share):
                file[indices] = latents.cpu().numpy()
                bar.update(len(indices))
        file.flush()
        processes.barrier()
        if processes.is_main:
            temporary.rename(path)
    finally:
        if processes.is_main:
            temporary.unlink(missing_ok=True)
    return {"latents": " x ".join(map(str, shape)), "file": str(path)} if processes.is_main else {}


def _summary(folder: SampleFolder, strip: Strip | None, grid: Path | None, facts: Facts) -> dict[str, Any]:
    from sfd_cli.report.pictures import draw_samples

    labels = read_as(list[int], folder.path / LABELS)
    summary = {
        "images": len(labels),
        "classes": len(set(labels)),
        "folder": str(folder.path),
        "npz": str(folder.path / NPZ),
    }
    if grid is not None:
        shown = [*range(min(GRID_IMAGES, len(labels)))]
        names = Conditions(tuple(facts["class_names"]))
        captions = [names.name(labels[index]) for index in shown]
        columns: int | None = None
        if strip is not None:
            shown = [*evenly_spaced(len(labels) - 1, GRID_IMAGES - 1), len(labels) - 1]
            captions, columns = strip.captions(shown, names), min(len(shown), STRIP_COLUMNS)
        draw_samples(grid, [read_png(folder.image(index)) for index in shown], captions, columns)
        summary["grid"] = str(grid)
    return summary
