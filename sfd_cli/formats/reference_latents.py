"""The reference code's latent shards as our HDF5 store, and back, without losing a bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sfd_cli.data.shards import StoreWriter, stream_statistics, write_shards
from sfd_cli.data.store import Field, Store
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, fingerprint, sha256_file
from sfd_cli.formats.format import about
from sfd_cli.formats.model_folder import configured
from sfd_cli.formats.reference_shards import (
    COMPOSITE,
    DTYPES,
    LABELS,
    STATISTICS,
    TENSORS,
    SourceShard,
    create_shard,
    list_shards,
)
from sfd_cli.formats.reference_statistics import (
    LatentStatistics,
    statistics_from_reference,
    statistics_to_reference,
)
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.progress import progress

ROWS_AT_ONCE = 64
"""Rows that are held in memory at a time: 50 MB with the features of a ViT-B, both flips."""

SHARD_ROWS = 10_000
"""Images of one of the reference's shards."""

ATTRIBUTE = "reference_shards"
"""Key of the store's attributes that holds the shards it was made of."""


def latents_fingerprint(source: Path) -> str:
    """Fingerprint of a folder of latent shards.

    Of every file the header, the size, the labels and the first and the last latent, because hashing hundreds of
    gigabytes takes longer than importing them; of the statistics the whole files.

    Raises:
        UserError: as `import_latents`.
    """
    parts: list[Any] = []
    for shard in list_shards(source):
        ends = [shard.rows("latents", range(row, row + 1)).tobytes().hex() for row in (0, shard.count - 1)]
        header = [shard.shapes, shard.dtypes, shard.metadata]
        contents = fingerprint([ends, shard.labels().tolist()])
        parts.append([shard.path.name, shard.path.stat().st_size, header, contents])
    files = [source / name for name in STATISTICS.values()]
    return fingerprint([parts, [sha256_file(path) if path.exists() else None for path in files]])


def check_latents(source: Path, num_classes: int | None = None) -> None:
    """Check headers, labels and statistics before `import_latents`; nothing is written.

    Raises:
        UserError: as `import_latents`.
    """
    shards = list_shards(source)
    _labels(shards, num_classes)
    _published_statistics(source, shards[0].fields())


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
    """Write a folder of the reference's latent shards as a store; a killed import goes on shard by shard.

    The fields `texture` (2, C_z, h, w), `semantic` (2, C_s, h, w) and, where all files have features, `features`
    (2, h*w, D), tokens row-major, have the dtypes of the source. The statistics are those beside the shards, since
    published models need just these; without them they are computed over both flips. Classes are named by numbers.

    Args:
        source: the folder of shards.
        folder: of the store.
        fingerprint: of what decides the store's contents, `latents_fingerprint(source)` included.
        encoder: name of the visual encoder behind the semantic latents.
        image_size: side of the images behind the latents, pixels.
        shard_size: images per shard of the store; independent of the source's.
        num_classes: of the data set; None: up to the largest label.

    Returns:
        The number of images.

    Raises:
        UserError: a shard is missing, damaged, unlike the others or lacks something.
    """
    shards = list_shards(source)
    fields, labels = shards[0].fields(), _labels(shards, num_classes)
    statistics = _published_statistics(source, fields)
    facts = {"encoder": encoder, "image_size": image_size, **_facts(shards, fields, statistics is not None)}
    writer = StoreWriter(folder, fields, len(labels), shard_size, fingerprint, facts)
    writer.remove_leftovers()
    write_shards(
        writer,
        lambda rows: list(_pieces(shards, rows)),
        lambda pieces: (shard.arrays(rows) for shard, rows in pieces),
        doing="importing latents",
        streams=COMPOSITE if statistics is None else (),
    )
    files = [f"{shard.path.name}#{row}" for shard in shards for row in range(shard.count)]
    classes = [str(number) for number in range(num_classes or int(labels.max()) + 1)]
    if statistics is None:
        statistics = stream_statistics(writer, COMPOSITE)
    writer.finish(labels.tolist(), files, range(len(labels)), classes, statistics)
    return len(labels)


def export_latents(folder: Path, target: Path) -> int:
    """Write a store of latents as the reference's shards: just those it was imported from, or of 10,000 images each.

    The statistics are written beside them, unless an import had to compute them. Every file appears whole or not at
    all.

    Args:
        folder: of the store.
        target: folder for the files; created if missing.

    Returns:
        The number of shards.

    Raises:
        UserError: there is no store of composite latents, it has no mirror images, or a file is there already.
    """
    store, target = Store(folder), Path(target)
    if any(name not in store.fields for name in COMPOSITE):
        raise UserError(folder, "holds no composite latents, which the reference's shards need", "check the path")
    if store.flips != 2:
        problem = "holds no latents of mirror images, which the reference's shards need"
        raise UserError(folder, problem, "encode again with images.mirror: true")
    origin = store.attributes.get(ATTRIBUTE) or _default_shards(len(store))
    names = [file["name"] for file in origin["files"]]
    names += STATISTICS.values() if origin["statistics"] else []
    present = [name for name in names if (target / name).exists()]
    if present:
        raise UserError(target / present[0], "exists already", "remove it or give another folder")
    start = 0
    with progress(doing="exporting latents", total=len(store), unit="image") as bar:
        for file in origin["files"]:
            rows = range(start, start + file["count"])
            _export_shard(store, rows, target / file["name"], origin["labels"], file["metadata"], bar)
            start = rows.stop
    if origin["statistics"]:
        _export_statistics(store, target)
    return len(origin["files"])


def _facts(shards: Sequence[SourceShard], fields: Mapping[str, Field], with_statistics: bool) -> dict[str, Any]:
    """What a store notes about its latents, and about the files that `export_latents` is to write again."""
    return {
        "grid": fields["texture"].shape[-1],
        "texture_channels": fields["texture"].shape[1],
        "semantic_channels": fields["semantic"].shape[1],
        ATTRIBUTE: {
            "files": [{"name": shard.path.name, "count": shard.count, "metadata": shard.metadata} for shard in shards],
            "labels": shards[0].dtypes[LABELS],
            "statistics": with_statistics,
        },
    }


def _labels(shards: Sequence[SourceShard], num_classes: int | None) -> np.ndarray:
    """Labels of all images, int64 (n,)."""
    labels = []
    for shard in shards:
        labels.append(shard.labels())
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
        remedy = "put it beside them, or take both away to have them computed"
        raise UserError(missing[0], "is missing, but the other statistics are there", remedy)
    parts = []
    for field, path in paths.items():
        with about(path):
            parts.append(statistics_from_reference(read_weights_file(path)))
        found, channels = len(parts[-1].mean), fields[field].shape[1]
        if found != channels:
            raise UserError(path, f"has {found} channels, but the latents beside it {channels}", "check the files")
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "std")}


def _pieces(shards: Sequence[SourceShard], rows: range) -> Iterator[tuple[SourceShard, range]]:
    """Which rows of which files make up `rows` of the store, a few at a time."""
    start = 0
    for shard in shards:
        here = range(max(rows.start, start) - start, min(rows.stop, start + shard.count) - start)
        for first in here[::ROWS_AT_ONCE]:
            yield shard, range(first, min(first + ROWS_AT_ONCE, here.stop))
        start += shard.count


def _default_shards(count: int) -> dict[str, Any]:
    """Shards such as one process of the reference writes, for a store that was not imported."""
    files = [
        {
            "name": f"latents_rank00_shard{number:03d}.safetensors",
            "count": min(SHARD_ROWS, count - start),
            "metadata": {},
        }
        for number, start in enumerate(range(0, count, SHARD_ROWS))
    ]
    return {"files": files, "labels": "I64", "statistics": True}


def _export_shard(store: Store, rows: range, path: Path, labels: str, metadata: Mapping[str, str], bar: tqdm) -> None:
    """Write `rows` of the store as one file, a few rows at a time."""
    fields = [name for name in TENSORS if name in store.fields]
    layout: dict[str, tuple[str, tuple[int, ...]]] = {LABELS: (DTYPES[labels], (len(rows),))}
    for field in fields:
        _, *shape = store.fields[field].shape
        if field == "features":
            side = store.fields["texture"].shape[-1]
            shape = [shape[1], side, side]
        for name in TENSORS[field]:
            layout[name] = (np.dtype(store.fields[field].dtype).name, (len(rows), *shape))
    with atomic_path(path) as temporary:
        views = create_shard(temporary, layout, metadata)
        views[LABELS][:] = store.labels[rows.start : rows.stop]
        for piece in (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)):
            here = slice(piece.start - rows.start, piece.stop - rows.start)
            for field in fields:
                values = store.read(field, piece)
                for side, name in enumerate(TENSORS[field]):
                    part = values[:, side].swapaxes(1, 2) if field == "features" else values[:, side]
                    views[name][here] = part.reshape(len(part), *views[name].shape[1:])
            bar.update(len(piece))
        for view in views.values():
            view.flush()


def _export_statistics(store: Store, target: Path) -> None:
    channels = store.fields["texture"].shape[1]
    for field, part in (("texture", slice(0, channels)), ("semantic", slice(channels, None))):
        values = {name: store.statistics[name][part].tolist() for name in ("mean", "std")}
        with about(f"the statistics in {store.folder}"):
            statistics = configured(LatentStatistics, values)
        with atomic_path(target / STATISTICS[field]) as temporary, open(temporary, "wb") as file:
            torch.save(statistics_to_reference(statistics), file)
