"""The command line: help that explains, flags that override, errors in one sentence with the right exit code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import refusal_of
from refusals import require_refusal
from typer.testing import CliRunner

from sfd_cli import __version__
from sfd_cli.cli import app
from sfd_cli.cli.stages import stage_command
from sfd_cli.stages import Stage
from sfd_cli.tables import STAGES

REPOSITORY = Path(__file__).parents[2]
NAMES = [name for name in STAGES if name not in ("memorisation", "curve", "show", "track", "plan")]


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
    for stage in NAMES:
        assert stage in text


@pytest.mark.parametrize("stage", NAMES)
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


def test_a_setting_of_a_section_that_a_stage_does_not_read_is_no_flag_of_it() -> None:
    flags = [flag for option in stage_command("prepare-data").params for flag in option.opts]
    assert "--strict" in flags
    assert "--mirror" not in flags


def test_what_is_true_false_or_auto_has_a_flag_for_each_of_both() -> None:
    for stage in ("train", "train-guide", "train-semvae"):
        (option,) = (option for option in stage_command(stage).params if str(option.name).endswith("__compile"))
        assert (option.opts, option.secondary_opts) == (["--compile"], ["--no-compile"])


def test_no_two_flags_of_a_command_share_a_name() -> None:
    for name in STAGES:
        flags = [flag for option in stage_command(name).params for flag in option.opts]
        assert len(flags) == len(set(flags)), name


def test_version() -> None:
    assert invoke("--version") == (0, f"sfd {__version__}\n")


MISTAKES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "--heads", "7"): ("--heads", "7 heads"),
    ("train-guide", "--heads", "7"): ("--heads", "7 heads"),
    ("train", "--model", "guide", "--heads", "7"): ("--heads", "7 heads"),
    ("sample", "--delta-t", "1.5"): ("--delta-t", "1.5"),
    ("train", "--params", "typo.yaml"): ("--params", "typo.yaml"),
    ("preset", "use", "imagenet256-x"): ("imagenet256-x", "'imagenet256-xl'"),
    ("preset", "show", "zzz"): ("zzz", "demo, "),
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_users_mistake_is_told_by_what_it_is_about(elsewhere: Path, arguments: tuple[str, ...]) -> None:
    subject, *named = MISTAKES[arguments]
    require_refusal(refusal_of(*arguments), subject, *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train",), "sfd encode-latents"),
        (("sample",), "models/dit"),
        (("extract-features", "--encoder-weights", "demo"), "sfd prepare-data"),
        (("prepare-data", "--source", "folder", "--folder", "nowhere"), "nowhere"),
        (("show",), "metrics/fid.json"),
        (("weights", "fetch", "no-such-name"), "no-such-name"),
    ],
)
def test_what_is_missing_is_named(elsewhere: Path, arguments: tuple[str, ...], named: str) -> None:
    error = refusal_of(*arguments)
    assert named in f"{error.subject} {error.problem} {error.remedy}"


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
    code, text = invoke("train-texture-vae", "--block-channels", "1,x")
    assert code == 2
    assert "whole numbers" in text


def test_every_command_of_the_dag_is_a_command_here() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        program, command, *rest = stage["cmd"].split()
        assert program == "sfd"
        assert invoke(command, *rest, "--help")[0] == 0


def test_importing_the_command_line_reads_no_file(elsewhere: Path) -> None:
    script = """
import builtins, importlib.metadata, io, pathlib, typer, pydantic, yaml
pydantic.create_model("Anything")  # pydantic looks for its plugins when the first model is made
def refuse(*arguments, **options):
    raise AssertionError(f"opened {arguments}")
builtins.open = io.open = pathlib.Path.open = pathlib.Path.read_text = pathlib.Path.read_bytes = refuse
importlib.metadata.entry_points = refuse
import sfd_cli.cli
"""
    Path("params.yaml").write_text("dit: {heads: 7}\n")
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_shows_the_defaults_of_this_folder_and_the_built_in_ones_where_they_do_not_hold(elsewhere: Path) -> None:
    for text, steps in (("guide: {steps: 1234}", 1234), ("guide: {steps: many}", 400_000), ("guide: null", 400_000)):
        Path("params.yaml").write_text(text)
        code, page = invoke("train-guide", "--help")
        assert code == 0
        assert re.search(rf"--steps .*\({steps}\)", page), page


def test_train_model_guide_is_another_spelling_of_train_guide(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for module in ("train", "train_guide"):
        monkeypatch.setitem(sys.modules, f"sfd_cli.stages.{module}", SimpleNamespace(run=called.append))
    monkeypatch.setattr("sfd_cli.cli.stages.print_result", lambda result: None)
    for arguments in (["train-guide"], ["train", "--model", "guide"], ["train"]):
        assert invoke(*arguments, "--steps", "7", "--guide", "models/g")[0] == 0
    spelt, other, plain = called
    assert spelt == other
    assert (spelt.guide.steps, spelt.paths.guide) == (7, Path("models/g"))
    assert (plain.dit.steps, plain.guide.steps) == (7, 400_000)


def test_a_stage_of_another_package_is_one_entry(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outside_stage.py").write_text("def run(settings): return {'steps': settings.sample.steps}\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    STAGES.add("count-steps", Stage("outside_stage", "5. Mine", "Count the steps.", {"sample": ""}, ("samples",)))
    try:
        page = invoke("--help")[1]
        assert "5. Mine" in page
        assert "count-steps" in page
        assert invoke("count-steps", "--steps", "17") == (0, "steps  17\n")
    finally:
        STAGES.remove("count-steps")


def test_the_table_of_stages_is_in_the_order_of_the_pipeline_and_names_every_module() -> None:
    assert list(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]) == NAMES
    modules = {path.stem for path in (REPOSITORY / "sfd_cli" / "stages").glob("[a-z]*.py")}
    named = {STAGES[name].module.rpartition(".")[2]: name for name in STAGES}
    assert all(name.replace("-", "_") == module for module, name in named.items())
    assert modules - named.keys() <= {"weights_import", "weights_export", "schedule_inspect"}


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
    # What starts it, and what follows it, is not ours.
    started = [re.sub(r"^(srun|torchrun) .*?(?=sfd )", "", line.replace("-m sfd_cli ", "sfd ")) for line in lines]
    return [line.split(" && ")[0] for line in started if "sfd " in line]


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
    assert all(f"`sfd {stage}`" in text for stage in NAMES)
