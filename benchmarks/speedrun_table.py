"""The rows of docs/speedrun.md and its plot, from what `speedrun.py` recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfd_cli.errors import UserError

BEGIN, END = "<!-- rows: python benchmarks/speedrun.py --table -->", "<!-- end of rows -->"
TARGET = 85.0

Records = Sequence[dict[str, Any]]


def write_table(rows: Mapping[str, Any], records: Records, docs: Path) -> None:
    """Put the rows between the marks of `speedrun.md`, and draw `speedrun.png` beside it.

    Raises:
        UserError: the page does not have both marks.
    """
    page = docs / "speedrun.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(page, f"lacks one of the lines {BEGIN!r} and {END!r}", "put them where the rows are to be")
    page.write_text("\n".join([before + BEGIN, *table(rows, records), END + after]))
    if records:
        plot(rows, records, docs / "speedrun.png")


def table(rows: Mapping[str, Any], records: Records) -> list[str]:
    """Lines of a Markdown table: a row for every row of the file, those not run yet too."""
    also = list(dict.fromkeys(name for row in rows.values() for name in row.also))
    columns = ["row", "over", "prediction", "FD before", "FD", "without guidance", *also, "PSNR, dB"]
    columns += ["CPU seconds before", "CPU seconds", "kept"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in rows.items():
        own, base = of(records, name), of(records, row.base)
        verdict = {True: "kept", False: "dropped", None: ""}[row.kept]
        further = [one["also"] for one in own]
        cells = [f"`{name}`", f"`{row.base}`" if row.base else "", row.prediction]
        cells += [spread(base, "fd"), spread(own, "fd"), spread(own, "without guidance")]
        cells += [*(spread(further, one) for one in also), spread(own, "psnr")]
        cells += [seconds(base), seconds(own), ": ".join(filter(None, (verdict, row.remark)))]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def of(records: Records, row: str | None) -> list[dict[str, Any]]:
    """The records of a row, by seed."""
    return sorted((one for one in records if one["row"] == row), key=lambda one: int(one["seed"]))


def spread(records: Records, key: str) -> str:
    """Mean, and the least and the greatest where seeds differ: `163.2 (157.1 to 169.4, 2 seeds)`."""
    values = [one[key] for one in records if one.get(key) is not None]
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.4g}"
    if len(values) == 1:
        return f"{mean} (1 seed)"
    if min(values) == max(values):
        return mean
    return f"{mean} ({min(values):.4g} to {max(values):.4g}, {len(values)} seeds)"


def seconds(records: Records) -> str:
    """Mean CPU seconds of the runs that nothing interrupted: what else the machine does changes them least."""
    runs = [list(one["stages"].values()) for one in records]
    whole = [sum(stage["cpu"] for stage in run) for run in runs if not any(stage["resumed"] for stage in run)]
    if not whole:
        return "interrupted" if records else ""
    return f"{sum(whole) / len(whole):.0f}"


def plot(rows: Mapping[str, Any], records: Records, path: Path) -> None:
    """FD of every row that was run, in the order of the file, with all its seeds, and the record of what was kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run = {name: [one["fd"] for one in of(records, name)] for name in rows if of(records, name)}
    means = {name: sum(values) / len(values) for name, values in run.items()}
    figure, ax = plt.subplots(figsize=(max(6.0, 0.5 * len(run) + 2.5), 4.4), layout="constrained")
    record: list[float] = []
    for place, (name, values) in enumerate(run.items()):
        ax.plot([place] * len(values), values, ".", color="0.6", zorder=1)
        ax.plot(place, means[name], "o", color="C0", markerfacecolor="C0" if rows[name].kept else "white", zorder=3)
        standing = record[-1:] + [means[name]] * bool(rows[name].kept)
        record.append(min(standing, default=float("nan")))
    ax.plot(range(len(run)), record, drawstyle="steps-post", color="C0", zorder=2, label="record")
    ax.axhline(TARGET, color="C2", linestyle="--", label=f"target, {TARGET:g}")
    ax.plot([], [], "o", color="C0", markerfacecolor="white", label="dropped or undecided")
    ax.plot([], [], ".", color="0.6", label="one seed")
    ax.set_xticks(range(len(run)), list(run), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel("FD of samples, DINOv2")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
