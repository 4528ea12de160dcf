"""When images come and go, features and latents of all others are taken over, and every file is as from nothing."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.data.contents import CONTENTS
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Store
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline import encoding
from sfd_cli.stages import encode_latents, extract_features, prepare_data
from sfd_cli.weights import visual_encoders as encoders

COUNT, WIDTH = 23, 48
STORES = ("data/features", "data/latents")
Files = dict[str, bytes]


def png(number: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((20, 24), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


BEFORE: Files = {f"{'bcd'[number % 3]}/{number:02d}.png": png(number) for number in range(COUNT)}


def settings(**sections: dict[str, Any]) -> Settings:
    values: dict[str, dict[str, Any]] = {
        "runtime": {"device": "cpu", "workers": 2},
        "images": {"source": "folder", "folder": "mine", "size": 16},
        "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 28},
        "features": {"batch_size": 4, "shard_size": 10},
        "texture_vae": {"channels": 2, "block_channels": [32, 32, 32, 32]},
        "latents": {"batch_size": 3, "shard_size": 7, "noise": "content"},
    }
    return Settings.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in values | sections})


def save_texture_vae(seed: int = 2, **facts: Any) -> None:
    torch.manual_seed(seed)
    config = TextureVAEConfig(2, (32,) * 4)
    save_model(Path("models/texture_vae"), "TextureVAE", config, {"model": TextureVAE(config).state_dict()}, facts)


def save_semvae(seed: int = 1, **facts: Any) -> None:
    torch.manual_seed(seed)
    config = SemanticVAEConfig(WIDTH, channels=5, width=32, depth=1, heads=2)
    save_model(Path("models/semvae"), "SemanticVAE", config, {"model": SemanticVAE(config).state_dict()}, facts)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compressors, and an encoder small enough for a test."""
    monkeypatch.setattr(
        encoders,
        "VisualEncoder",
        lambda name, size, tiles: VisualEncoder(name, size, tiles, embed_dim=WIDTH, depth=1, num_heads=3),
    )
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    save_texture_vae()
    save_semvae()
    return tmp_path / "project"


def lay(files: Files) -> None:
    """An ImageFolder of just these."""
    shutil.rmtree("mine", ignore_errors=True)
    for name, content in files.items():
        path = Path("mine", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class Passes:
    """Images that went through the visual encoder and the texture VAE, and how many at a time."""

    def __init__(self) -> None:
        self.encoder: list[int] = []
        self.texture: list[int] = []

    @property
    def images(self) -> tuple[int, int]:
        return sum(self.encoder), sum(self.texture)


@contextmanager
def counted() -> Iterator[Passes]:
    """Counts the images, of which each is seen twice, as it is and mirrored."""
    passes, see, encode = Passes(), VisualEncoder.forward, TextureVAE.encode
    seen: list[Tensor] = []

    def forward(network: VisualEncoder, images: Tensor) -> Any:
        seen.append(images)
        if len(seen) % 2:
            passes.encoder.append(len(images))
        return see(network, images)

    def encoded(network: TextureVAE, images: Tensor) -> Any:
        passes.texture.append(len(images) // 2)
        return encode(network, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisualEncoder, "forward", forward)
        patch.setattr(TextureVAE, "encode", encoded)
        yield passes


def run(given: Settings | None = None) -> tuple[int, int]:
    """Run the stages from images to latents; images that passed the encoder and the texture VAE."""
    given = given or settings()
    with counted() as passes:
        for stage in (prepare_data, extract_features, encode_latents):
            stage.run(given)
    return passes.images


def stored() -> dict[str, bytes]:
    """Every file of both stores, records included."""
    return {f"{store}/{path.name}": path.read_bytes() for store in STORES for path in Path(store).iterdir()}


def from_nothing(given: Settings | None = None) -> dict[str, bytes]:
    """What the stages leave in a project where they never ran, with the images and models of this one."""
    elsewhere = Path.cwd().with_name("nothing")
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.copytree(Path.cwd(), elsewhere, ignore=shutil.ignore_patterns("data", "metrics"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        images = run(given)
        made = stored()
        assert images == (len(Store(Path("data/features"))), len(Store(Path("data/latents"))))
    return made


def renamed(files: Files, old: str, new: str) -> Files:
    return {new if name == old else name: content for name, content in files.items()}


def without(files: Files, *names: str) -> Files:
    return {name: content for name, content in files.items() if name not in names}


CHANGES: dict[str, tuple[Files, int]] = {
    "one added in the middle": (BEFORE | {"c/zz.png": png(100)}, 1),
    "one added in front": (BEFORE | {"a/00.png": png(100)}, 1),
    "one removed": (without(BEFORE, "b/03.png"), 0),
    "a class removed": ({name: content for name, content in BEFORE.items() if name[0] != "b"}, 0),
    "one renamed": (renamed(BEFORE, "b/03.png", "b/99.png"), 0),
    "one moved to another class": (renamed(BEFORE, "b/03.png", "d/03.png"), 0),
    "a class renamed": ({name.replace("b/", "e/"): content for name, content in BEFORE.items()}, 0),
    "another content under the same name": (BEFORE | {"c/07.png": png(101)}, 1),
    "two that changed their names": (BEFORE | {"b/00.png": BEFORE["d/02.png"], "d/02.png": BEFORE["b/00.png"]}, 0),
    "a copy": (BEFORE | {"d/copy.png": BEFORE["b/00.png"]}, 0),
    "some of all": (
        renamed(without(BEFORE, "b/06.png", "d/20.png"), "c/04.png", "b/04.png")
        | {f"c/{number}.png": png(number) for number in range(200, 205)},
        5,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_new_is_encoded_and_every_file_is_as_from_nothing(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    after, new = CHANGES[change]
    lay(BEFORE)
    assert run() == (COUNT, COUNT)
    before = stored()
    lay(after)
    capsys.readouterr()
    assert run() == (new, new)
    said = f"{len(after) - new} of {len(after)} images are taken over from before, {new} are to be made"
    assert capsys.readouterr().err.count(said) == 2
    made = stored()
    assert made == from_nothing()
    assert made["data/latents/settings.json"] != before["data/latents/settings.json"]
    assert run() == (0, 0)


def test_statistics_are_those_of_the_new_set() -> None:
    lay(BEFORE)
    run()
    old = Store(Path("data/latents")).statistics
    lay(without(BEFORE, *[name for name in BEFORE if name[0] == "b"]))
    run()
    store = Store(Path("data/latents"))
    streams = [store.read(name, range(len(store))).astype(np.float64) for name in ("texture", "semantic")]
    composite = np.concatenate(streams, axis=2)
    np.testing.assert_allclose(store.statistics["mean"], composite.mean(axis=(0, 1, 3, 4)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(store.statistics["std"], composite.std(axis=(0, 1, 3, 4)), rtol=1e-9)
    assert not np.allclose(store.statistics["mean"], old["mean"], rtol=1e-4)


def in_a_folder(path: Path, files: Files) -> Path:
    lay(files)
    Path("mine").rename(path)
    return path


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.with_suffix(".zip")


def tarred(path: Path, files: Files) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.with_suffix(".tar")


def in_parquet(path: Path, files: Files) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"image": [{"bytes": content} for content in files.values()], "label": [name[0] for name in files]}
    parquet.write_table(pyarrow.table(rows), path.with_suffix(".parquet"), row_group_size=5)
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("pack", [in_a_folder, zipped, tarred, in_parquet])
def test_it_holds_for_every_source_and_from_one_to_another(pack: Callable[[Path, Files], Path]) -> None:
    lay(BEFORE)
    run()
    after = {"a/new.png": png(100)} | without(BEFORE, "c/01.png")
    given = settings(images={"folder": str(pack(Path("packed"), after))})
    assert run(given) == (1, 1)
    assert stored() == from_nothing(given)


# What decides no row at all, or not those of the features.
OTHER_SETTINGS: dict[str, tuple[dict[str, dict[str, Any]], tuple[int, int]]] = {
    "size of the images": ({"images": {"size": 24}, "encoder": {"image_size": 42}}, (COUNT, COUNT)),
    "images of a batch": ({"features": {"batch_size": 5}, "latents": {"batch_size": 2}}, (0, 0)),
    "seed of the posterior": ({"latents": {"seed": 1}}, (0, COUNT)),
    "noise by index": ({"latents": {"noise": "index"}}, (0, COUNT)),
    "scale of the textures": ({"latents": {"texture_gain": 0.5, "texture_scale": "stream"}}, (0, 0)),
    "images of a shard": ({"features": {"shard_size": 8}, "latents": {"shard_size": 9}}, (0, 0)),
    "fewer fields": (
        {"latents": {"store_features": False}, "dit": {"repa": "none"}, "guide": {"repa": "none"}},
        (0, 0),
    ),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_with_other_settings_only_rows_that_do_not_depend_on_them_are_taken_over(name: str) -> None:
    sections, new = OTHER_SETTINGS[name]
    lay(BEFORE)
    run()
    if name == "images of a batch":  # which alone makes no other artifact
        lay(renamed(BEFORE, "b/03.png", "b/99.png"))
    given = settings(**sections)
    assert run(given) == new
    assert stored() == from_nothing(given)


def test_without_mirror_images_nothing_of_both_views_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lay(BEFORE)
    run()
    given, seen = settings(images={"mirror": False}), []
    forward = VisualEncoder.forward
    monkeypatch.setattr(VisualEncoder, "forward", lambda net, x: (seen.append(len(x)), forward(net, x))[1])
    run(given)
    assert sum(seen) == COUNT
    assert Store(Path("data/latents")).flips == 1


OTHER_NETWORKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], object], tuple[int, int]]] = {
    "encoder": (lambda patch: patch.setattr(encoders, "RANDOM_SEED", 1), (COUNT + 1, COUNT + 1)),
    "texture VAE": (lambda patch: save_texture_vae(seed=5), (1, COUNT + 1)),
    "semantic VAE": (lambda patch: save_semvae(seed=5), (1, COUNT + 1)),
    "scores noted beside the texture VAE": (lambda patch: save_texture_vae(held_out={"psnr": 30.0}), (1, 1)),
    "scores noted beside the semantic VAE": (lambda patch: save_semvae(held_out={"mse": 0.1}), (1, 1)),
}


@pytest.mark.parametrize("network", OTHER_NETWORKS)
def test_with_another_network_nothing_that_it_makes_is_taken_over(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, new = OTHER_NETWORKS[network]
    lay(BEFORE)
    run()
    change(monkeypatch)
    lay(BEFORE | {"a/new.png": png(100)})
    assert run() == new
    assert stored() == from_nothing()


@pytest.mark.parametrize(("added", "latents"), [("e/new.png", 1), ("c/05.png", 14), ("a/new.png", COUNT + 1)])
def test_where_noise_goes_by_index_latents_behind_an_added_image_are_made_again(added: str, latents: int) -> None:
    given = settings(latents={"noise": "index"})
    lay(BEFORE)
    run(given)
    lay(BEFORE | {added: png(100)})
    assert run(given) == (1, latents)
    assert stored() == from_nothing(given)


@pytest.mark.parametrize("cap", [5, 22])
def test_of_features_of_some_images_those_are_taken_over_that_are_chosen_again(cap: int) -> None:
    given = settings(features={"max_images": cap})
    lay(BEFORE)
    run(given)
    lay(BEFORE | {"c/06.png": png(100)})
    encoded, textures = run(given)
    assert encoded < 2 * cap
    assert textures < COUNT
    made = stored()
    shutil.rmtree("data")
    run(given)
    assert stored() == made


class Interrupted(Exception):
    """What ends a run in the middle."""


@contextmanager
def ending_after(shards: int) -> Iterator[None]:
    """The run ends when it begins one more shard than so many."""
    write, begun = StoreWriter.shard, []

    def shard(writer: StoreWriter, number: int) -> Any:
        begun.append(number)
        if len(begun) > shards:
            raise Interrupted
        return write(writer, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "shard", shard)
        yield


def kept_for_a_while() -> list[str]:
    return sorted(path.name for path in Path("data").glob(".*.earlier"))


def put_aside() -> list[Path]:
    return sorted(path for path in Path("data").iterdir() if path.is_dir() and "." in path.name[1:])


@pytest.mark.parametrize("under_dvc", [False, True])
def test_killed_at_every_shard_it_goes_on_to_the_same_bytes(under_dvc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if under_dvc:
        monkeypatch.setenv("DVC_STAGE", "a stage")
    lay(BEFORE)
    run()
    lay({"a/new.png": png(100)} | without(BEFORE, "d/05.png"))
    runs = 0
    for shards in itertools.chain([0], itertools.repeat(1)):
        runs += 1
        try:
            with ending_after(shards):
                run()
        except Interrupted:
            assert len(kept_for_a_while()) == under_dvc
        else:
            break
    assert runs > len(list(Path("data").glob("[fl]*s/shard-*"))) == 7
    assert kept_for_a_while() == []
    assert [path.name.split(".")[0] for path in put_aside()] == ([] if under_dvc else ["features", "images", "latents"])
    assert stored() == from_nothing()


def test_what_is_of_no_use_is_not_kept_while_the_new_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "a stage")
    lay(BEFORE)
    run()
    with ending_after(1), pytest.raises(Interrupted):
        run(settings(latents={"seed": 1}))
    assert kept_for_a_while() == put_aside() == []
    run()


def test_what_a_run_made_that_never_ended_is_taken_over_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "a stage")
    lay(BEFORE)
    run()
    many = {f"a/{number}.png": png(number) for number in range(300, 315)}
    lay(BEFORE | many)
    with ending_after(1), counted() as passes, pytest.raises(Interrupted):
        run()
    assert sum(passes.encoder) >= 10
    lay(BEFORE | many | {"e/last.png": png(400)})
    with counted() as passes:
        run()
    # Of the new ones the first shard's ten are there.
    assert sum(passes.encoder) == 15 - 10 + 1
    assert stored() == from_nothing()


def at(path: Path, field: str, row: int) -> int:
    """Where a row of a shard begins in its file."""
    with h5py.File(path) as file:
        data = file[field]
        return int(data.id.get_offset() + row * data.dtype.itemsize * np.prod(data.shape[1:]))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda shard: flip(shard, at(shard, "semantic", 2) + 3), 1),
        (lambda shard: flip(shard, at(shard, "crc32/texture", 4)), 1),
        (lambda shard: flip(shard, at(shard, "extras/keys", 5)), 1),
        (lambda shard: os.truncate(shard, shard.stat().st_size // 2), 7),
        (lambda shard: shard.write_bytes(b"something else"), 7),
        (lambda shard: shard.unlink(), 7),
        (lambda shard: shard.with_name("index.h5").unlink(), 0),
        (lambda shard: flip(shard.with_name("settings.json"), 40), 0),
    ],
)
def test_rows_of_an_old_store_that_are_damaged_or_gone_are_made_again(
    damage: Callable[[Path], object], again: int
) -> None:
    lay(BEFORE)
    run()
    lay(BEFORE | {"a/new.png": png(100)})
    damage(Path("data/latents/shard-00001.h5"))
    assert run() == (1, 1 + again)
    assert stored() == from_nothing()


def test_stores_of_before_there_were_keys_are_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lay(BEFORE)
    with monkeypatch.context() as patch:
        patch.setattr("sfd_cli.data.image_folder.write_contents", lambda *_: None)
        assert run(settings(latents={"noise": "index"})) == (COUNT, COUNT)
    assert not Path("data/images", CONTENTS).exists()
    lay(BEFORE | {"a/new.png": png(100)})
    assert run() == (COUNT + 1, COUNT + 1)
    assert stored() == from_nothing()
    lay(BEFORE)
    assert run() == (0, 0)
    assert stored() == from_nothing()


def test_features_of_before_there_were_keys_give_latents_without(monkeypatch: pytest.MonkeyPatch) -> None:
    lay(BEFORE)
    with monkeypatch.context() as patch:
        patch.setattr(extract_features, "read_contents", lambda *_: None)
        run()
    for store in STORES:
        with h5py.File(f"{store}/shard-00000.h5") as shard:
            assert "keys" not in shard.get("extras", {})


def test_noise_by_content_needs_the_contents_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lay(BEFORE)
    given = settings()
    with monkeypatch.context() as patch:
        patch.setattr("sfd_cli.data.image_folder.write_contents", lambda *_: None)
        prepare_data.run(given)
    extract_features.run(given)
    with refusal("latents.noise", "content", "sfd prepare-data"):
        encode_latents.run(given)
    assert not Path("data/latents").exists()


def test_an_image_has_the_latent_of_its_content_wherever_it_is() -> None:
    lay(BEFORE | {"d/copy.png": BEFORE["b/00.png"]})
    run()
    store = Store(Path("data/latents"))
    one, other, third = (store.files.index(name) for name in ("b/00.png", "d/copy.png", "b/03.png"))
    for name in ("texture", "semantic"):
        rows = store.read(name, [one, other, third])
        assert np.array_equal(rows[0], rows[1])
        assert not np.array_equal(rows[0], rows[2])


class Rounding:
    """Stands for a device whose sums depend on how many images are in a pass."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        see, encode, compress = VisualEncoder.forward, TextureVAE.encode, SemanticVAE.encode

        def seen(network: VisualEncoder, images: Tensor) -> Any:
            tokens, class_token = see(network, images)
            self.sizes.append(len(images))
            return tokens + len(images), class_token

        def moved(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return found[0] + len(found[0]), found[1]

        patch.setattr(VisualEncoder, "forward", seen)
        patch.setattr(TextureVAE, "encode", lambda network, images: moved(encode(network, images)))
        patch.setattr(SemanticVAE, "encode", lambda network, tokens: moved(compress(network, tokens)))


@pytest.mark.parametrize("cap", [None, 9])
def test_where_rounding_depends_on_how_many_images_are_together_they_always_are_as_many(
    cap: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "ONE_BY_ONE", frozenset())
    given = settings(features={"max_images": cap})
    rounding = Rounding(monkeypatch)
    lay(BEFORE)
    run(given)
    lay(BEFORE | {"a/new.png": png(100)})
    run(given)
    made = stored()
    shutil.rmtree("data")
    run(given)
    assert stored() == made
    assert set(rounding.sizes) == ({4} if cap is None else {3, 4})
