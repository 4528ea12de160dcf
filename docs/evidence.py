"""The tables of docs/evidence.md, from what studies, `benchmarks/order.py` and `benchmarks/semantics.py` recorded.

`python docs/evidence.py` fills what stands between the marks of the page and draws order.png; a test holds the page
to it.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfd_cli.files import read_json
from sfd_cli.studies.analysis import analyse, paragraph, table
from sfd_cli.studies.page import PLOT
from sfd_cli.studies.reasons import read_reasons, told
from sfd_cli.studies.results import read_results
from sfd_cli.studies.study import FILE, read_study

DOCS = Path(__file__).parent
PAGE = DOCS / "evidence.md"
STUDIES = DOCS.parent / "studies"
ORDER = DOCS.parent / "benchmarks" / "results" / "order-cpu.json"
SEMANTICS = "semantics-{}-cpu.json"
MARKED = re.compile(r"(<!-- (study|own|learned|order|semantics): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
BASELINE, OWN = "synchronous", "own synchronous"


def filled(page: str) -> str:
    """The page with everything between its marks made anew."""
    makers: dict[str, Callable[[str], list[str]]] = {
        "study": of_study,
        "own": against_own,
        "learned": of_learned,
        "order": of_order,
        "semantics": of_semantics,
    }
    return MARKED.sub(lambda found: "\n".join([found[1], *makers[found[2]](found[3]), "", found[4]]), page)


def of_study(name: str) -> list[str]:
    """Table, words and picture of a study, and what `sfd study explain` measured beside it."""
    folder = STUDIES / name
    study = read_study(folder / FILE)
    rows = analyse(study, read_results(folder))
    lines = [*table(study, rows), "", paragraph(study, rows)]
    if (folder / PLOT).exists():
        lines += ["", f"![{study.title}](../studies/{name}/{PLOT})"]
    if (reasons := read_reasons(folder)) is not None:
        lines += ["", *told(reasons, rows)]
    return lines


def against_own(name: str) -> list[str]:
    """A study's table and words, with networks that were trained in step alone as what the others are compared with."""
    folder = STUDIES / name
    study = read_study(folder / FILE).model_copy(update={"baseline": OWN})
    rows = analyse(study, read_results(folder))
    return [*table(study, rows), "", paragraph(study, rows)]


def of_semantics(name: str) -> list[str]:
    """A table of how well a linear classifier tells the class from principal components of DINOv2's tokens."""
    found = read_json(ORDER.parent / SEMANTICS.format(name))
    said = f"{found['images']:,} images of {found['classes']} classes"
    head, *_ = rows = found["rows"]
    names = [key for key in head if key != "side"]
    lines = [f"| {said}, encoded at | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['side']} px | {' | '.join(f'{row[key]:.1%}' for key in names)} |")
    return lines


def of_learned(world: str) -> list[str]:
    """What `sfd learn-schedule` said of a made-up world, a sentence."""
    found = read_json(ORDER)["learned"][world]
    law = "a clear preference" if found["is_clear"] else "no preference"
    gap = f"lead {found['lead']:g}: {found['gap']:.3g} ± {found['standard_error']:.2g} nats an image"
    between = f"{found['interpolation']:.2g} more or less by what lies between the levels"
    related = f"{found['related_gap']:.3g} ± {found['related_error']:.2g} more than beside strangers' semantics"
    return [f"`sfd learn-schedule` says: {law} ({gap} against the synchronous path, {between}; {related})."]


def of_order(world: str) -> list[str]:
    """A table of the schedules in a made-up world, each compared with the synchronous one of the same seed."""
    found = runs_of(world)
    head = ["schedule", "seeds", "mistakes", f"less those of `{BASELINE}`", "s.e. over seeds", "distance"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for law, runs in found.items():
        mean, error = difference(found, law, "mistakes")
        cells = [f"`{law}`", str(len(runs)), f"{100 * _mean(runs, 'mistakes'):.1f} %"]
        shown = "" if math.isnan(error) else f"{100 * error:.1f} %"
        cells += ["", ""] if law == BASELINE else [f"{100 * mean:+.1f} %", shown]
        cells.append(f"{_mean(runs, 'distance'):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def runs_of(world: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The runs of a world by schedule and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in read_json(ORDER)["rows"]:
        if row["dataset"] == world:
            found.setdefault(row["schedule"], {})[row["seed"]] = row
    return found


def difference(found: dict[str, dict[int, dict[str, Any]]], law: str, key: str) -> tuple[float, float]:
    """Mean over seeds of a schedule's number less the synchronous one's, and the standard error of the mean."""
    paired = [run[key] - found[BASELINE][seed][key] for seed, run in found[law].items() if seed in found[BASELINE]]
    error = statistics.stdev(paired) / math.sqrt(len(paired)) if len(paired) > 1 else math.nan
    return statistics.fmean(paired), error


def draw(path: Path) -> None:
    """Mistakes by schedule less the synchronous ones in both worlds: dots for seeds, means with two standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = [world for world in ("related", "unrelated") if BASELINE in runs_of(world)]
    laws = list(dict.fromkeys(law for world in worlds for law in runs_of(world) if law != BASELINE))
    size = (4.5 * len(worlds), 2.6)
    figure, axes = plt.subplots(
        1, len(worlds), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for world, part in zip(worlds, axes[0], strict=True):
        found = runs_of(world)
        base = found[BASELINE]
        for place, law in enumerate(laws):
            if law not in found:
                continue
            seeds = [
                100 * (run["mistakes"] - base[seed]["mistakes"]) for seed, run in found[law].items() if seed in base
            ]
            mean, error = difference(found, law, "mistakes")
            part.plot(seeds, [place] * len(seeds), ".", color="0.6", zorder=3)
            part.errorbar(
                100 * mean, place, xerr=0 if math.isnan(error) else 200 * error, fmt="o", color="C0", capsize=4
            )
        part.axvline(0, color="0.4", lw=1)
        part.set_yticks(range(len(laws)), laws)
        part.set_ylim(len(laws) - 0.5, -0.5)
        part.set_title(f"semantics {world} to textures", fontsize="medium")
        part.set_xlabel("mistakes less those of synchronous, % of images", fontsize="small")
        part.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean(runs: dict[int, dict[str, Any]], key: str) -> float:
    return statistics.fmean(run[key] for run in runs.values())


if __name__ == "__main__":
    draw(DOCS / "order.png")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
