"""Flags from the sections of params.yaml: one source for help, defaults and validation."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from sfd_cli.config import (
    DEFAULT_PARAMS,
    ClassLabel,
    Paths,
    Runtime,
    Settings,
    called_here,
    load_settings,
    section_type,
)
from sfd_cli.errors import UserError
from sfd_cli.stages import Stage

PARAMS = Annotated[Path, typer.Option("--params", help="the settings file", rich_help_panel="Other")]
DEBUG = Annotated[bool, typer.Option("--debug", help="show tracebacks (also SFD_DEBUG=1)", rich_help_panel="Other")]
ARGUMENTS = "sfd.arguments"
"""Where the context has the command's name and arguments as they were typed."""
# Between section and key in the name of a parameter, where a dot cannot be.
DOT = "__"


class SettingsCommand(TyperCommand):
    """A command whose help shows the settings of this folder, read when the page is shown and not before."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill the defaults in: those of params.yaml here, or the built-in ones where it does not hold."""
        try:
            settings = load_settings()
        except UserError:
            settings = Settings()
        for option in self.params:
            section, dot, key = str(option.name).partition(DOT)
            if dot:
                # A section that is left out (`guide: null`) has the defaults of its kind.
                shown = getattr(getattr(settings, section) or section_type(Settings, section)(), key)
                option.show_default = "unset" if shown is None else str(shown)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the flags; for one that other code has, say what it is called here."""
        own = {flag for option in self.params for flag in option.opts}
        flags = {str(option.name): option.opts[0] for option in self.params}
        for name in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
            if name not in own and (keys := called_here(name)):
                here = [flags.get(key.replace(".", DOT), f"{key} (of params.yaml)") for key in keys]
                ctx.fail(f"{name} is called {' or '.join(here)} here")
        ctx.meta[ARGUMENTS] = [ctx.info_name, *args]
        return super().parse_args(ctx, args)


def stage_options(stage: Stage) -> list[inspect.Parameter]:
    """A parameter for every key of the stage's sections, for its paths and for `runtime`; None leaves the setting."""
    options: list[inspect.Parameter] = []
    for section, prefix in stage.sections.items():
        for name, info in section_type(Settings, section).model_fields.items():
            if name not in stage.unread:
                options += _option(f"{section}{DOT}{name}", info, [prefix + name], f"Settings ({section})")
    for name in stage.paths:
        flags = [name, *([stage.aliases[name]] if name in stage.aliases else [])]
        options += _option(f"paths{DOT}{name}", Paths.model_fields[name], flags, "Artifacts")
    for name, info in Runtime.model_fields.items():
        options += _option(f"runtime{DOT}{name}", info, [name], "Other")
    return options


def settings_from_flags(params: Path, flags: dict[str, Any], stage: Stage, chosen: Stage) -> Settings:
    """The settings of the file with the flags laid over them.

    Args:
        params: the settings file; only under its usual name may it be missing, for the defaults.
        flags: values of `stage_options`.
        stage: whose flags they are.
        chosen: the stage that is to run, whose sections, in the same order, the flags are meant for.

    Raises:
        UserError: the file is missing, or a value is not acceptable; its subject is the flag where one gave the value.
    """
    if params != DEFAULT_PARAMS and not params.exists():
        raise UserError("--params", f"{params} does not exist", "check the path")
    sections = dict(zip(stage.sections, chosen.sections, strict=True))
    overrides: dict[str, dict[str, Any]] = {}
    named: dict[str, str] = {}
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition(DOT)
            target = sections.get(section, section)
            overrides.setdefault(target, {})[key] = value
            named[f"{target}.{key}"] = f"--{stage.sections.get(section, '')}{key}".replace("_", "-")
    try:
        return load_settings(params, overrides)
    except UserError as error:
        raise UserError(named.get(error.subject, error.subject), error.problem, error.remedy) from None


def _option(name: str, info: FieldInfo, flags: list[str], panel: str) -> list[inspect.Parameter]:
    """A typer option for one key of params.yaml; none for a nested section, which has no flag."""
    kind = info.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        first, *others = (part for part in typing.get_args(kind) if part is not type(None))
        kind = str if others and first is not bool else first  # pydantic tells which of them a text is
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return []
    extra: dict[str, Any] = {}
    if typing.get_origin(kind) is list:
        extra["parser"] = PARSERS.get(typing.get_args(kind)[0], _names)
        kind = str
    elif typing.get_origin(kind) is dict:
        extra["parser"] = _mapping
        kind = str
    elif kind == ClassLabel:
        extra["parser"] = _class_label
        kind = str
    names = [flag.replace("_", "-") for flag in flags]
    option = typer.Option(
        *(f"--{name}/--no-{name}" if kind is bool else f"--{name}" for name in names),
        help=info.description,
        rich_help_panel=panel,
        **extra,
    )
    annotation: Any = Annotated[kind | None, option]  # type: ignore[operator]
    return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)]


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.3,0,1,0.7") from None


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 0,3,7") from None


def _class_label(text: str) -> int | str:
    """An index where it is a number, else a name."""
    return int(text) if re.fullmatch(r"\s*-?\d+\s*", text) else text.strip()


def _class_labels(text: str) -> list[int | str]:
    return [_class_label(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r} is not a mapping such as '{{cat: [281, 282]}}'")
    return found


PARSERS: dict[Any, Callable[[str], list[Any]]] = {
    int: _integers,
    float: _floats,
    str: _names,
    ClassLabel: _class_labels,
}
"""How the parts of a list are read; all others are names."""
