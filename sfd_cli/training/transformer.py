"""A diffusion transformer as an artifact: the training that `sfd train` and `sfd train-guide` share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.produce import CHECKPOINTS, produce
from sfd_cli.artifacts.recipe import Facts, Recipe, Record
from sfd_cli.config import DiT, Settings
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store
from sfd_cli.device import choose_device
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import read_json
from sfd_cli.formats.format import Hints
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.processes import Processes
from sfd_cli.training.checkpoints import Checkpoints
from sfd_cli.training.fit import fit
from sfd_cli.training.sample_grids import SampleGrids
from sfd_cli.training.settings import LoopSettings, transformer_loop
from sfd_cli.training.throughput import training_flops
from sfd_cli.training.velocity_task import VelocityTask
from sfd_cli.weights.models import Model, open_model, open_semantic

# How far a run goes and how it is carried out: none of it moves a result by more than rounding; and where initial
# weights lie, for their digest is among the inputs.
FREE = {
    "init",
    "steps",
    "accumulate",
    "compile",
    "checkpoint_activations",
    "checkpoint_every",
    "log_every",
    "sample_every",
}


@dataclass(frozen=True)
class Training:
    """One of the two trainings.

    Attributes:
        settings: `paths` and `runtime` are read.
        key: names the section, the path of the artifact and the folder of the log.
        section: of the settings.
        latents: the record of the latents to train on.
    """

    settings: Settings
    key: Literal["dit", "guide"]
    section: DiT
    latents: Record

    @property
    def folder(self) -> Path:
        """Of the model."""
        return getattr(self.settings.paths, self.key)

    @property
    def log(self) -> Path:
        """Curves and sample grids."""
        return self.settings.paths.metrics / self.key

    @property
    def checkpoints(self) -> Checkpoints:
        """Of the run."""
        return Checkpoints(self.folder / CHECKPOINTS)


def train_transformer(settings: Settings, key: Literal["dit", "guide"], section: DiT, command: str) -> dict[str, Any]:
    """Train into `models/<key>/`, with curves and sample grids under `metrics/<key>/`.

    Goes on from the last checkpoint; more steps continue a finished run, and a run that went further than now asked
    for starts over. Under torchrun the processes share every batch.

    Returns:
        The summary to print.

    Raises:
        UserError: an input is missing or does not fit.
        StageFailure: the loss was not finite for several steps in a row.
    """
    training = Training(settings, key, section, finished(settings.paths.latents, "sfd encode-latents"))
    facts = produce(
        _recipe(training, command),
        load=lambda processes: _load(training, processes),
        make=lambda processes, learner: _make(training, learner, processes),
        metrics=settings.paths.metrics,
        is_done=lambda facts: facts.get("steps") == section.steps,
        start_over=lambda: _too_far(training),
    )
    training.log.mkdir(parents=True, exist_ok=True)
    metrics = training.log / "metrics.json"
    latest = read_json(metrics) if metrics.exists() else {}
    terms = {name: latest[name] for name in ("loss", "mse", "cosine", "repa", "images_per_second") if name in latest}
    return facts | terms | {"folder": str(training.folder), "log": str(training.log)}


def _recipe(training: Training, command: str) -> Recipe:
    settings, section = training.settings, training.section
    paths, inputs = settings.paths, {"latents": training.latents.fingerprint}
    if section.repa == "decoded":
        inputs["semvae"] = finished_model(open_semantic(settings), "sfd train-semvae")
        if training.latents.inputs.get("semvae", inputs["semvae"]) != inputs["semvae"]:
            raise UserError(
                paths.latents, f"was encoded by another Semantic VAE than {paths.semvae}", "run `sfd encode-latents`"
            )
    if section.init is not None:
        inputs["init"] = _initial(training).fingerprint
    chosen, free = section.model_dump(exclude=FREE), section.model_dump(include=FREE)
    return Recipe(command, training.folder, chosen, inputs, free)


def _too_far(training: Training) -> str | None:
    """Why the run cannot go back to the steps that are now asked for."""
    done = max(training.checkpoints.steps(), default=0)
    return (
        f"is at step {done} already, past the {training.section.steps} asked for"
        if done > training.section.steps
        else None
    )


@dataclass(frozen=True)
class Learner:
    """What is trained, on what, and how."""

    store: Store
    task: VelocityTask
    model: LightningDiT
    loop: LoopSettings
    device: torch.device


def _load(training: Training, processes: Processes) -> Learner:
    """The network with its first weights, its task and the latents.

    Raises:
        UserError: they are missing or do not fit together.
    """
    settings, section = training.settings, training.section
    device = processes.device(choose_device(settings.runtime.device))
    store = Store(settings.paths.latents)
    decoder = open_semantic(settings).load().to(device) if section.repa == "decoded" else None
    try:
        task = VelocityTask(store, section, decoder, device)
        config = network_config(section, task.space, task.feature_width, len(store.classes))
        loop = transformer_loop(section, device)
        loop.micro_batch(processes.count)
    except SettingError as error:
        raise UserError(f"{training.key}.{error.key}", error.problem, error.remedy) from None
    torch.manual_seed(section.seed)
    model = LightningDiT(config)
    if section.init is not None:
        model.load_state_dict(_initial_weights(training, config))
    model.checkpoint_activations = section.checkpoint_activations
    return Learner(store, task, model, loop, device)


def _make(training: Training, learner: Learner, processes: Processes) -> Facts:
    section, task, config, checkpoints = training.section, learner.task, learner.model.config, training.checkpoints
    grids = None
    if section.sample_every and processes.is_main:
        folder = training.log / "samples"
        grids = SampleGrids(training.settings, section, task.space, task.conditions, learner.device, folder)
        grids.forget_after(max(checkpoints.steps(), default=0))
    result = fit(
        task,
        learner.model,
        EpochSampler(len(learner.store), section.batch_size, section.seed),
        learner.loop,
        checkpoints.folder,
        training.log,
        learner.device,
        training.folder.name,
        on_step=grids,
        flops_per_image=_flops(config) if learner.device.type == "cuda" else None,
    )
    if processes.is_main:
        assert result.ema is not None
        weights = {"model": result.model.state_dict(), "ema": result.ema.state_dict()}
        save_model(training.folder, "LightningDiT", config, weights, _description(training, learner))
        # Which other checkpoints there are tells how often the run was interrupted; equal settings, equal artifacts.
        checkpoints.keep(1)
    return {"steps": result.step, "parameters": sum(parameter.numel() for parameter in result.model.parameters())}


def network_config(section: DiT, space: LatentSpace, feature_width: int, num_classes: int) -> LightningDiTConfig:
    """The architecture that the settings and the latents ask for.

    Args:
        section: the settings.
        space: layout of the composite latents.
        feature_width: of the patch tokens that REPA looks at.
        num_classes: of the data set.

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
        repa_depth=section.repa_depth if has_projector else 0,
        repa_width=section.repa_width,
        feature_width=feature_width if has_projector else 0,
    )


def _initial(training: Training) -> Model[LightningDiT]:
    """The transformer that training starts from; settings and latents tell what a file of other code does not."""
    section, fields = training.section, Store(training.settings.paths.latents).fields
    semantic = fields["semantic"].shape[1] if section.semantics else 0
    hints = Hints(section.heads, repa_depth=section.repa_depth, semantic_channels=semantic)
    try:
        return open_model(str(section.init), LightningDiT, hints)
    except UserError as error:
        raise UserError(f"{training.key}.init", f"{error.subject} {error.problem}", error.remedy) from None


def _initial_weights(training: Training, config: LightningDiTConfig) -> dict[str, Tensor]:
    """Averaged weights of a transformer of the architecture `config`, to start training from.

    Raises:
        UserError: it is damaged or of another architecture; names what differs.
    """
    network = _initial(training).load()
    ours, theirs = asdict(config), asdict(network.config)
    wrong = [f"{key} {value} instead of {ours[key]}" for key, value in theirs.items() if value != ours[key]]
    if wrong:
        raise UserError(
            f"{training.key}.init",
            f"{training.section.init} has another architecture than the settings: {', '.join(wrong)}",
            "set these in the section, or start from another file",
        )
    return network.state_dict()


def _flops(config: LightningDiTConfig) -> int:
    def forward(model: nn.Module) -> None:
        x = torch.empty(1, config.in_channels, config.grid, config.grid)
        model(x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int64), bool(config.repa_depth))

    return training_flops(forward, lambda: LightningDiT(config))


def _description(training: Training, learner: Learner) -> dict[str, Any]:
    """What sampling needs to know beside the architecture."""
    return {
        "statistics": learner.task.space.statistics,
        "delta_t": training.section.delta_t,
        "classes": learner.store.classes,
        "image_size": learner.store.attributes["image_size"],
        "texture_vae": training.latents.inputs.get("texture_vae"),
    }
