"""What a stage refuses touches no file, for all checks come first; what is damaged is made again, or reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import done, files_below, refusal_of, sfd
from finished_project import SECTIONS, Changes, flip, settings_file
from pipeline_project import artifacts, create
from refusals import require_refusal

from sfd_cli.artifacts.recipe import Record
from sfd_cli.errors import StageFailure
from sfd_cli.tables import STAGES

TRAINED = {"train-semvae": "semvae", "train-texture-vae": "texture_vae", "train": "dit", "train-guide": "guide"}

BAD_WEIGHTS: dict[str, Changes] = {
    "extract-features": {"encoder.weights": "evil.pt"},
    "train-semvae": {"semvae.weights": "evil.pt"},
    "train-texture-vae": {"texture_vae.weights": "evil.pt"},
    "encode-latents": {"paths.texture_vae": "evil.pt", "latents.seed": 1},
    "learn-schedule": {"schedule.probe.init": "evil.pt"},
    "train": {"dit.init": "evil.pt"},
    "train-guide": {"guide.init": "evil.pt", "guide.statistics": "own"},
    "sample": {"paths.dit": "evil.pt"},
    "fid": {"fid.encoder.weights": "evil.pt"},
}
ABSURD = 10**12
HUGE_BATCHES: dict[str, Changes] = {
    **{stage: {f"{section}.batch_size": ABSURD} for stage, section in TRAINED.items()},
    "learn-schedule": {"schedule.probe.batch_size": ABSURD},
    "sample": {"sample.batch_size": ABSURD, "sample.seed": 1},
}
# Where each stage writes, if it is told to write elsewhere; `metrics` hold what several stages add to.
OUTPUTS = {
    **TRAINED,
    "prepare-data": "images",
    "extract-features": "features",
    "encode-latents": "latents",
    "learn-schedule": "probe",
    "sample": "samples",
    "report": "reports",
}


# One each; tests/test_config.py tries all numbers.
INFINITE: dict[str, Changes] = {
    **{stage: {f"{section}.learning_rate": float("inf")} for stage, section in TRAINED.items()},
    "encode-latents": {"latents.texture_gain": float("inf")},
    "learn-schedule": {"schedule.probe.learning_rate": float("inf")},
    "sample": {"sample.scale": float("inf")},
}
BEYOND_64_BITS: dict[str, Changes] = {
    stage: {
        f"{section}.{'grid_images' if stage == 'report' else 'size' if stage == 'prepare-data' else 'batch_size'}": 10
        ** 30
    }
    for stage, section in SECTIONS.items()
    if stage != "learn-schedule"
}


CASES = [
    *(
        (stage, changes)
        for kind in (BAD_WEIGHTS, HUGE_BATCHES, INFINITE, BEYOND_64_BITS)
        for stage, changes in kind.items()
    ),
    *((stage, {f"paths.{name}": "PHOTOS"}) for stage, name in OUTPUTS.items()),
]


@pytest.fixture(scope="module")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, run once; beside them somebody's photographs, and weights of something else."""
    folder = create(tmp_path_factory.mktemp("refusals") / "project")
    settings_file(folder.with_name("made.yaml"), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in SECTIONS:
            done(stage, "--params", folder.with_name("made.yaml"), "--device", "cpu")
    torch.save({"tensor": torch.ones(2)}, folder / "evil.pt")
    (folder / "PHOTOS").mkdir()
    (folder / "PHOTOS" / "holiday.jpg").write_bytes(b"precious")
    return folder


@pytest.fixture
def project(finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(finished_project, folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_stage_is_here() -> None:
    assert set(SECTIONS) == set(STAGES) - {
        "memorisation",
        "curve",
        "show",
        "plan",
        "track",
    }  # which are not in dvc.yaml


@pytest.mark.parametrize(("stage", "changes"), CASES, ids=str)
def test_what_is_refused_touches_no_file(stage: str, changes: Changes, project: Path, tmp_path: Path) -> None:
    before = files_below(project)
    params = settings_file(tmp_path / "params.yaml", changes)
    error = refusal_of(stage, "--params", params, "--device", "cpu")
    assert error.remedy or "evil.pt" in str(error)
    assert files_below(project) == before
    key, value = next(iter(changes.items()))
    assert error.subject == key or str(value) in str(error)


# What each stage makes again by itself, exactly and alone.
MENDED = {
    "data/images/manifest.json": "prepare-data",
    "data/features/shard-00001.h5": "extract-features",
    "data/features/index.h5": "extract-features",
    "data/latents/shard-00002.h5": "encode-latents",
    "data/latents/index.h5": "encode-latents",
    "models/schedule/law.json": "learn-schedule",
    "models/dit/ema.safetensors": "train",  # from its checkpoint
    "models/dit/config.json": "train",
    "models/guide/model.safetensors": "train-guide",
    "data/samples/000003.png": "sample",
    "data/samples/samples.npz": "sample",
    "data/samples/labels.json": "sample",
}
LEFT = {"models/semvae/model.safetensors": "train-semvae", "models/texture_vae/model.safetensors": "train-texture-vae"}
READERS = {
    "data/features/shard-00001.h5": "train-semvae",
    "data/latents/shard-00002.h5": "train",
    "models/semvae/model.safetensors": "encode-latents",
    "models/texture_vae/model.safetensors": "encode-latents",
    "models/dit/ema.safetensors": "sample",
    "data/samples/000003.png": "fid",
}
# Settings by which a reader has work to do.
OTHERS: dict[str, Changes] = {
    "train-semvae": {"semvae.seed": 1},
    "encode-latents": {"latents.seed": 1},
    "train": {"dit.seed": 1},
    "sample": {"sample.seed": 1},
    "fid": {},
}


@pytest.mark.parametrize("name", MENDED)
def test_a_damaged_part_is_made_again_to_the_same_bytes(name: str, project: Path, tmp_path: Path) -> None:
    before = artifacts(project)
    flip(project / name)
    params = settings_file(tmp_path / "params.yaml", {})
    ran = done(MENDED[name], "--params", params, "--device", "cpu")
    assert name in ran.err
    assert artifacts(project) == before
    assert "up to date" in done(MENDED[name], "--params", params, "--device", "cpu").err


@pytest.mark.parametrize("name", LEFT)
def test_a_damaged_model_that_only_training_would_bring_back_is_reported_and_left(
    name: str, project: Path, tmp_path: Path
) -> None:
    flip(project / name)
    before = files_below(project)
    error = refusal_of(LEFT[name], "--params", settings_file(tmp_path / "params.yaml", {}), "--device", "cpu")
    assert name in error.problem
    assert files_below(project) == before


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_input_is_an_error_that_names_the_file(name: str, project: Path, tmp_path: Path) -> None:
    flip(project / name)
    before = artifacts(project)
    params = settings_file(tmp_path / "params.yaml", OTHERS[READERS[name]])
    ran = sfd(READERS[name], "--params", params, "--device", "cpu")
    assert ran.code == 2
    assert name in ran.err
    assert artifacts(project) == before


def test_a_damaged_checkpoint_is_passed_over_and_its_model_not_mended_from_it(project: Path, tmp_path: Path) -> None:
    (checkpoint,) = project.glob("models/.checkpoints/dit/*/step-0000012/model.safetensors")
    flip(checkpoint)
    flip(project / "models/dit/ema.safetensors")
    before = artifacts(project)
    params = settings_file(tmp_path / "params.yaml", {})
    error = refusal_of("train", "--params", params, "--device", "cpu")
    assert "models/dit/ema.safetensors" in error.problem
    assert artifacts(project) == before
    ran = sfd("verify", "models/dit")
    assert ran.code == 1
    assert "models/dit/ema.safetensors" in ran.out
    assert "step-0000012/model.safetensors" in ran.out


def test_verify_tells_of_every_artifact_in_a_line(project: Path, tmp_path: Path) -> None:
    params = settings_file(tmp_path / "params.yaml", {})
    whole = done("verify", "--params", params).out.splitlines()
    assert len(whole) == 10
    assert all(line.split()[1].startswith(("whole", "unfinished")) for line in whole)
    flip(project / "data/latents/shard-00000.h5")
    ran = sfd("verify", "--params", params)
    assert ran.code == 1
    assert [line.split()[0] for line in ran.out.splitlines() if "damaged" in line] == ["data/latents"]
    assert sfd("verify", "PHOTOS").code == 2


# Where each stage that computes writes, and the key that makes it lighter on memory.
HEAVY = {
    "extract-features": ("features", "features.batch_size"),
    "train-semvae": ("semvae", "semvae.accumulate"),
    "train-texture-vae": ("texture_vae", "texture_vae.accumulate"),
    "encode-latents": ("latents", "latents.batch_size"),
    "learn-schedule": ("probe", "schedule.probe.accumulate"),
    "train": ("dit", "dit.checkpoint_activations"),
    "train-guide": ("guide", "guide.accumulate"),
    "sample": ("samples", "sample.batch_size"),
    "fid": ("metrics", "fid.batch_size"),
    "memorisation": ("metrics", "fid.batch_size"),
}
GONE_ON_WITH = {"encode-latents", "train", "sample"}


@pytest.mark.parametrize("stage", HEAVY)
def test_memory_that_runs_out_is_one_sentence_and_nothing_is_half_written(
    stage: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, key = HEAVY[stage]
    elsewhere: Changes = {"paths.metrics": "elsewhere/metrics", "paths.schedule": "elsewhere/schedule"}
    elsewhere[f"paths.{name}"] = made = f"elsewhere/{name}"
    command = (stage, "--params", settings_file(tmp_path / "params.yaml", elsewhere), "--device", "cpu")
    before = files_below(project)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
        )

    with monkeypatch.context() as patch:
        for module in (torch.nn.Linear, torch.nn.Conv2d):
            patch.setattr(module, "forward", full)
        ran = sfd(*command)
    assert (ran.code, ran.out) == (1, "")
    assert isinstance(ran.error, StageFailure)
    require_refusal(ran.error, f"sfd {stage}", "2.00 GiB", key)
    assert ran.err.splitlines()[-1] == f"sfd: error: {ran.error}"
    assert "Traceback" not in ran.err
    after = files_below(project)
    assert {file: after.get(file) for file in before} == before
    record = Record.read(Path(made))
    assert record is None or not record.complete
    assert not {"fid.json", "memorisation.json"} & {path.name for path in Path("elsewhere").rglob("*")}
    if stage in GONE_ON_WITH:
        done(*command)
        whole = Path("models" if stage == "train" else "data", name)
        assert contents_of(Path(made)) == contents_of(whole)


def contents_of(folder: Path) -> dict[str, str]:
    """Digests of an artifact's own files."""
    return {file: digest for file, digest in files_below(folder).items() if "settings.json" not in file}
