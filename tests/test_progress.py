"""What a person or a log file sees of work that takes long."""

from __future__ import annotations

import io
import sys

import pytest

from sfd_cli import progress as module
from sfd_cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every item."""
    monkeypatch.setattr(module, "INTERVAL", 0.0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is on stderr, which is no terminal here."""
    return capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("at_once")
def test_without_a_terminal_there_are_lines_that_say_how_far_how_fast_and_how_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress(doing="dit", total=6, initial=2, unit="step") as bar:
        for _ in range(4):
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update()
    shown = lines(capsys)
    assert all(line.startswith("sfd: dit: ") and line.isprintable() for line in shown)
    assert [line for line in shown if "4 of 6 in 00:" in line and "left" in line and "loss=0.5" in line]
    assert "6 of 6" in shown[-1]


@pytest.mark.usefixtures("at_once")
def test_every_item_comes_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "letters", 3, unit="letter")) == ["a", "b", "c"]
    assert "3 of 3" in lines(capsys)[-1]


@pytest.mark.usefixtures("at_once")
def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "numbers", silent=True)) == [0, 1, 2]
    with progress(doing="more", total=2, silent=True) as bar:
        bar.update(2)
    assert lines(capsys) == []


def test_work_that_is_soon_done_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress(range(1000), "numbers", unit="number") as bar:
        assert sum(bar) == 499_500
    assert lines(capsys) == []


def test_lines_come_once_in_an_interval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress(doing="steps", total=100, unit="step")
    now = bar.start_t
    monkeypatch.setattr(bar, "_time", lambda: now)
    for _ in range(100):
        now += 10.0
        bar.update()
    bar.close()
    shown = lines(capsys)
    assert 30 <= len(shown) <= 36
    # The last line but one is of half a minute before the end at most: where a killed run was.
    assert int(shown[-2].split(": ")[2].split(" of ")[0]) >= 96


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(doing="dit", total=4, unit="step") as bar:
        bar.set_postfix(loss="0.5")
        bar.update(4)
    assert "\rdit: 100%" in stream.getvalue()
    assert "loss=0.5" in stream.getvalue()
