"""What a training takes from the transformer that it starts from, `dit.init`, and what it makes anew.

Width, depth, channels, times and the like must agree. Classes and grid may be others: rows of the label table come from
old ones, and positions of another grid are computed. A REPA projector of another shape or block is drawn anew. Latents
are normalised by the statistics of the source, so that its weights meet inputs of the scale that they were trained on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NoReturn

import torch
from torch import Tensor

from sfd_cli.config import DiT, Settings
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.formats.format import Hints
from sfd_cli.formats.model_folder import POSITIONS
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.weights.model import Model
from sfd_cli.weights.models import conditions_of, is_registered, open_model, space_of

LABELS = "class_embedding.weight"
PROJECTOR = "projector."
MAY_DIFFER = {"grid", "num_classes", "repa_depth", "repa_width", "feature_width"}
"""Parts of the architecture for which something is made anew."""
SHOWN = 12
"""As many names of classes are told in a message."""


def settled(section: DiT) -> DiT:
    """The section, saying by which statistics latents are normalised wherever there is an `init`, and only there."""
    statistics = None if section.init is None else section.statistics or "init"
    return section.model_copy(update={"statistics": statistics})


@dataclass(frozen=True)
class Source:
    """The transformer that a training starts from.

    Attributes:
        model: it.
        section: settings of the training.
        name: of the section, in messages.
    """

    model: Model[LightningDiT]
    section: DiT
    name: str

    @classmethod
    def open(cls, settings: Settings, section: DiT, name: str, semantic: int) -> Source:
        """The transformer at `section.init`; of a file of other code the settings tell what that does not.

        Args:
            settings: of which `foreign` is read.
            section: settings of the training.
            name: of the section, in messages.
            semantic: semantic channels of the latents, for a file that has no statistics of its own.

        Raises:
            UserError: it is missing, damaged or something else.
        """
        foreign, source = settings.foreign, str(section.init)
        channels = foreign.semantic_channels
        if channels is None and foreign.semantic_statistics is None and not is_registered(source):
            channels = semantic
        hints = Hints(section.heads, repa_depth=section.repa_depth, semantic_channels=channels)
        statistics = foreign.texture_statistics, foreign.semantic_statistics
        try:
            return cls(open_model(source, LightningDiT, hints, statistics=statistics), section, name)
        except UserError as error:
            raise UserError(f"{name}.init", f"{error.subject} {error.problem}", error.remedy) from None

    def require_fit(self, config: LightningDiTConfig) -> None:
        """Check that the source is of an architecture that `config` can take weights from.

        Raises:
            UserError: it has other channels, or another architecture; names what differs.
        """
        ours, theirs = asdict(config), asdict(self.model.config)
        own, other = config.space, self.model.config.space
        if (own.texture, own.semantic) != (other.texture, other.semantic):
            problem = (
                f"{self.model.source} has {other.texture} texture and {other.semantic} semantic channels, but the"
                f" latents have {own.texture} and {own.semantic}"
            )
            remedy = "encode them with the texture VAE and the Semantic VAE that it was trained with"
            raise UserError(f"{self.name}.init", problem, remedy)
        wrong = [key for key in ours if key not in MAY_DIFFER and ours[key] != theirs[key]]
        if wrong:
            found = ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in wrong)
            problem = f"{self.model.source} has {found}"
            raise UserError(f"{self.name}.init", problem, "set these in the section, or start from another file")

    def space(self, own: LatentSpace) -> LatentSpace:
        """How latents of the layout `own` are normalised: as the source's were, unless the settings say otherwise.

        Raises:
            UserError: the source has no statistics.
        """
        if self.section.statistics == "own":
            return own
        theirs = space_of(self.model)
        if not theirs.is_scaled:
            problem = f"'init', but {self.model.source} has no statistics of the latents that it was trained on"
            places = "foreign.texture_statistics and foreign.semantic_statistics"
            remedy = f"name them in {places}, or use {self.name}.statistics: own"
            raise UserError(f"{self.name}.statistics", problem, remedy)
        return own.scaled(theirs.mean, theirs.std)

    def fill(self, network: LightningDiT, classes: Conditions) -> frozenset[str]:
        """Put the averaged weights of the source into a network for `classes`; what does not fit stays as it was drawn.

        The network is of a configuration that `require_fit` has passed.
        Positions of an imported checkpoint that are not just those computed here are taken over where the grid is.

        Returns:
            Names of the weights that come from the source as they are.

        Raises:
            UserError: the source is damaged, or has no class that the settings name.
        """
        rows = self._rows(classes)
        source, ours = self.model.load(), network.state_dict()
        theirs: dict[str, Tensor] = source.state_dict()
        taken = {name: tensor for name, tensor in theirs.items() if name in ours and self._keeps(name, network.config)}
        table = torch.stack([theirs[LABELS][list(old)].mean(dim=0) for old in rows])
        network.load_state_dict(ours | taken | {LABELS: table})
        if source.config.tokens_per_side == network.config.tokens_per_side:
            buffers = dict(network.named_buffers())
            for name, tensor in source.named_buffers():
                if name in POSITIONS:
                    buffers[name].copy_(tensor)
        return frozenset(taken)

    def summary(self, classes: Conditions, texture_vae: str | None) -> str:
        """What of the source holds and what begins anew; `texture_vae` is the fingerprint of the latents' own."""
        nothing, rows = conditions_of(self.model).nothing, self._rows(classes)[:-1]
        placed = sum(row != (nothing,) for row in rows)
        table = f"{placed} of {len(rows)} classes begin as old ones, the others as the null label"
        scale = "its statistics" if self.section.statistics == "init" else "the statistics of the images"
        theirs = self.model.facts.get("texture_vae")
        other = "; its latents were of another texture VAE" if theirs and texture_vae and theirs != texture_vae else ""
        return f"{self.name} starts from {self.model.source}, normalised by {scale}; {table}{other}"

    def rate_scales(self, inherited: frozenset[str]) -> Mapping[str, float]:
        """The learning rates of these weights over that of all others; none where they have the same."""
        scale = self.section.init_learning_rate_scale
        return {} if scale == 1 else dict.fromkeys(inherited, scale)

    def _keeps(self, name: str, config: LightningDiTConfig) -> bool:
        """Whether a weight fits as it is: the label table never counts as such, a projector where it is the same."""
        theirs = self.model.config
        same = all(
            getattr(theirs, key) == getattr(config, key) for key in ("repa_depth", "repa_width", "feature_width")
        )
        return name != LABELS and (same or not name.startswith(PROJECTOR))

    def _rows(self, classes: Conditions) -> list[tuple[int, ...]]:
        """Rows of the source's table by row of ours, the null label's too: the mean of them is what ours begins with.

        Raises:
            UserError: the settings name a class that is not there, on either side.
        """
        old, given = conditions_of(self.model), self.section.init_classes
        for name in given:
            if name not in classes.names:
                self._refuse_class(f"there are no images of a class {name!r}", name, classes)
        named = self.model.facts.get("classes") is not None
        rows = []
        for number, name in enumerate(classes.names):
            if name in given:
                rows.append(tuple(self._old_row(one, name, old, named) for one in given[name]))
            elif named and name in old.names:
                rows.append((old.row(name),))
            elif not named and len(old) == len(classes):
                rows.append((number,))
            else:
                rows.append((old.nothing,))
        return [*rows, (old.nothing,)]

    def _old_row(self, one: int | str, name: str, old: Conditions, named: bool) -> int:
        """Row of an old class by its number or name; `name` is the new one that it is for."""
        if isinstance(one, str) and one in old.names:
            return old.row(one)
        if isinstance(one, int) and 0 <= one < len(old):
            return one
        problem = f"{self.model.source} has no class {one!r}, which {name!r} is to begin with"
        if named and isinstance(one, str):
            self._refuse_class(problem, one, old)
        known = f"it has {len(old):,} classes, numbered from 0" + ("" if named else ", and no names of them")
        raise UserError(f"{self.name}.init_classes", problem, known)

    def _refuse_class(self, problem: str, name: str, among: Conditions) -> NoReturn:
        """Raise UserError for a class that is not there, naming the nearest."""
        close = difflib.get_close_matches(name, among.names, n=1)
        rest = ", ..." if len(among) > SHOWN else ""
        known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(among.names[:SHOWN])}{rest}"
        raise UserError(f"{self.name}.init_classes", problem, known)
