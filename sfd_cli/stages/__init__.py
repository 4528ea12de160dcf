"""One module for every command of the pipeline, and what the command line says about each."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfd_cli.config import EDITS


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline as a command.

    Attributes:
        module: the module whose `run(settings, **own)` does the work; imported when the command is called.
        panel: the heading under which `sfd --help` lists it.
        help: what `sfd STAGE --help` says.
        sections: sections of params.yaml whose keys become flags, each with the flags' prefix.
        paths: keys of the section `paths` that become flags.
        aliases: further names of such flags.
        own: `module:function` whose parameters become flags too and which returns keyword arguments of `run`.
        unread: keys of the sections that other stages read and this one does not; they become no flags.
        shares: whether several processes share its work.
        relief: what to change where memory runs out, a clause that names the keys; empty: nothing of its own.
    """

    module: str
    panel: str
    help: str
    sections: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    own: str = ""
    unread: tuple[str, ...] = ()
    shares: bool = False
    relief: str = ""


DATA, MODELS, IMAGES = "1. Data", "2. Models", "3. Images and scores"
# A checkpoint of the reference code may stand where the trained transformer does.
CHECKPOINT = {"dit": "checkpoint"}


def _lighter(section: str, *keys: str) -> str:
    """What makes a training lighter on memory."""
    more = "".join(f", set {section}.{key}" for key in keys)
    return f"set {section}.accumulate to more micro-batches{more}, lower {section}.batch_size, or use more GPUs"


def _fewer(*keys: str) -> str:
    """What makes a pass through networks lighter on memory."""
    return f"lower {' or '.join(keys)}, and run the same command to go on"


PREPARE_DATA = Stage(
    "sfd_cli.stages.prepare_data",
    DATA,
    "Build the OpenMoji or the Fashion-MNIST image set, or check an ImageFolder of your own.\n\n"
    "Reports class counts, sizes and corrupt files, and writes the manifest that the other stages read."
    " Your own folder is never written to.",
    {"images": ""},
    ("images",),
    unread=("mirror",),
    relief=_fewer("runtime.workers"),
    shares=True,
)

EXTRACT_FEATURES = Stage(
    "sfd_cli.stages.extract_features",
    DATA,
    "Write the frozen encoder's patch tokens to HDF5, of every image and its mirror image.\n\n"
    "Resumes shard by shard after an interruption.",
    {"features": "", "encoder": "encoder-"},
    ("images", "features"),
    shares=True,
    relief=_fewer("features.batch_size"),
)

TRAIN_SEMVAE = Stage(
    "sfd_cli.stages.train_semvae",
    MODELS,
    "Train the Semantic VAE that compresses patch tokens to a few channels, import one, or fit principal"
    " components.\n\n"
    "Reports reconstruction MSE, cosine and KL on held-out images. Resumes from its last checkpoint.",
    {"semvae": "", "metrics": ""},
    ("features", "semvae", "metrics"),
    shares=True,
    relief=_lighter("semvae"),
)

TRAIN_TEXTURE_VAE = Stage(
    "sfd_cli.stages.train_texture_vae",
    MODELS,
    "Train a small image VAE, import published weights (--weights), or fit principal components of pixel patches.\n\n"
    "Reports PSNR on held-out images and writes a picture of reconstructions. Resumes from its last checkpoint.",
    {"texture_vae": "", "metrics": ""},
    ("images", "texture_vae", "metrics"),
    shares=True,
    relief=_lighter("texture_vae"),
)

ENCODE_LATENTS = Stage(
    "sfd_cli.stages.encode_latents",
    DATA,
    "Encode every image and its mirror image as a composite latent in HDF5.\n\n"
    "Centre crop, texture VAE and Semantic VAE; posterior samples; per-channel statistics. Resumes shard by shard.",
    {"latents": "", "encoder": "encoder-"},
    ("images", "features", "semvae", "texture_vae", "latents"),
    shares=True,
    relief=_fewer("latents.batch_size"),
)

LEARN_SCHEDULE = Stage(
    "sfd_cli.stages.learn_schedule",
    MODELS,
    "Learn the schedule: train a small probe on all leads, and see on held-out images where its errors say to go.\n\n"
    "Only where schedule.learn is true; for dit.schedule: learned. Says no preference where the error bar says so.",
    {"schedule": "", "metrics": ""},
    ("latents", "probe", "schedule", "metrics"),
    shares=True,
    relief=_lighter("schedule.probe", "checkpoint_activations: true"),
)

TRAIN = Stage(
    "sfd_cli.stages.train",
    MODELS,
    "Train the diffusion transformer with the asynchronous objective.\n\n"
    "Resumes exactly after an interruption; more --steps continue a finished run.",
    {"dit": "", "metrics": ""},
    ("latents", "semvae", "texture_vae", "dit", "guide", "metrics"),
    own="sfd_cli.cli.own_flags:train",
    shares=True,
    relief=_lighter("dit", "checkpoint_activations: true"),
)

TRAIN_GUIDE = Stage(
    "sfd_cli.stages.train_guide",
    MODELS,
    "Train the weaker model that AutoGuidance guides by.\n\nAs `sfd train`, from the section `guide`.",
    {"guide": "", "metrics": ""},
    ("latents", "semvae", "texture_vae", "guide", "metrics"),
    shares=True,
    relief=_lighter("guide", "checkpoint_activations: true"),
)

SAMPLE = Stage(
    "sfd_cli.stages.sample",
    IMAGES,
    "Sample images: PNGs, their labels and an ADM-format npz.\n\n"
    "Image i depends on the seed and i alone. Resumes where it stopped. Models may be folders made here,"
    " checkpoints of the reference code, or names from `sfd weights list`.",
    {"sample": "", "foreign": "foreign-"},
    ("dit", "guide", "texture_vae", "semvae", "samples", "metrics"),
    CHECKPOINT,
    "sfd_cli.cli.own_flags:sample",
    shares=True,
    relief=_fewer("sample.batch_size", "of dopri5 sample.images_at_once"),
)

FID = Stage(
    "sfd_cli.stages.fid",
    IMAGES,
    "Score the samples: Fréchet distance, KID, precision and recall.\n\n"
    "With Inception features where their weights can be had, and with DINOv2 features always. Texture VAE, Semantic VAE"
    " and the sampled semantics are scored too, so that one sees which of them a score is owed to.",
    {"fid": "", "foreign": "foreign-", "metrics": ""},
    ("samples", "images", "features", "semvae", "dit", "texture_vae", "metrics"),
    CHECKPOINT,
    shares=True,
    relief=_fewer("fid.batch_size"),
)

CURVE = Stage(
    "sfd_cli.stages.curve",
    IMAGES,
    "Score the milestones of a training, each sampled from the same noise: the scores along the steps.\n\n"
    "Milestones are what dit.keep_every keeps. Goes on where it stopped, and with what was trained since.",
    {"curve": "", "sample": "sample-", "fid": "fid-", "foreign": "foreign-", "metrics": ""},
    ("dit", "guide", "texture_vae", "images", "metrics"),
    unread=("beside", "baselines", *EDITS),
    shares=True,
    relief=_fewer("sample.batch_size", "of dopri5 sample.images_at_once", "fid.batch_size"),
)

REPORT = Stage(
    "sfd_cli.stages.report",
    IMAGES,
    "Write one self-contained HTML page: settings, losses, samples, phases, scores.",
    {"report": "", "foreign": "foreign-"},
    ("samples", "images", "semvae", "texture_vae", "latents", "schedule", "dit", "guide", "metrics", "reports"),
    CHECKPOINT,
    relief=_fewer("report.grid_images", "report.trajectory_images"),
)

MEMORISATION = Stage(
    "sfd_cli.stages.memorisation",
    IMAGES,
    "Tell whether samples are copies of training images.\n\n"
    "Compares each sample, and its mirror image, with the nearest training image, and that with what training images"
    " have to one another; writes memorisation.json and a picture of the closest pairs among the metrics.",
    {"fid": ""},
    ("samples", "images", "metrics"),
    unread=(
        "reference",
        "scores",
        "beside",
        "by_class",
        "inception",
        "dinov2",
        "clip",
        "lpips",
        "neighbours",
        "baselines",
    ),
    shares=True,
    relief=_fewer("fid.batch_size"),
)

SHOW = Stage(
    "sfd_cli.stages.show",
    IMAGES,
    "Print where the sample grid, the report and the scores are, the scores, and what every stage took.\n\n"
    "In a git repository also whether this run gave what is committed, or how its scores differ.",
    paths=("metrics", "reports"),
)

TRACK = Stage(
    "sfd_cli.stages.track",
    IMAGES,
    "Send what metrics/ has of finished runs to a tracker: curves, sample grids, scores and settings.\n\n"
    "While a run goes on metrics.trackers do the same. What a tracker has of a run already is not sent twice.",
    {"metrics": ""},
    ("metrics", "semvae", "texture_vae", "probe", "dit", "guide", "reports"),
    own="sfd_cli.cli.own_flags:track",
    unread=("trackers",),
)

PLAN = Stage(
    "sfd_cli.stages.plan",
    "4. Weights and settings",
    "Tell what the pipeline will take before it is run: images, bytes and hours of every stage, memory, disk.\n\n"
    "From params.yaml and the manifest of `sfd prepare-data`. Operations are counted, hours follow from the speed of"
    " matrix products measured here and an assumed share of it.",
    paths=("images",),
)

SCHEDULE_INSPECT = Stage(
    "sfd_cli.stages.schedule_inspect",
    "",
    "Tell from the latents alone, in seconds, how early each stream resolves and what it tells of the class.\n\n"
    "Spectra, Gaussian information, the lead at which both streams draw level, linear class accuracy against time;"
    " warns where semantics are no more informative than textures. Writes schedule/inspect.json and inspect.png among"
    " the metrics, and the report shows them.",
    {"foreign": "foreign-"},
    ("latents", "metrics", "dit", "texture_vae", "images"),
    CHECKPOINT,
    "sfd_cli.cli.own_flags:inspect_schedule",
)
