"""The table of stages as commands."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from sfd_cli.cli.options import ARGUMENTS, DEBUG, PARAMS, SettingsCommand, settings_from_flags, stage_options
from sfd_cli.cli.terminal import friendly_errors, print_result
from sfd_cli.config import DEFAULT_PARAMS
from sfd_cli.distributed.launch import is_member, launch, wanted
from sfd_cli.memory import memory_told
from sfd_cli.stages import Stage
from sfd_cli.tables import STAGES


class StageGroup(TyperGroup):
    """A group that has the stages of the table, those of other packages too, before its other commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: stage_command(name) for name in STAGES} | dict(self.commands)


def stage_command(name: str, stage: Stage | None = None) -> Any:
    """The command of a stage, of the one in the table if none is given: a flag for every setting that it reads."""
    stage = stage or STAGES[name]
    own = _load(stage.own) if stage.own else dict
    keyword = inspect.Parameter.KEYWORD_ONLY
    own_options = list(inspect.signature(own, eval_str=True).parameters.values()) if stage.own else []
    parameters = [
        *(parameter.replace(kind=keyword) for parameter in own_options),
        *stage_options(stage),
        inspect.Parameter("params", keyword, default=DEFAULT_PARAMS, annotation=PARAMS),
        inspect.Parameter("debug", keyword, default=False, annotation=DEBUG),
        inspect.Parameter("context", keyword, annotation=typer.Context),
    ]

    def call(context: typer.Context, params: Path = DEFAULT_PARAMS, **flags: Any) -> None:
        arguments = own(**{option.name: flags.pop(option.name) for option in own_options})
        run_as = str(arguments.pop("stage", name))
        chosen: Stage = stage if run_as == name else STAGES[run_as]
        settings = settings_from_flags(params, flags, stage, chosen)
        if chosen.shares and not is_member():
            count = wanted(settings.runtime.processes, settings.runtime.device)
            if count > 1:
                raise SystemExit(launch(count, context.meta[ARGUMENTS]))
        with memory_told(f"sfd {run_as}", chosen.relief):
            found = importlib.import_module(chosen.module).run(settings, **arguments)
        print_result(found)
        if "WORLD_SIZE" in os.environ:  # of torchrun
            from sfd_cli.distributed.processes import Processes

            Processes.leave()

    command = friendly_errors(call)
    command.__doc__ = stage.help
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]
    # An app of one command is how typer makes a command outside an app.
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name, cls=SettingsCommand, rich_help_panel=stage.panel)(command)
    return typer.main.get_command(alone)


def _load(place: str) -> Callable[..., dict[str, Any]]:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)
