"""Artifacts that are damaged, made by two at once, older than they should be or from a newer version."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from finished_project import SECTIONS, flip, settings_file
from forks import Fork, command, forked
from history import Step, outputs
from ledger import Ledger
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from surroundings import clock_that_jumps_back

from sfd_cli.artifacts.recipe import COPY, SETTINGS
from sfd_cli.artifacts.verification import verify
from sfd_cli.checksums import SUMS, checksums_of

pytestmark = pytest.mark.faults

DAY = 86_400.0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut": cut, "flipped": flip, "one bit": one_bit, "gone": Path.unlink}
# What makes the files of a folder, and who reads them next.
MAKERS = {
    "data/images": ("prepare-data", "extract-features"),
    "data/features": ("extract-features", "train-semvae"),
    "models/semvae": ("train-semvae", "encode-latents"),
    "models/texture_vae": ("train-texture-vae", "encode-latents"),
    "data/latents": ("encode-latents", "train"),
    "models/schedule": ("learn-schedule", "train-guide"),
    "models/dit": ("train", "sample"),
    "models/guide": ("train-guide", "sample"),
    "data/samples": ("sample", "fid"),
}
# Settings by which a reader has work to do.
OTHERS = {
    "extract-features": {"features.shard_size": 8},
    "train-semvae": {"semvae.seed": 1},
    "encode-latents": {"latents.seed": 1},
    "train": {"dit.seed": 1},
    "train-guide": {"guide.schedule": "learned"},
    "sample": {"sample.seed": 1},
    "fid": {},
}


@pytest.fixture
def project(end: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished project; what a test damages it must bring back."""
    folder = tmp_path / "project"
    shutil.copytree(end, folder)
    yield folder
    shutil.rmtree(folder)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_damaged_file_of_every_artifact_is_found_by_verify(project: Path, ledger: Ledger) -> None:
    """Also where the time of change is the old one; a record is made good by its copy."""
    for folder, path in [(made, path) for made in MAKERS for path in files_of(project / made)]:
        kept, held = path.read_bytes(), path.stat()
        for name, damage in DAMAGES.items():
            damage(path)
            if name != "gone":
                os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
            told, is_damaged = verify(project / folder)
            path.write_bytes(kept)
            # One record is enough, and a checkpoint of old has no checksums.
            passed = (
                path.name not in (SETTINGS, COPY)
                and (path.name, name) != (SUMS, "gone")
                and not (is_damaged and path.name in told)
            )
            ledger.note(
                "a file of an artifact cut, changed or gone, to `sfd verify`",
                wrong=[f"{path.relative_to(project)} {name}: {told}"] if passed else [],
            )


def kinds(project: Path, folder: str) -> list[Path]:
    """One file of each kind."""
    found = {re.sub(r"\d+", "", path.name): path for path in files_of(project / folder)}
    return [path for path in found.values() if path.name not in (SETTINGS, COPY)]


@pytest.mark.parametrize("folder", MAKERS)
def test_a_damaged_file_never_passes_its_stage_or_the_next_one(
    folder: str, end: Path, project: Path, tmp_path: Path, ledger: Ledger
) -> None:
    """Its stage makes it again to the same bytes or reports it; the next one refuses it by name."""
    maker, reader = MAKERS[folder]
    other = settings_file(tmp_path / "other.yaml", {"runtime.device": "cpu"} | OTHERS[reader])
    expected = outputs(end)
    for path, (name, damage) in itertools.product(kinds(project, folder), DAMAGES.items()):
        damage(path)
        before = time.monotonic()
        next_one = forked(command(project, reader, "--params", other))
        its_own = forked(command(project, maker))
        seconds = time.monotonic() - before
        what = f"{path.relative_to(project)} {name}"
        wrong = [f"{what}: {next_one}"] if next_one.code != 2 or path.name not in next_one.said else []
        found = outputs(project)
        changed = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        if its_own.code == 0:
            wrong += [f"{what}: {key} after {maker}" for key in changed]
        elif (
            its_own.code != 2 or path.name not in its_own.said or changed not in ([], [str(path.relative_to(project))])
        ):
            wrong.append(f"{what}: {its_own} {changed}")
        shutil.copy2(end / path.relative_to(project), path)
        fault = "a damaged file, to its stage and the next one"
        ledger.note(fault, wrong=wrong, seconds=seconds if its_own.code == 0 else None)


@pytest.mark.parametrize("stage", [stage for stage in SECTIONS if stage not in ("fid", "report")])
def test_two_processes_on_one_output_make_it_once(
    stage: str, history: dict[str, Step], tmp_path: Path, chance: random.Random, ledger: Ledger
) -> None:
    step = history[stage]
    with step.project(tmp_path) as project:
        first = Fork(command(project, stage))
        time.sleep(chance.uniform(0, step.seconds))
        second = Fork(command(project, stage))
        ended = [first.end(), second.end()]
        wrong = [f"{stage}: {one}" for one in ended if one.code]
        ledger.note("two processes on one output", wrong=[*wrong, *step.differences(project)], seconds=ended[1].seconds)


@pytest.mark.parametrize("stage", ["train-semvae", "train-texture-vae", "encode-latents", "train", "sample"])
def test_two_settings_at_once_are_two_outputs(
    stage: str, history: dict[str, Step], tmp_path: Path, chance: random.Random, ledger: Ledger
) -> None:
    """The second waits, and puts the first one's output aside whole."""
    step, section = history[stage], SECTIONS[stage]
    folder = next(name for name, (maker, _) in MAKERS.items() if maker == stage)
    changes = {"runtime.device": "cpu", f"{section}.seed": 1}
    other = settings_file(tmp_path / "other.yaml", changes)

    def made(place: Path) -> dict[str, str]:
        return {name: digest for name, digest in outputs(place).items() if not name.startswith("cache")}

    with step.project(tmp_path) as project:
        assert forked(command(project, stage, "--params", other)).code == 0
        expected = [{k.removeprefix(f"{folder}/"): v for k, v in step.after.items() if k.startswith(f"{folder}/")}]
        expected.append(made(project / folder))
    with step.project(tmp_path) as project:
        both = [Fork(command(project, stage)), Fork(command(project, stage, "--params", other))]
        chance.shuffle(both)
        ended = [one.end() for one in both]
        found = [made(place) for place in [project / folder, *(project / folder).parent.glob(f"{Path(folder).name}.*")]]
        wrong = [f"{stage}: {one}" for one in ended if one.code]
        wrong += [] if len(found) == 2 and all(one in found for one in expected) else [f"{stage}: {found}"]
        ledger.note("two settings at once on one output", wrong=wrong, seconds=max(one.seconds for one in ended))


@pytest.mark.parametrize("days", [-400, 400])
def test_times_of_change_in_the_past_or_the_future_change_nothing(
    days: int, end: Path, project: Path, ledger: Ledger
) -> None:
    for path in project.rglob("*"):
        os.utime(path, (time.time() + days * DAY,) * 2)
    for stage in SECTIONS:
        began = forked(command(project, stage))
        wrong = [f"{stage}: {began}"] if began.code or outputs(project) != outputs(end) else []
        fault = "a clock that jumps back, and files from the past and the future"
        ledger.note(fault, wrong=wrong, seconds=began.seconds)


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_clock_that_jumps_back_changes_nothing(
    stage: str, history: dict[str, Step], tmp_path: Path, ledger: Ledger
) -> None:
    step = history[stage]
    with step.project(tmp_path) as project:
        ended = step.run(project, partial(clock_that_jumps_back, 3, 3600.0), kill_after=step.seconds / 2)
        again = step.run(project, partial(clock_that_jumps_back, 3, 3600.0))
        ledger.note(
            "a clock that jumps back, and files from the past and the future",
            lost=[f"{ended} {again}"] if again.code else [],
            wrong=step.differences(project),
            seconds=again.seconds,
        )


def of_tomorrow(record: Path) -> None:
    """A record as a later version might write it: one more fact, and a digest over that too."""
    found = json.loads(record.read_text())
    record.write_text(json.dumps(found | {"version": "99.0", "lineage": ["x"], "seal": "0" * 32}))


def test_records_and_checkpoints_of_a_newer_version_are_refused_or_read_and_left(
    end: Path, history: dict[str, Step], project: Path, ledger: Ledger
) -> None:
    fault = "an artifact, a model or a checkpoint from a newer version"
    for folder, (maker, _) in MAKERS.items():
        for name in (SETTINGS, COPY):
            of_tomorrow(project / folder / name)
        before = outputs(project)
        ended = forked(command(project, maker))
        wrong = [f"{maker}: {ended}"] if ended.code != 2 or "99.0" not in ended.said else []
        ledger.note(fault, wrong=wrong, lost=[folder] if outputs(project) != before else [])
        for name in (SETTINGS, COPY):
            shutil.copy2(end / folder / name, project / folder / name)
    # A description with a key that nobody knows yet; its checksum is the new one.
    config = project / "models/dit/config.json"
    found = json.loads(config.read_text())
    found["config"]["mixture_of_experts"] = 4
    copy = project / "models/newer"
    copy.mkdir()
    (copy / "config.json").write_text(json.dumps(found))
    shutil.copy(project / "models/dit/ema.safetensors", copy)
    ended = forked(command(project, "sample", "--dit", "models/newer", "--samples", "data/newer"))
    wrong = [] if ended.code == 2 and "mixture_of_experts" in ended.said else [f"sample: {ended}"]
    ledger.note(fault, wrong=wrong, lost=["a folder was made"] if (project / "data/newer").exists() else [])


@pytest.mark.parametrize("change", ["another name", "a part more"])
def test_a_checkpoint_that_training_cannot_go_on_from_is_told_and_the_one_before_taken(
    change: str, history: dict[str, Step], tmp_path: Path, ledger: Ledger
) -> None:
    """Whole by its checksums: a version to come has written it in its own way."""
    step = history["train"]
    with step.project(tmp_path) as project:
        killed = Fork(command(project, "train"))
        while not (found := list(project.glob("models/.checkpoints/dit/*/step-0000008"))):
            time.sleep(0.005)
        checkpoints = found[0].parent
        os.kill(killed.process, 9)
        killed.end()
        last = checkpoints / f"step-{max(int(path.name[5:]) for path in checkpoints.glob('step-*')):07d}"
        optimizer = last / "optimizer.safetensors"
        with safe_open(optimizer, "pt") as file:
            said = json.loads(file.metadata()["state"])
        tensors = load_file(optimizer)
        if change == "another name":
            said["iteration"] = said.pop("step")
        else:
            said |= {"format": 2, "loaders": [{"position": 3}]}
        save_file(tensors, optimizer, {"state": json.dumps(said)})
        names = [path.name for path in last.iterdir() if path.name != SUMS]
        (last / SUMS).write_text(json.dumps(checksums_of(last, names)))
        again = step.run(project)
        ledger.note(
            "an artifact, a model or a checkpoint from a newer version",
            lost=[again.said] if again.code else [],
            wrong=step.differences(project),
            seconds=again.seconds,
        )
