"""Every reader of a file, with a whole file for it, and what it reads as plain values that can be compared."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from idx_files import IMAGES, write_training_set
from latent_stores import normal, store_of
from PIL import Image
from pipeline_project import TINY
from safetensors.torch import save_file
from torch import nn

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.learned_law import LAW, SURFACE, read_surface, save_surface
from sfd_cli.artifacts.recipe import COPY, SETTINGS, Recipe, Record
from sfd_cli.artifacts.sample_folder import read_png as read_sample
from sfd_cli.artifacts.timings import seconds_of_stages
from sfd_cli.checksums import checksums_of
from sfd_cli.config import Sample, load_settings
from sfd_cli.data.archives import list_archives
from sfd_cli.data.fashion_mnist import training_set
from sfd_cli.data.images import DECODE_ERRORS, ImageManifest, decode_image
from sfd_cli.data.store import Store
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.path_criterion import ErrorSurface
from sfd_cli.errors import UserError
from sfd_cli.evaluation.npz import open_npz
from sfd_cli.files import read_as, write_json
from sfd_cli.formats.model_folder import load_config, load_model, save_model
from sfd_cli.formats.reference_latents import check_latents
from sfd_cli.formats.reference_shards import list_shards
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.play.picture import Picture, as_png, read_png
from sfd_cli.report.curves import read_curves
from sfd_cli.studies.results import read_results
from sfd_cli.training.checkpoints import Checkpoints, TrainingState


@dataclass(frozen=True)
class Reader:
    """A reader and what it reads.

    Attributes:
        write: makes a whole file in a folder and gives its path; others may lie beside it.
        read: what is read, as plain values; may be given the path alone.
        is_checked: whether damage cannot pass for another value, because there is a checksum.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    is_checked: bool = False


def plain(value: Any) -> Any:
    """Arrays and tensors as their digests."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        return (
            [str(value.dtype), list(value.shape), hashlib.sha256(bytes(value.view(-1).view(torch.uint8))).hexdigest()]
            if value.numel() and value.dim()
            else [str(value.dtype), list(value.shape), str(value)]
        )
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def params(folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def artifact(folder: Path) -> Path:
    made = folder / "artifact"
    made.mkdir()
    (made / "shard.bin").write_bytes(bytes(range(256)) * 4)
    (made / "labels.json").write_text("[1, 2, 3]")
    recipe = Recipe("demo", made, {"seed": 0, "rate": 1e-4, "names": ["a", "b"]}, {"images": "abc"})
    Record.of(recipe, {"images": 3}, checksums_of(made, ["shard.bin", "labels.json"])).write(made)
    return made


def record_alone(folder: Path) -> Path:
    """Without its copy, so that damage cannot be made good."""
    made = artifact(folder)
    (made / COPY).unlink()
    return made / SETTINGS


def read_record(path: Path) -> Any:
    record = Record.read(path.parent)
    return None if record is None else plain(asdict(record))


def read_artifact(path: Path) -> Any:
    """The file as the next stage takes it, which looks whether its input is whole first."""
    return [plain(asdict(finished(path.parent, "sfd demo"))), path.read_bytes().hex()]


def store(folder: Path) -> Path:
    store_of(folder / "latents", normal(8, 2), normal(8, 3, seed=1), labels=[0, 1] * 4)
    return folder / "latents"


def read_store(path: Path) -> Any:
    found = Store(path.parent)
    arrays = {name: found.read(name, range(len(found))) for name in found.fields}
    facts = [found.labels, found.indices, found.classes, found.statistics, found.attributes, found.files]
    return plain([arrays, facts])


def read_arrays(path: Path) -> Any:
    found = Store(path.parent)
    return plain({name: found.read(name, range(len(found))) for name in found.fields})


CONFIG = TextureVAEConfig(2, (8, 8), norm_groups=4)


def model(folder: Path) -> Path:
    torch.manual_seed(0)
    extra = {"statistics": {"mean": [0.5], "std": [1.5]}, "classes": ["a", "b"], "image_size": 16}
    save_model(folder / "model", "TextureVAE", CONFIG, {"model": TextureVAE(CONFIG).state_dict()}, extra)
    return folder / "model"


def read_model(path: Path) -> Any:
    return plain([load_config(path.parent), load_model(path.parent, "model").state_dict()])


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(64.0).reshape(8, 8), "bias": torch.ones(8, dtype=torch.float16)}


def safetensors(folder: Path) -> Path:
    save_file(tensors(), folder / "weights.safetensors", {"format": "pt"})
    return folder / "weights.safetensors"


def torch_file(folder: Path, zipped: bool) -> Path:
    path = folder / "weights.pt"
    torch.save({"ema": tensors(), "step": 3}, path, _use_new_zipfile_serialization=zipped)
    return path


def read_weights(path: Path) -> Any:
    return plain(read_weights_file(path))


def images(count: int = 4) -> dict[str, bytes]:
    found = {}
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        found[f"{'cat' if number % 2 else 'dog'}/{number}.png"] = buffer.getvalue()
    return found


def zip_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in images().items():
            archive.writestr(name, content)
    return folder / "images.zip"


def tar_archive(folder: Path) -> Path:
    with tarfile.open(folder / "images.tar", "w") as archive:
        for name, content in images().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder / "images.tar"


def parquet_archive(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    rows = [{"bytes": content, "path": name} for name, content in images().items()]
    table = pyarrow.table({"image": rows, "label": [number % 2 for number in range(len(rows))]})
    parquet.write_table(table, folder / "images.parquet")
    return folder / "images.parquet"


def read_archive(path: Path) -> Any:
    """Names, and pixels or that there are none, as `sfd prepare-data` takes them."""
    found: dict[str, Any] = {}
    for name, image in list_archives([path]).items():
        try:
            found[name] = plain(np.asarray(decode_image(image)))
        except DECODE_ERRORS:
            found[name] = "corrupt"
    return found


def idx(folder: Path, packed: bool) -> Path:
    write_training_set(folder, 4, packed)
    return folder / (f"{IMAGES}.gz" if packed else IMAGES)


def manifest(folder: Path) -> Path:
    for name, content in images().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    ImageManifest.of(folder, {name: hashlib.sha256(content).hexdigest() for name, content in images().items()}).save(
        folder, root="."
    )
    return folder / "manifest.json"


def npz(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 5, 3), dtype=np.uint8)
    np.savez(folder / "reference.npz", arr_0=pixels, mu=np.arange(4.0), sigma=np.eye(4), count=10)
    return folder / "reference.npz"


def read_npz(path: Path) -> Any:
    found, gaussians = open_npz(path)
    pixels = None if found is None else list(found.batches(2))
    return plain([pixels, [[one.mean, one.covariance, one.count] for one in gaussians]])


def npy(folder: Path) -> Path:
    np.save(folder / "noise.npy", np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32))
    return folder / "noise.npy"


def read_npy(path: Path) -> Any:
    inputs = SampleInputs.open(Sample(), path, None)
    return plain([inputs.noise_of(range(inputs.count), (2, 4, 4)) if inputs.count == 3 else inputs.count])


def surface(folder: Path) -> Path:
    errors = Streams(torch.ones(2, 3, 3), torch.ones(2, 3, 3))
    found = ErrorSurface(torch.linspace(0, 1, 3), errors, torch.tensor([0, 1]), semantic_end=0.5)
    save_surface(folder, found, found, found, Streams(torch.ones(3, 3), torch.ones(3, 3)))
    return folder / SURFACE


def reference_latents(folder: Path) -> Path:
    shard = {name: torch.randn(4, 2, 3, 3) for name in ("latents", "latents_flip", "latents_sv", "latents_sv_flip")}
    save_file(shard | {"labels": torch.tensor([0, 1, 0, 2])}, folder / "latents_rank00_shard000.safetensors")
    for name in ("latents_stats.pt", "latents_sv_stats.pt"):
        torch.save({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}, folder / name)
    return folder / "latents_rank00_shard000.safetensors"


def read_reference_latents(path: Path) -> Any:
    check_latents(path.parent)
    return plain([[shard.labels(), shard.arrays(range(shard.count))] for shard in list_shards(path.parent)])


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    Checkpoints(folder).save(TrainingState.of(5, network, network, optimizer))
    return Checkpoints(folder).path(5)


def read_checkpoint(path: Path) -> Any:
    """What training goes on from; it passes over a damaged checkpoint and says so."""
    found = Checkpoints(path.parent.parent).load_last()
    if found is None:
        raise UserError(path, "is passed over")
    return plain(asdict(found))


def json_file(name: str, value: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_json(folder / name, value)
        return folder / name

    return write


def curve(folder: Path) -> Path:
    path = folder / "plots" / "metrics" / "loss.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("step\tloss\n" + "".join(f"{step}\t{1 / step}\n" for step in range(1, 20)))
    return path


def picture(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    (folder / "picture.png").write_bytes(as_png(pixels, Picture(label=1, sample=Sample(seed=3)), {"model": "abc"}))
    return folder / "picture.png"


def read_picture(path: Path) -> Any:
    found, about = read_png(path.read_bytes(), str(path))
    return [found.as_plain(), about]


def sample(folder: Path) -> Path:
    (folder / "000000.png").write_bytes(images(1)["dog/0.png"])
    return folder / "000000.png"


def inside(name: str, write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda folder: write(folder) / name


SHARD = "shard-00000.h5"
SCORES = {"fid": 1.5, "fd_dinov2": 20.25, "counts": {"samples": 12}, "used": {"settings": {"seed": 0}}}

READERS: dict[str, Reader] = {
    "params.yaml": Reader(params, lambda path: load_settings(path).model_dump(mode="json")),
    "settings.json": Reader(record_alone, read_record, is_checked=True),
    "settings.json with its copy": Reader(inside(SETTINGS, artifact), read_record, is_checked=True),
    "the copy of settings.json": Reader(inside(COPY, artifact), read_record, is_checked=True),
    "a file of an artifact": Reader(inside("shard.bin", artifact), read_artifact, is_checked=True),
    "labels of an artifact": Reader(inside("labels.json", artifact), read_artifact, is_checked=True),
    "index.h5": Reader(inside("index.h5", store), read_store),
    "a shard's arrays": Reader(inside(SHARD, store), read_arrays, is_checked=True),
    "config.json": Reader(inside("config.json", model), read_model),
    "a model's weights": Reader(inside("model.safetensors", model), read_model),
    "safetensors": Reader(safetensors, read_weights),
    "torch file": Reader(lambda folder: torch_file(folder, True), read_weights),
    "torch file of old": Reader(lambda folder: torch_file(folder, False), read_weights),
    "zip": Reader(zip_archive, read_archive),
    "tar": Reader(tar_archive, read_archive),
    "parquet": Reader(parquet_archive, read_archive),
    "idx": Reader(lambda folder: idx(folder, False), lambda path: plain(training_set(path.parent))),
    "idx, packed": Reader(lambda folder: idx(folder, True), lambda path: plain(training_set(path.parent))),
    "manifest.json": Reader(manifest, lambda path: plain(asdict(ImageManifest.load(path.parent)))),
    "npz": Reader(npz, read_npz),
    "npy": Reader(npy, read_npy),
    "surface.npz": Reader(surface, lambda path: plain(asdict(read_surface(path.parent)))),
    "reference latents": Reader(reference_latents, read_reference_latents),
    "reference statistics": Reader(
        lambda folder: reference_latents(folder).with_name("latents_stats.pt"), read_reference_latents
    ),
    "checkpoint, weights": Reader(inside("model.safetensors", checkpoint), read_checkpoint, is_checked=True),
    "checkpoint, optimiser": Reader(inside("optimizer.safetensors", checkpoint), read_checkpoint, is_checked=True),
    "checkpoint, checksums": Reader(inside("checksums.json", checkpoint), read_checkpoint, is_checked=True),
    "law.json": Reader(json_file(LAW, {"schedule": "curve", "lead": 2.0}), lambda path: read_as(dict[str, Any], path)),
    "fid.json": Reader(json_file("fid.json", SCORES), lambda path: read_as(dict[str, Any], path)),
    "timings": Reader(
        json_file("train.json", [{"seconds": 1.5, "resumed": False}]), lambda path: seconds_of_stages(path.parent)
    ),
    "results of a study": Reader(
        json_file("results.json", [{"row": "a", "seed": 0, "fid": 1.0}]), lambda path: read_results(path.parent)
    ),
    "curves": Reader(curve, lambda path: plain([asdict(one) for one in read_curves(path.parents[2])])),
    "a picture of sfd play": Reader(picture, read_picture),
    "a sample": Reader(sample, lambda path: plain(read_sample(path))),
}
