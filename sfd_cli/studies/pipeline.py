"""The pipeline of dvc.yaml for one run: every stage in a folder that is named by all that decides what it makes.

Runs whose settings agree up to a stage share that stage's folder, a finished stage is not run again, and a killed one
goes on from its checkpoints. DVC itself cannot do both: its run cache, which brings back what the same command made of
the same inputs elsewhere, leaves out stages whose outputs persist (`dvc.stage.cache._can_hash`, DVC 3.67), and stages
whose outputs do not persist lose their checkpoints when they are started again. So dvc.yaml says which stages there
are, what they read and which settings count, and the folders below take the place of its cache.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import yaml

from sfd_cli.config import Settings
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import fingerprint, read_json, read_yaml, sha256_file, write_json
from sfd_cli.locks import take
from sfd_cli.studies.layers import lookup

PIPELINE = Path("dvc.yaml")
# Sections that stages may read although dvc.yaml does not list them, for they are seldom given.
UNLISTED = ("foreign",)
PATIENCE_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """One stage of one run.

    Attributes:
        stage: its name in dvc.yaml.
        command: the words of its command, without the settings.
        folder: what it makes lies there, at the paths of dvc.yaml, beside `params.yaml`, `log.txt` and `done.json`.
        values: its params.yaml.
    """

    stage: str
    command: list[str]
    folder: Path
    values: dict[str, Any]


class Stopped(Exception):
    """The work was told to end; nothing is lost."""


def read_stages(path: Path = PIPELINE) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml, by name.

    Raises:
        UserError: the file is missing, or is no pipeline.
    """
    if not path.exists():
        raise UserError(path, "is not here, so there is no pipeline to run", "`sfd init` makes a project")
    found = read_yaml(path)
    stages = found.get("stages") if isinstance(found, dict) else None
    if not isinstance(stages, dict):
        raise UserError(path, "has no stages", "take the dvc.yaml of a new project (`sfd init`)")
    return stages


def plan(settings: Settings, stages: Mapping[str, Any], runs: Path) -> list[Job]:
    """The stages that lead to the scores, each before those that read it, and each in its folder below `runs`.

    Raises:
        UserError: dvc.yaml makes no scores, or has a stage that reads what `paths` cannot name.
    """
    keys = {str(path): key for key, path in settings.paths.model_dump().items()}
    makers = {out: name for name, stage in stages.items() for out in _names(stage, "outs", "metrics")}
    scores = str(settings.paths.metrics / "fid.json")
    if scores not in makers:
        raise UserError(PIPELINE, f"has no stage that makes {scores}", "add it to the metrics of the stage fid")
    given = {key: path for path, key in keys.items() if path not in makers and key not in ("metrics", "reports")}
    # Only what differs from the defaults, so that settings that are new in the package change no folder.
    values = settings.model_dump(mode="json", exclude_defaults=True)
    elsewhere = {key: path for key, path in values.pop("paths", {}).items() if key in given}
    unlisted = {section: values[section] for section in UNLISTED if section in values}
    everywhere = unlisted | ({"paths": elsewhere} if elsewhere else {})
    jobs: dict[str, Job] = {}

    def add(name: str) -> Job:
        if name not in jobs:
            stage = stages[name]
            made = {dep: add(makers[dep]).folder for dep in _names(stage, "deps") if dep in makers}
            outside = {dep: _digest(Path(dep)) for dep in _names(stage, "deps") if dep not in made}
            read = {"params": {key: lookup(values, key, "default") for key in _names(stage, "params")}}
            read |= {"deps": {dep: folder.name for dep, folder in made.items()} | outside}
            folder = runs / f"{name}-{fingerprint(read | everywhere)[:12]}"
            paths = given | {"metrics": str(folder / settings.paths.metrics), "reports": str(folder / "reports")}
            if unknown := [dep for dep in made if dep not in keys]:
                raise UserError(
                    PIPELINE, f"{name} reads {unknown[0]}, which is none of `paths`", "give it another path"
                )
            # What it does not list it shall not find either, least of all the project's own.
            paths |= {keys[out]: str(made.get(out, folder) / out) for out in makers if out in keys}
            jobs[name] = Job(name, _command(name, stage), folder, values | {"paths": paths})
        return jobs[name]

    add(makers[scores])
    return list(jobs.values())


def make(job: Job, stop: Event, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a stage unless it is finished, and what that took.

    Two that want the same stage do not run it twice: the second waits for the first.

    Args:
        job: the stage.
        stop: when it is set the stage is told to end, which lets it write a checkpoint.
        environment: of its process.

    Returns:
        `seconds`, `cpu` (seconds on all cores), `load` of the machine before, and `resumed`: whether it went on with
        what another start had left, in which case seconds are those of the last start.

    Raises:
        StageFailure: it ended badly; its log is in its folder.
        Stopped: `stop` was set.
    """
    with alone(job.folder / ".lock", stop):
        done, log, params = (job.folder / file for file in ("done.json", "log.txt", "params.yaml"))
        if done.exists():
            return dict(read_json(done))
        resumed, load = params.exists(), os.getloadavg()[0]
        params.write_text(yaml.safe_dump(job.values, sort_keys=False))
        started = time.monotonic()
        with open(log, "a") as file:
            command = [*job.command, "--params", str(params)]
            process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            code, used = _wait(process, stop)
        if code and stop.is_set():
            raise Stopped
        if code:
            problem = f"{job.stage} ended with {code}: {_last_words(log)}"
            raise StageFailure(log, problem, "put it right and run the same command to go on")
        taken = {"seconds": round(time.monotonic() - started, 2), "cpu": round(used, 2)}
        write_json(done, taken | {"load": round(load, 2), "resumed": resumed})
        return dict(read_json(done))


def made(jobs: Iterable[Job], key: str) -> Path:
    """Where the artifact `paths.KEY` of a finished run lies: with the job that made it, or where it was given."""
    places = [Path(job.values["paths"][key]) for job in jobs]
    return next((place for place in places if place.exists()), places[-1])


@contextlib.contextmanager
def alone(path: Path, stop: Event | None = None) -> Iterator[None]:
    """Holds the lock at `path`, for which others wait.

    Raises:
        Stopped: `stop` was set while another held it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        while True:
            if take(lock, wait=False):
                break
            time.sleep(PATIENCE_SECONDS)
            if stop is not None and stop.is_set():
                raise Stopped
        yield


def _wait(process: subprocess.Popen[bytes], stop: Event) -> tuple[int, float]:
    """Exit code of a process and the CPU seconds that it and its own took; it is told to end when `stop` is set."""
    told = False
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_utime + usage.ru_stime
            if told:
                time.sleep(PATIENCE_SECONDS)
            elif stop.wait(PATIENCE_SECONDS):
                process.terminate()
                told = True
    except BaseException:  # what ends this program ends the stage, which writes a checkpoint first
        process.terminate()
        process.wait()
        raise


def _last_words(log: Path) -> str:
    """What a stage said in the end: its error, or the last of its log."""
    text = log.read_text(errors="replace")
    _, error, words = text.rpartition("sfd: error: ")
    return " ".join((words if error else text)[-400:].split())


def _command(name: str, stage: Any) -> list[str]:
    command = stage.get("cmd") if isinstance(stage, dict) else None
    words = shlex.split(command) if isinstance(command, str) else []
    if words[:1] == ["sfd"]:
        return [sys.executable, "-m", "sfd_cli", *words[1:]]
    if "sfd_cli" in words:
        return words
    problem = f"{name} has the command {command!r}, which is no command of sfd"
    raise UserError(PIPELINE, problem, "a study runs stages such as `sfd train` or `torchrun -m sfd_cli train`")


def _names(stage: Mapping[str, Any], *keys: str) -> list[str]:
    """What dvc.yaml lists under these keys, without how it is kept."""
    entries = [entry for key in keys for entry in stage.get(key, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _digest(path: Path) -> str:
    """What a file or folder outside of the pipeline holds: a file's bytes, or names, sizes and times in a folder.

    Raises:
        UserError: it is missing.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise UserError(path, "is read by a stage of dvc.yaml, but is not there", "check the path")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint([[str(file), (found := file.stat()).st_size, found.st_mtime_ns] for file in files])
