"""Studies that run: what they share, in which order, how they go on, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refusal, require_refusal
from study_project import calls, quick, quick_project, real_project, write_pipeline, write_study

from sfd_cli.config import load_settings
from sfd_cli.errors import StageFailure
from sfd_cli.stages import train
from sfd_cli.studies.pipeline import Job, Stopped, make, plan, read_stages
from sfd_cli.studies.run import RUNS, run_study

RESULTS = Path("studies/offset/results.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return quick_project(tmp_path)


def results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())


def scores() -> dict[tuple[str, int], float]:
    return {(one["row"], one["seed"]): one["fd_dinov2"] for one in results()}


def planned(**sections: Any) -> dict[str, str]:
    """Folder of every stage for these settings."""
    Path("given.yaml").write_text(yaml.safe_dump(sections))
    return {job.stage: job.folder.name for job in plan(load_settings(Path("given.yaml")), read_stages(), RUNS)}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {stage for stage in one if one[stage] != other[stage]}


def test_all_rows_of_a_seed_come_before_the_next_seed_and_share_what_they_can(here: Path) -> None:
    summary = run_study("offset")
    assert summary["runs"] == "6 of 6"
    ran = calls()
    assert ran[0].startswith("prepare-data")
    assert ran[1:] == [
        f"{stage} {offset} {seed}"
        for seed in (0, 1)
        for offset in (0.0, 0.25, 1.0)
        for stage in ("train", "sample", "fid")
    ]
    assert scores()["some", 1] == 100 + 10 + 0.25 + 4


def test_a_row_that_differs_in_sampling_only_is_not_trained_again(here: Path) -> None:
    write_study(here, vary={"short": {}, "long": {"sample.steps": 8}}, seeds=[3])
    run_study("offset")
    assert [call.split()[0] for call in calls()] == ["prepare-data", "train", "sample", "fid", "sample", "fid"]
    assert scores() == {("short", 3): 134.3, ("long", 3): 138.3}


def test_a_result_says_all_that_a_reader_needs(here: Path) -> None:
    run_study("offset")
    first, second, *_ = results()
    assert (first["schedule"], first["sampled"]) == (0, 0)
    expected = {
        "dataset": "dots",
        "row": "some",
        "seed": 0,
        "objective": "paper",
        "learned": False,
        "schedule": {"schedule": "offset", "delta_t": 0.25},
        "sampled": {"schedule": "offset", "delta_t": 0.25},
        "repa": "stored",
        "steps": 20,
        "fd_dinov2": 104.25,
        "fd_dinov2_se": 0.5,
        "dit.delta_t": 0.25,
    }
    assert expected.items() <= second.items()
    assert second["seconds"] > second["cpu_seconds"] / os.cpu_count() > 0
    assert {"processor", "instructions", "torch", "threads"} == second["machine"].keys()
    assert {"date", "version", "commit", "settings"} <= second.keys()


LEARNED: dict[str, Any] = {"dit.schedule": "learned", "schedule.learn": True}


def test_a_learned_law_is_recorded_by_what_was_found(here: Path) -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    found = {"params": ["schedule"], "outs": ["models/schedule"]}
    stages["train"]["deps"] = ["data/images", "models/schedule"]
    write_pipeline(here, {"learn-schedule": quick(here, "learn-schedule") | found} | stages)
    rows = {
        "given": {"dit.schedule": "lead", "dit.lead": 0.5, "schedule.learn": False},
        "learned": LEARNED | {"schedule.probe.lead": 0.75},
        "learned, sampled otherwise": LEARNED | {"schedule.probe.lead": 0.75, "sample.delta_t": 0.3},
        "no preference": LEARNED | {"schedule.probe.lead": 0.0},
    }
    write_study(here, vary={name.replace(",", ""): row for name, row in rows.items()}, seeds=[0])
    run_study("offset")
    recorded = {one["row"]: (one["learned"], one["schedule"], one["sampled"]) for one in results()}
    law = {"schedule": "curve", "lead": 0.75, "lead_slope": -1.5}
    lead = {"schedule": "lead", "lead": 0.5}
    assert recorded == {
        "given": (False, lead, lead),
        "learned": (True, law, law),
        "learned sampled otherwise": (True, law, {"schedule": "offset", "delta_t": 0.3}),
        "no preference": (True, 0, 0),
    }
    assert {one["dit.schedule"] for one in results()} == {"lead", "learned"}


def test_what_is_finished_is_not_touched_and_rows_and_seeds_can_be_chosen(here: Path) -> None:
    run_study("offset", rows=["some", "none"], seeds=[1])
    assert list(scores()) == [("none", 1), ("some", 1)]
    run_study("offset", seeds=[1])
    assert calls()[-3:] == ["train 1.0 1", "sample 1.0 1", "fid 1.0 1"]
    before = RESULTS.read_bytes()
    run_study("offset", seeds=[1])
    assert calls() == []
    assert RESULTS.read_bytes() == before
    for folder in RUNS.iterdir():  # the results are enough
        if folder.is_dir():
            (folder / "done.json").unlink()
    run_study("offset", seeds=[1])
    assert calls() == []


def test_results_of_settings_that_a_row_no_longer_has_are_made_again(here: Path) -> None:
    run_study("offset", seeds=[0])
    calls()
    write_study(here, vary={"none": {"dit.delta_t": 0.0}, "some": {"dit.delta_t": 0.5}})
    run_study("offset", seeds=[0])
    assert calls() == ["train 0.5 0", "sample 0.5 0", "fid 0.5 0"]
    assert scores() == {("none", 0): 104.0, ("some", 0): 104.5}
    write_study(here)
    run_study("offset", seeds=[0])
    assert calls() == [], "what was made before is found again"
    assert scores() == {("none", 0): 104.0, ("some", 0): 104.25, ("much", 0): 105.0}


def test_several_at_once_wait_for_what_they_share_and_record_the_same(here: Path) -> None:
    run_study("offset", jobs=3)
    ran = calls()
    assert len(ran) == len(set(ran)) == 1 + 6 * 3
    assert [*scores()] == [(row, seed) for seed in (0, 1) for row in ("none", "some", "much")]
    assert {one["machine"]["threads"] for one in results()} == {1}


def test_a_failed_run_is_told_and_the_others_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "none": {},
        "bad": {"dit.steps": 13},
        "worse": {"dit.steps": 13, "sample.steps": 8},
        "good": {"dit.steps": 14},
    }
    write_study(here, vary=rows, seeds=[0])
    with pytest.raises(StageFailure) as caught:
        run_study("offset")
    (log,) = [path for path in RUNS.glob("train-*/log.txt") if "13" in path.read_text()]
    require_refusal(caught.value, "study offset", "2 of 4", "bad, seed 0", "worse, seed 0", log)
    said = capsys.readouterr().err
    assert f"bad, seed 0: {log}: train ended with 1: dit.steps: cannot count to 13" in said
    assert [call.split()[0] for call in calls()].count("train") == 3, "the same stage is not tried twice"
    assert list(scores()) == [("none", 0), ("good", 0)]
    assert "Not run yet: `bad`, `worse`" in Path("studies/offset/README.md").read_text()


def test_an_interruption_ends_the_stages_that_run(here: Path) -> None:
    write_study(here, vary={"endless": {"dit.steps": 600}, "too": {"dit.steps": 600, "dit.delta_t": 0.0}}, seeds=[0])

    def interrupt() -> None:
        while len(Path("calls.txt").read_text().splitlines() if Path("calls.txt").exists() else []) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_study("offset", jobs=2)
    assert not RESULTS.exists()
    assert not list(RUNS.glob("train-*/done.json"))


def test_a_stage_that_is_stopped_ends_and_is_not_done(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    job = Job("train", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "train-0", {})
    with pytest.raises(Stopped):
        make(job, stop, os.environ)
    assert not (job.folder / "done.json").exists()


def test_folders_are_named_by_all_that_decides_what_is_in_them(here: Path) -> None:
    plain = planned()
    assert list(plain) == ["prepare-data", "train", "sample", "fid"], "what does not lead to the scores is left out"
    assert differing(plain, planned()) == set()
    assert differing(plain, planned(fid={"batch_size": 8})) == {"fid"}
    assert differing(plain, planned(dit={"steps": 7})) == {"train", "sample", "fid"}
    assert differing(plain, planned(dit={"steps": 400_000}, report={"title": "x"})) == set(), "as it is by default"
    assert differing(plain, planned(foreign={"heads": 4})) == set(plain), "a section that dvc.yaml does not list"
    assert differing(plain, planned(paths={"texture_vae": "elsewhere"})) == set(plain)
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    stages["train"]["deps"].append("words.txt")
    write_pipeline(here, stages)
    with refusal("words.txt"):
        planned()
    Path("words.txt").write_text("one")
    one = planned()
    Path("words.txt").write_text("two")
    assert differing(one, planned()) == {"train", "sample", "fid"}


def test_a_stage_finds_what_dvc_yaml_says_that_it_reads_and_nothing_else(here: Path) -> None:
    Path("given.yaml").write_text(yaml.safe_dump({"paths": {"texture_vae": "elsewhere"}}))
    jobs = {job.stage: job for job in plan(load_settings(Path("given.yaml")), read_stages(), RUNS)}
    train, sample = jobs["train"], jobs["sample"]
    assert train.values["paths"]["images"] == str(jobs["prepare-data"].folder / "data/images")
    assert train.values["paths"]["dit"] == sample.values["paths"]["dit"] == str(train.folder / "models/dit")
    assert train.values["paths"]["texture_vae"] == "elsewhere"
    assert sample.values["paths"]["images"] == str(sample.folder / "data/images"), "not that of the project"
    assert sample.values["paths"]["metrics"] == str(sample.folder / "metrics")


def test_what_cannot_be_run_is_refused_before_anything_is(here: Path) -> None:
    with refusal("--rows", "soma", "some"):
        run_study("offset", rows=["none", "soma"])
    with refusal("--seeds", 5):
        run_study("offset", seeds=[5])
    write_study(here, score="fd_dino")
    with refusal("score", "fd_dino", "fd_dinov2"):
        run_study("offset")
    write_study(here, vary={"none": {}, "same": {"report.title": "another"}})
    with refusal("same, seed 0", "none, seed 0"):
        run_study("offset")
    write_study(here, vary={"none": {}, "wrong": {"dit.delta_t": 7}})
    with refusal("dit.delta_t", "wrong"):
        run_study("offset", rows=["none"])
    write_study(here)
    Path("studies/offset/README.md").write_text("no marks")
    with refusal("studies/offset/README.md"):
        run_study("offset")
    Path("studies/offset/README.md").unlink()
    RESULTS.write_text("{}")
    with refusal(RESULTS):
        run_study("offset")
    assert calls() == []
    assert not RUNS.exists()


@pytest.mark.parametrize(
    ("pipeline", "named"),
    [
        (None, "here"),
        ("stages: [", "YAML"),
        ("plots: []", "stages"),
        ("stages: {train: {cmd: sfd train, outs: [models/dit]}}", "metrics/fid.json"),
        ("stages: {fid: {cmd: make fid, metrics: [metrics/fid.json]}}", "make fid"),
        (
            "stages: {a: {cmd: sfd a, outs: [x]}, fid: {cmd: sfd fid, deps: [x], metrics: [metrics/fid.json]}}",
            "fid reads x",
        ),
    ],
)
def test_a_pipeline_that_cannot_be_run_is_refused(here: Path, pipeline: str | None, named: str) -> None:
    Path("dvc.yaml").unlink()
    if pipeline is not None:
        Path("dvc.yaml").write_text(pipeline)
    with refusal("dvc.yaml", named):
        run_study("offset")


def test_a_study_killed_while_it_trains_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is real; sampling and scores are not. The second row differs in sampling alone."""
    monkeypatch.chdir(tmp_path)
    settings = real_project(Path(), vary={"short": {}, "long": {"sample.steps": 9}}, set={"dit.steps": 300}, seeds=[5])
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    write_pipeline(Path(), stages | {name: stages[name] | quick(Path(), name) for name in ("sample", "fid")})
    process = subprocess.Popen(
        [sys.executable, "-m", "sfd_cli", "study", "run", "offset"], start_new_session=True, stderr=subprocess.PIPE
    )
    while not (found := list(RUNS.glob("train-*/models/.checkpoints/dit/*/step-0000010"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folder = found[0].parents[4]
    assert not json.loads((folder / "models/dit/settings.json").read_text())["complete"]

    run_study("offset")
    assert [call.split()[0] for call in calls()] == ["sample", "fid", "sample", "fid"]
    assert json.loads((folder / "done.json").read_text())["resumed"]
    assert [one["seconds"] for one in results()] == [None, None]
    unbroken = settings.model_copy(update={"dit": settings.dit.model_copy(update={"steps": 300, "seed": 5})})
    train.run(unbroken)
    made, expected = folder / "models" / "dit", settings.paths.dit
    for file in ("model.safetensors", "config.json"):
        assert (made / file).read_bytes() == (expected / file).read_bytes(), file


@pytest.mark.slow
def test_real_stages_are_shared_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    real_project(Path(), vary={"short": {}, "long": {"sample.steps": 9}}, set={"dit.steps": 20}, seeds=[0])
    run_study("offset")
    assert len(list(RUNS.glob("train-*"))) == 1
    assert len(list(RUNS.glob("sample-*"))) == 2
    short, long = results()
    assert short["fd_dinov2"] > 0
    assert short["fd_dinov2"] != long["fd_dinov2"]
    assert short["seconds"] > long["cpu_seconds"] / (os.cpu_count() or 1) > 0
