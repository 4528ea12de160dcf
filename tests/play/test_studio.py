"""Drawing without a page: the pictures of `sfd sample`, kept parts, colours, and what a model can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from tiny_project import SEMANTIC, SIDE, tiny_settings, write_models

from sfd_cli.config import Settings
from sfd_cli.errors import StageFailure
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.play.picture import Kept
from sfd_cli.play.studio import DRAWN, FRAMES, REMEMBERED, Studio
from sfd_cli.report.palette import Palette
from sfd_cli.stages import sample as stage


def test_a_picture_is_image_0_of_sfd_sample(settings: Settings) -> None:
    chosen = settings.sample.model_copy(
        update={"num_images": 1, "classes": [2], "seed": 7, "batch_size": 1, "delta_t": 0.1, "scale": 2.5, "steps": 9}
    )
    stage.run(settings.model_copy(update={"sample": chosen}))
    studio = Studio(SamplingModels.open(settings).load(settings.sample, torch.device("cpu")))
    drawn = studio.draw(studio.picture(2, seed=7, delta_t=0.1, scale=2.5, steps=9))
    assert np.array_equal(drawn.image, np.asarray(Image.open(settings.paths.samples / "000000.png")))


def test_a_drawing_has_its_way_from_noise_to_the_picture(studio: Studio) -> None:
    drawn = studio.draw(studio.picture(0, steps=60))
    assert drawn.textures.shape == (len(drawn.progress), SIDE, SIDE, 3)
    assert drawn.semantics.shape == (len(drawn.progress), SEMANTIC, 2, 2)
    assert drawn.progress == sorted(drawn.progress)
    assert (drawn.progress[0], drawn.progress[-1]) == (0, drawn.schedule.end)
    assert len(drawn.progress) == FRAMES
    points = dict(drawn.recording.points)
    for index, progress in enumerate(drawn.progress):
        latents = points[progress]
        assert np.array_equal(drawn.semantics[index], studio.sampler.space.views(latents).semantic[0].numpy())
        decoded = studio.sampler.decode(latents)[0].permute(1, 2, 0).numpy()
        assert np.abs(drawn.textures[index].astype(int) - decoded).max() <= 1


def test_textures_drawn_anew_leave_the_semantics_to_the_bit(studio: Studio) -> None:
    first = studio.draw(studio.picture(0, seed=1))
    for label, changes in ((0, {}), (2, {}), (0, {"steps": 9}), (0, {"delta_t": 0.8}), (1, {"scale": 3.0})):
        kept = Kept(of=first.picture, streams="semantics")
        other = studio.draw(studio.picture(label, kept, seed=2, **changes))
        assert np.array_equal(other.semantics[-1], first.semantics[-1])
        assert np.abs(other.image.astype(int) - first.image).max() > 20


def test_semantics_drawn_anew_leave_the_picture_as_it_was(studio: Studio) -> None:
    first = studio.draw(studio.picture(0, seed=1))
    other = studio.draw(studio.picture(0, Kept(of=first.picture, streams="textures"), seed=2))
    assert np.array_equal(other.image, first.image)
    assert np.abs(other.semantics[-1] - first.semantics[-1]).max() > 0.1


@pytest.mark.parametrize("streams", ["both", "textures", "semantics"])
def test_on_its_own_noise_a_picture_that_keeps_a_part_is_the_same(studio: Studio, streams: Any) -> None:
    first = studio.draw(studio.picture(0, seed=1))
    again = studio.draw(studio.picture(0, Kept(of=first.picture, streams=streams, cells=(0, 0, 0, 1)), seed=1))
    assert again.picture.key != first.picture.key
    torch.testing.assert_close(again.recording.latents, first.recording.latents, rtol=1e-5, atol=1e-5)


def test_a_kept_rectangle_is_kept_and_the_rest_is_not(studio: Studio) -> None:
    first = studio.draw(studio.picture(0, seed=1))
    for inside in (True, False):
        kept = Kept(of=first.picture, cells=(0, 0, 0, 1), inside=inside)
        other = studio.draw(studio.picture(0, kept, seed=2)).recording.latents - first.recording.latents
        rows = other.abs().amax(dim=(0, 1, 3)).tolist()
        same, new = rows if inside else reversed(rows)
        assert same == 0
        assert new > 0.1


def test_what_was_drawn_is_not_drawn_again_until_much_else_was(studio: Studio) -> None:
    picture = studio.picture(0)
    first = studio.draw(picture)
    assert studio.draw(studio.picture(0)) is first
    for seed in range(1, REMEMBERED):
        studio.draw(studio.picture(0, seed=seed, steps=1))
    assert studio.draw(picture) is first
    for seed in range(REMEMBERED, 2 * REMEMBERED):
        studio.draw(studio.picture(0, seed=seed, steps=1))
    assert studio.draw(picture) is not first


def test_it_tells_how_far_it_is(studio: Studio) -> None:
    told: list[float] = []
    studio.draw(studio.picture(0), lambda part, what: told.append(part))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, DRAWN)
    assert len(told) > 6


def test_colours_are_the_training_sets_or_those_of_the_first_picture(studio: Studio) -> None:
    first, other = (studio.draw(studio.picture(0, seed=seed)) for seed in (1, 2))
    colours = studio.colours(first)
    assert colours is not None
    assert colours.shape == (len(first.progress), 2, 2, 3)
    own = Palette.of(first.semantics[-1:])
    assert np.array_equal(colours, (own.paint(first.semantics) * 255).round().astype(np.uint8))
    assert np.array_equal(studio.colours(other), (own.paint(other.semantics) * 255).round().astype(np.uint8))
    given = Palette(np.zeros(SEMANTIC), np.eye(SEMANTIC), -np.ones(SEMANTIC), np.ones(SEMANTIC))
    trained = Studio(studio.sampler, palette=given).colours(first)
    assert trained is not None
    expected = (((first.semantics[-1].clip(-1, 1) + 1) / 2) * 255).transpose(1, 2, 0)
    assert np.abs(trained[-1] - expected).max() <= 0.51


def test_guidance_that_the_models_cannot_give_is_not_offered(studio: Studio) -> None:
    assert studio.guidances == ["none", "cfg"]
    assert Studio(studio.sampler, training={"label_dropout": 0.0}).guidances == ["none"]
    with refusal("sample.guidance", "autoguidance"):
        studio.picture(0, guidance="autoguidance")


@pytest.mark.parametrize(
    ("subject", "ask"),
    [
        ("class", lambda studio: studio.picture(3)),
        ("sample.steps", lambda studio: studio.picture(0, steps=0)),
        ("sample.seed", lambda studio: studio.picture(0, seed=-1)),
        ("sample.keep", lambda studio: studio.picture(0, keep="semantics")),
        ("cells", lambda studio: studio.picture(0, Kept(of=studio.picture(0), cells=(0, 2, 0, 0)))),
        ("class", lambda studio: studio.picture(0, Kept(of=studio.picture(0).model_copy(update={"label": 9})))),
    ],
)
def test_what_the_model_cannot_draw_is_refused(studio: Studio, subject: str, ask: Any) -> None:
    with refusal(subject):
        ask(studio)


def test_a_picture_that_is_not_finite_is_said_to_be(studio: Studio) -> None:
    with torch.no_grad():
        next(iter(studio.sampler.dit.parameters())).fill_(float("nan"))
    with refusal("the picture", kind=StageFailure):
        studio.draw(studio.picture(0))


def test_a_model_without_semantics_draws_and_keeps_only_cells_of_all(tmp_path: Path) -> None:
    from sfd_cli.formats.model_folder import save_model
    from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig

    settings = tiny_settings(tmp_path)
    write_models(settings)
    config = LightningDiTConfig(2, 4, 3, 0, width=32, depth=1, heads=2, time_embedding="single")
    facts = {"statistics": {"mean": [0.0] * 4, "std": [1.0] * 4}}
    save_model(settings.paths.dit, "LightningDiT", config, {"ema": LightningDiT(config).state_dict()}, facts)
    studio = Studio(SamplingModels.open(settings).load(settings.sample, torch.device("cpu")))
    assert studio.ahead is None
    drawn = studio.draw(studio.picture(0))
    assert studio.colours(drawn) is None
    other = studio.draw(studio.picture(0, Kept(of=drawn.picture, cells=(0, 0, 0, 0)), seed=3))
    assert torch.equal(other.recording.latents[..., 0, 0], drawn.recording.latents[..., 0, 0])
    with refusal("kept", "textures"):
        studio.picture(0, Kept(of=drawn.picture, streams="textures"))
