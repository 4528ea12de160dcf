"""What `sfd play` plays with: a project's models, a saved pipeline, or weights by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd_cli.artifacts.recipe import Record
from sfd_cli.artifacts.trained_on import other_latents
from sfd_cli.config import Sample, Settings
from sfd_cli.data.latent_space import read_latents
from sfd_cli.data.store import Store
from sfd_cli.devices import choose_device
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.messages import say
from sfd_cli.pipeline.layout import INDEX
from sfd_cli.pipeline.loading import open_saved
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.play.studio import Studio
from sfd_cli.report.palette import Palette
from sfd_cli.tables import SOLVERS
from sfd_cli.weights.registry import REGISTRY

PAINTED = 256
"""Training images whose semantics decide the colours."""


@dataclass(frozen=True)
class Sources:
    """Where models are, beside those of the settings.

    Attributes:
        model: a transformer (folder, file or registered name), or a saved pipeline (folder, or owner/name of the hub);
            None: that of the settings.
        texture_vae: decodes its latents; None: that of the settings.
        guide: the weaker model of AutoGuidance; None: that of the settings, where they say autoguidance.
    """

    model: str | None = None
    texture_vae: str | None = None
    guide: str | None = None


def open_studio(settings: Settings, sources: Sources) -> Studio:
    """Load what the settings and `sources` name.

    Raises:
        UserError: a model is missing or damaged, or they do not belong together.
    """
    device = choose_device(settings.runtime.device)
    if sources.model is not None and _is_pipeline(sources.model):
        for flag in ("texture_vae", "guide"):
            if getattr(sources, flag) is not None:
                name = f"--{flag.replace('_', '-')}"
                raise UserError(name, f"{sources.model} is a saved pipeline, which has its own", "leave it out")
        saved = open_saved(sources.model, SemanticFirstPipeline.__name__)
        models, sample = saved.models, saved.sample
    else:
        settings = _with(settings, sources)
        models, sample = SamplingModels.open(settings), settings.sample.without_edits()
    sampler = models.load(_stepwise(sample), device)
    sampler.require_texture_vae()
    record = Record.read(models.dit.folder)
    training = {} if record is None else record.settings
    palette = training_palette(settings.paths.latents, sampler.space, models.dit.folder)
    return Studio(sampler, models.fingerprints, training, palette)


def training_palette(latents: Path, space: LatentSpace, model: Path | None = None) -> Palette | None:
    """Colours of the semantics that the model in a folder was trained on; None where its latents are not here."""
    if not (space.semantic and space.is_scaled and Path(latents).is_dir()):
        return None
    try:
        store = Store(latents)
    except UserError:
        return None
    if other_latents(model, space, store) is not None:
        return None
    rows = np.unique(np.linspace(0, len(store) - 1, PAINTED).round().astype(np.int64))
    return Palette.of(space.views(read_latents(store, rows, space)).semantic.numpy())


def _is_pipeline(model: str) -> bool:
    """Whether it is a folder that holds a pipeline, or could be one of the hub: nothing here has its name."""
    path = Path(model)
    if path.exists():
        return (path / INDEX).exists()
    return model not in REGISTRY and model.count("/") == 1 and not path.suffix and not path.parent.exists()


def _with(settings: Settings, sources: Sources) -> Settings:
    named: dict[str, Any] = {"dit": sources.model, "texture_vae": sources.texture_vae, "guide": sources.guide}
    paths = settings.paths.model_copy(update={key: value for key, value in named.items() if value is not None})
    if sources.model is None and not Path(paths.dit).exists() and str(paths.dit) not in REGISTRY:
        remedy = "run `dvc repro`, or name a saved pipeline, a model folder or weights of `sfd weights list`"
        raise UserError("sfd play", f"there is no trained model here ({paths.dit})", remedy)
    sample = settings.sample
    if sources.guide is not None:
        sample = sample.model_copy(update={"guidance": "autoguidance"})
    return settings.model_copy(update={"paths": paths, "sample": sample})


def _stepwise(sample: Sample) -> Sample:
    """The settings, with the default solver in place of one whose steps cannot be recorded and repeated."""
    if not SOLVERS[sample.solver].is_adaptive:
        return sample
    default = Sample.model_fields["solver"].default
    say(f"{sample.solver} chooses its own steps, which cannot be shown one by one; drawing by {default}")
    return sample.model_copy(update={"solver": default})
