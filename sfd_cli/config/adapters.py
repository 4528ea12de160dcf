"""What is trained beside a transformer that stays as it is."""

from __future__ import annotations

from pydantic import Field

from sfd_cli.config.section import Section


class Adapter(Section):
    """Low-rank updates (LoRA, arXiv 2106.09685) of the linear layers of the blocks, beside a label table of its own."""

    rank: int = Field(
        16, ge=0, description="rank of the update of every matrix; 0: no adapter, all weights are trained"
    )
    alpha: float | None = Field(
        None, gt=0, description="an update counts alpha over rank; unset: as rank, so that it is 1"
    )

    @property
    def numerator(self) -> float:
        """What over the rank an update counts: alpha, or the rank."""
        return self.rank if self.alpha is None else self.alpha


def unless_nothing(adapter: Adapter | None) -> Adapter | None:
    """None for an adapter of rank 0 too: it is the run without one, to the byte."""
    return adapter if adapter is not None and adapter.rank else None
