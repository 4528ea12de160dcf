"""The settings that identify an artifact, so that those made before a key was there go on."""

from __future__ import annotations

from typing import Any

from sfd_cli.config.compressors import SemVAE, TextureVAE, VAETraining
from sfd_cli.config.data import Features, Images, Latents
from sfd_cli.config.results import Sample
from sfd_cli.config.section import Section
from sfd_cli.config.transformers import DiT
from sfd_cli.laws import (
    DEFAULT_LAW,
    LAW_KEYS,
    law_of,
)

LATER: dict[type[Section], dict[str, Any]] = {
    Images: {"mirror": True},
    Features: {"precision": "auto"},
    VAETraining: {"precision": "fp32", "accumulate": "auto"},
    SemVAE: {"compile": "auto"},
    TextureVAE: {
        "compressor": "vae",
        "patch_size": 16,
        "decoder_channels": [],
        "decoder_noise": 1.5,
        "decoder_keep": 1.0,
    },
    Latents: {"texture_scale": "channel", "texture_gain": 1.0, "noise": "index", "precision": "auto"},
    DiT: {
        "schedule": DEFAULT_LAW,
        "prediction": "velocity",
        "time_mean": 0.0,
        "optimizer": "adamw",
        "muon_learning_rate": 0.02,
        "decay": 0.0,
        "ema_warmup": False,
        "lead": 0.0,
        "lead_slope": 0.0,
        "knots": [],
        "objective": "paper",
        "lead_jitter": 0.0,
        "leader_noise": 0.0,
        "holdout": 0.0,
        "dispersive_weight": 0.0,
        "dispersive_depth": None,
        "dispersive_temperature": 0.5,
        "dispersive_group": 16,
        "keep_every": 0,
        "init_classes": {},
        "statistics": None,
        "init_learning_rate_scale": 1.0,
        "adapter": None,
    },
    Sample: {
        "schedule": DEFAULT_LAW,
        "lead": None,
        "lead_slope": None,
        "knots": None,
        "protocol": None,
        "images_at_once": None,
        "last_step": 0.04,
        "guidance_channels": None,
        "class_labels": "balanced",
        "to_uint8": "round",
        "to_seed": None,
        "to_class": None,
        "image": None,
        "keep": None,
        "start_time": None,
        "mask": None,
    },
}
"""Keys that a section did not always have, and the value of each that says what went without saying before."""


def identity(section: Section, **chosen: Any) -> dict[str, Any]:
    """Settings that identify an artifact: `section.model_dump(**chosen)` without what LATER says goes without saying.

    Artifacts made before there was a key keep their identity so, and go on.
    """
    silent, dumped = unsaid(section), section.model_dump(**chosen)
    if isinstance(section, DiT):  # where it has a value whatever the law
        unread = set(LAW_KEYS) - law_of(section).keys()
        dumped = {key: value for key, value in dumped.items() if key not in unread}
    return {key: value for key, value in dumped.items() if key not in silent or value != silent[key]}


def unsaid(section: Section) -> dict[str, Any]:
    """What an identity means by not naming a key of this section, as LATER lists it."""
    return {key: value for kind, keys in LATER.items() if isinstance(section, kind) for key, value in keys.items()}
