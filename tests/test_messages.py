"""Text from elsewhere is shown and never acted on: neither by a terminal nor by a browser or a drawing."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import empty_folder, sfd
from hypothesis import given
from hypothesis import strategies as st

from sfd_cli.cli.terminal import LONGEST, print_result
from sfd_cli.messages import printable, say
from sfd_cli.report.page import render_page
from sfd_cli.report.pictures import draw_samples

EVIL = "<script>\n\x1b[31m\u202e$x^{$"
SHOWN = r"<script>\n\x1b[31m\u202e$x^{$"


@given(st.text())
def test_what_is_printed_is_one_line_of_characters_that_only_show(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(part) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for part in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()


@pytest.mark.parametrize("text", ["café, 猫 and ½ of it", "C:\\new\\table", "plain"])
def test_words_of_any_language_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_remarks_and_results_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"left out {EVIL}")
    print_result({EVIL: {"class": EVIL}})
    captured = capsys.readouterr()
    assert captured.err == f"sfd: left out {SHOWN}\n"
    assert captured.out == f"{SHOWN}\n  class  {SHOWN}\n"


@pytest.mark.parametrize("name", [EVIL, "a" * 10**6])
def test_an_error_quotes_a_file_in_one_printable_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    empty_folder(tmp_path, monkeypatch)
    torch.save({name: torch.ones(2)}, "odd.pt")
    ran = sfd("sample", "--checkpoint", "odd.pt", "--latents-out", "x.npy")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.rstrip("\n").isprintable()
    assert len(ran.err) < LONGEST + 100


def test_the_page_escapes_text_for_browsers_and_control_characters_for_all() -> None:
    nothing = {"picture": "", "caption": "", "story": "", "reason": EVIL}
    page = render_page(
        title=EVIL,
        subtitle="",
        version="",
        facts=[],
        samples=nothing,
        phases=nothing,
        scores={"rows": [], "reason": ""},
        along=[],
        schedule=None,
        learned=None,
        losses=[],
        settings=[],
    )
    assert "<script>" not in page
    assert r"&lt;script&gt;\n\x1b[31m\u202e" in page
    assert not any(unicodedata.category(part) in ("Cc", "Cf") for part in page.replace("\n", ""))


def test_a_caption_with_signs_of_mathematics_is_drawn_as_it_stands(tmp_path: Path) -> None:
    draw_samples(tmp_path / "grid.png", [np.zeros((4, 4, 3), np.uint8)], [EVIL])
    draw_samples(tmp_path / "plain.png", [np.zeros((4, 4, 3), np.uint8)], ["x"])
    assert (tmp_path / "grid.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
