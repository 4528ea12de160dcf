"""What SFD-XL and the 1.0 B model take on ImageNet, on 1, 8 and 64 H100s: stated, not measured.

    python benchmarks/estimate.py        # writes the tables of docs/performance.md; seconds, and no GPU

The figures are those of `imagenet_costs.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from imagenet_costs import (
    ASSUMED,
    BF16,
    FP32,
    GPUS,
    H100,
    IMAGES,
    PEAK,
    PRESETS,
    REPOSITORY,
    Estimate,
    averaging,
    estimate_of,
)

from sfd_cli.errors import UserError
from sfd_cli.networks.compilation import choose_compile
from sfd_cli.tables import SOLVERS, STAGES
from sfd_cli.training.costs import ADAPTIVE_CALLS

PAGE = REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- tables: python benchmarks/estimate.py -->", "<!-- end of tables -->"


def hours_table(found: dict[str, Estimate]) -> list[str]:
    """Hours by stage, preset and number of GPUs."""
    heads = ["stage"]
    for name in found:
        heads += [f"{name}: PFLOP", "in", *(f"{gpus} GPU{'s' * (gpus > 1)}, h" for gpus in GPUS), "pace"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for place, stage in enumerate(next(iter(found.values())).stages):
        cells = [f"`sfd {stage.name}`"]
        for estimate in found.values():
            one = estimate.stages[place]
            paces = list(dict.fromkeys(one.pace(gpus) for gpus in GPUS))
            cells += [f"{sum(one.operations.values()) / 1e15:,.0f}", " + ".join(one.operations) or "-"]
            cells += [_hours(one.hours(gpus)) for gpus in GPUS]
            cells += [", then ".join(paces)]
        lines.append(_line(cells))
    cells = ["**all**"]
    for estimate in found.values():
        cells += [f"{sum(sum(one.operations.values()) for one in estimate.stages) / 1e15:,.0f}", ""]
        cells += [f"**{sum(one.hours(gpus) for one in estimate.stages):,.1f}**" for gpus in GPUS] + [""]
    return [*lines, _line(cells)]


def step_table(found: dict[str, Estimate]) -> list[str]:
    """A training step by number of GPUs: images, seconds, gradients."""
    lines = [
        "| a step of | GPUs | images a GPU | milliseconds | images/s | gradients sent, GB a GPU | alone, ms |",
        "|---" * 7 + "|",
    ]
    for name, estimate in found.items():
        section = estimate.settings.dit
        stage, numbers = estimate.training("train", section), estimate.numbers(section)
        assert stage.step is not None
        for gpus in GPUS:
            sent, alone = averaging(numbers, gpus)
            step = stage.step[gpus]
            cells = [
                f"{name}, {numbers / 1e6:,.0f} M parameters",
                str(gpus),
                f"{section.batch_size / gpus:g}",
                f"{1e3 * step:,.0f}",
            ]
            cells += [
                f"{section.batch_size / step:,.0f}",
                f"{sent / 1e9:.1f}" if sent else "-",
                f"{1e3 * alone:.0f}" if sent else "-",
            ]
            lines.append(_line(cells))
    return lines


def bytes_table(found: dict[str, Estimate]) -> list[str]:
    """Bytes of every artifact."""
    rows: dict[str, list[str]] = {}
    for estimate in found.values():
        settings, stages = estimate.settings, estimate.counted
        every = IMAGES * settings.images.flips * settings.grid**2 * estimate.costs.token_width * 2
        read = settings.dit.steps * settings.dit.batch_size * estimate.latent_bytes / estimate.flips
        kept = {name: stages[name].bytes for name in stages}
        beside = sum(stages[name].checkpoint for name in ("train", "train-guide"))
        figures = {
            "ImageNet's JPEGs, read in place": IMAGES * ASSUMED.jpeg_bytes,
            f"features of {estimate.held:,} images for the Semantic VAE": kept["extract-features"],
            "features of all images (only for `repa: stored`)": every,
            "latents of images and mirror images (half of it without `images.mirror`)": kept["encode-latents"],
            "transformer (weights and average)": kept["train"],
            "guide, the same": kept["train-guide"],
            "Semantic VAE and texture VAE": kept["train-semvae"] + kept["train-texture-vae"],
            "50,000 samples: PNGs, npz and semantics": kept["sample"],
            "**all that is left**, which DVC keeps once where it links, and twice where it copies": sum(kept.values()),
            "a checkpoint of the transformer (weights, average, two moments); while it trains there are two": stages[
                "train"
            ].checkpoint,
            "checkpoints that stay beside it, of the transformer and its guide": beside,
            "fixed memory of training on a GPU (weights, gradients, average, two moments), where nothing is sharded": 20
            * estimate.numbers(settings.dit),
            "latents read by training in all; from the page cache after the first epoch, where it holds them": read,
        }
        for what, size in figures.items():
            rows.setdefault(what, []).append(_size(size))
    lines = [_line(["what", *found]), "|---" * (len(found) + 1) + "|"]
    return lines + [_line([what, *cells]) for what, cells in rows.items()]


def format_table(estimate: Estimate) -> list[str]:
    """GPU hours of the stages that cost most, by number format."""
    lines = ["| GPU hours of | fp32 | TF32 | bf16, eager | bf16, compiled |", "|---|---|---|---|---|"]
    for stage in estimate.stages:
        work = sum(stage.operations.values())
        if stage.name in ("train-semvae", "train", "train-guide", "sample"):
            speeds = [FP32 * ASSUMED.fp32, PEAK["TF32"] * ASSUMED.tf32, BF16 * ASSUMED.eager, BF16 * ASSUMED.compiled]
            lines.append(_line([f"`sfd {stage.name}`", *(_hours(work / speed / 3600) for speed in speeds)]))
    codec = 3 * 1e6 * estimate.costs.texture_flops
    trained = [_hours(codec / speed / 3600) for speed in (FP32 * ASSUMED.fp32, PEAK["TF32"] * ASSUMED.convolutions)]
    what = "`sfd train-texture-vae`, a million images, where the presets' VAE is trained and not imported"
    return [*lines, _line([what, *trained, "-", "-"])]


def network_table(found: dict[str, Estimate]) -> list[str]:
    """Counted operations of an image."""
    costs = found["XL"].costs
    counted = {
        "DINOv2-B/14 with registers, 224 px": found["XL"].encoder_flops,
        "Semantic VAE, encoder": costs.semantic_encoder_flops,
        "Semantic VAE, decoder": costs.semantic_decoder_flops,
        "SD-VAE f16d32, encoder": costs.texture_encoder_flops,
        "SD-VAE f16d32, decoder": costs.texture_decoder_flops,
    }
    for name, estimate in found.items():
        section = estimate.settings.dit
        work = estimate.counted["train"].operations
        counted[f"{name}, training with REPA's target decoded"] = work / section.steps / section.batch_size
    return [
        "| network | GFLOP an image |",
        "|---|---|",
        *(_line([name, f"{one / 1e9:,.1f}"]) for name, one in counted.items()),
    ]


def assumptions() -> list[str]:
    """Every number that was assumed, and the peaks."""
    lines = ["| assumed | value | what it is |", "|---|---|---|"]
    lines += [
        _line([f"`{one.name}`", f"{getattr(ASSUMED, one.name):g}", one.metadata["reason"]]) for one in fields(ASSUMED)
    ]
    peaks = ", ".join(f"{peak / 1e12:g}" for peak in PEAK.values())
    lines.append(_line(["peaks of an H100 SXM", peaks, "TFLOP/s in bf16, TF32 and fp32, dense, from the data sheet"]))
    lines.append(
        _line(
            [
                "`ADAPTIVE_CALLS`",
                str(ADAPTIVE_CALLS),
                "velocities an image of dopri5 by phases at rtol 1e-3, guide as often",
            ]
        )
    )
    return lines


def tables() -> list[str]:
    """What stands between the marks of the page."""
    found = {name: estimate_of(preset) for name, preset in PRESETS.items()}
    first = found["XL"]
    solver = first.settings.sample.solver
    assert SOLVERS[solver].is_adaptive, "ADAPTIVE_CALLS is printed for it"
    dit = first.settings.dit
    compiled = "compiled" if choose_compile(dit.compile, H100, dit.steps) else "in eager mode"
    alone = [f"`sfd {stage.name}`" for stage in first.stages if not STAGES[stage.name].shares]
    said = [
        f"As the presets have it: {first.threads:g} threads of a process decode, transformers are trained {compiled}.",
        f"One process does all the work of {' and '.join(alone)}." if alone else "Every stage shares its work.",
    ]
    parts = [
        said,
        hours_table(found),
        step_table(found),
        format_table(first),
        bytes_table(found),
        network_table(found),
        assumptions(),
    ]
    return [line for part in parts for line in ["", *part]] + [""]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _hours(value: float) -> str:
    return f"{value:.1g}" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _size(size: float) -> str:
    return f"{size / 1e12:.2f} TB" if size >= 1e12 else f"{size / 1e9:,.1f} GB"


def written(page: str) -> str:
    """The page with the tables of now between its marks.

    Raises:
        UserError: it does not have both marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(PAGE, f"lacks one of the lines {BEGIN!r} and {END!r}", "put them where the tables are to be")
    return "\n".join([before + BEGIN, *tables(), END + after])


def main() -> None:
    """Write the tables into the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()
