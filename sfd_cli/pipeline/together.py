"""Whether models, latents and settings of sampling belong together."""

from __future__ import annotations

from collections.abc import Mapping

from sfd_cli.config import Sample
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.laws import DEFAULT_LAW, is_synchronous
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.tables import SOLVERS
from sfd_cli.weights.models import TextureCompressor

STATISTICS_REMEDY = (
    "give those of its training set (--foreign-texture-statistics and --foreign-semantic-statistics,"
    " --texture-statistics and --semantic-statistics of `sfd weights import`, or the section `foreign`)"
)


def require_offset(sample: Sample, space: LatentSpace, networks: Mapping[str, LightningDiT]) -> None:
    """Check that networks, by where they are and the transformer first, know both times of an asynchronous law.

    Raises:
        UserError: one does not, or there are no semantic channels.
    """
    if is_synchronous(sample):
        return
    by_offset = sample.schedule == DEFAULT_LAW
    key, remedy = ("sample.delta_t", "use 0") if by_offset else ("sample.schedule", "use delta_t: 0 instead")
    if space.semantic == 0:
        raise UserError(key, f"{next(iter(networks))} has no semantic channels to offset", remedy)
    for name, network in networks.items():
        if network.config.time_embedding == "single":
            raise UserError(key, f"{name} has one time for both streams", remedy)


def require_followed(sample: Sample, space: LatentSpace, name: str) -> None:
    """Check that the latents of the transformer `name` and the solver can follow the settings, whoever gave them.

    Raises:
        UserError: more channels are to be guided than there are, or a stochastic solver is to step past a stream's end.
    """
    channels = sample.guidance_channels
    by = f", which the protocol {sample.protocol} guides" if sample.protocol else ""
    if sample.guidance != "none" and channels is not None and channels > space.channels:
        problem = f"{channels} channels{by}, are more than the {space.channels} of {name}"
        raise UserError("sample.guidance_channels", problem, "give fewer, or null for all")
    if SOLVERS[sample.solver].is_stochastic and sample.time_grid != "phases":
        problem = f"{sample.time_grid!r} steps past the end of a stream, which {sample.solver} has to end on"
        raise UserError("sample.time_grid", problem, "use phases")


def require_no_noise(sample: Sample) -> None:
    """Check that the solver leaves alone what is held.

    Raises:
        UserError: it is stochastic.
    """
    if SOLVERS[sample.solver].is_stochastic:
        problem = f"{sample.solver} draws noise in every step, beside which nothing can be kept"
        raise UserError("sample.solver", problem, "use a solver of the ODE, as ab3")


def require_decodable(space: LatentSpace, texture_vae: TextureCompressor, name: str) -> None:
    """Check that a texture VAE can decode the latents of the transformer `name`.

    Raises:
        UserError: it has other channels, or the statistics of the latents are not known.
    """
    if space.texture != texture_vae.latent_channels:
        problem = f"it decodes {texture_vae.latent_channels} texture channels, but {name} makes {space.texture}"
        raise UserError("paths.texture_vae", problem, "use the one that its latents were encoded with")
    if not space.is_scaled:
        problem = f"has no latent statistics for {space.channels} channels, without which samples cannot be decoded"
        raise UserError(name, problem, STATISTICS_REMEDY)
