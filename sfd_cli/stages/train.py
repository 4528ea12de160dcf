"""`sfd train`: a LightningDiT trained with the asynchronous objective, and the weaker one that guides it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.output import CHECKPOINTS, SETTINGS, StageOutput
from sfd_cli.config import DiT, Paths, Settings
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.files import read_json
from sfd_cli.formats.foreign import Hints
from sfd_cli.formats.model_folder import save_model
from sfd_cli.messages import say
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.precision import choose_precision
from sfd_cli.pipeline.sample_grids import SampleGrids
from sfd_cli.processes import Processes
from sfd_cli.training.checkpoints import Checkpoints
from sfd_cli.training.fit import LoopSettings, train
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.throughput import training_flops
from sfd_cli.training.velocity_task import VelocityTask
from sfd_cli.weights.models import Model, SemanticCompressor, open_model, open_semantic

Which = Literal["dit", "guide"]

STAGES: dict[Which, str] = {"dit": "train", "guide": "train-guide"}
# How far a run goes and how it is carried out: none of it moves a result by more than rounding; and where initial
# weights lie, for their digest is among the inputs.
INERT = {
    "init",
    "steps",
    "accumulate",
    "compile",
    "checkpoint_activations",
    "checkpoint_every",
    "log_every",
    "sample_every",
}


def run(settings: Settings, which: Which = "dit") -> dict[str, Any]:
    """Train into `models/<which>/`, with curves and sample grids under `metrics/<which>/`.

    Goes on from the last checkpoint; more steps continue a finished run. Under torchrun the processes share every
    batch.

    Args:
        settings: the section named `which`, `paths` and `runtime` are read.
        which: the diffusion transformer, or the weaker guide of AutoGuidance.

    Returns:
        The summary to print; empty in all processes but the first.

    Raises:
        UserError: an input is missing or does not fit.
        StageFailure: the loss was not finite for several steps in a row.
    """
    section: DiT | None = getattr(settings, which)
    folder: Path = getattr(settings.paths, which)
    if section is None:
        return _skip(settings, folder)
    output = _output(settings, section, which)
    log = settings.paths.metrics / which
    processes = Processes.join()
    # Entering makes room by putting another model aside, so what would fail does so before.
    learner = None if processes.broadcast(output.recorded()) else _build(settings, section, which, processes)
    with output if processes.is_main else nullcontext():
        if processes.is_main:
            _start_over_if_past(output, section.steps)
        log.mkdir(parents=True, exist_ok=True)
        if processes.broadcast(output.complete and output.facts.get("steps") == section.steps):
            if processes.is_main:
                say(f"{folder} is up to date")
        else:
            learner = learner or _build(settings, section, which, processes)
            facts = _train(settings, section, learner, folder, log, processes)
            if processes.is_main:
                output.finish(**facts)
    return _summary(output, log) if processes.is_main else {}


def _skip(settings: Settings, folder: Path) -> dict[str, Any]:
    """With `guide: null` there is only the record that there is none."""
    if folder != Paths().guide:  # one that was trained elsewhere, which is to be used as it is
        return {"guide": "not trained, for the section guide is null", "folder": str(folder)}
    if Processes.join().is_main:
        with StageOutput(folder, STAGES["guide"], {"guide": None}, {}, settings.paths.metrics) as output:
            clear_log(settings.paths.metrics / "guide")
            if not output.complete:
                output.finish()
    return {"guide": "none, for the section guide is null", "folder": str(folder)}


def _start_over_if_past(output: StageOutput, steps: int) -> None:
    """A run that went further than now asked for cannot go back; the shorter one starts afresh."""
    done = max(Checkpoints(output.folder / CHECKPOINTS).steps(), default=0)
    if done > steps:
        output.start_over(f"is at step {done} already, past the {steps} asked for")


def _output(settings: Settings, section: DiT, which: Which) -> StageOutput:
    paths = settings.paths
    inputs = {"latents": finished(paths.latents, "sfd encode-latents").fingerprint}
    if section.repa == "decoded":
        inputs["semvae"] = finished_model(open_semantic(settings), "sfd train-semvae")
        if read_json(paths.latents / SETTINGS).get("inputs", {}).get("semvae", inputs["semvae"]) != inputs["semvae"]:
            raise UserError(f"{paths.latents} was encoded by another Semantic VAE than {paths.semvae}; encode it again")
    if section.init is not None:
        inputs["init"] = _initial(section).fingerprint
    inert = section.model_dump(include=INERT)
    chosen, folder = section.model_dump(exclude=INERT), getattr(paths, which)
    return StageOutput(folder, STAGES[which], chosen, inputs, paths.metrics, inert)


@dataclass(frozen=True)
class Learner:
    """What is trained, and on what."""

    store: Store
    task: VelocityTask
    model: LightningDiT
    device: torch.device


def _build(settings: Settings, section: DiT, which: Which, processes: Processes) -> Learner:
    """The network with its first weights, its task and the latents.

    Raises:
        UserError: they are missing or do not fit together.
    """
    device = processes.device(choose_device(settings.runtime.device))
    store = Store(settings.paths.latents)
    decoder = _decoder(settings, device) if section.repa == "decoded" else None
    task = VelocityTask(store, section, decoder, device)
    config = network_config(section, task.space.shape, task.space.semantic, task.feature_width, len(store.classes))
    torch.manual_seed(section.seed)
    model = LightningDiT(config)
    if section.init is not None:
        model.load_state_dict(_initial_weights(section, which, config))
    model.checkpoint_activations = section.checkpoint_activations
    return Learner(store, task, model, device)


def _train(
    settings: Settings, section: DiT, learner: Learner, folder: Path, log: Path, processes: Processes
) -> dict[str, Any]:
    store, task, model, device = learner.store, learner.task, learner.model, learner.device
    config = model.config
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    grids = None
    if section.sample_every and processes.is_main:
        grids = SampleGrids(settings, section, task, config, store.classes, device, log / "samples")
        grids.forget_after(max(checkpoints.steps(), default=0))
    result = train(
        task,
        model,
        EpochSampler(len(store), section.batch_size, section.seed),
        loop_settings(section, device),
        checkpoints.folder,
        log,
        device,
        folder.name,
        on_step=grids,
        flops_per_image=_flops(config) if device.type == "cuda" else None,
    )
    if processes.is_main:
        assert result.ema is not None
        weights = {"model": result.model.state_dict(), "ema": result.ema.state_dict()}
        save_model(folder, "LightningDiT", config, weights, _description(settings, section, store, task))
        # Which other checkpoints there are tells how often the run was interrupted; equal settings, equal artifacts.
        checkpoints.keep(1)
    return {"steps": result.step, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def network_config(
    section: DiT, shape: tuple[int, ...], semantic_channels: int, feature_width: int, num_classes: int
) -> LightningDiTConfig:
    """The architecture that the settings and the latents ask for.

    Args:
        section: the settings.
        shape: (C, h, w) of a composite latent.
        semantic_channels: how many of the C are semantic.
        feature_width: of the patch tokens that REPA looks at.
        num_classes: of the data set.

    Raises:
        UserError: they do not fit together.
    """
    try:
        return LightningDiTConfig(
            **_shared(LightningDiTConfig, section)
            | {
                "grid": shape[-1],
                "in_channels": shape[0],
                "num_classes": num_classes,
                "semantic_channels": semantic_channels,
                "repa_depth": 0 if section.repa == "none" else section.repa_depth,
                "feature_width": 0 if section.repa == "none" else feature_width,
            }
        )
    except ValueError as error:
        raise UserError(f"the latents and the network's settings do not fit together: {error}") from None


def loop_settings(section: DiT, device: torch.device) -> LoopSettings:
    """The part of the section that is about optimising."""
    return LoopSettings(**_shared(LoopSettings, section) | {"precision": choose_precision(section.precision, device)})


def _shared(kind: type[LightningDiTConfig] | type[LoopSettings], section: DiT) -> dict[str, Any]:
    """The settings that a dataclass has under the same names."""
    return {field.name: getattr(section, field.name) for field in fields(kind) if field.name in DiT.model_fields}


def _decoder(settings: Settings, device: torch.device) -> SemanticCompressor:
    return open_semantic(settings).load().to(device)


def _initial(section: DiT) -> Model[LightningDiT]:
    """The transformer that training starts from."""
    hints = Hints(section.heads, repa_depth=section.repa_depth)
    return open_model(str(section.init), LightningDiT, hints)


def _initial_weights(section: DiT, which: str, config: LightningDiTConfig) -> dict[str, torch.Tensor]:
    """Averaged weights of a transformer of the architecture `config`, to start training from.

    Raises:
        UserError: it is missing, damaged or of another architecture; names what differs.
    """
    network = _initial(section).load()
    ours, theirs = asdict(config), asdict(network.config)
    wrong = [f"{key} {value} instead of {ours[key]}" for key, value in theirs.items() if value != ours[key]]
    if wrong:
        problem = f"{section.init} has another architecture than the settings: {', '.join(wrong)}"
        raise UserError(f"{which}.init", problem, "set these in the section, or start from another file")
    return network.state_dict()


def _flops(config: LightningDiTConfig) -> int:
    def forward(model: nn.Module) -> None:
        x = torch.empty(1, config.in_channels, config.grid, config.grid)
        model(x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int64), bool(config.repa_depth))

    return training_flops(forward, lambda: LightningDiT(config))


def _description(settings: Settings, section: DiT, store: Store, task: VelocityTask) -> dict[str, Any]:
    """What sampling needs to know beside the architecture."""
    made_of = read_json(settings.paths.latents / SETTINGS)["inputs"]
    return {
        "statistics": task.space.statistics,
        "delta_t": section.delta_t,
        "classes": store.classes,
        "image_size": store.attributes["image_size"],
        "texture_vae": made_of.get("texture_vae"),
    }


def _summary(output: StageOutput, log: Path) -> dict[str, Any]:
    metrics = log / "metrics.json"
    latest = read_json(metrics) if metrics.exists() else {}
    terms = {name: latest[name] for name in ("loss", "mse", "cosine", "repa", "images_per_second") if name in latest}
    return output.facts | terms | {"folder": str(output.folder), "log": str(log)}
