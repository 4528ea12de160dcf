"""`sfd weights` as people type it: import, export, training on imported latents, and what is known and here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import done, empty_folder, files_below, refusal_of, sfd
from model_loading import load_dit, load_texture_vae
from refusals import require_refusal
from test_files import KINDS, assert_same, diffusers_folder, published
from test_reference_latents import assert_same_folders, write_source
from tiny_project import tiny_settings

from sfd_cli.data.store import Store
from sfd_cli.files import read_json
from sfd_cli.formats import reference_latents
from sfd_cli.formats.reference_shards import SourceShard
from sfd_cli.weights.registry import KINDS as REGISTERED_KINDS
from sfd_cli.weights.registry import REGISTRY, Https, Weights


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_folder(tmp_path, monkeypatch)


# Models

FLAGS = {"dit training": ("--semantic-channels", 4), "dit ema": ("--semantic-channels", 4), "dit bare": ("--heads", 4)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_any_kind_is_imported_and_comes_back_bit_for_bit(kind: str) -> None:
    content = published(kind)
    torch.save(content, "in.pt")
    flags = ("--heads", 4) if kind == "semvae" else FLAGS.get(kind, ())
    out = done("weights", "import", "in.pt", "models/ours", *flags).out
    module_type, stems = KINDS[kind]
    assert out.splitlines()[0].split() == ["kind", module_type]
    assert out.splitlines()[-1].split() == ["folder", "models/ours"]
    names = {path.name for path in Path("models/ours").iterdir() if "_tables" not in path.name}
    assert names == {"config.json", *(f"{stem}.safetensors" for stem in stems)}
    imported = read_json(Path("models/ours/config.json"))["imported"]
    assert imported == {"file": "in.pt", "sha256": hashlib.sha256(Path("in.pt").read_bytes()).hexdigest()}
    assert done("weights", "export", "models/ours", "out.pt").out.split() == ["kind", module_type, "file", "out.pt"]
    exported = torch.load("out.pt", weights_only=True)
    expected = {key: value for key, value in content.items() if key not in ("opt", "config", "epoch")}
    assert_same(exported, {"ema": expected} if kind == "dit bare" else expected)


def test_a_diffusers_folder_is_imported() -> None:
    vae = diffusers_folder(Path("diffusers"))
    done("weights", "import", "diffusers", "ours")
    loaded, _ = load_texture_vae(Path("ours"))
    assert loaded.config == vae.config
    assert_same(dict(loaded.state_dict()), dict(vae.state_dict()))


def test_hints_and_statistics_are_kept_with_a_transformer() -> None:
    torch.save(published("dit ema"), "in.pt")
    for name, channels, mean in (("texture", 8, 0.25), ("semantic", 4, 0.5)):
        torch.save({"mean": torch.full((1, channels, 1, 1), mean), "std": torch.ones(1, channels, 1, 1)}, f"{name}.pt")
    done("weights", "import", "texture.pt", "statistics")
    flags = ("--texture-statistics", "statistics", "--semantic-statistics", "semantic.pt")
    done("weights", "import", "in.pt", "ours", *flags, "--repa-depth", 1, "--delta-t", 0.4)
    network, extra = load_dit(Path("ours"))
    assert (network.config.semantic_channels, network.config.repa_depth) == (4, 1), "the semantic statistics tell"
    assert extra["delta_t"] == 0.4
    assert extra["statistics"] == {"mean": [0.25] * 8 + [0.5] * 4, "std": [1.0] * 12}


def test_a_transformers_statistics_are_exported_beside_it() -> None:
    torch.save(published("dit ema"), "in.pt")
    for name, channels in (("texture", 8), ("semantic", 4)):
        shape = (1, channels, 1, 1)
        torch.save({"mean": torch.randn(shape), "std": torch.rand(shape) + 0.1}, f"{name}.pt")
    flags = ("--texture-statistics", "texture.pt", "--semantic-statistics", "semantic.pt")
    done("weights", "import", "in.pt", "ours", *flags)
    lines = done("weights", "export", "ours", "out.pt").out.splitlines()
    assert lines[-1].split(maxsplit=1) == ["statistics", "out_latents_stats.pt and out_latents_sv_stats.pt"]
    assert_same(torch.load("out_latents_stats.pt"), torch.load("texture.pt"))
    assert_same(torch.load("out_latents_sv_stats.pt"), torch.load("semantic.pt"))
    Path("out_latents_stats.pt").unlink()
    Path("out.pt").unlink()
    require_refusal(refusal_of("weights", "export", "ours", "out.pt"), "out_latents_sv_stats.pt")


# Latents

TRAIN = ("--width", 32, "--depth", 1, "--heads", 2, "--repa-depth", 1, "--repa-width", 16, "--batch-size", 4)


def save_params(**sections: dict[str, Any]) -> None:
    dit = {"sample_every": 0, "log_every": 1, "repa": "none"}
    Path("params.yaml").write_text(yaml.safe_dump(tiny_settings(Path(), dit=dit, **sections).model_dump(mode="json")))


def test_latent_shards_are_imported_and_come_back_byte_for_byte() -> None:
    write_source(Path("shards"), [7, 4], features=True, statistics=True)
    out = done("weights", "import", "shards", "latents", "--num-classes", 9, "--image-size", 48).out
    assert "11, as they are and flipped" in out
    assert out.splitlines()[-2].split() == ["statistics", "published"]
    store = Store(Path("latents"))
    assert (len(store), len(store.classes), store.attributes["image_size"]) == (11, 9, 48)
    before = files_below(Path("latents"))
    again = done("weights", "import", "shards", "latents", "--num-classes", 9, "--image-size", 48)
    assert "latents is up to date" in again.err
    assert files_below(Path("latents")) == before
    assert done("weights", "export", "latents", "out").out.split() == ["shards", "2", "folder", "out"]
    assert_same_folders(Path("shards"), Path("out"))
    for path in Path("shards").glob("*.safetensors"):
        assert path.read_bytes() == (Path("out") / path.name).read_bytes()


@pytest.mark.parametrize(("features", "repa"), [(True, "stored"), (True, "none"), (False, "none")])
def test_training_runs_on_imported_latents(features: bool, repa: str) -> None:
    write_source(Path("shards"), [7, 4], features=features)
    done("weights", "import", "shards", "latents", "--num-classes", 9)
    save_params()
    out = done("train", "--steps", 2, "--repa", repa, *TRAIN).out
    assert ("repa" in out) == (repa == "stored")
    network, extra = load_dit(Path("dit"))
    assert (network.config.in_channels, network.config.semantic_channels) == (6, 2)
    assert network.config.num_classes == len(extra["classes"]) == 9
    statistics = Store(Path("latents")).statistics
    assert extra["statistics"] == {name: statistics[name].tolist() for name in ("mean", "std")}
    done("sample", "--latents-out", "x.npy", "--num-images", 2)


def test_training_for_stored_features_says_where_there_are_none() -> None:
    write_source(Path("shards"), [7, 4])
    done("weights", "import", "shards", "latents")
    save_params()
    ran = sfd("train", "--steps", 2, "--repa", "stored", *TRAIN)
    assert ran.code == 2
    assert "repa: latents holds no features to compare with" in ran.err
    assert "use repa: 'decoded' or 'none'" in ran.err


def test_an_interrupted_import_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference_latents.import_latents.__kwdefaults__, "shard_size", 3)
    write_source(Path("shards"), [7, 4])
    real, calls = SourceShard.arrays, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(SourceShard, "arrays", interrupted)
    ran = sfd("weights", "import", "shards", "latents")
    assert ran.code == 130
    assert "run the same command to go on" in ran.err
    kept = {path: path.stat().st_mtime_ns for path in Path("latents").glob("shard-*.h5")}
    assert 0 < len(kept) < 4
    monkeypatch.setattr(SourceShard, "arrays", real)
    done("weights", "import", "shards", "latents")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    done("weights", "import", "shards", "at_once")
    assert files_below(Path("latents")) == files_below(Path("at_once"))


def test_shards_are_not_imported_over_something_else() -> None:
    write_source(Path("shards"), [7, 4])
    write_source(Path("others"), [5])
    Path("mine").mkdir()
    (Path("mine") / "notes.txt").write_text("mine")
    done("weights", "import", "shards", "latents")
    for arguments in (
        ("others", "latents"),
        ("shards", "latents", "--image-size", 512),
        ("shards", "mine"),
        ("shards", "mine/notes.txt"),
    ):
        require_refusal(refusal_of("weights", "import", *arguments), arguments[1])


def test_an_import_killed_before_its_first_record_goes_on() -> None:
    write_source(Path("shards"), [7, 4])
    for name, leftovers in (("empty", []), ("cut", [".settings.json.1234.tmp"])):
        Path(name).mkdir()
        for leftover in leftovers:
            (Path(name) / leftover).touch()
        out = done("weights", "import", "shards", name).out
        assert out.splitlines()[-2].split() == ["statistics", "computed"]
        assert len(Store(Path(name))) == 11


def test_shards_that_will_not_do_leave_no_store() -> None:
    write_source(Path("shards"), [7, 4], statistics=True)
    error = refusal_of("weights", "import", "shards", "latents", "--heads", 3, "--texture-statistics", "x.pt")
    require_refusal(error, "--heads and --texture-statistics", "shards")
    shard = min(Path("shards").glob("*.safetensors"))
    require_refusal(refusal_of("weights", "import", "shards", "latents", "--num-classes", 2), shard, "below 2")
    torch.save({"mean": torch.ones(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "shards/latents_stats.pt")
    require_refusal(refusal_of("weights", "import", "shards", "latents"), "shards/latents_stats.pt", "3 channels")
    shard.write_bytes(shard.read_bytes()[:-9])
    require_refusal(refusal_of("weights", "import", "shards", "latents"), shard, "truncated")


# What is known and here

BODY = b"weights" * 1000


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place in the cache of registered weights that are not there yet."""
    entry = Weights(
        *("tiny", "tiny.pt", Https("http://127.0.0.1:9/tiny.pt"), "nothing but a test", "MIT"),
        sha256=hashlib.sha256(BODY).hexdigest(),
        size=len(BODY),
        kind="dit",
        statistics=("one", "two"),
        hints={"semantic_channels": 4},
        note="look elsewhere",
    )
    monkeypatch.setitem(REGISTRY, "tiny", entry)
    place = tmp_path / "SFD_CACHE" / "tiny.pt"
    place.parent.mkdir()
    return place


def test_the_list_has_a_line_for_every_entry(tiny: Path) -> None:
    lines = done("weights", "list").out.splitlines()
    assert len(lines) == len(REGISTRY)
    assert [line.split()[0] for line in lines] == list(REGISTRY)
    assert "nothing but a test" in lines[-1]
    assert " here " not in lines[-1]
    tiny.write_bytes(BODY)
    assert " here " in done("weights", "list").out.splitlines()[-1]


def test_info_tells_source_place_and_how_to_get_it_by_hand(tiny: Path) -> None:
    facts = dict(line.split(maxsplit=1) for line in done("weights", "info", "tiny").out.splitlines())
    assert facts["licence"] == "MIT"
    assert facts["source"] == "http://127.0.0.1:9/tiny.pt"
    assert facts["bytes"] == "7000"
    assert facts["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert facts["present"] == "no"
    assert facts["place"] == str(tiny)
    assert facts["fetch"] == "sfd weights fetch tiny"
    assert facts["by_hand"] == f"curl -L --create-dirs -o {tiny} http://127.0.0.1:9/tiny.pt"
    assert (facts["statistics"], facts["hints"]) == ("one, two", "semantic_channels 4")
    assert facts["note"] == "look elsewhere"
    assert all(done("weights", "info", name).out for name in REGISTRY)


def test_verify_reads_what_is_here_and_refuses_another_file(tiny: Path) -> None:
    assert "no registered weights are here" in done("weights", "verify").out
    assert "not here" in done("weights", "verify", "tiny").out
    tiny.write_bytes(BODY)
    for names in ((), ("tiny",)):
        facts = dict(line.split(maxsplit=1) for line in done("weights", "verify", *names).out.splitlines()[1:])
        assert facts["verified"] == "sha256"
        assert facts["sha256"] == facts["published_sha256"]
        assert facts["path"] == str(tiny)
    for wrong in (BODY[::-1], BODY[:-1]):
        tiny.write_bytes(wrong)
        for names in ((), ("tiny",)):
            sentence = str(refusal_of("weights", "verify", *names))
            for part in (tiny, "tiny", f"{len(wrong):,} bytes" if len(wrong) < len(BODY) else "SHA-256"):
                assert str(part) in sentence
    assert tiny.exists(), "it is left for its owner to look at"


def test_verify_tells_of_every_wrong_file(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("right", "bad"):
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY["tiny"], name=name, file=f"{name}.pt"))
    tiny.write_bytes(BODY[:-1])
    tiny.with_name("right.pt").write_bytes(BODY)
    tiny.with_name("bad.pt").write_bytes(BODY[::-1])
    ran = sfd("weights", "verify")
    assert ran.code == 2
    assert ran.out.splitlines()[0] == "right"
    (sentence,) = ran.err.splitlines()
    for part in ("tiny.pt", "is not tiny", "bad.pt", "is not bad"):
        assert part in sentence
    assert "right.pt" not in sentence


def test_weights_of_another_kind_are_refused_before_they_are_fetched(tiny: Path) -> None:
    save_params()
    torch.save(published("dit ema"), "in.pt")
    for arguments, name, kinds in (
        (("--checkpoint", "sdvae_f8d4_ema"), "sdvae_f8d4_ema", ("dit", "vae")),
        (("--checkpoint", "in.pt", "--foreign-texture-statistics", "tiny"), "tiny", ("statistics", "dit")),
        (("--checkpoint", "in.pt", "--texture-vae", "tiny"), "tiny", ("vae", "dit")),
    ):
        error = refusal_of("sample", *arguments, "--foreign-semantic-channels", 4)
        require_refusal(error, name, *(REGISTERED_KINDS[kind] for kind in kinds))


def test_a_diffusers_folder_without_safetensors_says_what_is_read() -> None:
    diffusers_folder(Path("diffusers"))
    torch.save({}, "diffusers/diffusion_pytorch_model.bin")
    Path("diffusers/diffusion_pytorch_model.safetensors").unlink()
    error = refusal_of("weights", "import", "diffusers", "ours")
    require_refusal(error, "diffusers", "diffusion_pytorch_model.safetensors", "save_pretrained")
    save_params()
    torch.save(published("dit ema"), "in.pt")
    for name, channels in (("texture", 8), ("semantic", 4)):
        torch.save({"mean": torch.zeros(1, channels, 1, 1), "std": torch.ones(1, channels, 1, 1)}, f"{name}.pt")
    flags = ("--foreign-texture-statistics", "texture.pt", "--foreign-semantic-statistics", "semantic.pt")
    again = refusal_of("sample", "--checkpoint", "in.pt", *flags, "--texture-vae", "diffusers")
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"mean": [0.0], "sdt": [1.0]}, ("std is missing", "sdt is unknown")),
        ({"mean": ["a"], "std": [1.0]}, ("mean",)),
        ({"mean": "a", "std": "b"}, ("mean",)),
        ({"mean": [0.0], "std": [0.0]}, ("std",)),
    ],
)
def test_damaged_statistics_are_refused(config: dict[str, Any], named: tuple[str, ...]) -> None:
    torch.save(published("dit ema"), "in.pt")
    Path("statistics").mkdir()
    Path("statistics/config.json").write_text(json.dumps({"type": "LatentStatistics", "config": config}))
    error = refusal_of("weights", "import", "in.pt", "ours", "--semantic-statistics", "statistics")
    require_refusal(error, "statistics/config.json", "LatentStatistics", *named)
