"""A studio with the tiny models, whose textures hang on their semantics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import tiny_settings, write_models

from sfd_cli.config import Settings
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.play.studio import Studio

OpenStudio = Callable[..., Studio]


def lively(studio: Studio) -> Studio:
    """The studio with larger weights, so that a velocity hangs on all that the network sees."""
    with torch.no_grad():
        for parameter in studio.sampler.dit.parameters():
            parameter *= 5
    return studio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = tiny_settings(tmp_path, sample={"guidance": "cfg", "steps": 6})
    write_models(settings)
    return settings


@pytest.fixture
def open_studio(settings: Settings) -> OpenStudio:
    def opened(**arguments: Any) -> Studio:
        sampler = SamplingModels.open(settings).load(settings.sample, torch.device("cpu"))
        return lively(Studio(sampler, **arguments))

    return opened


@pytest.fixture
def studio(open_studio: OpenStudio) -> Studio:
    return open_studio(fingerprints=lambda: {"dit": "abc"})
