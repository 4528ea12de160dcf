"""What is taken over when images come and go: rows of earlier stores whose keys say that they would be made alike.

A key covers all that decides a row's bytes: the image's content, the networks, sizes and seeds, and how many images a
forward pass takes, which decides on some devices how sums are rounded. Names, classes and other images do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sfd_cli.artifacts.earlier import earlier_artifacts, remove_earlier
from sfd_cli.config import Settings
from sfd_cli.data.kept_rows import KeptRows, Make, row_keys, sparing, stored_keys
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import Processes
from sfd_cli.files import fingerprint
from sfd_cli.formats.model_folder import load_config
from sfd_cli.messages import say
from sfd_cli.networks.parts import images_at_once
from sfd_cli.networks.precision import FrozenPrecision
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.models import Model, open_semantic, open_texture_vae
from sfd_cli.weights.visual_encoders import encoder_fingerprint


def feature_keys(
    settings: Settings, contents: Sequence[bytes], of_a_pass: int, precision: FrozenPrecision
) -> list[bytes]:
    """Keys of the patch tokens of images with these hashes, so many of which go through the encoder together."""
    recipe = {
        "tokens": encoder_fingerprint(settings.encoder),
        "image_size": settings.images.size,
        "flips": settings.images.flips,
        "pass": of_a_pass,
        **_unless_fp32(precision),
    }
    return row_keys(fingerprint(recipe), contents)


def latent_keys(
    settings: Settings,
    contents: Sequence[bytes],
    features: Store | None,
    of_a_pass: int,
    precision: FrozenPrecision,
) -> list[bytes] | None:
    """Keys of the composite latents of a manifest's images; None where stored features have none, as those of old.

    Args:
        settings: the sections `images`, `encoder`, `latents`, `semvae`, `texture_vae` and `paths` are read.
        contents: hashes of the images, in the manifest's order.
        features: stored patch tokens, of some of them or all.
        of_a_pass: images that go through the networks together.
        precision: what they compute in.
    """
    latents = settings.latents
    recipe = {
        "texture": _computed_by(open_texture_vae(settings)),
        "semantic": None if settings.semvae.compressor == "none" else _computed_by(open_semantic(settings)),
        "image_size": settings.images.size,
        "flips": settings.images.flips,
        "pass": of_a_pass,
        **_unless_fp32(precision),
        **latents.model_dump(include={"seed", "noise"}),
    }
    at_once = images_at_once(settings.images.size)
    if of_a_pass * settings.images.flips > at_once:
        recipe["at_once"] = at_once  # of the views of a pass, in a call of the texture compressor
    rows = [*contents]
    if latents.noise == "index":
        rows = [content + index.to_bytes(8, "little") for index, content in enumerate(rows)]
    if settings.needs_encoder:
        tokens = feature_keys(settings, contents, of_a_pass, precision)
        if features is not None:
            stored = stored_keys(features.folder, features.fields)
            if len(stored) != len(features):
                return None
            for index, key in zip(features.indices, stored, strict=True):
                tokens[index] = key
        rows = [row + key for row, key in zip(rows, tokens, strict=True)]
    return row_keys(fingerprint(recipe), rows)


def taking_over(writer: StoreWriter, make: Make, stage: str, batch_size: int, processes: Processes) -> Make:
    """`make`, which is asked only for rows that no earlier store beside the writer's holds, `batch_size` at a time.

    Called in every process alike; the first one says how many those are, and removes what was kept for nothing.
    """
    if writer.keys is None:
        return make
    kept = KeptRows(earlier_artifacts(writer.folder, stage), writer.fields, writer.keys)
    processes.barrier()
    if processes.is_main and len(kept):
        new = writer.count - len(kept)
        say(f"{len(kept):,} of {writer.count:,} images are taken over from before, {new:,} are to be made")
    elif processes.is_main:
        remove_earlier(writer.folder)
    return sparing(make, kept, batch_size)


def _unless_fp32(precision: FrozenPrecision) -> dict[str, str]:
    """What keys say of a precision: of fp32 nothing, as before there were others."""
    return {} if precision == "fp32" else {"precision": precision}


def _computed_by(model: Model[Any]) -> str:
    """Fingerprint of a network's architecture and weights, whatever else is noted beside them, such as its scores."""
    description = load_config(model.folder)
    weights = digest(model.folder / f"{model.weights}.safetensors")
    return fingerprint({"type": description.get("type"), "config": description["config"], "weights": weights})
