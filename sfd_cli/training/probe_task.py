"""The probe's objective: half of its images beside their own semantics, half beside those of others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import DiT
from sfd_cli.data.near_duplicates import hold_out
from sfd_cli.data.store import Store
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.training.velocity_task import VelocityTask


class ProbeTask(VelocityTask):
    """The objective on images as they are and, as a control, on images whose semantics are those of a stranger.

    A stranger is another image of the same class, always the same one, so that in the control neither stream tells
    more of the other than the class does, and all else is as it was: both streams' distributions, their number, the
    network, its training. Whatever a path gains there, it gains for other reasons than what semantics tell. One network
    learns both, told apart by its condition: row c is class c, row K + c class c beside a stranger's semantics.

    Args:
        store: the latent store.
        section: settings of the objective.
        device: the training device.
        clusters: of near-duplicates, a number for every image (n,), as `store_clusters` gives them.

    Attributes:
        clusters: the same.
        held_out: positions of images that are kept out of training; so are their strangers.
        trained_on: positions of as many that are not, to compare with.

    Raises:
        SettingError: nothing would be held out, or nothing left to train on.
    """

    def __init__(self, store: Store, section: DiT, device: torch.device, clusters: np.ndarray) -> None:
        super().__init__(store, section, None, device)
        self.clusters = clusters
        split = hold_out(clusters, section.holdout, section.seed)
        self.held_out, self.trained_on = split.held_out, split.control
        self._strangers = strangers(store.labels, self.held_out, section.seed)
        self.conditions = Conditions((*store.classes, *(f"{name}, a stranger's semantics" for name in store.classes)))

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """As for any transformer, and the `stranger`'s semantics (B, ...)."""
        return super().fetch(indices, flips) | {"stranger": self._read("semantic", self._strangers[indices], flips)}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """As for any transformer, and which images are the control (count,) bool."""
        draws = super().draw(generator, count)
        return draws | {"control": torch.rand(count, generator=generator, device=generator.device) < 0.5}

    def _streams(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        own, control = super()._streams(batch, draws), draws["control"]
        return own[0], torch.where(control[:, None, None, None], batch["stranger"], own[1])

    def _rows(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        return self.conditions.drop(batch["labels"] + len(self.store.classes) * draws["control"], draws["dropped"])

    def control_examples(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `examples`, of the control: latents (n, C, h, w) with strangers' semantics, conditions (n,)."""
        latents, labels = self.examples(rows)
        semantic = self.space.views(self.examples(self._strangers[rows])[0]).semantic
        return torch.cat((self.space.views(latents).texture, semantic), dim=1), labels + len(self.store.classes)


def strangers(labels: np.ndarray, held_out: np.ndarray, seed: int) -> np.ndarray:
    """For every image another one of its class, held out if and only if it is; every image is one's stranger.

    Images that are alone in this are strangers to one another.

    Args:
        labels: classes (n,).
        held_out: positions.
        seed: of who gets whom.

    Returns:
        Positions, int64 (n,).
    """
    is_held = np.zeros(len(labels), bool)
    is_held[held_out] = True
    groups = 2 * labels + is_held
    groups = np.where(np.bincount(groups)[groups] == 1, -1 - is_held.astype(np.int64), groups)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(groups[order], kind="stable")]
    found = np.empty(len(labels), np.int64)
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        found[members] = np.roll(members, 1)
    return found
