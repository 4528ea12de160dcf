"""The model card: settings, scores, samples and licence of the very pipeline, for people and for the hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from refusals import refusal
from tiny_project import CLASSES, SIDE
from trained_pipeline import project

from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

SCORES = {"fd_dinov2": 62.5514, "fd_dinov2_se": 2.68, "kid_dinov2": 2.7981, "fid": None, "counts": {"samples": 900}}


def rows(text: str, heading: str) -> dict[str, str]:
    """The table below a heading."""
    block = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in block.splitlines() if line.startswith("| ") and "---" not in line]
    return {cell[0].strip(" `"): cell[1].strip() for cell in cells}


def test_the_card_tells_settings_scores_and_licence(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    (tmp_path / "fid.json").write_text(json.dumps(SCORES))
    for number, metrics in enumerate((SCORES, tmp_path / "fid.json", str(tmp_path / "fid.json"))):
        pipeline.save_pretrained(tmp_path / f"{number}" / "mine", metrics=metrics, licence="cc-by-sa-4.0")
    texts = [(tmp_path / f"{number}" / "mine" / "README.md").read_text() for number in range(3)]
    assert len(set(texts)) == 1
    assert rows(texts[0], "Scores") == {"score": "value", "fd_dinov2": "62.55 ± 2.7", "kid_dinov2": "2.798"}
    assert "900 samples" in texts[0]
    settings = rows(texts[0], "Sampling")
    assert (settings["guidance"], settings["scale"], settings["steps"], settings["delta_t"]) == (
        "autoguidance",
        "1.5",
        "4",
        "0.3",
    )
    model = rows(texts[0], "Model")
    assert model["transformer"].startswith("width 32, depth 1, 2 heads")
    count = sum(parameter.numel() for parameter in pipeline.dit.parameters())
    assert model["transformer"].endswith(f"{count:,} parameters")
    assert model["classes"] == ", ".join(CLASSES)
    assert 'from_pretrained("mine")' in texts[0]
    card = ModelCard(texts[0])
    assert card.data.license == "cc-by-sa-4.0"
    assert card.data.library_name == "diffusers"


def test_the_card_shows_the_first_samples(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved", samples=6)
    grid = np.asarray(Image.open(tmp_path / "saved" / "samples.png"))
    images = pipeline([0, 1, 2, 0, 1, 2], output="uint8").images.permute(0, 2, 3, 1).numpy()
    assert grid.shape == (2 * (SIDE + 2) + 2, 4 * (SIDE + 2) + 2, 3)
    for index, image in enumerate(images):
        top, left = (2 + (SIDE + 2) * place for place in divmod(index, 4))
        shown = grid[top : top + SIDE, left : left + SIDE]
        assert np.abs(shown.astype(int) - image).max() <= 1
    text = (tmp_path / "saved" / "README.md").read_text()
    assert f"![{', '.join(CLASSES * 2)}](samples.png)" in text


def test_what_was_not_given_is_said(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    text = (tmp_path / "saved" / "README.md").read_text()
    assert not (tmp_path / "saved" / "samples.png").exists()
    assert "samples.png" not in text
    assert "Not stated" in text.split("## Licence")[1]
    assert "None were given" in text.split("## Scores")[1]
    assert "license" not in yaml.safe_load(text.split("---")[1])


def test_a_pipeline_of_latents_alone_has_a_card_without_samples(tmp_path: Path) -> None:
    settings = project(tmp_path)
    pipeline = SemanticFirstPipeline.from_checkpoints(settings.paths.dit, device="cpu")
    pipeline.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "samples.png" not in text
    assert "no texture VAE" in text


@pytest.mark.parametrize(
    ("arguments", "subject", "named"),
    [
        ({"metrics": "no/fid.json"}, "no/fid.json", ()),
        ({"metrics": [1]}, "metrics", ("list",)),
        ({"licence": " "}, "licence", ("cc-by-sa-4.0",)),
        ({"licence": 3}, "licence", ("3",)),
        ({"samples": -1}, "samples", ("-1",)),
        ({"samples": True}, "samples", ("True",)),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    pipeline: SemanticFirstPipeline, tmp_path: Path, arguments: dict[str, object], subject: str, named: tuple[str, ...]
) -> None:
    with refusal(subject, *named):
        pipeline.save_pretrained(tmp_path / "saved", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "saved").exists()


def test_the_code_in_the_card_runs(
    pipeline: SemanticFirstPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "saved" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    made = names["images"]
    assert isinstance(made, list)
    expected = pipeline([0, 2], seed=0).images
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(made, expected, strict=True))
