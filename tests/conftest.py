"""What every test shares: no hub, no DVC around it, and a cache that the test run throws away."""

from __future__ import annotations

import os

# Sums of floats depend on how many threads share them, and tests compare bits between processes.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
import setuptools  # noqa: F401 - compiling needs it, and it wants to be there before anybody's distutils

from sfd_cli.weights.fetch import cache_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file comes first, so that other processes work through the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_dvc_pipeline.py")


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own with links to the weights that the user has fetched, so that nothing is written there."""
    folder = tmp_path_factory.mktemp("cache")
    fetched = cache_folder().iterdir() if cache_folder().exists() else ()
    for file in fetched:
        if file.is_file() and not file.name.startswith("."):
            (folder / file.name).symlink_to(file.resolve())
    return folder


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, _cache: Path) -> None:
    """A test that reaches for a hub fails at once, and stages do not take the test run for a DVC run."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SFD_CACHE", str(_cache))
    monkeypatch.delenv("DVC_STAGE", raising=False)
