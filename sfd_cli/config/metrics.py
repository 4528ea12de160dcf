"""The section about where curves are shown beside `metrics/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sfd_cli.config.section import Section
from sfd_cli.tables import TRACKERS


class Metrics(Section):
    """Trackers that are sent the curves, pictures and scores of `metrics/`. Never part of a fingerprint."""

    trackers: list[Annotated[str, AfterValidator(TRACKERS.require)]] = Field(
        [], description="where to send curves, grids and scores to: tensorboard, wandb, mlflow; none by default"
    )
    project: str | None = Field(
        None,
        min_length=1,
        description="project of Weights & Biases and experiment of MLflow; unset: what WANDB_PROJECT or"
        " MLFLOW_EXPERIMENT_NAME say, else sfd",
    )
    run: str | None = Field(
        None, min_length=1, description="what the trackers call this project's runs; unset: the working folder's name"
    )
