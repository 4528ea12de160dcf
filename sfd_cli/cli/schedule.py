"""`sfd schedule`: in what order the two streams should be denoised."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from sfd_cli.cli.app import app
from sfd_cli.cli.stages import stage_command
from sfd_cli.stages import SCHEDULE_INSPECT


class ScheduleGroup(TyperGroup):
    """Commands made as those of the stages are: a flag for every setting that they read."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {"inspect": stage_command("inspect", SCHEDULE_INSPECT)}


schedule_app = typer.Typer(
    cls=ScheduleGroup, help="The order of the two streams: what the latents say about it.", no_args_is_help=True
)
app.add_typer(schedule_app, name="schedule", rich_help_panel="2. Models")
# Typer lists a group that has a callback; the commands are the class's own.
schedule_app.callback()(lambda: None)
