"""The reference code's latent shards as our HDF5 store, and back, without losing a bit.

The reference keeps `latents_rankRR_shardSSS.safetensors`, each with `latents` and `latents_flip` (N, C_z, h, w),
`latents_sv` and `latents_sv_flip` (N, C_s, h, w), `labels` (N,) and, where features for REPA were stored,
`feats_dino` and `feats_dino_flip` (N, D, h, w); beside them `latents_stats.pt` and `latents_sv_stats.pt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from sfd_cli.data.shards import StoreWriter, stream_statistics, write_shards
from sfd_cli.data.store import Field, Store
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, fingerprint, sha256_file
from sfd_cli.formats.format import about
from sfd_cli.formats.model_folder import configured
from sfd_cli.formats.reference_statistics import LatentStatistics, statistics_from_reference, statistics_to_reference
from sfd_cli.formats.torch_files import read_weights_file

SHARDS = "latents_rank*_shard*.safetensors"
LABELS = "labels"
# Fields of the store, and the tensors of the reference, as they are and flipped.
TENSORS = {
    "texture": ("latents", "latents_flip"),
    "semantic": ("latents_sv", "latents_sv_flip"),
    "features": ("feats_dino", "feats_dino_flip"),
}
COMPOSITE = ("texture", "semantic")
STATISTICS = {"texture": "latents_stats.pt", "semantic": "latents_sv_stats.pt"}
DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32"}
SAFETENSORS_DTYPES = {name: code for code, name in DTYPES.items()}

ROWS_AT_ONCE = 64
"""Rows that are held in memory at a time: 50 MB with the features of a ViT-B, both flips."""

SHARD_ROWS = 10_000
"""Images of one of the reference's shards."""

ATTRIBUTE = "reference_shards"
"""Key of the store's attributes that holds the shards it was made of."""


@dataclass(frozen=True)
class SourceShard:
    """One of the reference's files, and what its header says; shapes are of one row."""

    path: Path
    count: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def is_shards(path: Path) -> bool:
    """Whether this is a folder of the reference's latent shards."""
    return path.is_dir() and any(path.glob(SHARDS))


def latents_fingerprint(source: Path) -> str:
    """Fingerprint of a folder of latent shards.

    Of every file the header, the size, the labels and the first and the last latent, because hashing hundreds of
    gigabytes takes longer than importing them; of the statistics the whole files.
    """
    parts: list[Any] = []
    for shard in _inspect(Path(source)):
        with _opened(shard.path) as file:
            latents = file.get_slice("latents")
            ends = [latents[row : row + 1].tobytes().hex() for row in (0, shard.count - 1)]
            labels = file.get_tensor(LABELS).tolist()
        header = [shard.shapes, shard.dtypes, shard.metadata]
        parts.append([shard.path.name, shard.path.stat().st_size, header, fingerprint([ends, labels])])
    files = [Path(source) / name for name in STATISTICS.values()]
    return fingerprint([parts, [sha256_file(path) if path.exists() else None for path in files]])


def check_latents(source: Path, num_classes: int | None = None) -> None:
    """Raise what `import_latents` would raise about headers, labels and statistics; nothing is written."""
    shards = _inspect(Path(source))
    _labels(shards, num_classes)
    _published_statistics(Path(source), _fields(shards[0]))


def import_latents(
    source: Path,
    folder: Path,
    fingerprint: str,
    *,
    encoder: str,
    image_size: int,
    shard_size: int = SHARD_ROWS,
    num_classes: int | None = None,
) -> int:
    """Write a folder of the reference's latent shards as a store, and return the number of images; resumes by shards.

    The fields `texture` (2, C_z, h, w), `semantic` (2, C_s, h, w) and, where all files have features, `features`
    (2, h*w, D), tokens row-major, have the dtypes of the source. The statistics are those beside the shards, since
    published models need just these; without them they are computed over both flips. Classes are named by numbers.

    Args:
        source: the folder.
        folder: of the store.
        fingerprint: of what decides the store's contents, `latents_fingerprint(source)` included.
        encoder: name of the visual encoder behind the semantic latents.
        image_size: side of the images behind the latents, pixels.
        shard_size: images per shard of the store.
        num_classes: of the data set; None: up to the largest label.

    Raises:
        UserError: a shard is missing, damaged or unlike the others; nothing is written if its header tells.
    """
    shards = _inspect(source)
    fields = _fields(shards[0])
    labels = _labels(shards, num_classes)
    statistics = _published_statistics(source, fields)
    facts = {"encoder": encoder, "image_size": image_size, **_facts(shards, fields, statistics is not None)}
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, fields, len(labels), shard_size, fingerprint, facts)
    writer.remove_leftovers()
    write_shards(
        writer,
        lambda rows: list(_pieces(shards, rows)),
        lambda pieces: (_read(path, rows, fields) for path, rows in pieces),
        doing="importing latents",
        streams=COMPOSITE if statistics is None else (),
    )
    if statistics is None:
        statistics = stream_statistics(writer, COMPOSITE)
    files = [f"{shard.path.name}#{row}" for shard in shards for row in range(shard.count)]
    classes = [str(number) for number in range(num_classes or int(labels.max()) + 1)]
    writer.finish(labels.tolist(), files, range(len(labels)), classes, statistics)
    return len(labels)


def _facts(shards: Sequence[SourceShard], fields: Mapping[str, Field], with_statistics: bool) -> dict[str, Any]:
    """What a store notes about its latents, and about the files that `export_latents` is to write again."""
    return {
        "grid": fields["texture"].shape[-1],
        **{f"{name}_channels": fields[name].shape[1] for name in COMPOSITE},
        ATTRIBUTE: {
            "files": [{"name": shard.path.name, "count": shard.count, "metadata": shard.metadata} for shard in shards],
            "labels": shards[0].dtypes[LABELS],
            "statistics": with_statistics,
        },
    }


def export_latents(folder: Path, target: Path) -> int:
    """Write a store of latents as the reference's shards, and return their number.

    They are those it was imported from, or of 10,000 images each. Statistics go beside them, unless an import had to
    compute them. Every file appears whole or not at all.

    Raises:
        UserError: there is no store of composite latents, or a file is there already.
    """
    store, target = Store(folder), Path(target)
    if any(name not in store.fields for name in COMPOSITE):
        raise UserError(folder, "holds no composite latents, which the reference's shards need", "check the path")
    origin = store.attributes.get(ATTRIBUTE)
    if origin is None:  # not imported: shards such as one process of the reference writes
        counts = [min(SHARD_ROWS, len(store) - start) for start in range(0, len(store), SHARD_ROWS)]
        names = [f"latents_rank00_shard{number:03d}.safetensors" for number in range(len(counts))]
        files = [{"name": name, "count": count, "metadata": {}} for name, count in zip(names, counts, strict=True)]
        origin = {"files": files, "labels": "I64", "statistics": True}
    names = [file["name"] for file in origin["files"]]
    names += STATISTICS.values() if origin["statistics"] else []
    present = [name for name in names if (target / name).exists()]
    if present:
        raise UserError(target / present[0], "exists already", "remove it or give another folder")
    start = 0
    with tqdm(desc="exporting latents", total=len(store), unit="image", disable=None) as bar:
        for file in origin["files"]:
            rows = range(start, start + file["count"])
            _export_shard(store, rows, target / file["name"], origin["labels"], file["metadata"], bar)
            start = rows.stop
    if origin["statistics"]:
        _export_statistics(store, target)
    return len(origin["files"])


def _inspect(source: Path) -> list[SourceShard]:
    """The shards in the order of their names, checked against one another."""
    paths = sorted(source.glob(SHARDS))
    if not paths:
        raise UserError(source, f"holds no latent shards of the reference ({SHARDS})", "check the path")
    shards = [_header(path) for path in paths]
    first = shards[0]
    for shard in shards:
        _check_shapes(shard)
        for what, theirs, ours in (("shape", shard.shapes, first.shapes), ("dtype", shard.dtypes, first.dtypes)):
            for name in sorted(theirs.keys() | ours.keys()):
                if theirs.get(name) != ours.get(name):
                    found, expected = (side.get(name, "nothing") for side in (theirs, ours))
                    problem = f"{name} has the {what} {found}, but {expected} in {first.path.name}"
                    raise UserError(shard.path, problem, "shards of one folder must be alike")
    return shards


def _header(path: Path) -> SourceShard:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        metadata = dict(file.metadata() or {})
    with_features = any(name in shapes for name in TENSORS["features"])
    wanted = [LABELS, *(name for field in TENSORS if field in COMPOSITE or with_features for name in TENSORS[field])]
    problems = [f"{name} is missing" for name in wanted if name not in shapes]
    problems += [f"{name} is unknown" for name in shapes if name not in wanted]
    if problems:
        raise UserError(path, f"is no latent shard of the reference: {'; '.join(problems[:3])}", "check the path")
    count = shapes[LABELS][0] if shapes[LABELS] else 0
    for name, shape in shapes.items():
        if not count or shape[:1] != (count,):
            raise UserError(path, f"{name} has shape {shape}", "every tensor must have a row for each label")
    return SourceShard(path, count, {name: shape[1:] for name, shape in shapes.items()}, dtypes, metadata)


def _check_shapes(shard: SourceShard) -> None:
    """That the tensors of a file are what they should be and fit together."""
    grid = shard.shapes["latents"][-2:]
    for name, shape in shard.shapes.items():
        kind = DTYPES.get(shard.dtypes[name], "").rstrip("0123456789")
        if name == LABELS:
            fits = kind == "int" and shape == ()
        else:
            fits = kind == "float" and len(shape) == 3 and 0 not in shape and shape[1] == shape[2] and shape[1:] == grid
        if not fits:
            remedy = "labels must be integers, all else F16, F32 or F64 (channels, side, side) on one grid"
            raise UserError(shard.path, f"{name} of an image is {shard.dtypes[name]} {shape}", remedy)
    for name, flipped in TENSORS.values():
        if shard.shapes.get(name) != shard.shapes.get(flipped) or shard.dtypes.get(name) != shard.dtypes.get(flipped):
            raise UserError(shard.path, f"{name} and {flipped} differ in shape or dtype", "make the shard again")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise UserError(path, f"is damaged or truncated ({error})", "copy it again") from None


def _fields(shard: SourceShard) -> dict[str, Field]:
    fields = {}
    for field, (name, _) in TENSORS.items():
        if name in shard.shapes:
            channels, side, _ = shard.shapes[name]
            shape = (2, side * side, channels) if field == "features" else (2, channels, side, side)
            fields[field] = Field(shape, DTYPES[shard.dtypes[name]])
    return fields


def _labels(shards: Sequence[SourceShard], num_classes: int | None) -> np.ndarray:
    """Labels of all images, int64 (n,)."""
    labels = []
    for shard in shards:
        with _opened(shard.path) as file:
            labels.append(file.get_tensor(LABELS).astype(np.int64))
        low, high = labels[-1].min(), labels[-1].max()
        if low < 0 or (num_classes is not None and high >= num_classes):
            bound = "" if num_classes is None else f" and below {num_classes}, the number of classes"
            raise UserError(shard.path, f"has labels from {low} to {high}", f"they must be from 0 on{bound}")
    return np.concatenate(labels)


def _published_statistics(source: Path, fields: Mapping[str, Field]) -> dict[str, np.ndarray] | None:
    """`mean` and `std` (C_z + C_s,) of the files beside the shards; None if there are none."""
    paths = {field: source / name for field, name in STATISTICS.items()}
    missing = [path for path in paths.values() if not path.exists()]
    if len(missing) == len(paths):
        return None
    if missing:
        problem = "is missing, but the other statistics are there"
        raise UserError(missing[0], problem, "put it beside them, or remove both to have them computed")
    parts = []
    for field, path in paths.items():
        with about(path):
            parts.append(statistics_from_reference(read_weights_file(path)))
        found, channels = len(parts[-1].mean), fields[field].shape[1]
        if found != channels:
            raise UserError(path, f"has {found} channels, but the latents beside it {channels}", "check the files")
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "std")}


def _pieces(shards: Sequence[SourceShard], rows: range) -> Iterator[tuple[Path, range]]:
    """Which rows of which files make up `rows` of the store, a few at a time."""
    start = 0
    for shard in shards:
        here = range(max(rows.start, start) - start, min(rows.stop, start + shard.count) - start)
        for first in here[::ROWS_AT_ONCE]:
            yield shard.path, range(first, min(first + ROWS_AT_ONCE, here.stop))
        start += shard.count


def _read(path: Path, rows: range, fields: Mapping[str, Field]) -> dict[str, np.ndarray]:
    """Rows of a file as the store's arrays, (n, *field shape)."""
    arrays = {}
    with _opened(path) as file:
        for field in fields:
            sides = [file.get_slice(name)[rows.start : rows.stop] for name in TENSORS[field]]
            values = np.stack(sides, axis=1)  # (n, 2, channels, h, w)
            whole = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not whole.all():
                row = rows[int(np.argmin(whole))]
                raise UserError(path, f"{TENSORS[field][0]} of row {row} are not finite", "make the shard again")
            arrays[field] = values.reshape(*values.shape[:3], -1).swapaxes(2, 3) if field == "features" else values
    return arrays


def _export_shard(store: Store, rows: range, path: Path, labels: str, metadata: Mapping[str, str], bar: tqdm) -> None:
    """One safetensors file, written piece by piece: the library's own writer wants all tensors in memory."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {LABELS: (DTYPES[labels], (len(rows),))}
    for field in (name for name in TENSORS if name in store.fields):
        shape = store.fields[field].shape[1:]
        if field == "features":
            side = store.fields["texture"].shape[-1]
            shape = (shape[1], side, side)
        for name in TENSORS[field]:
            layout[name] = (np.dtype(store.fields[field].dtype).name, (len(rows), *shape))
    with atomic_path(path) as temporary:
        views = _create_safetensors(temporary, layout, metadata)
        views[LABELS][:] = store.labels[rows.start : rows.stop]
        for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
            positions = np.arange(start, min(start + ROWS_AT_ONCE, rows.stop))
            here = slice(start - rows.start, start - rows.start + len(positions))
            for field in (name for name in TENSORS if name in store.fields):
                values = store.read(field, positions)
                for side, name in enumerate(TENSORS[field]):
                    part = values[:, side].swapaxes(1, 2) if field == "features" else values[:, side]
                    views[name][here] = part.reshape(len(part), *views[name].shape[1:])
            bar.update(len(positions))
        for view in views.values():
            view.flush()


def _create_safetensors(
    path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, np.memmap]:
    """A safetensors file of the given dtypes and shapes, its tensors as views to be filled.

    The order is that of the library: larger numbers first, then by name.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: (-np.dtype(item[1][0]).itemsize, item[0])):
        start, end = end, end + np.dtype(dtype).itemsize * prod(shape)
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    offset = 8 + len(text)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(offset + end)
    return {
        name: np.memmap(path, dtype, "r+", offset + header[name]["data_offsets"][0], shape)
        for name, (dtype, shape) in layout.items()
    }


def _export_statistics(store: Store, target: Path) -> None:
    channels = store.fields["texture"].shape[1]
    for field, part in (("texture", slice(0, channels)), ("semantic", slice(channels, None))):
        values = {name: store.statistics[name][part].tolist() for name in ("mean", "std")}
        with about(f"the statistics in {store.folder}"):
            statistics = configured(LatentStatistics, values)
        with atomic_path(target / STATISTICS[field]) as temporary, open(temporary, "wb") as file:
            torch.save(statistics_to_reference(statistics), file)
