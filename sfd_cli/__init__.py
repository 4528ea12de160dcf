"""Train, sample and score Semantic-First Diffusion (arXiv 2512.04926) as a chain of cached artifacts.

The public names are imported when they are first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfd_cli.config import Settings, load_settings
    from sfd_cli.data.store import Store
    from sfd_cli.diffusion.latents import LatentSpace
    from sfd_cli.diffusion.schedule import AsynchronousSchedule
    from sfd_cli.diffusion.solver import integrate
    from sfd_cli.errors import StageFailure, UserError
    from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

__version__ = "0.1.0"

_PLACES = {
    "AsynchronousSchedule": "sfd_cli.diffusion.schedule",
    "LatentSpace": "sfd_cli.diffusion.latents",
    "SemanticFirstPipeline": "sfd_cli.pipeline.semantic_first",
    "Settings": "sfd_cli.config",
    "StageFailure": "sfd_cli.errors",
    "Store": "sfd_cli.data.store",
    "UserError": "sfd_cli.errors",
    "integrate": "sfd_cli.diffusion.solver",
    "load_settings": "sfd_cli.config",
}

__all__ = [
    "AsynchronousSchedule",
    "LatentSpace",
    "SemanticFirstPipeline",
    "Settings",
    "StageFailure",
    "Store",
    "UserError",
    "__version__",
    "integrate",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
