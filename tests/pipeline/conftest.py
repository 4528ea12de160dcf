"""What the tests of the Python object share: a pipeline in miniature with every network."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained_pipeline import project

from sfd_cli.config import Settings
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return project(tmp_path, guidance="autoguidance")


@pytest.fixture
def pipeline(settings: Settings) -> SemanticFirstPipeline:
    pipeline = SemanticFirstPipeline.from_settings(settings, encoder=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
