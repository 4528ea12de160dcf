"""Extractors cheap enough for tests in the place of those that scores are computed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.extractors import EXTRACTORS


def put(patch: pytest.MonkeyPatch, key: str, opened: Callable[[], Extractor]) -> None:
    """What `opened` gives stands for an entry of `EXTRACTORS`."""
    entry = replace(EXTRACTORS[key], kinds=tuple(opened().widths), open=lambda settings, device: opened())
    patch.setitem(EXTRACTORS, key, entry)


def score_by(patch: pytest.MonkeyPatch, opened: Callable[[], Extractor]) -> None:
    """It stands for EDM2's DINOv2, in place of the encoder that the settings name too."""
    put(patch, "dinov2", opened)
    patch.delitem(EXTRACTORS, "encoder", raising=False)
