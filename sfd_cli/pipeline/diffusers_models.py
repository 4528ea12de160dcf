"""The components of a saved pipeline as diffusers wants them: models and a scheduler with `from_pretrained`.

`model_index.json` names these classes, and diffusers finds them here once `pipeline.py` has imported this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sfd_cli.config import Sample
from sfd_cli.formats.model_folder import described, texture_compressors
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.arguments import as_dtype, as_sample
from sfd_cli.weights.model import LoadedModel, Model
from sfd_cli.weights.models import open_model


class TransformerOutput(BaseOutput):
    """What `SemanticFirstTransformer2DModel` gives: `sample`, the velocity (n, C, h, w)."""

    sample: Tensor


class Component(ModelMixin, ConfigMixin):
    """A network of this package as a model of diffusers.

    Its `config` has the architecture, and what its folder says beside that: classes, statistics, law of training.

    Args:
        model: the network, on the CPU, with what its folder says.
    """

    config_name = "config.json"

    def __init__(self, model: LoadedModel[Any]) -> None:
        super().__init__()
        self.model = model
        self.network: Any = model.network
        facts = {key: value for key, value in model.facts.items() if not key.startswith("_")}
        self.register_to_config(**described(model.config), **facts)

    @classmethod
    def kinds(cls) -> tuple[type[nn.Module], ...]:
        """The networks that it may be of."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        subfolder: str = "",
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> Self:
        """The component that a saved pipeline has in this folder.

        Args:
            folder: the component's own, or the pipeline's.
            subfolder: the component's in the pipeline's.
            torch_dtype: of the weights; float32 unless it is given.
            dtype: the same, by diffusers' newer name.
            **_: what else diffusers says, about devices and files, has no use here.

        Raises:
            UserError: something is missing, damaged, or of another kind.
        """
        opened: Model[Any] = open_model(Path(folder) / subfolder, cls.kinds())
        network = opened.load().to(as_dtype(torch_dtype or dtype or torch.float32))
        return cls(LoadedModel(opened.source, opened.folder, opened.weights, network))


class SemanticFirstTransformer2DModel(Component):
    """The transformer: the velocity of a composite latent, textures first, at the times of both streams."""

    @classmethod
    def kinds(cls) -> tuple[type[nn.Module], ...]:
        """LightningDiT, which is also DiT."""
        return (LightningDiT,)

    def forward(
        self,
        hidden_states: Tensor,
        timestep_sem: Tensor,
        timestep_tex: Tensor,
        class_labels: Tensor,
        return_dict: bool = True,
    ) -> TransformerOutput | tuple[Tensor]:
        """Velocity of latents (n, C, h, w) at times (n,) in [0, 1], data at 1, for rows (n,) of the classes."""
        velocity = self.network(hidden_states, timestep_tex, timestep_sem, class_labels)
        return TransformerOutput(sample=velocity) if return_dict else (velocity,)


class SemanticFirstTextureCompressor(Component):
    """What makes images of texture latents where that is no AutoencoderKL: principal components, ..."""

    @classmethod
    def kinds(cls) -> tuple[type[nn.Module], ...]:
        """All that TEXTURE_COMPRESSORS lists."""
        return tuple(texture_compressors())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) in [-1, 1] -> mean and logvar, each (n, C_z, h, w), as they come."""
        mean, logvar = self.network.encode(images)
        return mean, logvar

    def decode(self, latents: Tensor) -> Tensor:
        """Texture latents (n, C_z, h, w), as they come -> images (n, 3, H, W) around [-1, 1]."""
        images: Tensor = self.network.decode(latents)
        return images


class SemanticFirstScheduler(SchedulerMixin, ConfigMixin):
    """The law of both streams' times and the solver, as settings of the section `sample`; the pipeline solves by them.

    Another one is made by `SemanticFirstScheduler.from_config(pipeline.scheduler.config, solver="heun")`.
    """

    config_name = "scheduler_config.json"
    order = 1

    @register_to_config
    def __init__(
        self,
        schedule: str | None = None,
        delta_t: float | None = None,
        lead: float | None = None,
        lead_slope: float | None = None,
        knots: list[float] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        time_grid: str | None = None,
        shift: float | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        self.sample  # noqa: B018 - settings are checked when they are given

    @property
    def sample(self) -> Sample:
        """The section `sample` with these settings, and its defaults where there are none.

        Raises:
            UserError: a setting is not acceptable.
        """
        said = {key: value for key, value in self.config.items() if not key.startswith("_") and value is not None}
        return as_sample({}, said)
