"""The `sfd` command: parse flags, call one stage, print its result."""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import signal
import traceback
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfd_cli import __version__
from sfd_cli.config import Paths, Runtime, Settings, load_settings
from sfd_cli.errors import StageFailure, UserError

app = typer.Typer(
    name="sfd",
    help="Train, sample and score [bold]Semantic-First Diffusion[/bold] (arXiv 2512.04926).\n\n"
    "Each command is a stage of the pipeline that `dvc repro` runs; each also runs alone. Settings come from"
    " params.yaml in the working folder, and flags override them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="Published weights: what there is, and fetching it.", no_args_is_help=True)


@dataclass(frozen=True)
class Stage:
    """How a pipeline stage appears on the command line.

    Attributes:
        module: the module of `sfd_cli.stages` whose `run(settings, **extra)` does the work.
        sections: sections of params.yaml whose keys become flags, each with the flags' prefix.
        paths: keys of the `paths` section that the stage reads or writes.
    """

    module: str
    sections: dict[str, str]
    paths: tuple[str, ...]


def _fail(message: str, code: int) -> typing.NoReturn:
    typer.secho(f"sfd: error: {message}", fg="red", err=True)
    raise SystemExit(code)


def _terminate(signum: int, _frame: types.FrameType | None) -> None:
    raise SystemExit(128 + signum)


def friendly_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn exceptions into one sentence and an exit code (2 the user's, 1 ours); `--debug` shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> Any:
        debug = debug or bool(os.environ.get("SFD_DEBUG"))
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command to go on", 128 + signal.SIGINT)
        except Exception as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, UserError):
                _fail(str(error), 2)
            if isinstance(error, StageFailure):
                _fail(str(error), 1)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                _fail(f"the disk is full ({error}); free some space and run the same command to go on", 1)
            _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (SFD_DEBUG=1 shows the traceback)", 1)

    return wrapped


@functools.cache
def _shown_defaults() -> Settings:
    """What --help shows as defaults: the params.yaml of this folder, or the built-in ones where it does not hold."""
    try:
        return load_settings()
    except UserError:
        return Settings()


def _option(name: str, field: FieldInfo, flag: str, panel: str) -> inspect.Parameter | None:
    """A typer option for one key of params.yaml, or None for a nested section, which has no flag."""
    kind = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return None
    extra: dict[str, Any] = {}
    if typing.get_origin(kind) is list:
        extra["parser"] = _integers
        kind = str
    section, _, key = name.partition("__")
    default = getattr(getattr(_shown_defaults(), section), key)
    declaration = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    option = typer.Option(
        declaration,
        help=field.description,
        show_default="unset" if default is None else str(default),
        rich_help_panel=panel,
        **extra,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],  # type: ignore[operator]
    )


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 0,3,7") from None


def _section_options(section: type[BaseModel], key: str, prefix: str, panel: str) -> list[inspect.Parameter]:
    options = []
    for name, field in section.model_fields.items():
        flag = (prefix + name).replace("_", "-")
        option = _option(f"{key}__{name}", field, flag, panel)
        if option is not None:
            options.append(option)
    return options


DEFAULT_PARAMS = Path("params.yaml")
_PARAMS = Annotated[Path, typer.Option("--params", help="the settings file", rich_help_panel="Other")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="show tracebacks (also SFD_DEBUG=1)", rich_help_panel="Other")]


def _settings_from_flags(params: Path, flags: dict[str, Any]) -> Settings:
    if params != DEFAULT_PARAMS and not params.exists():
        raise UserError(f"--params: {params} does not exist")
    overrides: dict[str, dict[str, Any]] = {}
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition("__")
            overrides.setdefault(section, {})[key] = value
    return load_settings(params, overrides)


def _print_result(result: dict[str, Any], indent: str = "") -> None:
    """A stage's summary as aligned lines; only the first process of a torchrun prints."""
    if int(os.environ.get("RANK", "0")):
        return
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{indent}{key}")
            _print_result(value, indent + "  ")
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else value
            typer.echo(f"{indent}{key:<{width}}  {shown}")


def add_stage(command: str, panel: str, stage: Stage) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a stage whose flags are the keys of its sections.

    The decorated function gives the help text and the flags of its own; it returns the keyword arguments of
    the stage's `run` and, under "sections", names to replace in `stage.sections`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        options: list[inspect.Parameter] = []
        for key, prefix in stage.sections.items():
            section = Settings.model_fields[key].annotation
            assert isinstance(section, type)
            options += _section_options(section, key, prefix, f"Settings ({key})")
        paths = {name: Paths.model_fields[name] for name in stage.paths}
        for name, field in paths.items():
            option = _option(f"paths__{name}", field, name.replace("_", "-"), "Artifacts")
            assert option is not None
            options.append(option)
        options += _section_options(Runtime, "runtime", "", "Other")

        def call(params: Path = DEFAULT_PARAMS, **flags: Any) -> None:
            extra = function(**{parameter.name: flags.pop(parameter.name) for parameter in own}) or {}
            for old, new in extra.pop("sections", {}).items():
                flags = {name.replace(f"{old}__", f"{new}__", 1): value for name, value in flags.items()}
            settings = _settings_from_flags(params, flags)
            _print_result(importlib.import_module(f"sfd_cli.stages.{stage.module}").run(settings, **extra))

        keyword = inspect.Parameter.KEYWORD_ONLY
        common = [
            inspect.Parameter("params", keyword, default=DEFAULT_PARAMS, annotation=_PARAMS),
            inspect.Parameter("debug", keyword, default=False, annotation=_DEBUG),
        ]
        parameters = [parameter.replace(kind=keyword) for parameter in own] + options + common
        wrapped = friendly_errors(call)
        wrapped.__doc__ = function.__doc__
        wrapped.__name__ = function.__name__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapped.__wrapped__  # type: ignore[attr-defined]
        app.command(command, rich_help_panel=panel)(wrapped)
        return function

    return register


DATA, MODELS, IMAGES = "1. Data", "2. Models", "3. Images and scores"


@add_stage("prepare-data", DATA, Stage("prepare_data", {"images": ""}, ("images",)))
def prepare_data() -> None:
    """Build the OpenMoji image set, or check an ImageFolder of your own.

    Reports class counts, sizes and corrupt files, and writes the manifest that the other stages read. Your own
    folder is never written to.
    """


@add_stage(
    "extract-features", DATA, Stage("extract_features", {"features": "", "encoder": "encoder-"}, ("images", "features"))
)
def extract_features() -> None:
    """Write the frozen encoder's patch tokens, both flips, to HDF5.

    Resumes shard by shard after an interruption.
    """


@add_stage(
    "encode-latents",
    DATA,
    Stage(
        "encode_latents",
        {"latents": "", "encoder": "encoder-"},
        ("images", "features", "semvae", "texture_vae", "latents"),
    ),
)
def encode_latents() -> None:
    """Encode every image, both flips, as a composite latent in HDF5.

    Centre crop, texture VAE and Semantic VAE; posterior samples; per-channel statistics. Resumes shard by shard.
    """


@add_stage("train-semvae", MODELS, Stage("train_semvae", {"semvae": ""}, ("features", "semvae", "metrics")))
def train_semvae() -> None:
    """Train the Semantic VAE that compresses patch tokens to a few channels.

    Reports reconstruction MSE, cosine and KL on held-out images. Resumes from its last checkpoint.
    """


@add_stage(
    "train-texture-vae", MODELS, Stage("train_texture_vae", {"texture_vae": ""}, ("images", "texture_vae", "metrics"))
)
def train_texture_vae() -> None:
    """Train a small image VAE, or import published weights (--weights).

    Reports PSNR on held-out images and writes a picture of reconstructions. Resumes from its last checkpoint.
    """


@add_stage(
    "train",
    MODELS,
    Stage("train", {"dit": ""}, ("latents", "semvae", "texture_vae", "dit", "guide", "metrics")),
)
def train(
    model: Annotated[
        Literal["dit", "guide"],
        typer.Option(
            help="dit: the diffusion transformer; guide: the weaker model for AutoGuidance (section `guide`)",
        ),
    ] = "dit",
) -> dict[str, Any]:
    """Train the diffusion transformer with the asynchronous objective.

    Resumes exactly after an interruption; more --steps continue a finished run. Several processes:
    torchrun --nproc-per-node 8 -m sfd_cli train
    """
    return {"which": model, "sections": {"dit": model}}


@add_stage("sample", IMAGES, Stage("sample", {"sample": ""}, ("dit", "guide", "texture_vae", "samples", "metrics")))
def sample(
    grid: Annotated[Path | None, typer.Option(help="also write a picture of the first images", dir_okay=False)] = None,
) -> dict[str, Any]:
    """Sample images: PNGs, their labels and an ADM-format npz.

    Image i depends on the seed and i alone. Resumes where it stopped.
    """
    return {"grid": grid}


@add_stage("fid", IMAGES, Stage("fid", {"fid": ""}, ("samples", "images", "dit", "texture_vae", "metrics")))
def fid() -> None:
    """Score the samples: Fréchet distance, KID, precision and recall.

    With Inception features where their weights can be had, and with DINOv2 features always.
    """


@add_stage(
    "report",
    IMAGES,
    Stage(
        "report",
        {"report": ""},
        ("samples", "images", "semvae", "texture_vae", "latents", "dit", "guide", "metrics", "reports"),
    ),
)
def report() -> None:
    """Write one self-contained HTML page: settings, losses, samples, phases, scores, timings."""


@add_stage("show", IMAGES, Stage("show", {}, ("metrics", "reports")))
def show() -> None:
    """Print where the sample grid, the report and the scores are, and the scores."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sfd {__version__}")
        raise typer.Exit


@app.callback()
def sfd(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    """Train, sample and score Semantic-First Diffusion."""


app.add_typer(weights_app, name="weights", rich_help_panel="4. Weights")


@weights_app.command("list")
@friendly_errors
def weights_list() -> None:
    """List the named weights: licence, size where it is known, what for."""
    from sfd_cli.weights.registry import REGISTRY

    for entry in REGISTRY.values():
        size = f"{entry.size / 1e6:,.0f} MB" if entry.size else ""
        typer.echo(f"{entry.name:<28} {entry.licence:<14} {size:>8}  {entry.purpose}")


@weights_app.command("fetch")
@friendly_errors
def weights_fetch(name: Annotated[str, typer.Argument(help="a name from `sfd weights list`")]) -> None:
    """Fetch named weights into the cache, resuming and verifying, and print where they are."""
    from sfd_cli.weights.fetch import fetch

    typer.echo(fetch(name))


def main() -> None:
    """Entry point of the console script."""
    app()
