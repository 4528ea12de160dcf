"""What the report's tables and facts say, from settings, scores and timings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from sfd_cli.config import Section, Settings
from sfd_cli.files import read_json
from sfd_cli.report.page import draw_ruler
from sfd_cli.tables import STAGES

FEATURES = {"fd_dinov2": "DINOv2", "fid": "Inception"}


def facts(settings: Settings, total_seconds: str) -> list[dict[str, str]]:
    """The few numbers a reader looks for first, as name, value and note; those that are there."""
    metrics, found = settings.paths.metrics, []
    scores = _read(metrics / "fid.json")
    for fd, features in FEATURES.items():
        if scores.get(fd) is not None:
            beside = [("untrained", "an untrained model"), ("halves", "two halves of the data")]
            there = [(scores.get(f"{fd}_{key}"), what) for key, what in beside]
            stands = [f"{value:.4g} {what}" for value, what in there if value is not None]
            found.append((f"Fréchet distance, {features}", f"{scores[fd]:.4g}", "; ".join(stands)))
    sample = _recorded(settings.paths.samples)
    if sample:
        steps = f", {sample['steps']} steps" if "steps" in sample else ""  # an adaptive solver chooses its own
        note = f"{sample.get('solver')}{steps}, guidance {sample.get('guidance')}"
        found.append(("Samples", f"{sample.get('num_images', 0):,}", note))
        if settings.dit.semantics:
            found.append(("Offset delta_t", f"{sample.get('delta_t')}", "semantics lead textures by this much"))
    psnr = _read(metrics / "texture_vae.json").get("psnr")
    if psnr is not None:
        found.append(("Texture VAE", f"{psnr:.1f} dB", "PSNR on held-out images"))
    cosine = _read(metrics / "semvae.json").get("cosine")
    if cosine is not None:
        name = "Principal components" if settings.semvae.compressor == "pca" else "Semantic VAE"
        found.append((name, f"{cosine:.3f}", "cosine to held-out patch tokens; 1 is perfect"))
    if total_seconds:
        found.append(("Time", f"{total_seconds} s", "all stages"))
    return [{"name": name, "value": value, "note": note} for name, value, note in found]


def score_tables(scores: dict[str, Any]) -> dict[str, Any]:
    """Rows, rulers and notes for the page from `fid.json`."""
    rows, rulers, notes = [], [], list(scores.get("notes", []))
    for fd, features in FEATURES.items():
        if scores.get(fd) is None:
            notes.append(f"No {features} scores: {scores.get(f'{fd}_reason', 'not computed')}.")
            continue
        rows += _rows(scores, fd, features)
        notes += [f"No {row}: {reason}." for row, reason in _missing(scores, fd, features)]
        ruler = _ruler(scores.get(f"{fd}_matched"), features)
        if ruler:
            rulers.append(ruler)
    return {"rows": rows, "rulers": rulers, "notes": notes, "reason": ""}


def _rows(scores: dict[str, Any], fd: str, features: str) -> list[dict[str, Any]]:
    counts = scores["counts"]
    suffix = fd.removeprefix("fd") if fd.startswith("fd_") else ""
    reference = counts.get(f"{fd}_reference")
    against = f"against {reference:,} reference images" if reference else "against published statistics"
    samples = f"{counts['samples']:,} samples"

    def images_compared(key: str) -> str:
        return "{:,} samples against {:,} images".format(*counts.get(key, (0, 0)))

    halves = "{:,} against {:,} images".format(*counts.get(f"{fd}_halves", (0, 0)))
    untrained = f"{counts.get('untrained', 0):,} images"
    described = [
        (fd, f"Fréchet distance, {features}", f"{samples} {against}"),
        (f"{fd}_untrained", "Fréchet distance of an untrained model", f"{untrained} {against}"),
        (f"{fd}_halves", "Fréchet distance between two halves of the data", halves),
        (f"kid{suffix}", f"Kernel distance (KID), {features}", images_compared(f"kid{suffix}")),
        (f"precision{suffix}", f"Precision, {features}", images_compared(f"precision{suffix}")),
        (f"recall{suffix}", f"Recall, {features}", images_compared(f"recall{suffix}")),
    ]
    return [
        {"name": name, "value": _shown(key, scores), "source": source, "main": key == fd}
        for key, name, source in described
        if scores.get(key) is not None
    ]


def _missing(scores: dict[str, Any], fd: str, features: str) -> list[tuple[str, str]]:
    suffix = fd.removeprefix("fd") if fd.startswith("fd_") else ""
    names = {
        f"{fd}_untrained": "distance of an untrained model",
        f"{fd}_halves": "distance between halves of the data",
        f"kid{suffix}": "KID",
        f"precision{suffix}": "precision",
        f"recall{suffix}": "recall",
    }
    reasons = [(f"{features} {name}", scores.get(f"{key}_reason")) for key, name in names.items()]
    return [(name, reason) for name, reason in reasons if reason]


def _shown(key: str, scores: dict[str, Any]) -> str:
    value = scores[key]
    spread = scores.get(key.replace("kid", "kid_std") if key == "kid" else f"{key}_std")
    return f"{value:.4g}" if spread is None else f"{value:.4g} ± {spread:.2g}"


def _ruler(found: dict[str, Any] | None, features: str) -> dict[str, Any] | None:
    if not found or found.get("untrained") is None:
        return None
    caption = (
        f"Fréchet distance on {features} features, like with like: {found['images']:,} images of each kind, against the"
        f" same {found['reference_images']:,} real images. The real ones on the left are others than these."
    )
    return {"svg": draw_ruler(found["real"], found["samples"], found["untrained"]), "caption": caption}


def timing_rows(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """A row per stage that has recorded its time, in the order of the pipeline, and the sum in seconds."""
    segments = {path.stem: read_json(path) for path in sorted(Path(folder).glob("*.json"))}
    order = [stage for stage in STAGES if stage in segments] + [name for name in segments if name not in STAGES]
    seconds = {stage: sum(float(part["seconds"]) for part in segments[stage]) for stage in order}
    total = sum(seconds.values())
    rows = [
        {
            "stage": stage,
            "seconds": f"{seconds[stage]:,.1f}",
            "share": round(100 * seconds[stage] / max(max(seconds.values()), 1e-9), 1),
            "runs": _runs(segments[stage]),
        }
        for stage in order
    ]
    return rows, f"{total:,.1f}"


def _runs(segments: list[dict[str, Any]]) -> str:
    """A killed run records no time, so only the first segment of a stage can tell that it was the whole of it."""
    if segments[0]["resumed"]:
        return "resumed: an interrupted run before it is not counted"
    return "in one go" if len(segments) == 1 else f"in {len(segments)} runs"


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
        values = section.model_dump(mode="json")
        rows = [(key, Markup("<br>").join(_lines(recorded.get(key, value)))) for key, value in values.items()]
        meaning = {key: field.description or "" for key, field in type(section).model_fields.items()}
        tables.append({"name": name, "rows": rows, "help": meaning, "open": name in ("dit", "sample")})
    return tables


def _recorded(folder: Path | None) -> dict[str, Any]:
    record = Path(folder) / "settings.json" if folder else None
    return dict(read_json(record).get("settings", {})) if record and record.exists() else {}


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}: {part}" for key, part in value.items()]
    return ["unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)]
