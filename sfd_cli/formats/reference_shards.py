"""The files of the reference code's latents: names, tensors, dtypes, and how they are checked, read and written.

The reference keeps `latents_rankRR_shardSSS.safetensors`, each with `latents` and `latents_flip` (N, C_z, h, w),
`latents_sv` and `latents_sv_flip` (N, C_s, h, w), `labels` (N,) and, where features for REPA were stored,
`feats_dino` and `feats_dino_flip` (N, D, h, w); beside them `latents_stats.pt` and `latents_sv_stats.pt`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sfd_cli.data.store import Field
from sfd_cli.errors import UserError

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


@dataclass(frozen=True)
class SourceShard:
    """One file: its rows, and the shape (of one row) and safetensors dtype of every tensor."""

    path: Path
    count: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]

    def fields(self) -> dict[str, Field]:
        """The fields of a store of these latents."""
        fields = {}
        for field, (name, _) in TENSORS.items():
            if name in self.shapes:
                channels, side, _ = self.shapes[name]
                shape = (2, side * side, channels) if field == "features" else (2, channels, side, side)
                fields[field] = Field(shape, DTYPES[self.dtypes[name]])
        return fields

    def labels(self) -> np.ndarray:
        """Labels of the rows, int64 (n,)."""
        with _opened(self.path) as file:
            return file.get_tensor(LABELS).astype(np.int64)

    def rows(self, name: str, rows: range) -> np.ndarray:
        """Rows of the tensor `name`, (n, *shape)."""
        with _opened(self.path) as file:
            return np.asarray(file.get_slice(name)[rows.start : rows.stop])

    def arrays(self, rows: range) -> dict[str, np.ndarray]:
        """Rows as a store's arrays, (n, *field shape).

        Raises:
            UserError: a value is not finite.
        """
        arrays = {}
        for field in self.fields():
            values = np.stack([self.rows(name, rows) for name in TENSORS[field]], axis=1)  # (n, 2, channels, h, w)
            whole = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not whole.all():
                problem = f"{TENSORS[field][0]} of row {rows[int(np.argmin(whole))]} are not finite"
                raise UserError(self.path, problem, "make the shard again")
            arrays[field] = values.reshape(*values.shape[:3], -1).swapaxes(2, 3) if field == "features" else values
        return arrays


def is_shards(path: Path) -> bool:
    """Whether this is a folder of the reference's latent shards."""
    return path.is_dir() and any(path.glob(SHARDS))


def list_shards(source: Path) -> list[SourceShard]:
    """The shards of a folder in the order of their names, checked against one another.

    Raises:
        UserError: there is none, or one is damaged, lacks something or is unlike the first.
    """
    paths = sorted(source.glob(SHARDS))
    if not paths:
        raise UserError(source, f"holds no latent shards of the reference ({SHARDS})", "check the path")
    shards = [_read_header(path) for path in paths]
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


def create_shard(
    path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, np.memmap]:
    """A safetensors file of the given dtypes and shapes, its tensors as views to be filled.

    The library's own writer wants all tensors in memory. The order is its: larger numbers first, then by name.
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


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise UserError(path, f"is damaged or truncated ({error})", "copy it again") from None


def _read_header(path: Path) -> SourceShard:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        metadata = dict(file.metadata() or {})
    _check_names(path, shapes)
    count = shapes[LABELS][0] if shapes[LABELS] else 0
    for name, shape in shapes.items():
        if not count or shape[:1] != (count,):
            raise UserError(path, f"{name} has shape {shape}", "every tensor must have a row for each label")
    return SourceShard(path, count, {name: shape[1:] for name, shape in shapes.items()}, dtypes, metadata)


def _check_names(path: Path, names: Collection[str]) -> None:
    with_features = any(name in names for name in TENSORS["features"])
    wanted = [LABELS, *(name for field in TENSORS if field in COMPOSITE or with_features for name in TENSORS[field])]
    problems = [f"{name} is missing" for name in wanted if name not in names]
    problems += [f"{name} is unknown" for name in names if name not in wanted]
    if problems:
        raise UserError(path, f"is no latent shard of the reference: {'; '.join(problems[:3])}", "check the path")


def _check_shapes(shard: SourceShard) -> None:
    grid = shard.shapes["latents"][-2:]
    for name, shape in shard.shapes.items():
        kind = DTYPES.get(shard.dtypes[name], "").rstrip("0123456789")
        if name == LABELS:
            fits = kind == "int" and shape == ()
        else:
            fits = kind == "float" and len(shape) == 3 and 0 not in shape and shape[1] == shape[2] and shape[1:] == grid
        if not fits:
            expected = "labels must be integers, all else F16, F32 or F64 (channels, side, side) on one grid"
            raise UserError(shard.path, f"{name} of an image is {shard.dtypes[name]} {shape}", expected)
    for name, flipped in TENSORS.values():
        if shard.shapes.get(name) != shard.shapes.get(flipped) or shard.dtypes.get(name) != shard.dtypes.get(flipped):
            raise UserError(shard.path, f"{name} and {flipped} differ in shape or dtype", "make the shard again")
