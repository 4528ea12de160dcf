"""Measuring why the rows of a study score as they do: the oracle and the criterion beside each of them."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from threading import Event
from typing import Any

from sfd_cli.artifacts.learned_law import read_surface, with_learned_law
from sfd_cli.config import DiT, Settings
from sfd_cli.diffusion.path_criterion import along, gap_along
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule, schedule_of
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, read_json, write_json
from sfd_cli.laws import LAW_KEYS, law_of
from sfd_cli.messages import say
from sfd_cli.studies.layers import merged, nested
from sfd_cli.studies.page import PAGE, require_page, write_page
from sfd_cli.studies.pipeline import PIPELINE, Job, made, make, plan, read_stages
from sfd_cli.studies.reasons import REASONS
from sfd_cli.studies.results import read_results
from sfd_cli.studies.run import NOT_OURS, RUNS
from sfd_cli.studies.study import STUDIES, chosen, open_study, read_base, settings_of

LEARN, ORACLE = "learn-schedule", "oracle"
INSPECT = (sys.executable, "-m", "sfd_cli", "schedule", "inspect", "--oracle")


def explain_study(
    name: str, rows: list[str] | None = None, seed: int | None = None, images: int | None = None
) -> dict[str, Any]:
    """Measure oracle and criterion of rows of a study with one seed, and write its page; the summary to print.

    What the runs lack is made first, the probe of `sfd learn-schedule` too: with the settings of the first row that
    learns a schedule, or else with those of the baseline, and with the study's `explain` over them.

    Args:
        name: of the study.
        rows: these only; None: all.
        seed: of the runs; None: the first.
        images: of the oracle, with real and with sampled semantics each; None: as many as are scored.

    Raises:
        UserError: the study or the settings of a row do not hold, or there is no stage that learns a schedule.
        StageFailure: a stage failed.
    """
    study, path = open_study(name)
    folder, base, stages = STUDIES / name, read_base(study, None), read_stages()
    seed = chosen("--seed", None if seed is None else [seed], study.seeds)[0]
    every = {row: settings_of(study, row, seed, base, path) for row in study.rows}
    wanted = chosen("--rows", rows, study.rows)
    require_page(folder, study)
    baseline = next(iter(study.partners.values()))
    learner = next((row for row, settings in every.items() if settings.schedule.learn), baseline)
    over = merged(nested(study.explain), {"schedule": {"learn": True}})
    probe = _run(_until_learned(plan(settings_of(study, learner, seed, base, path, over), stages, RUNS)))
    learned = made(probe, "schedule")
    errors, control = read_surface(learned), read_surface(learned, "control")
    seen = read_surface(learned, "trained_on")
    found: list[dict[str, Any]] = []
    inspected: dict[str, Any] = {}
    for row in wanted:
        jobs = _run(plan(every[row], stages, RUNS))
        oracle = _oracle(jobs, images)
        _run([oracle])
        inspected = read_json(Path(oracle.values["paths"]["metrics"]) / "schedule" / "inspect.json")
        followed = with_learned_law(every[row].dit, made(jobs, "schedule"))
        sampled = schedule_of(every[row].sample.with_law(law_of(followed)))
        facts = {"row": row, "seed": seed, "only_law": _differ_in_law(every[row], every[study.partners[row]])}
        facts |= {"draws": _draws(followed, schedule_of(followed))}
        found.append(facts | gap_along(errors, control, seen, sampled)._asdict() | inspected["oracle"])
    metrics = Path(probe[-1].values["paths"]["metrics"])
    of_probe = read_json(metrics / "learn_schedule" / "metrics.json") | _held_out(metrics / "probe" / "metrics.json")
    of_probe |= {"synchronous_trained_on": along(seen, AsynchronousSchedule(0.0)).mean().item()}
    write_json(folder / REASONS, {"latents": _of_latents(inspected), "probe": of_probe, "rows": found})
    write_page(folder, study, read_results(folder))
    return {"rows": len(found), "reasons": folder / REASONS, "page": folder / PAGE}


def _run(jobs: list[Job]) -> list[Job]:
    """Make these stages, one after the other."""
    environment = {key: value for key, value in os.environ.items() if key not in NOT_OURS}
    for job in jobs:
        if not (job.folder / "done.json").exists():
            say(f"{job.stage} ({job.folder})")
        make(job, Event(), environment)
    return jobs


def _until_learned(jobs: list[Job]) -> list[Job]:
    for number, job in enumerate(jobs):
        if job.stage == LEARN:
            return jobs[: number + 1]
    raise UserError(PIPELINE, f"has no stage {LEARN}", "take the dvc.yaml of a new project (`sfd init`)")


def _oracle(jobs: list[Job], images: int | None) -> Job:
    """What the models of a scored run say with real semantics, in a folder beside the run's."""
    scored = jobs[-1]
    values = scored.values
    if images is not None:
        values = values | {"sample": values.get("sample", {}) | {"num_images": images}}
    folder = scored.folder.parent / f"{ORACLE}-{fingerprint([scored.folder.name, images])[:12]}"
    # It reads what several stages made, the last of which need not read it all.
    paths = {key: str(made(jobs, key)) for key in values["paths"]} | {"metrics": str(folder / "metrics")}
    return Job(ORACLE, list(INSPECT), folder, values | {"paths": paths})


def _draws(dit: DiT, law: Schedule) -> float:
    """Share of the draws of a training that its streams learn from, the mean of both."""
    times = TrainingTimes(law, dit.objective, dit.time_mean, dit.lead_jitter, dit.leader_noise)
    return statistics.fmean(times.shares())


def _differ_in_law(one: Settings, other: Settings) -> bool:
    """Whether nothing but laws of times differs, which are all that the criterion knows of."""

    def rest(settings: Settings) -> dict[str, Any]:
        values = settings.model_dump(exclude={"schedule"})
        for section in ("dit", "sample"):
            values[section] = {key: value for key, value in values[section].items() if key not in LAW_KEYS}
        return values

    return rest(one) == rest(other)


def _of_latents(inspected: dict[str, Any]) -> dict[str, Any]:
    accuracy = inspected["accuracy"]
    kept = None if accuracy is None else {key: accuracy[key] for key in ("whole", "half_resolved", "chance")}
    return {"images": inspected["images"], "level": inspected["levels"]["0.5"], "accuracy": kept}


def _held_out(path: Path) -> dict[str, float]:
    return {key: value for key, value in read_json(path).items() if key.startswith(("validation_", "training_"))}
