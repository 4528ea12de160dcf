"""Flags from the sections of params.yaml: one source for help, defaults and validation."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfd_cli.cli.app import app
from sfd_cli.cli.terminal import friendly_errors, print_result
from sfd_cli.config import Paths, Runtime, Settings, load_settings, section_type
from sfd_cli.errors import UserError


@dataclass(frozen=True)
class Stage:
    """How a pipeline stage appears on the command line.

    Attributes:
        module: the module of `sfd_cli.stages` whose `run(settings, **extra)` does the work.
        sections: sections of params.yaml whose keys become flags, each with the flags' prefix.
        paths: keys of the `paths` section that the stage reads or writes, each a flag.
        aliases: further names of such flags.
    """

    module: str
    sections: dict[str, str]
    paths: tuple[str, ...]
    aliases: dict[str, str] = field(default_factory=dict)


@functools.cache
def _shown_defaults() -> Settings:
    """What --help shows as defaults: the params.yaml of this folder, or the built-in ones where it does not hold."""
    try:
        return load_settings()
    except UserError:
        return Settings()


def _option(name: str, info: FieldInfo, flags: list[str], panel: str) -> inspect.Parameter | None:
    """A typer option for one key of params.yaml, or None for a nested section, which has no flag."""
    kind = info.annotation
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
    option = typer.Option(
        *(f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}" for flag in flags),
        help=info.description,
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
    for name, info in section.model_fields.items():
        option = _option(f"{key}__{name}", info, [(prefix + name).replace("_", "-")], panel)
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


def add_stage(command: str, panel: str, stage: Stage) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a stage whose flags are the keys of its sections.

    The decorated function gives the help text and the flags of its own; it returns the keyword arguments of
    the stage's `run` and, under "sections", names to replace in `stage.sections`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        options: list[inspect.Parameter] = []
        for key, prefix in stage.sections.items():
            options += _section_options(section_type(Settings, key), key, prefix, f"Settings ({key})")
        for name in stage.paths:
            flags = [name.replace("_", "-"), *([stage.aliases[name]] if name in stage.aliases else [])]
            option = _option(f"paths__{name}", Paths.model_fields[name], flags, "Artifacts")
            assert option is not None
            options.append(option)
        options += _section_options(Runtime, "runtime", "", "Other")

        def call(params: Path = DEFAULT_PARAMS, **flags: Any) -> None:
            extra = function(**{parameter.name: flags.pop(parameter.name) for parameter in own}) or {}
            for old, new in extra.pop("sections", {}).items():
                flags = {name.replace(f"{old}__", f"{new}__", 1): value for name, value in flags.items()}
            settings = _settings_from_flags(params, flags)
            print_result(importlib.import_module(f"sfd_cli.stages.{stage.module}").run(settings, **extra))

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
