"""`sfd weights`: published weights and checkpoints of other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.terminal import friendly_errors, print_result
from sfd_cli.errors import UserError

weights_app = typer.Typer(
    help="Published weights: list, fetch, verify; files of the reference code: import, export.", no_args_is_help=True
)
app.add_typer(weights_app, name="weights", rich_help_panel="4. Weights and settings")


_NAME = Annotated[str, typer.Argument(help="a name from `sfd weights list`")]


@weights_app.command("list")
@friendly_errors
def weights_list() -> None:
    """List the named weights: licence, size where it is published, whether they are here, what for."""
    from sfd_cli.weights.fetch import find_local
    from sfd_cli.weights.registry import REGISTRY, UNKNOWN

    for entry in REGISTRY.values():
        size = f"{entry.size / 1e6:,.0f} MB" if entry.size else UNKNOWN
        here = "here" if find_local(entry) is not None else ""
        typer.echo(f"{entry.name:<24} {entry.licence:<11} {size:>8}  {here:<4}  {entry.purpose}")


@weights_app.command("info")
@friendly_errors
def weights_info(name: _NAME) -> None:
    """Tell all that is known about named weights: source, files, licence, digest, and how to get them by hand."""
    from sfd_cli.weights.fetch import describe

    facts = describe(name)
    print_result({key: ", ".join(value) if isinstance(value, list) else value for key, value in facts.items()})


@weights_app.command("fetch")
@friendly_errors
def weights_fetch(name: _NAME) -> None:
    """Fetch named weights into the cache, resuming and verifying, and print where they are."""
    from sfd_cli.weights.fetch import fetch

    typer.echo(fetch(name))


@weights_app.command("verify")
@friendly_errors
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="names from `sfd weights list`; none: all that are here")
    ] = None,
) -> None:
    """Read named weights again and compare size and SHA-256 with what is published."""
    from sfd_cli.weights.fetch import find_local, verify
    from sfd_cli.weights.registry import REGISTRY, find_weights

    chosen = names or [name for name, entry in REGISTRY.items() if find_local(entry) is not None]
    wrong: list[UserError] = []
    for entry in [find_weights(name) for name in chosen]:
        try:
            facts = verify(entry.name)
        except UserError as error:
            wrong.append(error)
        else:
            print_result({entry.name: {key: "not here" if fact is None else fact for key, fact in facts.items()}})
    if wrong:
        subjects, problems, remedies = zip(
            *((error.subject, error.problem, error.remedy) for error in wrong), strict=True
        )
        raise UserError(", ".join(subjects), "; ".join(problems), "; ".join(dict.fromkeys(remedies)))
    if not chosen:
        typer.echo("no registered weights are here; `sfd weights fetch NAME` brings them")


@weights_app.command("import")
@friendly_errors
def weights_import(
    source: Annotated[
        str, typer.Argument(help="a checkpoint, a diffusers folder, a folder of latent shards, or a name")
    ],
    target: Annotated[Path, typer.Argument(help="the folder to write")],
    heads: Annotated[int | None, typer.Option(min=1, help="attention heads, where no tensor tells them")] = None,
    semantic_channels: Annotated[int | None, typer.Option(min=1, help="how many channels are semantic")] = None,
    repa_depth: Annotated[int | None, typer.Option(min=1, help="the block that its REPA projector reads")] = None,
    delta_t: Annotated[float | None, typer.Option(min=0, max=1, help="offset it was trained with")] = None,
    texture_statistics: Annotated[
        str | None, typer.Option(help="a transformer's latent statistics: a .pt, a folder, or a name")
    ] = None,
    semantic_statistics: Annotated[str | None, typer.Option(help="likewise, of the semantic latents")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="visual encoder behind latent shards; unset: dinov2_vitb14_reg")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the images behind latent shards, pixels; unset: 256")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="classes of latent shards; unset: as labelled")] = None,
) -> None:
    """Turn a file of the reference code into one of our folders, telling its kind and architecture from its tensors.

    Takes a DiT checkpoint (training or EMA only), a Semantic VAE, an LDM or diffusers autoencoder, a DINOv2 backbone,
    latent statistics, or a folder of latent shards. Nothing pickled in a file is executed.
    """
    from sfd_cli.stages.weights_import import import_anything

    options = {
        "heads": heads,
        "semantic_channels": semantic_channels,
        "repa_depth": repa_depth,
        "delta_t": delta_t,
        "texture_statistics": texture_statistics,
        "semantic_statistics": semantic_statistics,
        "encoder": encoder,
        "image_size": image_size,
        "num_classes": num_classes,
    }
    print_result(import_anything(source, target, options))


@weights_app.command("export")
@friendly_errors
def weights_export(
    source: Annotated[Path, typer.Argument(help="a model folder or a latent store")],
    target: Annotated[Path, typer.Argument(help="the .pt to write, or the folder for latent shards")],
) -> None:
    """Write one of our folders in the reference's own layout; what was imported comes back bit for bit.

    A transformer's latent statistics go beside it: those of out.pt to out_latents_stats.pt and out_latents_sv_stats.pt.
    """
    from sfd_cli.stages.weights_export import export_anything

    print_result(export_anything(source, target))
