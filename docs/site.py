"""What `mkdocs build` makes beside the pages in this folder, as a hook of mkdocs.yml: nothing of it is written by hand.

README, CHANGELOG and CONTRIBUTING become pages, and the reference of commands and settings is read off the commands
and the sections of params.yaml. Links from one page to another are those of the repository; what a link shows that is
no page goes with the site if it is a picture, and is text where it is code.
"""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from rich.text import Text
from typer.core import TyperArgument

from sfd_cli.cli import app
from sfd_cli.cli.options import DOT
from sfd_cli.config import Settings, section_type

REPOSITORY = Path(__file__).parents[1]
FRONT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages that lie beside this folder, and what they are called on the site."""
COMMANDS, SETTINGS = "reference/commands.md", "reference/settings.md"
PICTURES = (".png", ".jpg", ".svg")
_LINK = re.compile(r"(?P<shows>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the pictures of other folders that pages show."""
    pages = {page: (REPOSITORY / source).read_text(encoding="utf-8") for source, page in FRONT.items()}
    pages |= {COMMANDS: command_reference(), SETTINGS: settings_reference()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for file in [file for file in files if file.is_documentation_page()]:
        for match in _LINK.finditer(file.content_string):
            target = _target(file.src_uri, match["target"])
            if target is not None and not _on_site(target) and target.endswith(PICTURES):
                files.append(File.generated(config, target, abs_src_path=str(REPOSITORY / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point every relative link to where its target is on the site."""

    def pointed(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match["target"])
        if target is None:
            return match[0]
        # A picture of another folder lies on the site where it lies in the repository.
        place = _on_site(target) or (target if target.endswith(PICTURES) else None)
        if place is not None:
            relative = os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")
            return f"{match['shows']}[{match['text']}]({relative}{match['anchor'] or ''})"
        return (
            f"[{match['text']}]({config.repo_url.rstrip('/')}/blob/HEAD/{target})" if config.repo_url else match["text"]
        )

    return _LINK.sub(pointed, markdown)


def _target(page: str, target: str) -> str | None:
    """The path in the repository that a page's link leads to; None where there is no such file."""
    source = {uri: name for name, uri in FRONT.items()}.get(page, f"docs/{page}")
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    return path if (REPOSITORY / path).exists() else None


def _on_site(path: str) -> str | None:
    """Where a file of the repository is among the pages; None where it is none."""
    shown = path.startswith("docs/") and path.endswith((".md", *PICTURES))
    return FRONT.get(path) or (path.removeprefix("docs/") if shown else None)


def command_reference() -> str:
    """All commands with their arguments and flags, as Markdown."""
    parts = ["# Commands", "Defaults are the built-in ones; `params.yaml` comes before them, and a flag before both."]
    parts += [
        part for name, command in _commands(typer.main.get_command(app), "sfd") for part in _described(name, command)
    ]
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {key}")
        elif not command.hidden:
            yield f"{name} {key}", command


def _described(name: str, command: Any) -> Iterator[str]:
    arguments = [option for option in command.params if isinstance(option, TyperArgument)]
    words = [f"[{one.name.upper()}]" if not one.required else one.name.upper() for one in arguments]
    yield f"## `{name}`"
    yield f"```text\n{' '.join([name, *words])} [OPTIONS]\n```"
    yield _plain(inspect.cleandoc(command.help or ""))
    panels: dict[str, list[Any]] = {}
    for option in command.params:
        if not option.hidden and option.name != "help":
            panels.setdefault(option.rich_help_panel or ("Arguments" if option in arguments else "Options"), []).append(
                option
            )
    for panel, options in panels.items():
        rows = [
            (_flags(option, option in arguments), _default(option), _plain(option.help or "")) for option in options
        ]
        yield f"**{panel}**\n\n{_table(('flag', 'default', 'meaning'), rows)}"


def _flags(option: Any, is_argument: bool) -> str:
    names = [option.name.upper()] if is_argument else [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _default(option: Any) -> str:
    """What holds where the flag is not given; a setting's own default where the flag stands for one."""
    section, dot, key = str(option.name).partition(DOT)
    if dot:
        return _value(section_type(Settings, section).model_fields[key].get_default(call_default_factory=True))
    return "required" if option.required else "" if option.default in (None, False, ()) else _value(option.default)


def settings_reference() -> str:
    """All sections of params.yaml with their keys, as Markdown."""
    parts = ["# Settings", "The sections of `params.yaml`. A section that is left out has its defaults."]
    for name, info in Settings.model_fields.items():
        kind = section_type(Settings, name)
        parts += [f"## {name}", _plain(inspect.cleandoc(kind.__doc__ or ""))]
        parts.append(_table(("key", "kind", "default", "meaning"), list(_keys(kind, info.get_default()))))
    return "\n\n".join(parts) + "\n"


def _keys(kind: type[BaseModel], own: BaseModel, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """A row for every key of a section, and of the sections in it, those too that are left out by default."""
    for key, field in kind.model_fields.items():
        value, name = getattr(own, key), f"{prefix}{key}"
        if isinstance(value, BaseModel):
            yield from _keys(type(value), value, f"{name}.")
        else:
            yield f"`{name}`", _kind(field.annotation, field.metadata), _value(value), _plain(field.description or "")
            for part in typing.get_args(field.annotation):
                if isinstance(part, type) and issubclass(part, BaseModel):  # one that may be left out
                    yield from _keys(part, part(), f"{name}.")


def _kind(annotation: Any, limits: list[Any]) -> str:
    """A setting's type in words, with the limits that pydantic checks."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        words = " or ".join(_kind(part, []) for part in args if part is not type(None))
    elif origin is typing.Literal:
        words = ", ".join(f"`{choice}`" for choice in args)
    elif origin is typing.Annotated:
        words = _kind(args[0], [])
    elif origin in (list, tuple):
        words = f"list of {_kind(args[0], [])}"
    elif origin is dict:
        words = f"mapping of {_kind(args[0], [])} to {_kind(args[1], [])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        words = f"section of {', '.join(f'`{key}`' for key in annotation.model_fields)}"
    else:
        words = {str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path"}.get(
            annotation, str(annotation)
        )
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in signs.items() if hasattr(limit, name)
    ]
    return ", ".join([words, *bounds])


def _value(value: Any) -> str:
    return "unset" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _plain(text: str) -> str:
    """Help without the markup of terminals, and with its stars and pointed brackets as they are."""
    return Text.from_markup(text).plain.replace("*", "\\*").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in line)} |" for line in lines
    )
