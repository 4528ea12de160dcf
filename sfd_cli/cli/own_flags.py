"""Flags that are no settings: a function's parameters are flags of a stage, and it returns keyword arguments of `run`.

The key `stage` in what it returns names another stage to run with the same flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sfd_cli.cli.options import PARSERS

_FILE = {"dir_okay": False, "rich_help_panel": "Inputs"}


def train(
    model: Annotated[
        Literal["dit", "guide"],
        typer.Option(help="dit: the diffusion transformer; guide: as `sfd train-guide` with these flags"),
    ] = "dit",
) -> dict[str, Any]:
    """`train --model guide` is another spelling of `train-guide`."""
    return {"stage": "train-guide"} if model == "guide" else {}


def sample(
    grid: Annotated[Path | None, typer.Option(help="also write a picture of the first images", dir_okay=False)] = None,
    noise: Annotated[Path | None, typer.Option(help=".npy of floats (N, C, h, w) to start from", **_FILE)] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy of class indices (N,)", **_FILE)] = None,
    latents_out: Annotated[
        Path | None,
        typer.Option(help="write normalised composite latents (N, C, h, w) to this .npy, and no images", **_FILE),
    ] = None,
) -> dict[str, Any]:
    """Files to start from and to write beside the samples."""
    return {"grid": grid, "noise": noise, "labels": labels, "latents_out": latents_out}


def track(
    to: Annotated[
        str | None,
        typer.Option(parser=PARSERS[str], help="tensorboard, wandb, mlflow, or several; unset: metrics.trackers"),
    ] = None,
) -> dict[str, Any]:
    """To whom: more than one is given as a list, with commas."""
    return {"to": to}


def inspect_schedule(
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="also sample with real semantics and with sampled ones: a minute, needs a model"),
    ] = False,
) -> dict[str, Any]:
    """What needs a trained model is asked for."""
    return {"oracle": oracle}
