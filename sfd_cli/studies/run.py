"""Running a study: all rows of one seed, then of the next, so that what an interruption leaves is paired."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from sfd_cli.config import Settings
from sfd_cli.errors import SfdError, StageFailure, UserError
from sfd_cli.machine import available_threads
from sfd_cli.messages import say
from sfd_cli.studies.page import PAGE, require_page, write_page
from sfd_cli.studies.pipeline import Job, Stopped, alone, made, make, plan, read_stages
from sfd_cli.studies.results import RESULTS, Record, digest, read_results, result_of, write_results
from sfd_cli.studies.study import STUDIES, Study, chosen, key_of, open_study, read_base, settings_of

RUNS = STUDIES / ".runs"
# DVC tells the commands that it runs that it does; these are none of them.
NOT_OURS = ("DVC_STAGE", "DVC_ROOT")


@dataclass(frozen=True)
class Run:
    """A row with one seed.

    Attributes:
        row: of the study.
        seed: of transformer and guide.
        settings: all of them.
        jobs: its stages, the last of which scores it.
    """

    row: str
    seed: int
    settings: Settings
    jobs: list[Job]

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.row}, seed {self.seed}"


@dataclass
class _Work:
    """What the threads share.

    Attributes:
        study: the study.
        folder: of its results.
        threads: of every process.
        current: digest of the settings of every run that the study has, by row and seed.
        stop: set when all are to end.
        failed: why a stage could not be made, by its folder: others that need it do not try again.
    """

    study: Study
    folder: Path
    threads: int
    environment: Mapping[str, str]
    current: Mapping[tuple[str, int], str]
    stop: Event = field(default_factory=Event)
    failed: dict[Path, SfdError] = field(default_factory=dict)


def run_study(
    name: str,
    jobs: int = 1,
    rows: list[str] | None = None,
    seeds: list[int] | None = None,
    params: Path | None = None,
) -> dict[str, Any]:
    """Run what is not scored yet of a study, record it, and write its page; the summary to print.

    Args:
        name: of the study.
        jobs: runs at the same time; they share the threads.
        rows: of these rows only.
        seeds: with these seeds only.
        params: settings to begin with instead of the study's `base`.

    Raises:
        UserError: the study, the pipeline or the settings of a row do not hold; nothing has run.
        StageFailure: a run failed; the others have ended.
    """
    study, path = open_study(name)
    folder, base, stages = STUDIES / name, read_base(study, params), read_stages()
    wanted = [
        (row, seed) for seed in chosen("--seeds", seeds, study.seeds) for row in chosen("--rows", rows, study.rows)
    ]
    every = {(row, seed): settings_of(study, row, seed, base, path) for seed in study.seeds for row in study.rows}
    runs = [Run(*key, every[key], plan(every[key], stages, RUNS)) for key in wanted]
    _require_distinct(runs)
    _require_score(study, runs[0].settings)
    require_page(folder, study)
    read_results(folder)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / ".gitignore").write_text("# Made by `sfd study run`; may be deleted.\n*\n")
    threads = max(available_threads() // jobs, 1)
    environment = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    environment |= {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    failures = _all(
        _Work(study, folder, threads, environment, {key: digest(one) for key, one in every.items()}), runs, jobs
    )
    records = read_results(folder)
    write_page(folder, study, records)
    if failures:
        told = "; ".join(f"{run}: {error.subject}" for run, error in failures.items())
        problem = f"{len(failures)} of {len(runs)} runs failed ({told})"
        raise StageFailure(f"study {name}", problem, "put it right and run the same command to go on")
    return {"runs": f"{len(records)} of {len(every)}", "results": folder / RESULTS, "page": folder / PAGE}


def _all(work: _Work, runs: list[Run], jobs: int) -> dict[str, SfdError]:
    """Make all runs, some at a time, and what failed, by name; whatever ends this one ends the others first."""
    failures: dict[str, SfdError] = {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[None], Run] = {pool.submit(_one, work, run): run for run in runs}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    run = waiting.pop(future)
                    try:
                        future.result()
                    except SfdError as error:
                        say(f"{run.name}: {error}")
                        failures[run.name] = error
        except BaseException:
            work.stop.set()
            for future in waiting:
                future.cancel()
            raise
    return failures


def _one(work: _Work, run: Run) -> None:
    """Make a run and record it, unless it is recorded."""
    recorded = {(one["row"], one["seed"]): one.get("settings") for one in read_results(work.folder)}
    if recorded.get((run.row, run.seed)) == work.current[run.row, run.seed]:
        return
    taken = {}
    for job in run.jobs:
        if work.stop.is_set():
            raise Stopped
        if job.folder in work.failed:
            raise work.failed[job.folder]
        if not (job.folder / "done.json").exists():
            say(f"{run.name}: {job.stage} ({job.folder})")
        try:
            taken[job.stage] = make(job, work.stop, work.environment)
        except SfdError as error:
            work.failed[job.folder] = error
            raise
    scores = Path(run.jobs[-1].values["paths"]["metrics"]) / "fid.json"
    learned = made(run.jobs, "schedule")
    found = result_of(work.study, run.row, run.seed, run.settings, scores, taken, work.threads, learned)
    say(f"{run.name}: {work.study.score} {found[work.study.score]:.6g}")
    with alone(RUNS / ".results.lock"):
        _record(work, found)


def _record(work: _Work, found: Record) -> None:
    """Put a row into the results, in the study's order; rows that the study no longer has with these settings go."""
    key = (found["row"], found["seed"])
    rows = {(one["row"], one["seed"]): one for one in read_results(work.folder)} | {key: found}
    kept = [rows[key] for key in work.current if key in rows and rows[key].get("settings") == work.current[key]]
    write_results(work.folder, kept)


def _require_distinct(runs: list[Run]) -> None:
    """Raises a UserError if two rows would be one run."""
    known: dict[Path, Run] = {}
    for run in runs:
        other = known.setdefault(run.jobs[-1].folder, run)
        if other is not run:
            problem = f"is the same run as {other.name}, by all that dvc.yaml lets its stages read"
            raise UserError(run.name, problem, "give the rows settings that differ")


def _require_score(study: Study, settings: Settings) -> None:
    """Raises a UserError if `fid.json` will have no such number."""
    from sfd_cli.evaluation.extractors import EXTRACTORS
    from sfd_cli.evaluation.scores import chosen, name_of

    known = [
        name_of(entry.name(settings.fid), score.key)
        for entry in EXTRACTORS.values()
        for metric in chosen(settings.fid, entry.kinds)
        for score in metric.scores
        if not score.baseline
    ]
    if key_of(study.score, settings.fid) not in known:
        raise UserError("score", f"{study.score} is not computed", f"known: {', '.join(known)}; see fid.scores")
