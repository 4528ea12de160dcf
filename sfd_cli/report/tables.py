"""The report's facts and settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sfd_cli.artifacts.recipe import Record
from sfd_cli.config import Section, Settings, unsaid
from sfd_cli.files import read_as
from sfd_cli.laws import DEFAULT_LAW, LAW_NUMBERS
from sfd_cli.messages import printable
from sfd_cli.report.score_table import headlines

LAW_FACTS = {
    "offset": "Offset delta_t",
    "lead": "Lead",
    "curve": "Lead and its slope",
    "knots": "Corners of the schedule",
}


def facts(settings: Settings) -> list[dict[str, str]]:
    """The few numbers a reader looks for first, as far as they are there: name, value and note."""
    metrics = settings.paths.metrics
    found = headlines(_read(metrics / "fid.json"))
    sample = _recorded(settings.paths.samples)
    if sample:
        steps = f", {sample['steps']} steps" if "steps" in sample else ""  # an adaptive solver chooses its own
        note = f"{sample.get('solver')}{steps}, guidance {sample.get('guidance')}"
        found.append(("Samples", f"{sample.get('num_images', 0):,}", note))
        if settings.dit.semantics:
            law = sample.get("schedule", DEFAULT_LAW)
            numbers = ", ".join(str(sample[key]) for key in LAW_NUMBERS.get(law, ()) if key in sample)
            gain = settings.latents.texture_gain
            more = f", and by {-math.log(gain):+.2g} in logit time for the textures' size" if gain != 1 else ""
            found.append((LAW_FACTS.get(law, law), numbers, f"semantics lead textures by this much{more}"))
    psnr = _read(metrics / "texture_vae.json").get("psnr")
    if psnr is not None:
        name = "Pixel components" if settings.texture_vae.compressor == "pca" else "Texture VAE"
        found.append((name, f"{psnr:.1f} dB", "PSNR on held-out images"))
    cosine = _read(metrics / "semvae.json").get("cosine")
    if cosine is not None:
        name = "Principal components" if settings.semvae.compressor == "pca" else "Semantic VAE"
        found.append((name, f"{cosine:.3f}", "cosine to held-out patch tokens; 1 is perfect"))
    return [{"name": name, "value": value, "note": note} for name, value, note in found]


def setting_tables(settings: Settings) -> list[dict[str, Any]]:
    """A table per section of `params.yaml`, with what each key means.

    Where an artifact records another value than `params.yaml` has now, because a flag said so, the recorded one
    is shown: it is what made the artifact.
    """
    paths = settings.paths
    recorded_in = {name: getattr(paths, name, None) for name in type(settings).model_fields} | {"sample": paths.samples}
    tables = []
    for name in type(settings).model_fields:
        section: Section | None = getattr(settings, name)
        if section is None:  # `guide: null`
            tables.append({"name": name, "rows": [(name, "null")], "help": {name: "there is none"}, "open": False})
            continue
        recorded = _recorded(recorded_in[name]) if name != "paths" else {}
        recorded = recorded and unsaid(section) | recorded
        values = section.model_dump(mode="json")
        rows = [(key, Markup("<br>").join(_lines(recorded.get(key, value)))) for key, value in values.items()]
        meaning = {key: field.description or "" for key, field in type(section).model_fields.items()}
        tables.append({"name": name, "rows": rows, "help": meaning, "open": name in ("dit", "sample")})
    return tables


def _recorded(folder: Path | None) -> dict[str, Any]:
    record = Record.read(folder) if folder else None
    return record.settings if record else {}


def _read(path: Path) -> dict[str, Any]:
    return read_as(dict[str, Any], path) if path.exists() else {}


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [printable(f"{key}: {part}") for key, part in value.items()]
    return ["unset" if value is None else str(value).lower() if isinstance(value, bool) else printable(value)]
