"""Every benchmark runs at a tiny size and writes its figures; what the figures are is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_project import random_images, tiny_settings, write_features, write_models, write_training_images

from sfd_cli.data.images import ImageManifest
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig

pytestmark = pytest.mark.benchmarks
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str) -> str:
    """What a script prints; it must succeed."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path, name: str) -> dict[str, Any]:
    """The JSON that a script left."""
    found: dict[str, Any] = json.loads((folder / f"{name}-cpu.json").read_text())
    return found


def test_scoring_compares_memory_and_distances_of_both_ways(tmp_path: Path) -> None:
    printed = run("scoring.py", "--quick", "--device", "cpu", "--repetitions", "1", "--out", str(tmp_path))
    found = written(tmp_path, "scoring")
    assert {"images", "metrics", "distances", "singular"} <= set(found)
    assert found["distances"][0]["relative difference"] < 1e-6
    assert "streamed, MB" in printed


def test_scores_are_torch_fidelitys(tmp_path: Path) -> None:
    printed = run("scores.py", "--quick", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "scores")
    scores = {"fid", "inception_score", "kid", "precision", "recall"}
    for part in ("images", "features"):
        assert {row["score"] for row in found[part]["scores"]} == scores
        assert set(found[part]["seconds"]) == set(found[part]["mb"]) == {"ours", "theirs"}
    assert "times as fast" in printed


def test_trackers_leave_the_weights_alone(tmp_path: Path) -> None:
    options = ("--steps", "20", "--repetitions", "1", "--candidates", "none", "tensorboard")
    printed = run("trackers.py", "--device", "cpu", "--out", str(tmp_path), *options)
    found = written(tmp_path, "trackers")
    assert found["equal_weights"]
    assert set(found["seconds_of_a_step"]) == {"none", "tensorboard"}
    assert "weights of all: equal" in printed


def test_growth_fits_an_exponent_to_four_sizes_of_each_kind(tmp_path: Path) -> None:
    run("growth.py", "--quick", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "growth")["growth"]
    assert set(found) == {"images", "tokens", "batch", "width"}
    assert all(len(part["median"]) == 4 and "exponent" in part for part in found.values())
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def _trained_models(tmp_path: Path) -> str:
    """Random ones will do; the guide is the transformer itself."""
    settings = tiny_settings(tmp_path / "models")
    write_models(settings)
    shutil.copytree(settings.paths.dit, settings.paths.guide)
    return str(tmp_path / "models")


def test_sampling_puts_every_solver_beside_a_tight_solution(tmp_path: Path) -> None:
    options = ("--models", _trained_models(tmp_path), "--images", "2", "--offsets", "0.3")
    printed = run("sampling.py", *options, "--device", "cpu", "--out", str(tmp_path))
    rows = written(tmp_path, "sampling")["rows"]
    assert {(row["solver"], row["grid"]) for row in rows} == {
        (solver, grid) for solver in ("euler", "heun", "ab2", "ab3", "dopri5") for grid in ("phases", "one-span")
    }
    assert "calls, ratio" in printed
    assert (tmp_path / "sampling.png").stat().st_size > 10_000


def test_sampling_speed_compares_like_with_like(tmp_path: Path) -> None:
    sizes = ("--images", "2", "--batch", "4", "--count", "6", "--repetitions", "1", "--no-compile")
    options = ("--models", _trained_models(tmp_path), *sizes, "--device", "cpu", "--out", str(tmp_path))
    printed = run("sampling_speed.py", *options)
    assert {"solving", "one_call", "end_to_end"} <= set(written(tmp_path, "sampling_speed"))
    assert "6 equal images" in printed


def test_the_number_format_of_sampling_is_told_in_grey_levels_and_dopri5_has_torchdiffeqs_bits(tmp_path: Path) -> None:
    options = ("--models", _trained_models(tmp_path), "--images", "3", "--repetitions", "1")
    run("sampling_precision.py", *options, "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "sampling_precision")
    assert [row["format"] for row in found["formats"]] == ["fp32", "bf16", "fp32, twice the steps"]
    assert found["formats"][0]["latents, RMSE"] == 0 < found["formats"][1]["latents, RMSE"]
    theirs, ours = found["dopri5"]
    assert theirs["network calls"] == ours["network calls"]


def test_the_training_step_has_the_losses_and_the_memory_of_the_plain_one_written_down(tmp_path: Path) -> None:
    options = ("--sizes", "tiny", "--candidates", "eager", "--repetitions", "2", "--device", "cpu")
    printed = run("training_step.py", *options, "--out", str(tmp_path))
    plain, ours = written(tmp_path, "training_step")["rows"]
    assert (plain["candidate"], ours["candidate"]) == ("plain", "eager")
    assert ours["loss_difference"] < 1e-4
    assert ours["memory_mib"]["highest"] > 0
    assert "x plain" in printed


def test_adapters_hold_a_fraction_of_gradients_moments_and_average(tmp_path: Path) -> None:
    run("adapters.py", "--sizes", "tiny", "--ranks", "2", "--out", str(tmp_path))
    full, adapter = written(tmp_path, "adapters")["rows"]
    for part in ("gradients", "moments", "average"):
        assert adapter[f"{part}, MB"] < full[f"{part}, MB"] / 5
    for row in (full, adapter):
        assert row["together, MB"] == pytest.approx(row["together as planned, MB"])
        assert row["peak, MB"] > 0


def test_the_latent_store_gives_what_shards_opened_per_sample_give(tmp_path: Path) -> None:
    sizes = ("--images", "64", "--images-with-features", "32", "--batch", "8", "--batches", "2")
    options = (*sizes, "--images-of-sampler", "5000", "--folder", str(tmp_path), "--repetitions", "1")
    printed = run("latent_store.py", *options, "--device", "cpu", "--out", str(tmp_path))
    assert printed.count("same latents") == 4
    found = written(tmp_path, "latent_store")
    assert {row["state"] for row in found["timings"]} == {"warm", "cold"}
    assert len(found["memory"]) == 4
    assert len(found["sampler"]) == 5


def test_encoding_at_the_same_time_writes_the_bytes_of_one_thing_after_the_other(tmp_path: Path) -> None:
    options = ("--images", "2", "--images-imitated", "4", "--batch", "2", "--size", "64", "--repetitions", "1")
    printed = run("encode_latents.py", *options, "--device", "cpu", "--out", str(tmp_path))
    assert printed.count("both ways write the same bytes") == 2
    assert len(written(tmp_path, "encode_latents")["timings"]) == 14


def test_fine_tuning_puts_three_starts_beside_one_another(tmp_path: Path) -> None:
    project = demo_project(tmp_path / "demo")
    options = ("--project", str(project), "--work", str(tmp_path / "work"), "--images", "8", "--quick")
    run("finetune.py", *options, "--seeds", "--device", "cpu", "--out", str(tmp_path))
    assert not list(tmp_path.glob("*.json"))
    printed = run("finetune.py", *options, "--seeds", "0", "1", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "finetune")
    starts = {"inherited statistics", "own statistics", "from nothing"}
    assert set(found["found"]) == set(found["runs"]) == starts
    assert all(list(curve) == ["2", "4"] for by_seed in found["found"].values() for curve in by_seed.values())
    assert found["seeds"] == [0, 1]
    assert "from nothing" in printed
    assert (tmp_path / "finetune.png").stat().st_size > 10_000


def demo_project(folder: Path) -> Path:
    """Images of five of the demo's categories, and compressors of the demo's sizes, all of them random."""
    names = ("food-drink", "objects", "travel-places", "flags", "symbols")
    files = [f"{name}/{index}.png" for name in names for index in range(6)]
    random_images(folder / "data" / "images", files, seed=0)
    ImageManifest.of(folder / "data" / "images", dict.fromkeys(files, "0")).save(folder / "data" / "images", root=".")
    texture = TexturePCAConfig(16, 96, decoder_channels=(8, 8), norm_groups=8)
    semantic = SemanticVAEConfig(384, 8, width=16, depth=1, heads=2)
    for name, network in (("texture_vae", TexturePCA(texture)), ("semvae", SemanticVAE(semantic))):
        save_model(
            folder / "models" / name, type(network).__name__, network.config, {"model": network.state_dict()}, {}
        )
    return folder


def test_encoding_tells_what_each_precision_changes(tmp_path: Path) -> None:
    project = demo_project(tmp_path / "demo")
    params = yaml.safe_load((BENCHMARKS.parent / "params.yaml").read_text())
    params["encoder"]["weights"] = "random"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    sizes = ("--images", "2", "--side", "32", "--stack", "2", "16", "--repetitions", "1")
    run("encoding.py", "--project", str(project), *sizes, "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "encoding")
    errors = {(row["precision"], row["what"]): row["relative error"] for row in found["errors"]}
    for what in ("tokens", "semantic latents"):
        assert 1e-5 < errors["tf32 (imitated)", what] < errors["bf16", what] < 0.1
    assert errors["bf16", "texture latents"] == 0
    assert [row["what"] for row in found["precisions"]] == ["fp32", "bf16"]
    assert {len(found[name]) for name in ("layouts", "stacking")} == {2, 3}


def test_one_more_image_leaves_the_bytes_of_a_run_from_nothing(tmp_path: Path) -> None:
    options = ("--images", "6", "--batch", "4", "--repetitions", "1", "--device", "cpu", "--out", str(tmp_path))
    assert "both ways write the same bytes" in run("changing_images.py", *options)
    rows = written(tmp_path, "changing_images")["timings"]
    assert [row["stage"] for row in rows] == ["prepare-data", "extract-features", "encode-latents", "all"]
    assert all(row["times faster"] > 0 for row in rows)


def test_imagenets_size_is_measured_at_every_size_and_grows_by_an_exponent(tmp_path: Path) -> None:
    sizes = ("--images", "1100", "2200", "--shard-size", "100", "--folder", str(tmp_path / "made"), "--processes", "2")
    run("imagenet_size.py", *sizes, "--repetitions", "1", "--no-dvc", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "imagenet_size")
    assert [row["shards"] for row in found["stand_ins"]] == [11, 22]
    assert all(isinstance(row["exponent"], float) for row in found["growth"])
    assert found["processes"][-1]["processes"] == 2
    assert found["processes"][-1]["open files"] > 22


def test_a_checkpoint_is_the_same_whether_the_loop_waits_for_it_or_not(tmp_path: Path) -> None:
    run("checkpoints.py", "--weights", "1", "--repetitions", "1", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "checkpoints")
    assert set(found["seconds"]) == {"written in the loop", "copied"}
    assert found["megabytes"] == pytest.approx(16, rel=0.01)


def test_two_processes_share_state_and_nothing_else_changes(tmp_path: Path) -> None:
    options = ("--width", "64", "--layers", "6", "--steps", "2", "--repetitions", "1", "--device", "cpu")
    run("sharing.py", *options, "--out", str(tmp_path))
    found = written(tmp_path, "sharing")["megabytes"]
    assert max(found["shared"]) == pytest.approx(max(found["plain"]) / 2, rel=0.05)


def test_a_semantic_vae_is_trained_in_both_precisions(tmp_path: Path) -> None:
    write_features(settings := tiny_settings(tmp_path))
    params = tmp_path / "params.yaml"
    params.write_text("semvae: {channels: 2, width: 16, depth: 1, heads: 2, batch_size: 4, holdout: 0.3}\n")
    options = ("--features", str(settings.paths.features), "--params", str(params), "--steps", "3", "--seeds", "1")
    run("semantic_vae.py", *options, "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "semantic_vae")
    assert found["means"]["fp32"] != found["means"]["bf16"]


def test_classes_are_told_from_components_of_tokens_of_several_sizes(tmp_path: Path) -> None:
    write_training_images(settings := tiny_settings(tmp_path), 40)
    params = tmp_path / "params.yaml"
    params.write_text("images: {size: 16}\nencoder: {weights: random, image_size: 28}\n")
    options = ("--images", str(settings.paths.images), "--params", str(params), "--name", "tiny", "--grid", "2")
    options += (
        "--sides",
        "28",
        "56",
        "--channels",
        "2",
        "4",
        "--most",
        "36",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    )
    run("semantics.py", *options)
    found = written(tmp_path, "semantics-tiny")
    assert (found["images"], found["classes"]) == (36, 3)
    assert [row.pop("side") for row in found["rows"]] == [28, 56]
    for row in found["rows"]:
        assert row.keys() == {"2 components", "4 components", "class token"}
        assert all(0 <= share <= 1 for share in row.values())
