"""What every test shares: no hub, no DVC around it."""

from __future__ import annotations

import os

# Sums of floats depend on how many threads share them, and tests compare bits between processes.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for a hub fails at once, and stages do not take the test run for a DVC run."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DVC_STAGE", raising=False)
