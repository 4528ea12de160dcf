"""What tests of faults share: a project that was lived through once, a ledger, and the table at the end."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from forks import warm_up
from history import Step, live_through
from ledger import RESULTS, Ledger, table

LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEDGER] = Ledger()


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Ledger:
    return pytestconfig.stash[LEDGER]


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """An undisturbed run of all stages."""
    warm_up()
    return {step.stage: step for step in live_through(tmp_path_factory.mktemp("history"))}


@pytest.fixture
def end(history: dict[str, Step]) -> Path:
    """The project after all stages; only to be read."""
    return next(iter(history.values())).before.parent / "end"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Other moments with every SFD_FAULT_SEED."""
    return random.Random(f"{os.environ.get('SFD_FAULT_SEED', '0')} {request.node.nodeid}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[LEDGER].rows
    if not rows:
        return
    terminalreporter.section("faults")
    for line in table({fault: vars(row) for fault, row in rows.items()}):
        terminalreporter.write_line(line)
    if place := os.environ.get("SFD_FAULT_RESULTS", ""):
        config.stash[LEDGER].save(RESULTS if place == "docs" else Path(place))
