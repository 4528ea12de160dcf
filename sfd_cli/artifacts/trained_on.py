"""Whether a latent store is the one that a transformer was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfd_cli.artifacts.recipe import Record
from sfd_cli.data.latent_space import space_of_store
from sfd_cli.data.store import Store
from sfd_cli.diffusion.latents import LatentSpace


def other_latents(model: Path | None, space: LatentSpace, store: Store) -> str | None:
    """What a store has instead of the latents that a transformer was trained on.

    Statistics tell stores apart, unless the model's record names this very one: a transformer that began as another
    normalises by statistics that are not its store's.

    Args:
        model: folder of the transformer; None where it has none.
        space: of the transformer.
        store: the latents.

    Returns:
        For a message; None where it is the one.

    Raises:
        UserError: a record is damaged, or it is no latent store.
    """
    made, latents = None if model is None else Record.read(model), Record.read(store.folder)
    is_named = made is not None and latents is not None and made.inputs.get("latents") == latents.fingerprint
    return (replace(space, mean=(), std=()) if is_named else space).difference(space_of_store(store))
