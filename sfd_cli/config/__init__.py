"""`params.yaml` as typed, validated sections: one per stage, checked once, at the door."""

from sfd_cli.config.adapters import Adapter
from sfd_cli.config.compressors import SemVAE, TextureVAE, VAETraining
from sfd_cli.config.data import Encoder, Features, Images, Latents, Paths, Runtime
from sfd_cli.config.elsewhere import called_here
from sfd_cli.config.identity import LATER, identity, unsaid
from sfd_cli.config.metrics import Metrics
from sfd_cli.config.results import EDITS, ClassLabel, Curve, Fid, Foreign, Report, Sample
from sfd_cli.config.section import Section
from sfd_cli.config.settings import (
    DEFAULT_PARAMS,
    Settings,
    first_problem,
    load_settings,
    section_type,
    validate_settings,
)
from sfd_cli.config.transformers import DiT, LearnSchedule, Probe

__all__ = [
    "DEFAULT_PARAMS",
    "EDITS",
    "LATER",
    "Adapter",
    "ClassLabel",
    "Curve",
    "DiT",
    "Encoder",
    "Features",
    "Fid",
    "Foreign",
    "Images",
    "Latents",
    "LearnSchedule",
    "Metrics",
    "Paths",
    "Probe",
    "Report",
    "Runtime",
    "Sample",
    "Section",
    "SemVAE",
    "Settings",
    "TextureVAE",
    "VAETraining",
    "called_here",
    "first_problem",
    "identity",
    "load_settings",
    "section_type",
    "unsaid",
    "validate_settings",
]
