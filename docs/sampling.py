"""The picture of docs/sampling.md: strips, the null label and image to image, by the demo's models.

`python docs/sampling.py` draws sampling.png after `dvc repro`, in a minute; --project names another folder than this
checkout.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sfd_cli import SemanticFirstPipeline

DOCS = Path(__file__).parent
COLUMNS = 9
SEED, OTHER_SEED = 2, 7
PICTURE = "animals-nature/1F98A.png"
"""Of the demo's images: a fox."""
FIRST, LAST = "flags", "food-drink"
"""Classes of the strips."""
LABEL = "animals-nature"
"""Class of what is made of the picture."""
START_TIMES = (0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class Row:
    """A row of the picture: what it shows, and its pictures with what is written under each."""

    title: str
    pictures: Sequence[Any]
    captions: Sequence[str]


def rows_of(pipeline: SemanticFirstPipeline, image: Image.Image) -> list[Row]:
    """All rows, each made by one call."""
    mask = right_half(image)
    masked: dict[str, Any] = {"image": image, "mask": mask, "seed": SEED}
    painted = ["the picture", "mask"]
    strip, few = [FIRST] * COLUMNS, [LABEL] * (COLUMNS - 2)
    places = [f"{place / (COLUMNS - 1):.3g}" for place in range(COLUMNS)]
    coded = pipeline(LABEL, image=image, start_time=1.0).images[0]
    given, seeds = ["the picture", "decoded"], [f"seed {SEED}, {index}" for index in range(COLUMNS)]
    starts = [pipeline(LABEL, image=image, start_time=part, seed=SEED).images[0] for part in START_TIMES]
    return [
        Row("to_seed", pipeline(strip, seed=SEED, to_seed=OTHER_SEED).images, places),
        Row("to_class", pipeline(strip, seed=SEED, to_class=LAST).images, places),
        Row("null", pipeline(["null"] * COLUMNS, seed=SEED).images, seeds),
        Row("keep: semantics", [image, coded, *pipeline(few, image=image, keep="semantics", seed=SEED).images], given),
        Row("start_time", [image, coded, *starts], [*given, *map(str, START_TIMES)]),
        Row("mask", [image, mask, *pipeline(few, **masked).images], painted),
        Row("mask, keep:\nsemantics", [image, mask, *pipeline(few, keep="semantics", **masked).images], painted),
    ]


def right_half(image: Image.Image) -> Image.Image:
    """A mask as large as the image, white in its right half."""
    mask = Image.new("1", image.size, 0)
    ImageDraw.Draw(mask).rectangle((image.width // 2, 0, image.width - 1, image.height - 1), fill=1)
    return mask


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.0 * COLUMNS + 1.1, 1.16 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        for number, (axes, picture) in enumerate(zip(line, row.pictures, strict=True)):
            axes.imshow(np.asarray(picture.convert("RGB")))
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(row.captions[number] if number < len(row.captions) else "", fontsize=6, labelpad=2)
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
        line[0].set_ylabel(row.title, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Draw sampling.png beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, default=DOCS.parent, help="where params.yaml, data and models are")
    parser.add_argument("--picture", default=PICTURE, help="of the project's images")
    os.chdir(parser.parse_args().project)
    pipeline = SemanticFirstPipeline.from_settings("params.yaml", encoder=True)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.open(Path("data/images") / parser.parse_args().picture).convert("RGB")
    draw(DOCS / "sampling.png", rows_of(pipeline, image))


if __name__ == "__main__":
    main()
