"""The command line: help that explains, flags that override, errors in one sentence with the right exit code."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sfd_cli import __version__
from sfd_cli.cli import app

REPOSITORY = Path(__file__).parents[2]
STAGES = (
    "prepare-data",
    "extract-features",
    "train-semvae",
    "train-texture-vae",
    "encode-latents",
    "train",
    "sample",
    "fid",
    "report",
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: built-in defaults, no artifacts."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str, width: int = 200) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)})
    return result.exit_code, result.output


def test_help_lists_the_stages_in_groups() -> None:
    code, text = invoke("--help")
    assert code == 0
    for heading in ("1. Data", "2. Models", "3. Images and scores"):
        assert heading in text
    for stage in STAGES:
        assert stage in text


@pytest.mark.parametrize("stage", STAGES)
def test_stage_help_says_what_each_flag_means_and_its_default(stage: str) -> None:
    code, text = invoke(stage, "--help")
    assert code == 0
    assert "default:" in text
    assert "--params" in text
    assert "--debug" in text


def test_help_of_sample_has_the_flags_people_type() -> None:
    _, text = invoke("sample", "--help")
    for flag in ("--delta-t", "--steps", "--solver", "--classes", "--num-images", "--seed", "--batch-size", "--grid"):
        assert flag in text


def test_no_two_flags_of_a_command_share_a_name() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        names = [
            declaration
            for parameter in inspect.signature(command.callback).parameters.values()
            for declaration in parameter.annotation.__metadata__[0].param_decls or [f"--{parameter.name}"]
        ]
        assert len(names) == len(set(names)), command.name


def test_version() -> None:
    assert invoke("--version") == (0, f"sfd {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--heads", "7"], "dit.heads: 7 heads do not divide"),
        (["train", "--model", "guide", "--heads", "7"], "guide.heads: 7 heads do not divide"),
        (["sample", "--delta-t", "1.5"], "sample.delta_t"),
        (["train"], "encode-latents"),
        (["sample"], "models/dit"),
        (["extract-features", "--encoder-weights", "demo"], "sfd prepare-data"),
        (["prepare-data", "--source", "folder", "--folder", "nowhere"], "nowhere is not a folder"),
        (["train", "--params", "typo.yaml"], "typo.yaml does not exist"),
        (["show"], "metrics/fid.json does not exist"),
        (["weights", "fetch", "no-such-name"], "no-such-name"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(elsewhere: Path, arguments: list[str], sentence: str) -> None:
    code, text = invoke(*arguments)
    assert code == 2
    assert sentence in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1


def test_a_users_mistake_leaves_nothing_behind(elsewhere: Path) -> None:
    invoke("sample", "--delta-t", "1.5")
    invoke("train")
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_debug_shows_the_traceback(elsewhere: Path) -> None:
    code, text = invoke("train", "--heads", "7", "--debug")
    assert code == 2
    assert "Traceback" in text


def test_an_unknown_flag_and_a_wrong_list_are_usage_errors(elsewhere: Path) -> None:
    assert invoke("train", "--no-such-flag")[0] == 2
    code, text = invoke("sample", "--classes", "1,x")
    assert code == 2
    assert "whole numbers" in text


def test_every_command_of_the_dag_is_a_command_here() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        program, command, *rest = stage["cmd"].split()
        assert program == "sfd"
        assert invoke(command, *rest, "--help")[0] == 0


def test_help_is_quick_because_stages_are_imported_when_called() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, sfd_cli.cli; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "False\n"


def documented_commands() -> list[str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [
        line.replace("torchrun --nproc-per-node 8 -m sfd_cli", "sfd")
        for line in lines
        if "sfd " in line or "sfd_cli" in line
    ]


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_and_flags_exist(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == "sfd"
    flags = [word for word in words if word.startswith("--")]
    names = words[: words.index(flags[0])] if flags else words
    code, text = invoke(*names, "--help")
    assert code == 0
    assert all(flag in text for flag in flags)


def test_the_readme_has_commands_to_check() -> None:
    assert len(documented_commands()) >= 4


def test_the_readmes_table_names_every_stage() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert all(f"`sfd {stage}`" in text for stage in STAGES)
