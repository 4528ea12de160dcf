"""From noise and labels to images: trained models on one device, and the settings by which they sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.devices import float32_products
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.guidance import AutoGuidance, ClassifierFreeGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.solver import Amend, OnPoint, count_steps, integrate
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.precision import Precision, autocast
from sfd_cli.networks.texture_vae import to_pixels
from sfd_cli.pipeline.held import Held, Recorder, Recording, way_of
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.origin import Origin
from sfd_cli.pipeline.seeds import step_noise
from sfd_cli.pipeline.speed import settled
from sfd_cli.pipeline.strip import Strip
from sfd_cli.pipeline.together import require_decodable, require_followed, require_no_noise, require_offset
from sfd_cli.tables import SOLVERS
from sfd_cli.weights.models import TextureCompressor

# Images per call of the VAE decoder, whose activations are far larger than the transformer's.
DECODED_AT_ONCE = 16

Watch = Callable[[list[int]], OnPoint]
"""Rows of a batch that are wanted -> what is called with the points of the whole batch's solution."""


@dataclass(frozen=True)
class Sampler:
    """The models of a sampling run, on one device, and how they are used.

    Attributes:
        dit: the diffusion transformer.
        sample: the settings, with the law of training where they leave it open.
        space: layout and scale of the latents; the scale is needed by a texture VAE only.
        conditions: the classes that the transformer knows.
        guide: the weaker model, for AutoGuidance.
        texture_vae: decodes texture latents; None where latents are all that is wanted.
        trained_law: the law that the transformer was trained with, as `laws.law_of` gives it, where it is known.
        name: where the transformer is, for messages.
        guide_name: where the guide is.
        vae_name: where the texture VAE is.
        origin: a picture that all images are made of; None: they are made of noise alone.

    Raises:
        UserError: models and settings do not belong together.
    """

    dit: LightningDiT
    sample: Sample
    space: LatentSpace
    conditions: Conditions
    guide: LightningDiT | None = None
    texture_vae: TextureCompressor | None = None
    trained_law: Mapping[str, Any] | None = None
    name: str = "dit"
    guide_name: str | None = None
    vae_name: str = "texture_vae"
    origin: Origin | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample", settled(self.sample.with_law(self.trained_law), self.device))
        networks = {self.name: self.dit} | ({} if self.guide is None else {self.guide_name or "the guide": self.guide})
        require_offset(self.sample, self.space, networks)
        require_followed(self.sample, self.space, self.name)
        if self.guide is None and self.sample.guidance == "autoguidance":
            raise UserError("sample.guidance", "'autoguidance' needs a guide, and there is none", "use cfg or none")
        if self.texture_vae is not None:
            require_decodable(self.space, self.texture_vae, self.name)
        if self.origin is not None and self.origin.kept is not None:
            require_no_noise(self.sample)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.dit.parameters()).device

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.space.grid * self.require_texture_vae().downsampling

    @property
    def batch_size(self) -> int:
        """Images of one call of the solver."""
        group: int | None = SOLVERS[self.sample.solver].images_at_once
        return (self.sample.images_at_once or group) if group else self.sample.batch_size

    @property
    def steps(self) -> int:
        """Points of a solution after its start, of which callers are told."""
        schedule = schedule_of(self.sample)
        start = 0.0 if self.origin is None else self.origin.start * schedule.end
        return count_steps(schedule, **_grid(self.sample), start=start)

    def share(self, count: int, processes: Processes) -> list[int]:
        """Indices of this process's images of `count`: the processes take batches in turn."""
        return [index for index in range(count) if index // self.batch_size % processes.count == processes.rank]

    def batches(
        self, inputs: SampleInputs, indices: Iterable[int], watch: Watch | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The images `indices` of a run, in its batches.

        Args:
            inputs: noise and labels of the run.
            indices: ascending; a batch of the run of which some images are wanted is sampled as a whole.
            watch: is told how each batch goes on, and may change its latents on the way.

        Yields:
            Indices, and their images, uint8 (n, 3, H, W) on the models' device.

        Raises:
            StageFailure: a latent is not finite.
        """
        for wanted, rows, latents in self._whole_batches(inputs, indices, watch):
            yield wanted, self.decode(latents)[rows]

    def batches_with_semantics(
        self, inputs: SampleInputs, indices: Iterable[int]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """As `batches`, and the semantic latents (n, C_s, h, w) float32 that stood beside them, not normalised."""
        for wanted, rows, latents in self._whole_batches(inputs, indices, None):
            yield wanted, self.decode(latents)[rows], self.space.split(latents).semantic[rows].float()

    def latent_batches(
        self, inputs: SampleInputs, indices: Iterable[int], watch: Watch | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """As `batches`, but normalised composite latents (n, C, h, w)."""
        for wanted, rows, latents in self._whole_batches(inputs, indices, watch):
            yield wanted, latents[rows]

    @torch.inference_mode()
    def latents(self, inputs: SampleInputs, indices: Iterable[int], on_point: OnPoint | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of the images `indices`, integrated together.

        `on_point` is called with T and the solution at T = 0 and after every step.

        Raises:
            StageFailure: one is not finite.
        """
        indices = list(indices)
        noise = inputs.noise_of(indices, self.space.shape).to(self.device)
        rows = inputs.rows_of(indices, self.conditions).to(self.device)
        solve = partial(_along(self, inputs.strip, indices)._integrate, labels=rows, on_point=on_point, indices=indices)
        if self.origin is None:
            latents = solve(noise)
        else:
            latents = self.origin.redrawn(solve, noise, schedule_of(self.sample), self.space)
        if not bool(latents.isfinite().all()):
            problem = f"the latents of images {indices[0]} to {indices[-1]} are not finite"
            raise StageFailure("sample", problem, "use more steps or a smaller scale, or look at the training losses")
        return latents

    @torch.inference_mode()
    def solve(
        self,
        noise: Tensor,
        labels: Tensor,
        on_point: OnPoint | None = None,
        held: Held | None = None,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Integrate the guided flow from `noise` (B, C, h, w) for `labels` (B,) to normalised composite latents.

        What is `held` goes its own way and ends as it says, exactly; the network sees it and draws the rest. A
        stochastic solver draws by the seed and the images' `indices`, those from 0 on where none are given.

        Raises:
            UserError: something is held, and the solver is stochastic.
        """
        if held is None:
            return self._integrate(noise, labels, on_point, indices=indices)
        require_no_noise(self.sample)
        return held.latents_in(self._integrate(held.noise_in(noise), labels, on_point, held.amend(self.space)))

    @torch.inference_mode()
    def record(
        self, noise: Tensor, labels: Tensor, on_point: OnPoint | None = None, held: Held | None = None
    ) -> Recording:
        """As `solve`, but with all that came before the latents."""
        if held is not None:
            require_no_noise(self.sample)
        recorder = Recorder(None if held is None else held.amend(self.space), on_point)
        start = noise if held is None else held.noise_in(noise)
        latents = self._integrate(start, labels, recorder.on_point, recorder.amend)
        return recorder.recording(latents if held is None else held.latents_in(latents), way_of(self.sample))

    def _integrate(
        self,
        noise: Tensor,
        labels: Tensor,
        on_point: OnPoint | None = None,
        amend: Amend | None = None,
        indices: Sequence[int] | None = None,
        start: float = 0.0,
    ) -> Tensor:
        sample, normals = self.sample, None
        if SOLVERS[sample.solver].is_stochastic:
            normals = step_noise(sample.seed, range(len(noise)) if indices is None else indices, noise.shape[1:])
        try:
            with float32_products(self.device, sample.precision != "ieee"):
                return integrate(
                    self._velocity,
                    noise,
                    labels,
                    schedule_of(sample),
                    self.space,
                    **_grid(sample),
                    rtol=sample.rtol,
                    atol=sample.atol,
                    normals=normals,
                    on_point=on_point,
                    amend=amend,
                    start=start,
                )
        except FloatingPointError as error:
            remedy = f"use a larger sample.rtol than {sample.rtol:g}, or another solver"
            raise StageFailure("sample.solver", f"{sample.solver} found no end: {error}", remedy) from None

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 of normalised composite latents (B, C, h, w); the semantic channels are dropped.

        Raises:
            StageFailure: textures or images are not finite, and would be black.
        """
        vae = self.require_texture_vae()
        with float32_products(self.device, self.sample.precision != "ieee"):
            textures = self.space.split(latents).texture
            if not bool(textures.isfinite().all()):
                problem = "its latents are not finite once its latent statistics have scaled them"
                raise StageFailure(self.name, problem, "fetch or train it again")
            images = torch.cat([vae.decode(part) for part in textures.split(DECODED_AT_ONCE)])
            if not bool(images.isfinite().all()):
                problem = f"what it decodes of the latents of {self.name} is not finite"
                raise StageFailure(self.vae_name, problem, "fetch or train it again")
            return to_pixels(images, self.sample.to_uint8)

    def require_texture_vae(self) -> TextureCompressor:
        """The texture VAE.

        Raises:
            UserError: there is none.
        """
        if self.texture_vae is None:
            raise UserError("texture_vae", "there is none, so there are latents and no images", "load one with it")
        return self.texture_vae

    def _whole_batches(
        self, inputs: SampleInputs, indices: Iterable[int], watch: Watch | None
    ) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Wanted indices of each batch, their rows in it, and its latents.

        The last batch of a run is filled up with images past the end: one shape, and no image's numerics change.
        """
        size = self.batch_size
        for number, members in groupby(indices, key=lambda index: index // size):
            wanted, first = list(members), number * size
            rows = [index - first for index in wanted]
            latents = self.latents(inputs, range(first, first + size), watch and watch(rows))
            yield wanted, rows, latents

    @cached_property
    def _velocity(self) -> VelocityField:
        sample, scale = self.sample, guidance_scale(self.sample)
        if scale.channels is not None and scale.channels <= self.space.texture:
            scale = replace(scale, semantic=1.0)  # which saves calls where only semantics move
        velocity = _in_precision(self.dit, sample.precision)
        if sample.guidance == "cfg":
            return ClassifierFreeGuidance(velocity, self.conditions, scale, self.space)
        if sample.guidance == "autoguidance" and self.guide is not None:
            return AutoGuidance(velocity, _in_precision(self.guide, sample.precision), scale, self.space)
        return velocity


def _along(sampler: Sampler, strip: Strip | None, indices: Sequence[int]) -> Sampler:
    """The same sampler; for a strip between two classes with networks that have rows for its images `indices`."""
    if strip is None or len(set(ends := strip.ends(sampler.conditions))) == 1:
        return sampler
    places = [strip.place(index) for index in indices]
    guide = None if sampler.guide is None else sampler.guide.with_mixed_rows(*ends, places)
    return replace(sampler, dit=sampler.dit.with_mixed_rows(*ends, places), guide=guide)


def guidance_scale(sample: Sample) -> GuidanceScale:
    """The scale of each stream: its own where it is set, else the common one."""
    return GuidanceScale(
        sample.scale if sample.scale_texture is None else sample.scale_texture,
        sample.scale if sample.scale_semantic is None else sample.scale_semantic,
        (sample.interval_start, sample.interval_end),
        sample.guidance_channels,
    )


def _grid(sample: Sample) -> dict[str, Any]:
    """How the settings go through a schedule: arguments of `integrate` and of `count_steps`."""
    return {
        "solver": sample.solver,
        "steps": sample.steps,
        "grid": sample.time_grid,
        "shift": sample.shift,
        "last_step": sample.last_step,
    }


def _in_precision(network: LightningDiT, name: str) -> VelocityField:
    """The network's velocity; guidance and the solver go on in the format of the latent."""
    precision: Precision = "bf16" if name == "bf16" else "fp32"

    def velocity(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        with autocast(precision, x.device):
            return network(x, t_texture, t_semantic, labels).to(x.dtype)

    return velocity
