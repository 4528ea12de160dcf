"""What scores are computed with: extractors, and what each compares with, as the section `fid` names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.extractors import open_extractors
from sfd_cli.evaluation.reference import Reference, open_references
from sfd_cli.evaluation.scores import chosen, kinds_compared


@dataclass(frozen=True)
class Scoring:
    """Networks that are loaded, and references that no features were computed of yet.

    Attributes:
        extractors: those of which a chosen score needs features.
        missing: why there are no others, by name.
        references: by the extractor's name.
    """

    extractors: list[Extractor]
    missing: dict[str, str]
    references: dict[str, Reference]

    @classmethod
    def open(cls, settings: Settings, side: int, device: torch.device) -> Self:
        """What scores the images of `side` pixels, on a device.

        Raises:
            UserError: no chosen score can be computed, or the reference is missing or damaged.
        """
        found, missing = open_extractors(settings, device)
        kinds = {metric.features for metric in chosen(settings.fid)}
        extractors = [wanted for one in found if (wanted := one.only(kinds)).widths]
        if not extractors:
            why = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            problem = f"{', '.join(settings.fid.scores)} cannot be computed ({why})"
            raise UserError("fid.scores", problem, "add scores of the features that there are, such as fd")
        compared = kinds_compared(settings.fid)
        widths = {one.name: one.only(compared).widths.values() for one in extractors}
        return cls(extractors, missing, open_references(settings, widths, side))
