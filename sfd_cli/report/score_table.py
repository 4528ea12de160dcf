"""What the page says of the scores in `fid.json`: a row for each number that a metric of the table gives."""

from __future__ import annotations

from typing import Any

from sfd_cli.evaluation.metric import Metric, Score
from sfd_cli.evaluation.scores import HEADLINE, name_of
from sfd_cli.report.page import Marks, draw_ruler
from sfd_cli.tables import METRICS

AUTOENCODERS = {
    "texture": ("Texture codec", {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}),
    "semantic": ("Semantic VAE", {"mse": "squared error of patch tokens", "cosine": "cosine to patch tokens"}),
}


def score_tables(found: dict[str, Any]) -> dict[str, Any]:
    """Rows, rulers and notes for the page from the contents of `fid.json`."""
    rows, rulers, notes = [], [], list(found.get("notes", []))
    for extractor, features in found.get("features", {}).items():
        shown, missing = [], []
        for name in METRICS:
            metric: Metric = METRICS[name]
            for score in metric.scores:
                key = name_of(extractor, score.key)
                if found.get(key) is not None:
                    shown.append(_row(found, metric, score, extractor))
                elif reason := found.get(f"{key}_reason"):
                    missing.append((f"{score.label}, {features}", reason))
            matched = found.get(name_of(extractor, f"{metric.scores[0].key}_matched"))
            if matched and "untrained" in matched:
                rulers.append(_ruler(matched, f"{metric.scores[0].label}, {features}"))
        rows += shown
        if shown:
            notes += [f"{label}: none; {reason}." for label, reason in missing]
        else:
            notes.append(f"No {features} scores: {missing[0][1] if missing else 'not computed'}.")
    autoencoders, reasons = _autoencoders(found.get("autoencoders", {}))
    more = {"classes": class_rows(found), "autoencoders": autoencoders}
    return {"rows": rows, "rulers": rulers, **more, "notes": notes + reasons, "reason": ""}


def class_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each class, if scores were computed by class, and for each extractor."""
    rows = []
    for name, scores in (found.get("by_class") or {}).items():
        for extractor, features in found.get("features", {}).items():
            key = name_of(extractor, HEADLINE)
            if key not in scores:
                continue
            matched, value = scores.get(f"{key}_matched") or {}, scores[key]
            rows.append(
                {
                    "name": f"{name}, {features}",
                    "value": "none" if value is None else f"{value:.4g}",
                    "samples": f"{matched['samples']:.4g}" if matched else "",
                    "real": f"{matched['real']:.4g}" if matched else "",
                    "source": f"{scores['samples']:,} samples against {scores[f'{key}_reference']:,} images",
                }
            )
    return rows


def headlines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of each extractor there is: name, value and note of the number that is looked for first."""
    lines = []
    for extractor, features in found.get("features", {}).items():
        value = found.get(name_of(extractor, HEADLINE))
        if value is not None:
            beside = [
                ("untrained", "an untrained model"),
                ("reconstructed", "real ones through the autoencoder"),
                ("halves", "two halves of the data"),
            ]
            there = [(found.get(name_of(extractor, f"{HEADLINE}_{key}")), what) for key, what in beside]
            note = "; ".join(f"{other:.4g} {what}" for other, what in there if other is not None)
            lines.append((f"{METRICS[HEADLINE].label}, {features}", f"{value:.4g}", note))
    return lines


def _row(found: dict[str, Any], metric: Metric, score: Score, extractor: str) -> dict[str, Any]:
    value = f"{found[name_of(extractor, score.key)]:.4g}"
    if score.spread:
        value += f" ± {found[name_of(extractor, score.spread)]:.2g}"
    counts = found["counts"]
    reference = counts.get(name_of(extractor, f"{metric.scores[0].key}_reference"))
    images = score.counted.format(
        samples=counts["samples"],
        untrained=counts.get("untrained", 0),
        compared=counts.get(name_of(extractor, score.key), (0, 0)),
        reference=f"{reference:,} reference images" if reference else "published statistics",
    )
    label = f"{score.label}, {found['features'][extractor]}"
    return {"name": label, "value": value, "source": images, "main": score.key == HEADLINE}


def _autoencoders(found: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """A row for each number of either autoencoder, and why others are missing."""
    rows, reasons = [], []
    for name, (title, labels) in AUTOENCODERS.items():
        scores = found.get(name, {})
        for key, label in labels.items():
            if scores.get(key) is not None:
                source = f"{scores['images']:,} images {scores['those']}"
                rows.append({"name": f"{title}: {label}", "value": f"{scores[key]:.4g}", "source": source})
            elif reason := scores.get(f"{key}_reason"):
                reasons.append(f"{title}, {label}: none; {reason}.")
    return rows, reasons


def _ruler(matched: dict[str, Any], label: str) -> dict[str, Any]:
    caption = (
        f"{label}, like with like: {matched['images']:,} images of each kind, against the same"
        f" {matched['reference_images']:,} real images. The real ones on the left are others than these"
    )
    returned = matched.get("reconstructed")
    if returned is not None:
        caption += "; samples without a fault of the transformer would be where real ones are after the autoencoder"
    marks = Marks(matched["real"], returned, matched["samples"], matched["untrained"])
    return {"svg": draw_ruler(marks), "caption": f"{caption}. The scale is logarithmic."}
