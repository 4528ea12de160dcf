"""`sfd encode-latents`: composite latents of both flips, the same bytes however the work was cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from model_loading import load_semantic_vae, load_texture_vae
from PIL import Image
from refusals import refusal

from sfd_cli.config import Settings, load_settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.store import Store
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import read_json
from sfd_cli.formats.ldm import texture_vae_to_ldm
from sfd_cli.formats.model_folder import save_model
from sfd_cli.formats.reference_semantic_vae import semantic_vae_to_reference
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline import encoding
from sfd_cli.pipeline.encoding import posterior_noise
from sfd_cli.stages import encode_latents, extract_features, prepare_data
from sfd_cli.weights.visual_encoders import load_visual_encoder

COUNT, HELD, SHARD = 50, 10, 4
PARAMS: dict[str, dict[str, Any]] = {
    "runtime": {"device": "cpu", "workers": 2},
    "images": {"source": "folder", "folder": "mine", "size": 16},
    "encoder": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32},
    "features": {"max_images": HELD},
    "texture_vae": {"channels": 2, "block_channels": [32, 32, 32, 32]},
    "latents": {"shard_size": SHARD, "batch_size": 3},
}


NO_SEMANTICS = {"semantics": False, "delta_t": 0.0, "time_embedding": "single", "repa": "none"}


def settings_with(**sections: dict[str, Any]) -> Settings:
    return load_settings(Path("params.yaml"), sections)


def save_semvae(folder: Path, feature_width: int = 192) -> None:
    torch.manual_seed(1)
    config = SemanticVAEConfig(feature_width, channels=5, width=32, depth=1, heads=2)
    save_model(folder, "SemanticVAE", config, {"model": SemanticVAE(config).state_dict()}, {})


def save_texture_vae(folder: Path, seed: int = 2, levels: int = 4) -> None:
    torch.manual_seed(seed)
    config = TextureVAEConfig(2, (32,) * levels)
    save_model(folder, "TextureVAE", config, {"model": TextureVAE(config).state_dict()}, {})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are added in another order by another number of threads; here every process has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with images, features of some of them, and both VAEs."""
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        path = root / "mine" / "abc"[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((20, 24), Image.Resampling.BICUBIC).save(path)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    save_semvae(root / "models/semvae")
    save_texture_vae(root / "models/texture_vae")
    here = Path.cwd()
    os.chdir(root)
    try:
        prepare_data.run(settings_with())
        extract_features.run(settings_with())
    finally:
        os.chdir(here)
    return root


@pytest.fixture(autouse=True)
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return root


def contents(folder: Path = Path("data/latents")) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(template: Path) -> Path:
    """The latents that an undisturbed run writes; only for reading."""
    here = Path.cwd()
    root = template.with_name("finished")
    shutil.copytree(template, root)
    os.chdir(root)
    try:
        encode_latents.run(settings_with())
    finally:
        os.chdir(here)
    return root / "data/latents"


@pytest.fixture
def unbroken(finished: Path) -> dict[str, bytes]:
    return contents(finished)


def test_the_store_holds_posterior_samples_of_both_flips(finished):
    store = Store(finished)
    assert {name: field.shape for name, field in store.fields.items()} == {
        "texture": (2, 2, 2, 2),
        "semantic": (2, 5, 2, 2),
        "features": (2, 4, 192),
    }
    manifest = ImageManifest.load(Path("data/images"))
    assert (store.labels.tolist(), store.files) == (manifest.labels, manifest.files)
    assert store.classes == ["a", "b", "c"]
    images = ImageReader(manifest, 16).read(range(COUNT)).float()
    texture_vae, _ = load_texture_vae(Path("models/texture_vae"))
    semantic_vae, _ = load_semantic_vae(Path("models/semvae"))
    encoder = load_visual_encoder(settings_with().encoder)
    shapes = [field.shape[1:] for name, field in store.fields.items() if name != "features"]
    texture_noise, semantic_noise = posterior_noise(0, range(COUNT), sorted(shapes), 2)
    with torch.no_grad():
        for flip, seen in enumerate((images, images.flip(-1))):
            tokens = encoder(seen / 255)[0].half()
            assert_close(store.read("features", range(COUNT))[:, flip], tokens)
            mean, logvar = texture_vae.encode(seen / 127.5 - 1)
            texture = mean + (logvar / 2).exp() * texture_noise[:, flip]
            assert_close(store.read("texture", range(COUNT))[:, flip], texture)
            mean, logvar = semantic_vae.encode(tokens.float())
            as_image = (part.reshape(COUNT, 2, 2, 5).permute(0, 3, 1, 2) for part in (mean, (logvar / 2).exp()))
            mean, deviation = as_image
            assert_close(store.read("semantic", range(COUNT))[:, flip], mean + deviation * semantic_noise[:, flip])


def assert_close(stored: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(stored.astype(np.float32), expected.float().numpy(), rtol=2e-3, atol=5e-3)


def test_the_statistics_are_those_of_the_stored_composite_over_both_flips(finished):
    store = Store(finished)
    both = [store.read(name, range(COUNT)).astype(np.float64) for name in ("texture", "semantic")]
    composite = np.concatenate(both, axis=2)
    np.testing.assert_allclose(store.statistics["mean"], composite.mean(axis=(0, 1, 3, 4)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(store.statistics["std"], composite.std(axis=(0, 1, 3, 4)), rtol=1e-12)


def test_all_texture_channels_may_share_one_scale(finished: Path) -> None:
    own = Store(finished)
    encode_latents.run(settings_with(latents={"texture_scale": "stream"}))
    shared = Store(Path("data/latents"))
    for name in ("texture", "semantic"):
        assert np.array_equal(own.read(name, range(COUNT)), shared.read(name, range(COUNT)))
    textures = own.read("texture", range(COUNT)).astype(np.float64)
    scale = np.sqrt(np.mean([textures[:, :, channel].var() for channel in range(2)]))
    np.testing.assert_allclose(shared.statistics["std"][:2], [scale, scale], rtol=1e-12)
    assert np.array_equal(shared.statistics["std"][2:], own.statistics["std"][2:])
    assert np.array_equal(shared.statistics["mean"], own.statistics["mean"])
    assert read_json(Path("data/latents/settings.json"))["settings"]["texture_scale"] == "stream"
    assert "texture_scale" not in read_json(finished / "settings.json")["settings"]


def test_textures_may_be_made_smaller_than_semantics(finished: Path) -> None:
    own = Store(finished)
    encode_latents.run(settings_with(latents={"texture_gain": 0.5}))
    smaller = Store(Path("data/latents"))
    assert np.array_equal(smaller.statistics["std"][:2], 2 * own.statistics["std"][:2])
    assert np.array_equal(smaller.statistics["std"][2:], own.statistics["std"][2:])
    assert np.array_equal(smaller.statistics["mean"], own.statistics["mean"])


def test_components_of_patches_are_stored_as_they_are_and_a_killed_run_goes_on() -> None:
    torch.manual_seed(3)
    square = torch.linalg.qr(torch.randn(192, 192, dtype=torch.float64)).Q
    pca = TexturePCA(TexturePCAConfig(patch_size=8, channels=7))
    pca.load_state_dict({"mean": torch.linspace(-1, 1, 192), "components": square[:7].float()})
    save_model(Path("models/texture_vae"), "TexturePCA", pca.config, {"model": pca.state_dict()}, {})
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["texture_vae"] = {"compressor": "pca", "patch_size": 8, "channels": 7}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    killed_at_the_first_shard()
    encode_latents.run(settings_with())
    resumed = contents()
    images = ImageReader(ImageManifest.load(Path("data/images")), 16).read(range(COUNT)).double() / 127.5 - 1
    for flip, seen in enumerate((images, images.flip(-1))):
        patches = seen.numpy().reshape(COUNT, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(COUNT, 2, 2, 192)
        expected = (patches - np.linspace(-1, 1, 192)) @ square[:7].numpy().T
        stored = Store(Path("data/latents")).read("texture", range(COUNT))[:, flip]
        assert_close(stored, torch.from_numpy(expected.transpose(0, 3, 1, 2)))
    shutil.rmtree("data/latents")
    encode_latents.run(settings_with())
    assert contents() == resumed


def test_plain_h5py_reads_the_same_values(finished):
    with h5py.File(finished / "index.h5") as index:
        assert np.array_equal(index["semantic"][5:9], Store(finished).read("semantic", range(5, 9)))
        assert index["statistics/std"].shape == (7,)


def test_noise_depends_on_seed_image_and_flip_alone():
    shapes = [(2, 3, 3), (4,)]
    one, two = posterior_noise(0, [5, 9], shapes, 2), posterior_noise(0, [9, 7, 5], shapes, 2)
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second[[2, 0]])
        assert not torch.equal(first[:, 0], first[:, 1])
        assert not torch.equal(first[0], first[1])
    for both, alone in zip(one, posterior_noise(0, [5, 9], shapes, 1), strict=True):
        assert torch.equal(alone, both[:, :1])
    assert not torch.equal(posterior_noise(1, [5], shapes, 2)[0][0], one[0][0])
    many = posterior_noise(0, range(300), [(50,)], 2)[0]
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_stored_features_and_the_encoder_give_the_same_latents(finished):
    mixed = Store(finished)
    shutil.rmtree("data/features")
    encode_latents.run(settings_with())
    fresh = Store(Path("data/latents"))
    for name in ("features", "semantic"):
        np.testing.assert_allclose(
            mixed.read(name, range(COUNT)).astype(float), fresh.read(name, range(COUNT)).astype(float), atol=5e-3
        )


def test_stored_features_spare_the_encoder(monkeypatch):
    extract_features.run(settings_with(features={"max_images": None}))

    def refuse(*args: Any) -> None:
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(encoding, "load_visual_encoder", refuse)
    encode_latents.run(settings_with())
    assert len(Store(Path("data/latents"))) == COUNT


def test_features_are_left_out_on_request():
    encode_latents.run(settings_with(latents={"store_features": False}, dit={"repa": "none"}, guide={"repa": "none"}))
    assert set(Store(Path("data/latents")).fields) == {"texture", "semantic"}


def test_a_finished_store_is_up_to_date(finished, unbroken, capsys, monkeypatch):
    shutil.copytree(finished, "data/latents")
    monkeypatch.setattr(encode_latents, "LatentEncoder", None)
    assert encode_latents.run(settings_with())["texture"] == "2 x 2 x 2"
    assert "up to date" in capsys.readouterr().err
    assert contents() == unbroken


def killed_at_the_first_shard() -> Path:
    """SIGKILL the command when its first shard is there, which is returned."""
    process = subprocess.Popen([sys.executable, "-m", "sfd_cli", "encode-latents"], stderr=subprocess.PIPE)
    first = Path("data/latents/shard-00000.h5")
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not read_json(Path("data/latents/settings.json"))["complete"]
    return first


def test_a_killed_process_is_resumed_to_the_same_bytes(unbroken):
    first = killed_at_the_first_shard()
    kept = first.stat()
    encode_latents.run(settings_with())
    assert first.stat().st_mtime_ns == kept.st_mtime_ns
    assert contents() == unbroken


def test_two_processes_write_the_same_bytes_as_one(unbroken):
    command = [sys.executable, "-m", "sfd_cli", "encode-latents", "--processes", "2"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 processes" in ran.stderr
    assert ran.stdout.count("images") == 1, "one of them tells the result"
    assert contents() == unbroken


@pytest.mark.parametrize("damage", ["missing", "truncated", "index"])
def test_a_store_damaged_since_is_repaired_by_running_again(damage, finished, unbroken):
    shutil.copytree(finished, "data/latents")
    path = Path("data/latents") / ("index.h5" if damage == "index" else "shard-00003.h5")
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 300)
    encode_latents.run(settings_with())
    assert contents() == unbroken


def test_another_vae_of_the_same_settings_starts_afresh_and_keeps_the_old(finished, unbroken, capsys):
    shutil.copytree(finished, "data/latents")
    save_texture_vae(Path("models/texture_vae"), seed=3)
    encode_latents.run(settings_with())
    assert "starting afresh" in capsys.readouterr().err
    old = [path for path in Path("data").glob("latents.*") if path.is_dir()]
    assert [contents(path)["shard-00000.h5"] for path in old] == [unbroken["shard-00000.h5"]]
    assert contents()["shard-00000.h5"] != unbroken["shard-00000.h5"]


def test_what_is_missing_or_does_not_fit_is_a_users_error():
    save_semvae(Path("models/semvae"), feature_width=96)
    with refusal("models/semvae", "96", "192", "sfd train-semvae"):
        encode_latents.run(settings_with())
    save_semvae(Path("models/semvae"))
    save_texture_vae(Path("models/texture_vae"), levels=3)
    with refusal("models/texture_vae", "4 x 4", "16 px", "2 x 2", "sfd train-texture-vae"):
        encode_latents.run(settings_with())
    shutil.rmtree("models/texture_vae")
    with pytest.raises(UserError) as caught:
        encode_latents.run(settings_with())
    assert "models/texture_vae" in caught.value.subject
    shutil.rmtree("data/images")
    with refusal("data/images", "sfd prepare-data"):
        encode_latents.run(settings_with())


def test_features_of_other_images_are_refused():
    shutil.copy("mine/a/00.png", "mine/a/99.png")
    prepare_data.run(settings_with())
    with refusal("data/features", "sfd extract-features"):
        encode_latents.run(settings_with())


def test_a_latent_that_is_not_finite_names_its_image():
    weights = {
        name: torch.full_like(values, 1e6)
        for name, values in load_texture_vae(Path("models/texture_vae"))[0].state_dict().items()
    }
    save_model(Path("models/texture_vae"), "TextureVAE", TextureVAEConfig(2, (32,) * 4), {"model": weights}, {})
    with refusal(ImageManifest.load(Path("data/images")).path(0), "texture", "float16", kind=StageFailure):
        encode_latents.run(settings_with())
    assert not list(Path("data/latents").glob("*shard*"))


def test_without_semantics_there_are_textures_only(unbroken: dict[str, bytes]) -> None:
    alone = {"semvae": {"compressor": "none"}, "dit": NO_SEMANTICS, "guide": NO_SEMANTICS}
    shutil.rmtree("models/semvae")
    shutil.rmtree("data/features")
    textures_only = settings_with(**alone, latents={"store_features": False})
    extract_features.run(textures_only)
    encode_latents.run(textures_only)
    store = Store(Path("data/latents"))
    assert set(store.fields) == {"texture"}
    assert store.statistics["mean"].shape == (2,)
    with_features = settings_with(**alone)
    encode_latents.run(with_features)
    assert set(Store(Path("data/latents")).fields) == {"texture", "features"}


def test_compressors_may_be_files_of_the_reference_code(finished: Path) -> None:
    texture_vae, semantic_vae = (
        load_texture_vae(Path("models/texture_vae"))[0],
        load_semantic_vae(Path("models/semvae"))[0],
    )
    torch.save({"state_dict": texture_vae_to_ldm(texture_vae.config, texture_vae.state_dict())}, "texture.ckpt")
    weights = semantic_vae_to_reference(semantic_vae.config, semantic_vae.state_dict())
    torch.save({"model_state_dict": weights}, "semvae.pt")
    section = {"channels": 5, "width": 32, "depth": 1, "heads": 2}
    of_files = settings_with(paths={"texture_vae": "texture.ckpt", "semvae": "semvae.pt"}, semvae=section)
    encode_latents.run(of_files)
    ours, theirs = Store(finished), Store(Path("data/latents"))
    for name in ours.fields:
        assert np.array_equal(ours.read(name, range(COUNT)), theirs.read(name, range(COUNT)))


def test_without_mirror_images_the_latents_and_their_statistics_are_of_the_images_as_they_are(finished, monkeypatch):
    alone = settings_with(images={"mirror": False})
    extract_features.run(alone)
    seen = []
    encode = TextureVAE.encode
    monkeypatch.setattr(TextureVAE, "encode", lambda net, x: (seen.append(len(x)), encode(net, x))[1])
    assert encode_latents.run(alone)["images"] == f"{COUNT}, as they are"
    assert sum(seen) == COUNT
    both, one = Store(finished), Store(Path("data/latents"))
    assert {name: field.shape for name, field in one.fields.items()} == {
        "texture": (1, 2, 2, 2),
        "semantic": (1, 5, 2, 2),
        "features": (1, 4, 192),
    }
    for name in one.fields:
        assert_close(one.read(name, range(COUNT)), torch.from_numpy(both.read(name, range(COUNT))[:, :1]))
    unflipped = [one.read(name, range(COUNT))[:, 0].astype(np.float64) for name in ("texture", "semantic")]
    composite = np.concatenate(unflipped, axis=1)
    np.testing.assert_allclose(one.statistics["mean"], composite.mean(axis=(0, 2, 3)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(one.statistics["std"], composite.std(axis=(0, 2, 3)), rtol=1e-12)
    assert not np.allclose(one.statistics["mean"], both.statistics["mean"], rtol=1e-6)


def test_without_mirror_images_an_interrupted_run_goes_on_to_the_same_bytes(monkeypatch):
    alone = settings_with(images={"mirror": False})
    extract_features.run(alone)
    encode_latents.run(alone)
    whole = contents()
    Path("data/latents").rename("whole")
    encode = encoding.LatentEncoder.begin

    def interrupted(encoder: encoding.LatentEncoder, indices: Any, images: torch.Tensor) -> dict[str, np.ndarray]:
        if 20 in indices:
            raise KeyboardInterrupt
        return encode(encoder, indices, images)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.LatentEncoder, "begin", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode_latents.run(alone)
    kept = Path("data/latents/shard-00000.h5").stat().st_mtime_ns
    encode_latents.run(alone)
    assert Path("data/latents/shard-00000.h5").stat().st_mtime_ns == kept
    assert contents() == whole


def test_mirror_images_are_part_of_an_identity_only_where_they_are_left_out(finished, capsys):
    assert "mirror" not in read_json(finished / "settings.json")["settings"]
    shutil.copytree(finished, "data/latents")
    extract_features.run(settings_with(images={"mirror": False}))
    encode_latents.run(settings_with(images={"mirror": False}))
    assert "mirror unset -> False" in capsys.readouterr().err
    assert read_json(Path("data/latents/settings.json"))["settings"]["mirror"] is False


@pytest.mark.parametrize("mirror", [True, False])
def test_features_with_other_views_than_the_latents_are_refused(mirror):
    extract_features.run(settings_with(images={"mirror": not mirror}))
    with refusal("data/features", "images.mirror", "sfd extract-features"):
        encode_latents.run(settings_with(images={"mirror": mirror}))
    assert not Path("data/latents").exists()
    shutil.rmtree("data/features")
    encode_latents.run(settings_with(images={"mirror": mirror}))
    assert Store(Path("data/latents")).flips == (2 if mirror else 1)


def test_what_the_networks_compute_in_is_part_of_an_identity_and_of_the_record(finished: Path) -> None:
    """bf16 moves latents by its rounding, 3 digits; tokens that were stored are read as they are."""
    encode_latents.run(settings_with(latents={"precision": "bf16"}))
    exact, rounded = Store(finished), Store(Path("data/latents"))
    for name in ("texture", "semantic"):
        a, b = (store.read(name, range(COUNT)).astype(float) for store in (exact, rounded))
        error = np.sqrt(np.square(a - b).mean() / a.var())
        assert 1e-5 < error < 3e-2, (name, error)
    stored = exact.read("features", range(COUNT)) == rounded.read("features", range(COUNT))
    held = Store(Path("data/features")).indices
    assert stored[held].all()
    assert not stored.all()
    record, before = (read_json(folder / "settings.json") for folder in (Path("data/latents"), finished))
    assert record["facts"] == before["facts"] | {"precision": "bf16"}
    assert record["settings"] == before["settings"] | {"precision": "bf16"}
    assert record["fingerprint"] != before["fingerprint"]


def test_fp32_is_what_auto_is_on_a_cpu_and_tf32_is_refused_before_anything_is_written(finished: Path) -> None:
    encode_latents.run(settings_with(latents={"precision": "fp32"}))
    exact, chosen = Store(finished), Store(Path("data/latents"))
    for name in exact.fields:
        assert np.array_equal(exact.read(name, range(COUNT)), chosen.read(name, range(COUNT)))
    shutil.rmtree("data/latents")
    with refusal("latents.precision", "TF32", "fp32"):
        encode_latents.run(settings_with(latents={"precision": "tf32"}))
    with refusal("features.precision", "TF32", "fp32"):
        extract_features.run(settings_with(features={"precision": "tf32"}))
    assert not Path("data/latents").exists()
    assert read_json(Path("data/features/settings.json"))["complete"]


def test_a_batch_is_waited_for_only_once_the_next_one_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, log = encoding.LatentEncoder.begin, []

    def written_down(encoder: encoding.LatentEncoder, indices: Any, images: torch.Tensor) -> Any:
        log.append(("begin", indices[0]))
        arrays = begin(encoder, indices, images)
        return lambda: log.append(("fetch", indices[0])) or arrays()

    monkeypatch.setattr(encoding.LatentEncoder, "begin", written_down)
    encode_latents.run(settings_with(latents={"shard_size": 25, "batch_size": 25}))
    assert log == [("begin", 0), ("begin", 25), ("fetch", 0), ("fetch", 25)]
