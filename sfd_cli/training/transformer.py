"""A diffusion transformer as an artifact: what `sfd train`, `sfd train-guide` and `sfd learn-schedule` share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.learned_law import with_learned_law
from sfd_cli.artifacts.milestones import MILESTONES, Milestones, save_averaged
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe, Record
from sfd_cli.config import DiT, Settings, identity
from sfd_cli.data.near_duplicates import Split, hold_out
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store
from sfd_cli.devices import choose_device, kind_of
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.errors import SettingError, UserError
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.laws import law_fact, law_of
from sfd_cli.messages import say
from sfd_cli.networks.compilation import choose_compile
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import require_trackers
from sfd_cli.training.adapter import SHARE_OF_FLOPS, Adaptation
from sfd_cli.training.checkpoints import Checkpoints
from sfd_cli.training.fit import OnStep, fit
from sfd_cli.training.inherit import Source, settled
from sfd_cli.training.live_log import latest_values
from sfd_cli.training.milestones import MilestoneKeeper, is_milestone, kept_milestones
from sfd_cli.training.probe_task import ProbeTask
from sfd_cli.training.sample_grids import SampleGrids, has_grid
from sfd_cli.training.settings import LoopSettings, transformer_loop
from sfd_cli.training.throughput import training_flops
from sfd_cli.training.validation import Validation, shared_clusters
from sfd_cli.training.velocity_task import VelocityTask
from sfd_cli.weights.models import SemanticCompressor, open_semantic

# None of these moves a result by more than rounding; the digest of the weights at `init` is among the inputs.
FREE = {
    "init",
    "accumulate",
    "compile",
    "checkpoint_activations",
    "checkpoint_every",
    "keep_every",
    "log_every",
    "sample_every",
}

SUMMARISED = (
    "loss",
    "mse",
    "cosine",
    "repa",
    "dispersive",
    "validation_texture",
    "validation_semantic",
    "images_per_second",
)


Key = Literal["dit", "guide", "probe"]


@dataclass(frozen=True)
class Training:
    """One of the trainings; `key` names the path of its artifact and the folder of its log."""

    settings: Settings
    key: Key
    section: DiT
    latents: Record
    command: str

    @property
    def section_name(self) -> str:
        """Where its settings are."""
        return "schedule.probe" if self.key == "probe" else self.key

    @property
    def folder(self) -> Path:
        """Of the model."""
        return getattr(self.settings.paths, self.key)

    @property
    def log(self) -> Path:
        """Curves and sample grids."""
        return self.settings.paths.metrics / self.key

    @cached_property
    def recipe(self) -> Recipe:
        """What makes the model."""
        return _recipe(self)

    @cached_property
    def source(self) -> Source | None:
        """The transformer that training starts from, where there is one."""
        if self.section.init is None:
            return None
        semantic = Store(self.settings.paths.latents).fields["semantic"].shape[1] if self.section.semantics else 0
        return Source.open(self.settings, self.section, self.section_name, semantic)

    @property
    def checkpoints(self) -> Checkpoints:
        """Of the run."""
        return Checkpoints(self.recipe.checkpoints)

    @property
    def milestones(self) -> Milestones:
        """Of the model."""
        return Milestones(self.folder)


def train_transformer(settings: Settings, key: Key, section: DiT, command: str) -> dict[str, Any]:
    """Train into `models/<key>/`, with curves and sample grids under `metrics/<key>/`.

    Goes on from the last checkpoint; more steps continue a finished run, and with fewer steps than are done it starts
    over. `keep_every` only adds to a run: a finished one is not begun anew for it, and what it lacks is said. Where the
    learning rate decays, a run of other steps is another run from its decay on, and is not continued:
    whether one came in one go or in two would be seen in its weights. Under torchrun the processes share every batch.

    With `holdout` the rest of the images are trained on. Latents are normalised by the store's statistics all the same,
    which are of all images, those held out too; or by those of the transformer that training starts from (`Source`).

    Returns:
        The summary to print.

    Raises:
        UserError: an input is missing or does not fit.
        StageFailure: the loss was not finite for several steps in a row.
    """
    section = settled(with_learned_law(section, settings.paths.schedule))
    training = Training(settings, key, section, finished(settings.paths.latents, "sfd encode-latents"), command)
    facts = produce(
        training.recipe,
        load=lambda processes: _load(training, processes),
        make=lambda processes, loaded: _make(training, loaded, processes),
        metrics=settings.paths.metrics,
        is_done=lambda facts: facts.get("steps") == section.steps,
        start_over=lambda: _why_not_on(training),
        can_mend=lambda names: _can_mend(training, names),
        tell=lambda facts: facts | kept_milestones(training.folder, section, training.section_name),
    )
    training.log.mkdir(parents=True, exist_ok=True)
    latest = latest_values(training.log)
    terms = {name: latest[name] for name in SUMMARISED if name in latest}
    return facts | terms | {"folder": str(training.folder), "log": str(training.log)}


def _recipe(training: Training) -> Recipe:
    settings, section = training.settings, training.section
    paths, inputs = settings.paths, {"latents": training.latents.fingerprint}
    if section.repa == "decoded":
        inputs["semvae"] = finished_model(open_semantic(settings), "sfd train-semvae")
        if training.latents.inputs.get("semvae", inputs["semvae"]) != inputs["semvae"]:
            raise UserError(
                paths.latents, f"was encoded by another Semantic VAE than {paths.semvae}", "run `sfd encode-latents`"
            )
    if training.source is not None:
        inputs["init"] = training.source.model.fingerprint
    free = FREE if section.decay else FREE | {"steps"}
    chosen, recorded = identity(section, exclude=free), identity(section, include=free)
    # How many micro-batches more it takes is the device's matter: equal trainings have equal records.
    recorded |= {"accumulate": section.micro_batches}
    recorded["compile"] = choose_compile(section.compile, choose_device(settings.runtime.device), section.steps)
    return Recipe(training.command, training.folder, chosen, inputs, recorded)


def _why_not_on(training: Training) -> str | None:
    """Why an earlier run cannot come to the number of steps in the settings."""
    done, steps = max(training.checkpoints.steps(), default=0), training.section.steps
    if done > steps:
        return f"is at step {done} already, past {steps}"
    record = Record.read(training.folder)
    if not done and record is not None and record.complete and record.facts.get("steps") != steps:
        return (
            f"is finished, and without its checkpoints ({training.checkpoints.folder}) it cannot go on to {steps} steps"
        )
    return None


def _can_mend(training: Training, names: list[str]) -> bool:
    """Whether damaged files are the weights alone, which are written from the last checkpoint."""
    weights_alone = not any(Path(name).parts[0] == MILESTONES for name in names)
    return weights_alone and training.checkpoints.is_whole(training.section.steps)


@dataclass(frozen=True)
class Prepared:
    """What a training is made with, whole and fitting.

    Attributes:
        task: the objective on the stored latents.
        model: the network with its first weights.
        loop: how it is optimised.
        split: what is held out, where something is.
        adaptation: what is trained beside the network, where it stays as it is.
    """

    task: VelocityTask
    model: LightningDiT
    loop: LoopSettings
    split: Split | None
    adaptation: Adaptation | None


def _load(training: Training, processes: Processes) -> Prepared:
    """Open and check everything that the training is made with.

    Raises:
        UserError: they are missing or do not fit together.
    """
    settings, section, source = training.settings, training.section, training.source
    require_trackers(settings)
    device = processes.device(settings.runtime.device)
    decoder = open_semantic(settings).load().to(device) if section.repa == "decoded" else None
    try:
        task = _task(training, decoder, device, processes)
        require_memory(section.batch_size, task.space.shape, device)
        config = network_config(section, task.space, task.feature_width, len(task.conditions))
        if source is not None:
            source.require_fit(config)
            task.space = source.space(task.space)
        loop = transformer_loop(section, device)
        loop.micro_batch(processes.count)
        section.require_whole_groups(processes.count)
        split = _split(task, section, processes) if section.holdout else None
    except SettingError as error:
        raise UserError(f"{training.section_name}.{error.subject}", error.problem, error.remedy) from None
    if not isinstance(task.store.attributes.get("image_size"), int):
        raise UserError(task.store.folder, "does not say how large its images are", "run `sfd encode-latents` again")
    torch.manual_seed(section.seed)
    model = LightningDiT(config)
    adaptation = None
    if source is not None:
        inherited = source.fill(model, task.conditions)
        adaptation = _adaptation(training, model, source, inherited)
        loop = replace(loop, rate_scales=source.rate_scales(inherited))
        if processes.is_main:
            say(source.summary(task.conditions, training.latents.inputs.get("texture_vae")))
    model.checkpoint_activations = section.checkpoint_activations
    return Prepared(task, model, loop, split, adaptation)


def _adaptation(
    training: Training, model: LightningDiT, source: Source, inherited: Collection[str]
) -> Adaptation | None:
    """What the section's adapter makes of the training, put into the network; None where there is none."""
    if training.section.adapter is None:
        return None
    try:
        return Adaptation.of(training.section.adapter, model, source.model, inherited)
    except SettingError as error:
        raise UserError(f"{training.section_name}.{error.subject}", error.problem, error.remedy) from None


def _task(
    training: Training, decoder: SemanticCompressor | None, device: torch.device, processes: Processes
) -> VelocityTask:
    store = Store(training.settings.paths.latents)
    if training.key == "probe":
        return ProbeTask(store, training.section, device, shared_clusters(store, processes))
    return VelocityTask(store, training.section, decoder, device)


def _split(task: VelocityTask, section: DiT, processes: Processes) -> Split:
    clusters = task.clusters if isinstance(task, ProbeTask) else shared_clusters(task.store, processes)
    return hold_out(clusters, section.holdout, section.seed)


def _make(training: Training, prepared: Prepared, processes: Processes) -> Facts:
    task, model, split, adaptation = prepared.task, prepared.model, prepared.split, prepared.adaptation
    section, checkpoints, device = training.section, training.checkpoints, task.device
    description = _description(training, task)
    watching: list[OnStep] = []
    if processes.is_main:
        done = max(checkpoints.steps(), default=0)
        training.milestones.forget_after(done)
        write = save_averaged if adaptation is None else adaptation.save
        watching.append(MilestoneKeeper(training.milestones, section.keep_every, description, write))
        if section.sample_every:
            grids = SampleGrids(training.settings, section, task, training.log / "samples")
            grids.forget_after(done)
            watching.append(grids)
    rows = None if split is None else split.training
    with tracked(training.settings, training.key, processes.is_main) as feed:
        result = fit(
            task,
            model,
            EpochSampler(len(task.store), section.batch_size, section.seed, rows, task.store.flips),
            prepared.loop,
            checkpoints.folder,
            training.log,
            device,
            training.folder.name,
            on_step=[*watching, *feed.on_step],
            flops_per_image=None if kind_of(device).is_cpu else _flops(model, adaptation),
            validate=None if split is None else Validation(task, section, split, processes),
            looks=lambda step: is_milestone(step, section.keep_every) or has_grid(step, section),
        )
    numbers = {"parameters": sum(parameter.numel() for parameter in result.model.parameters())}
    if processes.is_main:
        assert result.ema is not None
        if adaptation is None:
            weights = dit_weights(result.model, "model") | dit_weights(result.ema, "ema")
            save_model(training.folder, "LightningDiT", model.config, weights, description)
        else:
            numbers = adaptation.finish(training.folder, result.ema, description)
        # How many checkpoints there are depends on interruptions; equal settings must give equal artifacts.
        checkpoints.keep(1)
    return {"steps": result.step, **numbers}


def _flops(model: LightningDiT, adaptation: Adaptation | None) -> int:
    """FLOPs of a step for an image; an adapter's own few per cent are not counted."""
    return round(flops_per_image(model.config) * (1 if adaptation is None else SHARE_OF_FLOPS))


def _description(training: Training, task: VelocityTask) -> dict[str, Any]:
    """What the model's folder says beside its architecture."""
    return {
        "statistics": task.space.statistics,
        **law_fact(law_of(training.section)),
        "classes": list(task.conditions.names),
        "image_size": task.store.attributes["image_size"],
        "texture_vae": training.latents.inputs.get("texture_vae"),
    }


def network_config(section: DiT, space: LatentSpace, feature_width: int, num_classes: int) -> LightningDiTConfig:
    """The architecture for the settings and the latents; `feature_width` is that of REPA's patch tokens.

    Raises:
        SettingError: they do not fit together.
    """
    has_projector = section.repa != "none"
    return LightningDiTConfig(
        grid=space.grid,
        in_channels=space.channels,
        num_classes=num_classes,
        semantic_channels=space.semantic,
        width=section.width,
        depth=section.depth,
        heads=section.heads,
        patch_size=section.patch_size,
        mlp_ratio=section.mlp_ratio,
        qk_norm=section.qk_norm,
        swiglu=section.swiglu,
        rope=section.rope,
        rms_norm=section.rms_norm,
        time_embedding=section.time_embedding,
        prediction=section.prediction,
        repa_depth=section.repa_depth if has_projector else 0,
        repa_width=section.repa_width,
        feature_width=feature_width if has_projector else 0,
    )


def flops_per_image(config: LightningDiTConfig) -> int:
    """FLOPs of a forward and backward pass on one image, as MFU counts them."""

    def forward(model: nn.Module) -> None:
        x = torch.empty(1, config.in_channels, config.grid, config.grid)
        model(x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int64), bool(config.repa_depth))

    return training_flops(forward, lambda: LightningDiT(config))
