"""`sfd study`: rows of settings x seeds, run, compared in pairs, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.options import PARSERS
from sfd_cli.cli.terminal import friendly_errors, print_result
from sfd_cli.messages import printable

study_app = typer.Typer(
    help="Studies: rows of settings x seeds, run, compared in pairs, and shown.", no_args_is_help=True
)
app.add_typer(study_app, name="study", rich_help_panel="5. Studies")

_NAME = Annotated[str, typer.Argument(help="a name from `sfd study list`")]


@study_app.command("list")
@friendly_errors
def study_list() -> None:
    """List the studies of this folder: how many of their runs are done, and what they are about."""
    from sfd_cli.studies.results import read_results
    from sfd_cli.studies.study import STUDIES, list_studies, read_study

    studies = list_studies()
    width = max(map(len, studies), default=0)
    for name, path in studies.items():
        study = read_study(path)
        done = len(read_results(STUDIES / name))
        typer.echo(f"{name:<{width}}  {done:>3} of {len(study.rows) * len(study.seeds):<3}  {printable(study.title)}")
    if not studies:
        typer.echo(f"there are no studies here; one is a file {STUDIES}/NAME/study.yaml")


@study_app.command("show")
@friendly_errors
def study_show(name: _NAME) -> None:
    """Print what was found so far: every row compared, seed by seed, with the baseline."""
    from sfd_cli.studies.analysis import analyse, paragraph, table
    from sfd_cli.studies.results import read_results
    from sfd_cli.studies.study import STUDIES, open_study

    study, _ = open_study(name)
    rows = analyse(study, read_results(STUDIES / name))
    for line in "\n".join([study.question, "", *table(study, rows), "", paragraph(study, rows)]).split("\n"):
        typer.echo(printable(line))


@study_app.command("run")
@friendly_errors
def study_run(
    name: _NAME,
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time; they share the threads")] = 1,
    rows: Annotated[str | None, typer.Option(help="only these rows, e.g. synchronous,late; unset: all")] = None,
    seeds: Annotated[
        str | None, typer.Option(parser=PARSERS[int], help="only these seeds, e.g. 0,1; unset: all of the study")
    ] = None,
    params: Annotated[
        Path | None, typer.Option(help="begin with this settings file; unset: the study's base, or params.yaml")
    ] = None,
) -> None:
    """Run what a study still lacks, all rows of one seed before the next, and write results, plot and page.

    Rows share the stages that their settings agree in. Kill it at any moment and run it again: it goes on from the
    last checkpoints, and what is finished is not touched. Several commands may work on one study.
    """
    from sfd_cli.studies.run import run_study

    print_result(run_study(name, jobs, _split(rows), cast(list[int] | None, seeds), params))


@study_app.command("explain")
@friendly_errors
def study_explain(
    name: _NAME,
    rows: Annotated[str | None, typer.Option(help="only these rows, e.g. synchronous,late; unset: all")] = None,
    seed: Annotated[int | None, typer.Option(help="of the runs that are looked at; unset: the first")] = None,
    images: Annotated[
        int | None, typer.Option(min=20, help="of the oracle, with real and with sampled semantics; unset: as scored")
    ] = None,
) -> None:
    """Measure why rows score as they do: what perfect semantics are worth, and what a probe's errors say of each law.

    What the runs of this seed lack is made first. The numbers go into reasons.json and on the study's page.
    """
    from sfd_cli.studies.explain import explain_study

    print_result(explain_study(name, _split(rows), seed, images))


def _split(rows: str | None) -> list[str] | None:
    return None if rows is None else [row.strip() for row in rows.split(",")]
