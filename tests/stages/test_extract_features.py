"""`sfd extract-features`: tokens of both flips, in the manifest's order, resumed without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from artifact_records import RECORDS
from PIL import Image
from refusals import refusal

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.store import Store
from sfd_cli.errors import StageFailure
from sfd_cli.files import read_json
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.stages import extract_features, prepare_data
from sfd_cli.weights import visual_encoders as encoders

COUNT = 11


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of two classes, and an encoder small enough for a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        encoders,
        "VisualEncoder",
        lambda name, size, tiles: VisualEncoder(name, size, tiles, embed_dim=48, depth=1, num_heads=3),
    )
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        file = tmp_path / "mine" / "ab"[index % 2] / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(file)
    return tmp_path


def settings(mirror: bool = True, **features: Any) -> Settings:
    return Settings.model_validate(
        {
            "runtime": {"device": "cpu"},
            "images": {"source": "folder", "folder": "mine", "size": 32, "mirror": mirror},
            "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 56},
            "features": {"batch_size": 2, "shard_size": 4} | features,
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_store_holds_the_encoders_tokens_of_both_flips(workplace: Path) -> None:
    prepare_data.run(settings())
    extract_features.run(settings())
    store = Store(Path("data/features"))
    assert store.fields["tokens"].shape == (2, 16, 48)
    assert store.indices.tolist() == list(range(COUNT))
    assert store.files == [f"a/{i:02d}.png" for i in range(0, COUNT, 2)] + [
        f"b/{i:02d}.png" for i in range(1, COUNT, 2)
    ]
    assert store.labels.tolist() == [0] * 6 + [1] * 5
    assert store.classes == ["a", "b"]
    encoder = encoders.load_visual_encoder(settings().encoder)
    with h5py.File("data/features/index.h5") as plain:
        stored = plain["tokens"][:]
    assert stored.dtype == np.float16
    for position in (0, 3, 10):
        pixels = np.asarray(Image.open(Path("mine") / store.files[position]))[4:36]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        for flip, seen in enumerate((image, image.flip(-1))):
            expected = encoder(seen)[0][0].numpy()
            np.testing.assert_allclose(stored[position, flip], expected, atol=3e-3)


def test_a_capped_store_is_spread_evenly_and_says_which_images_it_has(workplace: Path) -> None:
    prepare_data.run(settings())
    summary = extract_features.run(settings(max_images=4))
    store = Store(Path("data/features"))
    assert store.indices.tolist() == [0, 2, 5, 8]
    assert store.labels.tolist() == [0, 0, 0, 1]
    assert summary["images"] == f"4 of {COUNT}"
    whole = extract_features.run(settings(max_images=1000))
    assert whole["images"] == f"{COUNT} of {COUNT}"


@pytest.mark.parametrize("mirror", [True, False])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mirror: bool
) -> None:
    prepare_data.run(settings(mirror))
    extract_features.run(settings(mirror))
    unbroken = contents(Path("data/features"))
    Path("data/features").rename("unbroken")

    encode = extract_features.encode_flips
    calls = []

    def interrupted(encoder: VisualEncoder, images: torch.Tensor, flips: int) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(encoder, images, flips)

    monkeypatch.setattr(extract_features, "encode_flips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_features.run(settings(mirror))
    assert calls == [2, 2, 2, 2]
    assert not Path("data/features/index.h5").exists()
    Path("data/features/.shard-00001.h5.1.tmp").write_bytes(b"what a killed writer leaves")
    extract_features.run(settings(mirror))
    assert "1 of 3" in capsys.readouterr().err
    assert sum(calls[4:]) == COUNT - 4
    assert contents(Path("data/features")) == unbroken


def test_a_finished_store_is_left_alone_until_what_made_it_changes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data.run(settings())
    extract_features.run(settings())
    load = extract_features.load_visual_encoder
    monkeypatch.setattr(extract_features, "load_visual_encoder", lambda config: pytest.fail("encoded again"))
    first = contents(Path("data/features"))
    extract_features.run(settings())
    extract_features.run(settings(batch_size=5))
    assert contents(Path("data/features")) == first
    assert "up to date" in capsys.readouterr().err
    monkeypatch.setattr(extract_features, "load_visual_encoder", load)
    extract_features.run(settings(shard_size=6))
    assert "starting afresh" in capsys.readouterr().err
    assert len(Store(Path("data/features"))) == COUNT


def test_a_shard_that_was_lost_or_damaged_is_written_again(workplace: Path) -> None:
    prepare_data.run(settings())
    extract_features.run(settings())
    before = contents(Path("data/features"))
    Path("data/features/shard-00000.h5").unlink()
    truncated = Path("data/features/shard-00002.h5")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    extract_features.run(settings())
    assert contents(Path("data/features")) == before


def test_another_batch_size_gives_the_same_tokens_to_float16(workplace: Path) -> None:
    prepare_data.run(settings())
    tokens = []
    for size in (1, 4):
        extract_features.run(settings(batch_size=size))
        tokens.append(Store(Path("data/features")).read("tokens", range(COUNT)))
        Path("data/features").rename(f"features-{size}")
    np.testing.assert_allclose(tokens[0], tokens[1], rtol=2e-3, atol=1e-3)


TOGETHER = """
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.weights import visual_encoders
from sfd_cli.stages import extract_features
from test_extract_features import settings

visual_encoders.VisualEncoder = lambda name, size, tiles: VisualEncoder(
    name, size, tiles, embed_dim=48, depth=1, num_heads=3
)
extract_features.run(settings())
"""


def test_two_processes_write_the_same_bytes_as_one(workplace: Path) -> None:
    prepare_data.run(settings())
    Path("together.py").write_text(TOGETHER)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    made = []
    for processes in (1, 2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        ran = subprocess.run([*torchrun, "together.py"], capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        made.append(contents(Path("data/features")))
        Path("data/features").rename(f"features-{processes}")
    assert made[0] == made[1]
    assert set(made[0]) == {"index.h5", *RECORDS, *(f"shard-0000{shard}.h5" for shard in range(3))}


def test_images_must_be_prepared_first(workplace: Path) -> None:
    with refusal("data/images", "sfd prepare-data"):
        extract_features.run(settings())


def test_a_device_that_is_not_here_is_the_users_to_change(workplace: Path) -> None:
    prepare_data.run(settings())
    for device in ("cuda:99", "abacus"):
        elsewhere = settings().model_copy(update={"runtime": settings().runtime.model_copy(update={"device": device})})
        with refusal("runtime.device", device):
            extract_features.run(elsewhere)


def test_without_mirror_images_only_the_images_as_they_are_are_encoded_and_stored(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data.run(settings())
    both = extract_features.run(settings())
    assert both["tokens of an image"] == "2 flips x 16 tokens x 48"
    assert "mirror" not in read_json(Path("data/features/settings.json"))["settings"]
    expected = Store(Path("data/features")).read("tokens", range(COUNT))[:, :1]

    passes = []
    forward = VisualEncoder.forward
    monkeypatch.setattr(VisualEncoder, "forward", lambda net, x: (passes.append(len(x)), forward(net, x))[1])
    one = extract_features.run(settings(mirror=False))
    assert sum(passes) == COUNT
    assert one["tokens of an image"] == "16 tokens x 48"
    store = Store(Path("data/features"))
    assert store.fields["tokens"].shape == (1, 16, 48)
    assert np.array_equal(store.read("tokens", range(COUNT)), expected)
    assert read_json(Path("data/features/settings.json"))["settings"]["mirror"] is False
    (aside,) = (path for path in Path("data").glob("features.*") if path.is_dir())
    assert Store(aside).flips == 2


def test_tokens_that_are_not_finite_are_a_failure_that_names_the_image(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data.run(settings())
    real = extract_features.encode_flips
    monkeypatch.setattr(extract_features, "encode_flips", lambda *arguments: real(*arguments) * np.float16(np.inf))
    with refusal(ImageManifest.load(Path("data/images")).path(0), "tokens", kind=StageFailure):
        extract_features.run(settings())
    assert list(Path("data/features").glob("*.h5")) == []
