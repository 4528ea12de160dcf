"""Batches that are taken in parts: as many as are asked for, or as the device's memory asks for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from sfd_cli.config.section import count_or_auto

AUTO = "auto"
Accumulate = Annotated[int | Literal["auto"], BeforeValidator(count_or_auto("micro-batches"))]
ACCUMULATE_HELP = (
    "micro-batches per optimiser step and process, which move a result by rounding alone; auto: as few as fit into the"
    " memory of a GPU, found by trial, and one on a CPU"
)


def least_micro_batches(accumulate: int | Literal["auto"]) -> int:
    """How many micro-batches there are; of `auto` at least."""
    return accumulate if isinstance(accumulate, int) else 1
