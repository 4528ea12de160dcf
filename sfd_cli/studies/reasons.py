"""Why the rows of a study score as they do: what `sfd study explain` measured beside them, kept and told.

The *oracle* is what perfect semantics would be worth along a row's law, the *criterion* what a probe's errors on
held-out images say of it (`sfd_cli.diffusion.path_criterion`), *parity* the lead at which both streams draw level, and
*draws* the share of a training's draws that a stream learns from along it (`TrainingTimes.shares`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from sfd_cli.errors import UserError
from sfd_cli.files import read_json
from sfd_cli.studies.analysis import Row

REASONS = "reasons.json"
FEWEST_PATHS = 6
"""Laws that a rank correlation is told of at the fewest."""

Reasons = dict[str, Any]


def read_reasons(folder: Path) -> Reasons | None:
    """What was measured; None where nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / REASONS
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"latents", "probe", "rows"} <= found.keys():
        raise UserError(path, "does not hold what `sfd study explain` writes", "delete it and run that again")
    return found


def told(reasons: Reasons, rows: list[Row]) -> list[str]:
    """Lines of Markdown: a table of the rows, and what the latents and the probe say in a paragraph each."""
    differences = {row.name: row.difference for row in rows if row.difference is not None}
    lines = [
        *_table(reasons["rows"], differences),
        "",
        _of_latents(reasons["latents"]),
        "",
        _of_probe(reasons["probe"]),
    ]
    zero = {row.name: 0.0 for row in rows if row.is_baseline}
    if correlation := _correlation(reasons["rows"], differences | zero):
        lines += ["", correlation]
    return lines


def _table(rows: list[dict[str, Any]], differences: dict[str, float]) -> list[str]:
    head = ["row", "difference", "draws", "criterion, nats", "beyond the control", "on images trained on"]
    head += ["real semantics", "sampled", "worth"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        difference = differences.get(row["row"])
        cells = [f"`{row['row']}`", "" if difference is None else f"{difference:+.3g}", f"{row['draws']:.0%}"]
        cells += [_pair(row, "gap", "standard_error"), _pair(row, "related_gap", "related_error")]
        cells += [_pair(row, "trained_on_gap", "trained_on_error")]
        cells += [f"{row['real_semantics']:.4g}", f"{row['sampled_semantics']:.4g}"]
        lines.append(f"| {' | '.join([*cells, _pair(row, 'gain', 'gain_standard_error')])} |")
    return lines


def _of_latents(latents: dict[str, Any]) -> str:
    level, accuracy = latents["level"], latents["accuracy"]
    said = [f"Both streams draw level at a lead of {_pair(level, 'lead', 'lead_standard_error')}."]
    if accuracy is not None:
        whole, half = accuracy["whole"], accuracy["half_resolved"]
        said.append(
            f"A linear classifier tells the class of {whole['semantic']:.1%} of the images from semantics and of"
            f" {whole['texture']:.1%} from textures, half resolved of {half['semantic']:.1%} and {half['texture']:.1%}."
        )
    return " ".join(said)


def _of_probe(probe: dict[str, Any]) -> str:
    law = "a clear preference" if probe["is_clear"] else "no preference"
    gap, related = _pair(probe, "gap", "standard_error"), _pair(probe, "related_gap", "related_error")
    said = [
        f"`sfd learn-schedule` says: {law} (lead {probe['lead']:g}: {gap} nats an image against the synchronous path,"
        f" {probe['interpolation']:.2g} more or less by what lies between the levels; {related} beyond the control; of"
        f" {probe['synchronous']:.4g} along that path, and of {probe['synchronous_trained_on']:.4g} on images that the"
        " probe was trained on)."
    ]
    held = [
        f"{stream} {probe[f'validation_{stream}']:.3g} held out, {probe[f'training_{stream}']:.3g} trained on"
        for stream in ("texture", "semantic")
    ]
    return " ".join([*said, f"The probe's errors of the velocity: {'; '.join(held)}."])


def _correlation(rows: list[dict[str, Any]], differences: dict[str, float]) -> str:
    compared = [row for row in rows if row["only_law"] and row["row"] in differences]
    if len(compared) < FEWEST_PATHS:
        return ""
    gaps = [row["gap"] for row in compared]
    scores = _rank_correlation(gaps, [differences[row["row"]] for row in compared])
    with_real = _rank_correlation(gaps, [row["real_semantics"] for row in compared])
    return (
        f"Rank correlation of the criterion over {len(compared)} laws: with the score {scores}, with the distance by"
        f" real semantics {with_real}."
    )


def _rank_correlation(one: list[float], other: list[float]) -> str:
    found = float(spearmanr(one, other).statistic)
    return "none, for one of them is the same for all" if math.isnan(found) else f"{found:+.2f}"


def _pair(values: dict[str, Any], name: str, error: str) -> str:
    return f"{values[name]:+.3g} ± {values[error]:.2g}"
