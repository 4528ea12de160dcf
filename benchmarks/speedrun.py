"""Repeats rows of docs/speedrun.md: the demo with a row's settings, through its real stages, scored and timed.

Rows are in `speedrun.yaml`. What a stage makes lies in a folder of `--work` that is named by the stage and a digest of
the settings that dvc.yaml gives it and of what it reads: rows and seeds that agree so far share it, a finished stage is
not run again, and a killed one goes on. After a change of the code use another folder. A seed is that of transformer
and guide; the samples keep theirs. Two commands may share a folder at the same time, but not where seconds count.

    python benchmarks/speedrun.py start --seeds 0 1 2 --work /tmp/speedrun
    python benchmarks/speedrun.py --table          # docs/speedrun.md and docs/speedrun.png from the results
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import colours
import harness
import oracles
import torch
import yaml
from pydantic import Field, ValidationError
from speedrun_table import write_table

from sfd_cli.config import Section, Settings, first_problem, validate_settings
from sfd_cli.errors import SfdError, UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.machine import commit
from sfd_cli.studies import pipeline
from sfd_cli.studies.layers import merged, nested
from sfd_cli.studies.pipeline import Job, alone

REPOSITORY = Path(__file__).parents[1]
TABLE = Path(__file__).parent / "speedrun.yaml"
RESULTS = "speedrun.json"
# Scores that a row may ask for under `also`: each takes settings whose `paths` are the row's finished artifacts.
ALSO: dict[str, Callable[[Settings], float]] = {
    "colours": colours.of_settings,
    "reconstructions": oracles.reconstructions,
    "real semantics": oracles.real_semantics,
}
WITHOUT_GUIDANCE = {"sample": {"guidance": "none"}, "fid": {"scores": ["fd"], "baselines": False}}


class Row(Section):
    """A row of the table: an idea, what it was thought to do, and the settings that try it."""

    prediction: str
    base: str | None = None  # the row it differs from; none: from `start`, the settings at the top of the file
    set: dict[str, Any] = Field({})  # over the settings of `base`; nested, or with dots: dit.steps
    also: list[str] = Field([])  # of ALSO
    kept: bool | None = None
    remark: str = ""


def read_rows(path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """The settings that all rows begin with, and the rows by name.

    Raises:
        UserError: something is not as it should be; names the row.
    """
    content = yaml.safe_load(path.read_text())
    rows = {}
    for name, values in content["rows"].items():
        try:
            rows[name] = Row.model_validate(values)
        except ValidationError as error:
            found = first_problem(error, Row)
            raise UserError(f"{path.name}: {name}.{found.subject}", found.problem, found.remedy) from None
        known(f"{path.name}: {name}.also", rows[name].also, ALSO)
    return content["start"], rows


def known(subject: str, names: Iterable[str], among: Iterable[str]) -> None:
    """Raises a UserError for the first of the names that is not among them."""
    for name in names:
        if name not in among:
            raise UserError(subject, f"there is no {name!r}", f"known: {', '.join(among)}")


def settings_of(name: str, start: dict[str, Any], rows: dict[str, Row], seed: int) -> Settings:
    """The settings of a row with this seed; those of its `base` come first.

    Raises:
        UserError: a row is missing or its own base, or its settings do not hold.
    """
    chain: list[str] = []
    current: str | None = name
    while current is not None:
        known("row", [current], rows)
        if current in chain:
            raise UserError(f"row {current}", "is its own base", "name another")
        chain.append(current)
        current = rows[current].base
    values = start
    for one in reversed(chain):
        values = merged(values, nested(rows[one].set))
    seeds = {section: {"seed": seed} for section in ("dit", "guide") if values.get(section, {}) is not None}
    return validate_settings(merged(values, seeds), f"row {name}")


def plan(settings: Settings, work: Path) -> dict[str, Job]:
    """The stages of dvc.yaml up to the scores, by name, in their order, each in the folder of its digest."""
    return {job.stage: job for job in pipeline.plan(settings, pipeline.read_stages(REPOSITORY / "dvc.yaml"), work)}


def make(job: Job) -> dict[str, Any]:
    """Run a stage unless it is finished; what it took: seconds, CPU seconds, the load before, whether it was resumed.

    Raises:
        StageFailure: it ended badly; its log is in its folder.
    """
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return pipeline.make(job, threading.Event(), os.environ | {"PYTHONPATH": path})


def run_row(name: str, row: Row, settings: Settings, work: Path) -> dict[str, Any]:
    """Run all stages of a row with one seed, and what is recorded of it."""
    jobs, taken = plan(settings, work), {}
    for stage, job in jobs.items():
        print(f"{name}, seed {settings.dit.seed}: {stage} ({job.folder.name})", flush=True)
        taken[stage] = make(job)
    plain = plan(validate_settings(merged(settings.model_dump(), WITHOUT_GUIDANCE), f"row {name}"), work)
    for job in plain.values():
        make(job)
    scores = read_json(jobs["fid"].folder / "metrics" / "fid.json")
    key = f"fd_{settings.fid.encoder.short_name}"
    texture = read_json(jobs["train-texture-vae"].folder / "metrics" / "texture_vae.json")
    return {
        "row": name,
        "seed": settings.dit.seed,
        "digest": jobs["fid"].folder.name,
        "fd": scores[key],
        "halves": scores[f"{key}_halves"],
        "without guidance": read_json(plain["fid"].folder / "metrics" / "fid.json")[key],
        "psnr": texture["psnr"],
        "also": {other: also(other, jobs) for other in row.also},
        "seconds": round(sum(one["seconds"] for one in taken.values()), 1),
        "stages": taken,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": harness.machine(torch.device("cpu")),
    }


def also(name: str, jobs: dict[str, Job]) -> float:
    """A further score of a finished row, computed once."""
    last = jobs["fid"]
    file = last.folder / f"{name}.json"
    if not file.exists():
        named = [item for job in jobs.values() for item in job.values["paths"].items()]
        paths = {key: path for key, path in named if Path(path).exists()}
        write_json(file, ALSO[name](validate_settings(last.values | {"paths": paths}, str(last.folder))))
    return float(read_json(file))


def record(found: dict[str, Any], path: Path) -> None:
    """Put what was found into the results; what the same row and seed had before goes, unless it is the same."""
    records = read_json(path) if path.exists() else []
    apart = {key: found[key] for key in ("date", "commit", "machine")}
    before = [old for old in records if (old["row"], old["seed"]) == (found["row"], found["seed"])]
    if [old | apart for old in before] != [found]:  # or else it was gathered again from the same folder
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [old for old in records if old not in before] + [found])


def main() -> None:
    """Run rows, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of speedrun.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds [0]")
    parser.add_argument("--work", type=Path, help="folder for artifacts; needed to run rows")
    parser.add_argument("--table", action="store_true", help="write docs/speedrun.md and .png from the results")
    parser.add_argument("--file", type=Path, default=TABLE, help="the rows [benchmarks/speedrun.yaml]")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of speedrun.json [results/]")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs", help="folder of speedrun.md [docs/]")
    options = parser.parse_args()
    if options.rows and options.work is None:
        parser.error("--work: name a folder to run rows in")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        start, rows = read_rows(options.file)
        known("row", options.rows, rows)
        for name in options.rows:
            for seed in options.seeds:
                work = options.work.resolve()
                found = run_row(name, rows[name], settings_of(name, start, rows, seed), work)
                with alone(work / ".results.lock"):
                    record(found, options.out / RESULTS)
        if options.table:
            results = options.out / RESULTS
            write_table(rows, read_json(results) if results.exists() else [], options.docs)
    except SfdError as error:
        sys.exit(f"speedrun: error: {error}")


if __name__ == "__main__":
    main()
