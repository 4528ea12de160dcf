"""Draws pictures with all that is worth seeing on their way; knows no page and no browser."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
import torch

from sfd_cli.config import Sample
from sfd_cli.diffusion.schedule import Schedule, schedule_of
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.pipeline.arguments import NOT_TAKEN_OVER, as_sample
from sfd_cli.pipeline.held import Held, Recording, part_of
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.pipeline.trajectory import nearest
from sfd_cli.play.picture import Kept, Picture
from sfd_cli.play.trained import AheadSlider
from sfd_cli.report.palette import Palette

FRAMES = 25
"""Points of the way that are decoded and shown."""
DRAWN = 0.9
"""How much of the work is done when the latents are there, before they are decoded."""
REMEMBERED = 16
"""Pictures that are not drawn again when they are asked for again."""

Tell = Callable[[float, str], None]
"""Called with the part that is done, from 0 to 1, and with what is going on."""


@dataclass(frozen=True)
class Drawing:
    """A picture and its way from noise.

    Attributes:
        picture: what decides it.
        recording: its run.
        progress: T of every frame, ascending, from 0 to the schedule's end.
        textures: decoded images (frames, H, W, 3) uint8; the last one is the picture.
        semantics: normalised semantic latents (frames, C_s, h, w); C_s may be 0.
        schedule: the law of both streams' times.
    """

    picture: Picture
    recording: Recording
    progress: list[float]
    textures: np.ndarray
    semantics: np.ndarray
    schedule: Schedule

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self.textures[-1]


class Studio:
    """A model to draw with.

    Args:
        sampler: transformer, guide and texture VAE; its settings are the defaults of pictures.
        fingerprints: gives those of the models, by role, for the settings inside a PNG.
        training: the section `dit` of the transformer's training, as far as it is known.
        palette: colours of semantics; None: those of the first picture.

    Attributes:
        ahead: by how much semantics can go ahead of textures.
    """

    def __init__(
        self,
        sampler: Sampler,
        fingerprints: Callable[[], Mapping[str, str]] = dict,
        training: Mapping[str, Any] | None = None,
        palette: Palette | None = None,
    ) -> None:
        self.sampler = sampler
        self.training = dict(training or {})
        self.ahead = AheadSlider.of(sampler, self.training)
        self._fingerprints = fingerprints
        self._palette = palette
        self._drawn: OrderedDict[str, Drawing] = OrderedDict()
        self._lock = RLock()

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order."""
        return list(self.sampler.conditions.names)

    @property
    def guidances(self) -> list[str]:
        """Kinds of guidance that the models can give."""
        knows_null = self.training.get("label_dropout", 1) > 0
        return ["none", *(["cfg"] if knows_null else []), *(["autoguidance"] if self.sampler.guide else [])]

    @cached_property
    def about(self) -> dict[str, Any]:
        """Of what model the pictures are, for the settings inside a PNG."""
        return {"model": self.sampler.name, "fingerprints": dict(self._fingerprints())}

    def picture(self, label: int, kept: Kept | None = None, base: Sample | None = None, **changes: Any) -> Picture:
        """A picture by the settings `base`, the model's own if none are given, with `changes` by name over them.

        Raises:
            UserError: a setting is not acceptable, or there is no such class.
        """
        own = (base or self.sampler.sample).model_dump(exclude=NOT_TAKEN_OVER)
        sample = as_sample(own, changes).with_law(self.sampler.trained_law)
        picture = Picture(label=label, sample=sample, kept=kept)
        self.require_drawable(picture)
        return picture

    def require_drawable(self, picture: Picture) -> None:
        """Check a picture against the model.

        Raises:
            UserError: its class, guidance, or kept part is not of this model's.
        """
        space, kept = self.sampler.space, picture.kept
        if picture.label >= len(self.classes):
            known = f"the model knows classes 0 to {len(self.classes) - 1}"
            raise UserError("class", f"there is no class {picture.label}", known)
        for key in picture.sample.edits:
            raise UserError(f"sample.{key}", "has no use here", "`sfd sample` has it, and the Python object")
        self._sampler_of(picture)
        if kept is None:
            return
        if kept.streams != "both" and not space.semantic:
            raise UserError("kept", f"the model has no semantics to keep {kept.streams} beside", "keep both")
        if kept.cells is not None and max(kept.cells) >= space.grid:
            problem = f"{kept.cells} is not inside the grid of {space.grid} x {space.grid} cells"
            raise UserError("cells", problem, "draw the rectangle on the picture")
        self.require_drawable(kept.of)

    def draw(self, picture: Picture, tell: Tell = lambda part, what: None) -> Drawing:
        """The drawing of a picture, made now or remembered.

        Raises:
            UserError: it is not one of this model's.
            StageFailure: it is not finite.
        """
        self.require_drawable(picture)
        with self._lock:
            if picture.key not in self._drawn:
                self._drawn[picture.key] = self._made(picture, tell)
                if len(self._drawn) > REMEMBERED:
                    self._drawn.popitem(last=False)
            self._drawn.move_to_end(picture.key)
            return self._drawn[picture.key]

    def colours(self, drawing: Drawing) -> np.ndarray | None:
        """Semantics of every frame as colours (frames, h, w, 3) uint8; None where there are none."""
        if not drawing.semantics.shape[1]:
            return None
        if self._palette is None:
            self._palette = Palette.of(drawing.semantics[-1:])
        return (self._palette.paint(drawing.semantics) * 255).round().astype(np.uint8)

    def _made(self, picture: Picture, tell: Tell) -> Drawing:
        sampler = self._sampler_of(picture)
        space, schedule = sampler.space, schedule_of(sampler.sample)
        held = None if picture.kept is None else self._held(picture.kept, sampler, tell)
        noise = initial_noise(sampler.sample.seed, [0], space.shape).to(sampler.device)
        labels = torch.tensor([picture.label], device=sampler.device)
        recording = sampler.record(
            noise, labels, lambda progress, _: tell(DRAWN * min(progress / schedule.end, 1.0), "drawing"), held
        )
        if not bool(recording.latents.isfinite().all()):
            raise StageFailure("the picture", "is not finite", "use more steps or a smaller scale")
        points = dict(recording.points)
        progress = nearest(list(points), np.linspace(0, schedule.end, FRAMES).tolist())
        latents = torch.cat([points[one] for one in progress])
        tell(DRAWN, "decoding")
        textures = sampler.decode(latents).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        semantics = space.views(latents).semantic.float().cpu().numpy()
        return Drawing(picture, recording, progress, textures, semantics, schedule)

    def _held(self, kept: Kept, sampler: Sampler, tell: Tell) -> Held:
        source = self.draw(kept.of, tell)
        mask = part_of(sampler.space, kept.streams, kept.cells, kept.inside, sampler.device)
        return source.recording.held(mask, sampler.sample)

    def _sampler_of(self, picture: Picture) -> Sampler:
        """Raises UserError where the models and the picture's settings do not fit."""
        return replace(self.sampler, sample=picture.sample)
