"""The model card of a saved pipeline: what it is, how it samples, what it scored, what it looks like, whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_json
from sfd_cli.pipeline.arguments import NOT_TAKEN_OVER
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.layout import CODE
from sfd_cli.pipeline.sampler import Sampler

CARD, GRID = "README.md", "samples.png"
# Beside a score of this name stands how sure it is.
SPREADS = ("_se", "_std")
PER_ROW = 4


@dataclass(frozen=True)
class Card:
    """A model card and the picture in it.

    Attributes:
        text: Markdown, with the hub's metadata before it.
        images: of the grid, uint8 (n, 3, H, W) on the CPU; None for no grid.
    """

    text: str
    images: Tensor | None = field(default=None, repr=False)

    def write(self, folder: Path) -> None:
        """Write both into a saved pipeline's folder."""
        with atomic_path(folder / CARD) as temporary:
            temporary.write_text(self.text, encoding="utf-8")
        if self.images is not None:
            with atomic_path(folder / GRID) as temporary:
                Image.fromarray(_grid(self.images)).save(temporary, format="PNG")


def make_card(
    sampler: Sampler, source: str, metrics: str | Path | Mapping[str, Any] | None, licence: str | None, samples: int
) -> Card:
    """The card of a pipeline; makes the samples it shows.

    Args:
        sampler: the pipeline's.
        source: what to load it by: the folder's name, or the repository's.
        metrics: `fid.json`, or what is in it.
        licence: of the weights, by the hub's name of it, such as `mit` or `cc-by-sa-4.0`.
        samples: how many to show, of the classes in turn; none without a texture VAE.

    Raises:
        UserError: there are no such metrics, or an argument is of another kind.
        StageFailure: a sample is not finite.
    """
    found, number = _metrics(metrics), samples if sampler.texture_vae is not None else 0
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise UserError("samples", f"found {samples!r}", "give a whole number, 0 for none")
    if licence is not None and (not isinstance(licence, str) or not licence.strip()):
        raise UserError("licence", f"found {licence!r}", "give its name, such as mit or cc-by-sa-4.0")
    names = sampler.conditions.names
    captions = [names[index % len(names)] for index in range(number)]
    text = _rendered(
        metadata=yaml.safe_dump(_metadata(licence), sort_keys=False).strip(),
        title=f"Semantic-First Diffusion: {_count(len(names), 'class', 'classes')}{_side(sampler)}",
        captions=captions,
        grid=GRID,
        has_grid=number > 0,
        has_images=sampler.texture_vae is not None,
        sample=sampler.sample,
        source=source,
        code=CODE,
        example=0 if len(names) == 1 else f"0, {len(names) - 1}",
        model=_model(sampler),
        settings=_settings(sampler),
        scores=_scores(found),
        images=(found.get("counts") or {}).get("samples"),
        licence=licence,
    )
    return Card(text, _drawn(sampler, number) if number else None)


def _metrics(metrics: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = read_json(Path(metrics)) if isinstance(metrics, str | Path) else metrics
    if found is not None and not isinstance(found, Mapping):
        subject = metrics if isinstance(metrics, str | Path) else "metrics"
        raise UserError(subject, f"holds a {type(found).__name__}", "give the fid.json of `sfd fid`, or what is in it")
    return found or {}


def _metadata(licence: str | None) -> dict[str, Any]:
    stated = {} if licence is None else {"license": licence}
    tags = ["semantic-first-diffusion", "class-conditional", "sfd"]
    return stated | {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation", "tags": tags}


def _model(sampler: Sampler) -> list[tuple[str, str]]:
    config, names, space = sampler.dit.config, sampler.conditions.names, sampler.space
    listed = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    rows = [
        ("transformer", f"width {config.width}, depth {config.depth}, {config.heads} heads, {_size(sampler.dit)}"),
        ("latent", f"{space.texture} texture and {space.semantic} semantic channels, {space.grid} x {space.grid}"),
        ("classes", listed),
    ]
    if sampler.guide is not None:
        rows.append(("guide", _size(sampler.guide)))
    if sampler.texture_vae is not None:
        rows.append(("texture compressor", f"{type(sampler.texture_vae).__name__}, {_size(sampler.texture_vae)}"))
    if sampler.trained_law is not None:
        law = ", ".join(f"{key} {value}" for key, value in sampler.trained_law.items())
        rows.append(("trained with", law))
    return [(name, _cell(value)) for name, value in rows]


def _settings(sampler: Sampler) -> list[tuple[str, str]]:
    said = sampler.sample.model_dump(mode="json", exclude=NOT_TAKEN_OVER)
    return [(name, _cell(value)) for name, value in said.items() if value is not None]


def _scores(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers among the metrics, with how sure each is where that is known."""
    numbers = {
        key: value for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    rows = []
    for name, value in numbers.items():
        if not name.endswith(SPREADS):
            spread = next((numbers[name + end] for end in SPREADS if name + end in numbers), None)
            rows.append((name, f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")))
    return rows


def _drawn(sampler: Sampler, number: int) -> Tensor:
    inputs = SampleInputs(sampler.sample.seed, None, number)
    # A batch is filled up to its size, which a few samples should not pay for.
    sampler = replace(sampler, sample=sampler.sample.model_copy(update={"batch_size": number}))
    return torch.cat([images.cpu() for _, images in sampler.batches(inputs, range(number))])


def _grid(images: Tensor) -> np.ndarray:
    """Images (n, 3, H, W) in rows, as one (H', W', 3)."""
    from torchvision.utils import make_grid

    grid: np.ndarray = make_grid(images, nrow=PER_ROW, padding=2, pad_value=255).permute(1, 2, 0).numpy()
    return grid


def _size(network: torch.nn.Module) -> str:
    """Parameters and fitted constants, in words."""
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    return f"{count / 1e6:.3g} M parameters" if count >= 100_000 else f"{count:,} parameters"


def _side(sampler: Sampler) -> str:
    return "" if sampler.texture_vae is None else f" at {sampler.image_size} px"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _rendered(**content: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = resources.files("sfd_cli.pipeline").joinpath("card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(**content)
