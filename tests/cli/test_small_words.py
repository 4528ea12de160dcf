"""Mistakes that are often made, and what is said of each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import empty_folder, refusal_of, sfd
from refusals import require_refusal

from sfd_cli import cli


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("train", "--delta-t", "3"),
        ("train-guide", "--delta-t", "3"),
        ("encode-latents", "--encoder-image-size", "0"),
        ("prepare-data", "--size", "0"),
    ],
)
def test_a_flags_mistake_is_the_flags_and_not_the_files(command: str, flag: str, value: str) -> None:
    Path("params.yaml").write_text("{}")
    error = refusal_of(command, flag, value)
    require_refusal(error, flag, value)
    assert "params.yaml" not in str(error)


def test_flags_of_the_guide_are_named_as_they_were_typed() -> None:
    require_refusal(refusal_of("train", "--model", "guide", "--steps", "0"), "--steps", "0")


def test_a_setting_that_a_flag_makes_wrong_is_told_with_the_file_and_the_flag() -> None:
    Path("params.yaml").write_text("dit: {width: 384, heads: 6}")
    require_refusal(refusal_of("train", "--width", "100"), "dit.heads", "params.yaml", "dit.width")


@pytest.mark.parametrize(
    ("words", "here"),
    [
        (("sample", "--cfg-scale", "1.5"), "--scale"),
        (("sample", "--num-sampling-steps=50"), "--steps"),
        (("sample", "--per-proc-batch-size", "8"), "--batch-size"),
        (("sample", "--semfirst-delta-t", "0.3"), "dit.delta_t (of params.yaml) or --delta-t"),
        (("train", "--semfirst_delta_t", "0.3"), "--delta-t or sample.delta_t (of params.yaml)"),
        (("train", "--proj-coeff", "1"), "--repa-weight"),
    ],
)
def test_flags_of_other_code_are_told_what_they_are_called_here(words: tuple[str, ...], here: str) -> None:
    ran = sfd(*words)
    assert ran.code == 2
    assert f"{words[1].partition('=')[0]} is called {here} here" in ran.err


def test_a_flag_that_nobody_knows_is_refused_as_before() -> None:
    ran = sfd("sample", "--no-such-thing")
    assert ran.code == 2
    assert "No such option" in ran.err


def test_on_windows_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert str(ended.value.code).startswith("sfd: error: Windows")
    assert "WSL" in str(ended.value.code)
