"""What decides the images of `sfd sample`, as the record of a protocol, and where that is not a quoted figure's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sfd_cli.config import Sample, identity, unsaid
from sfd_cli.pipeline.sampler import guidance_scale
from sfd_cli.protocols import PROTOCOL_KEYS
from sfd_cli.tables import PROTOCOLS, SOLVERS

GUIDANCE = ("guidance", "scale_texture", "scale_semantic")
"""What a record says beside the keys that protocols decide: figures with and without guidance are of one protocol."""

_INTERVAL = ("interval_start", "interval_end")


def effective_settings(sample: Sample) -> dict[str, Any]:
    """The settings that decide the images; batch size and compiling move them by rounding at most.

    Pictures are not among them: what is in their files is, and not where these lie.
    """
    settings = identity(sample, exclude={"protocol", "batch_size", "compile", "scale", "image", "mask", *_INTERVAL})
    solver = SOLVERS[sample.solver]
    unused = set(solver.unused)
    if sample.images_at_once == solver.images_at_once:
        unused |= {"images_at_once"}
    if sample.guidance == "none":
        unused |= {"scale_texture", "scale_semantic", "guidance_channels"}
    else:
        scale = guidance_scale(sample)
        settings |= {"scale_texture": scale.texture, "scale_semantic": scale.semantic, "interval": scale.interval}
    return {key: value for key, value in settings.items() if key not in unused}


def protocol_record(effective: Mapping[str, Any]) -> dict[str, Any]:
    """What `effective_settings` say of all that protocols decide, as far as it is read, and of guidance; JSON-able."""
    said = unsaid(Sample()) | dict(effective)
    solver = SOLVERS[said["solver"]]
    said["images_at_once"] = said["images_at_once"] or solver.images_at_once
    said |= dict(zip(_INTERVAL, said.get("interval", ()), strict=False))
    said["guidance_channels"] = said["guidance_channels"] or "all"
    unread = set(solver.unused) | ({"guidance_channels"} if said["guidance"] == "none" else set())
    keys = dict.fromkeys((*PROTOCOL_KEYS, *GUIDANCE))
    found: dict[str, Any] = json.loads(json.dumps({key: said[key] for key in keys if key in said.keys() - unread}))
    return found


def differences(name: str, record: Mapping[str, Any], images: int, reference: str) -> list[str]:
    """Where samples and their score are not by the protocol `name`, a sentence each.

    Args:
        name: of the table PROTOCOLS.
        record: that of the samples, as `protocol_record` gives it.
        images: how many are scored.
        reference: what they are scored against, as `fid.reference` has it.
    """
    protocol = PROTOCOLS[name]
    guidance = {key: record[key] for key in GUIDANCE if key in record and key not in protocol.settings}
    published = protocol_record(effective_settings(Sample.model_validate({"protocol": name} | guidance)))
    pairs = {f"sample.{key}": (record[key], value) for key, value in published.items() if key in record}
    pairs["fid.reference"] = (reference, protocol.reference)
    pairs["the number of images"] = (images, protocol.images)
    return [
        f"By the protocol {name}, {key} is {theirs}; here it is {ours}."
        for key, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
