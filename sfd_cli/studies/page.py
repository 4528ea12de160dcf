"""The page of a study, `README.md` in its folder, and its plot: made of what was recorded, as often as wanted."""

from __future__ import annotations

from pathlib import Path

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path
from sfd_cli.studies.analysis import Row, analyse, paragraph, table
from sfd_cli.studies.reasons import read_reasons, told
from sfd_cli.studies.results import Record
from sfd_cli.studies.study import Study

PAGE, PLOT = "README.md", "differences.png"
BEGIN, END = "<!-- results: sfd study run {name} -->", "<!-- end of results -->"


def require_page(folder: Path, study: Study) -> None:
    """Check that results can be put into the page, if there is one, before hours are spent on them.

    Raises:
        UserError: it lacks a mark, or what `sfd study explain` kept is damaged.
    """
    _around(folder, study)
    read_reasons(folder)


def write_page(folder: Path, study: Study, records: list[Record]) -> None:
    """Draw the plot, and put question, tables and words between the marks of the page; the rest of it stays.

    Raises:
        UserError: the page has lost a mark, or what `sfd study explain` kept is damaged.
    """
    before, after = _around(folder, study)
    rows = analyse(study, records)
    lines = [study.question, "", *table(study, rows), "", paragraph(study, rows)]
    if any(row.difference is not None for row in rows):
        draw(study, rows, folder / PLOT)
        lines += ["", f"![Differences to {study.compared_with}]({PLOT})"]
    if (reasons := read_reasons(folder)) is not None:
        lines += ["", *told(reasons, rows)]
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(before + "\n".join(["", *lines, ""]) + after, encoding="utf-8")


def draw(study: Study, rows: list[Row], path: Path) -> None:
    """Paired differences: a dot for every seed, the mean, and a bar of two standard errors to either side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(row, row.difference) for row in rows if row.difference is not None]
    longest = max(len(row.name) for row, _ in shown)
    figure, axes = plt.subplots(figsize=(5.0 + 0.08 * longest, 0.45 * len(shown) + 1.7), layout="constrained")
    axes.axvline(0, color="0.4", lw=1)
    for place, (row, mean) in enumerate(shown):
        values = list(row.differences.values())
        axes.plot(values, [place] * len(values), ".", color="0.6", zorder=3)
        axes.errorbar(mean, place, xerr=2 * (row.error or 0), fmt="o", color="C0", capsize=4, zorder=2)
    axes.plot([], [], ".", color="0.6", label="one seed")
    axes.errorbar([], [], xerr=[], fmt="o", color="C0", capsize=4, label="mean, two standard errors")
    axes.set_yticks(range(len(shown)), [row.name for row, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    better = "left" if rows[0].less_is_better else "right"
    axes.set_xlabel(f"{study.score} less that of {study.compared_with} ({better} is better)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, fontsize="small", loc="outside upper right", ncols=2)  # never among the dots
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _around(folder: Path, study: Study) -> tuple[str, str]:
    """What stands before and after the results, marks included; a new page where there is none."""
    begin, path = BEGIN.format(name=folder.name), folder / PAGE
    if not path.exists():
        return f"# {study.title}\n\n{begin}", END + "\n"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise UserError(path, f"lacks one of the lines {begin!r} and {END!r}", "put them where the results are to be")
    return before + begin, END + after
