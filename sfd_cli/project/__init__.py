"""A new project in a folder: what `dvc repro` needs, and nothing that was there touched."""

from __future__ import annotations

import logging
import shlex
import shutil
from pathlib import Path

from sfd_cli.errors import UserError
from sfd_cli.git import git
from sfd_cli.presets import fill_in, list_presets

PIPELINE = Path(__file__).parent / "pipeline.yaml"
"""The dvc.yaml of every project, this package's own checkout among them."""
WRITTEN = ("dvc.yaml", "params.yaml", ".dvc", ".dvcignore", ".gitignore")
# A lock file alone is what is left of somebody's project.
TELLING = (*WRITTEN, "dvc.lock")
IGNORED = """\
# Artifacts: made by the stages, kept in DVC's cache.
/data/
/models/
/reports
# What depends on the clock, locks, and pages that DVC draws.
/metrics/timings/
/metrics/.*
/dvc_plots/
.venv/
"""


def start_project(folder: Path, preset: str, images: Path | None = None) -> list[str]:
    """Make `folder` a project: git and DVC where they are not, dvc.yaml, params.yaml, .gitignore and .dvcignore.

    Args:
        folder: made if it is not there; inside of a git repository that one is used.
        preset: name of the preset that becomes params.yaml.
        images: the ImageFolder to learn from instead of the preset's images.

    Returns:
        What to tell the user, a line each: what was made, and what to type next.

    Raises:
        UserError: something of a project is there already, the preset or the images are not, or git refuses. Nothing
            has been written then.
    """
    params = fill_in(preset, images)
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is not a folder", "give another path")
    there = [name for name in TELLING if (folder / name).exists()]
    if there:
        raise UserError(folder, f"has {', '.join(there)} already, and nothing is overwritten", "give another folder")
    if shutil.which("git") is None:
        raise UserError("git", "is not installed, and DVC works inside of a git repository", "install it")
    top = _repository(folder)
    if top is not None and git(folder, "check-ignore", "--quiet", str(folder.resolve() / ".dvc")) is not None:
        raise UserError(folder, f"is ignored by the git repository {top}", "give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if top is None and git(folder, "init", "--quiet") is None:
        raise UserError(folder, "git cannot begin a repository there", "look at what `git init` says")
    _begin_dvc(folder, inside=top not in (None, folder.resolve()))
    shutil.copyfile(PIPELINE, folder / "dvc.yaml")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    (folder / ".gitignore").write_text(IGNORED + _own_images(folder, images), encoding="utf-8")
    return _told(folder, preset, images)


def _begin_dvc(folder: Path, inside: bool) -> None:
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it says what this command says better
    with Repo.init(str(folder), subdir=inside) as repo, repo.config.edit("repo") as config:
        config["core"] |= {"analytics": False, "check_update": False}
        # Links where the file system has them, or everything lies on the disk twice. Stages never write through one.
        config["cache"] |= {"type": ["reflink", "hardlink", "copy"]}


def _own_images(folder: Path, images: Path | None) -> str:
    """The line that keeps images inside of the project out of git; they are not the project's to keep."""
    if images is None or folder.resolve() not in images.resolve().parents:
        return ""
    return f"# The images to learn from.\n/{images.resolve().relative_to(folder.resolve()).as_posix()}\n"


def _told(folder: Path, preset: str, images: Path | None) -> list[str]:
    source = f", for the images in {images.resolve()}" if images is not None else ""
    steps = ["git add --all && git commit --message 'A new project'", "dvc repro", "sfd show"]
    if folder.resolve() != Path.cwd():
        steps.insert(0, f"cd {shlex.quote(str(folder))}")
    return [
        f"{folder.resolve()} is a project now, with the preset {preset}{source}",
        f"  {list_presets()[preset]}",
        "next:",
        *(f"  {step}" for step in steps),
    ]


def _repository(folder: Path) -> Path | None:
    """The top of the git repository that the folder is in, or would be."""
    said = git(folder, "rev-parse", "--show-toplevel")
    return Path(said.strip()) if said else None
