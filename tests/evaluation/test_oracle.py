"""The oracle: images of real semantics against images of their own, from the same noise for the same classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from latent_stores import normal, store_of
from refusals import refusal
from stand_ins import put
from tiny_project import SEMANTIC, SIDE, TEXTURE, tiny_settings, write_models, write_training_images

from sfd_cli.config import Settings
from sfd_cli.data.latent_space import read_latents
from sfd_cli.evaluation import oracle
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.oracle import PARTS, Oracle, PairedImages
from sfd_cli.pipeline.held import Held, part_of
from sfd_cli.pipeline.seeds import initial_noise

COUNT = 24


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = tiny_settings(tmp_path, sample={"num_images": COUNT, "guidance": "cfg"}, fid={"batch_size": 7})
    write_training_images(settings, COUNT)
    write_models(settings)
    streams = normal(COUNT, TEXTURE), normal(COUNT, SEMANTIC, seed=1)
    store_of(settings.paths.latents, *streams, [index % 3 for index in range(COUNT)], mean=0.1, std=0.9)
    weights = torch.randn(3 * SIDE * SIDE, 6, generator=torch.Generator().manual_seed(0)) / 30
    crude = Extractor.of("dinov2", 6, torch.device("cpu"), lambda images: images.float().flatten(1) @ weights)
    put(monkeypatch, "encoder", lambda: crude)
    return settings


def test_given_semantics_arrive_and_textures_see_them_on_their_way(settings: Settings) -> None:
    opened = Oracle.open(settings)
    sampler, seen = opened.sampler, []
    space = sampler.space
    latents = read_latents(opened.store, np.arange(5), space)
    noise, labels = initial_noise(0, range(5), space.shape), torch.zeros(5, dtype=torch.long)
    semantics = space.views(latents).semantic
    held = Held(part_of(space, "semantics"), noise, latents)
    found = sampler.solve(noise, labels, lambda progress, x: seen.append((progress, x)), held)
    assert torch.equal(space.views(found).semantic, semantics)
    for progress, x in seen:  # delta_t 0.3: t_s = min(T, 1)
        time = min(float(progress), 1.0)
        expected = time * semantics + (1 - time) * space.views(noise).semantic
        torch.testing.assert_close(space.views(x).semantic, expected, rtol=1e-4, atol=1e-5)
    own = sampler.solve(noise, labels)
    assert (space.views(found).texture - space.views(own).texture).abs().max() > 0.01


def test_images_are_of_the_noise_of_sample_and_the_classes_of_the_store(settings: Settings) -> None:
    opened = Oracle.open(settings)
    sampler, space = opened.sampler, opened.sampler.space
    rows = np.linspace(0, COUNT - 1, 10).round().astype(int)
    noise, labels = initial_noise(0, range(10), space.shape), torch.from_numpy(opened.store.labels[rows])
    held = Held(part_of(space, "semantics"), noise, read_latents(opened.store, rows, space))
    for real, given in ((True, held), (False, None)):
        batches = list(PairedImages(sampler, opened.store, 10, real).batches(4))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        expected = sampler.decode(sampler.solve(noise, labels, held=given))
        assert (torch.cat(batches).int() - expected.int()).abs().max() <= 1
    assert sampler.sample.guidance == "none"


def test_images_of_a_solver_with_groups_of_its_own_do_not_depend_on_the_batches(settings: Settings) -> None:
    sample = settings.sample.model_copy(update={"solver": "dopri5"})
    opened = Oracle.open(settings.model_copy(update={"sample": sample}))
    (batch,) = PairedImages(opened.sampler, opened.store, 3, True).batches(3)
    alone = torch.cat(list(PairedImages(opened.sampler, opened.store, 3, True).batches(1)))
    assert torch.equal(batch, alone)


def test_both_distances_and_the_gain_with_the_error_of_a_jackknife(settings: Settings) -> None:
    opened = Oracle.open(settings)
    found = opened.measure()
    sets, reference = opened._features(True, False)
    real, own = (each.rows.double().numpy() for each in sets)

    def distance(rows: np.ndarray) -> float:
        return frechet_distance(Gaussian(rows.mean(0), np.cov(rows.T), None), reference)

    assert found["images"] == COUNT
    assert found["real_semantics"] == pytest.approx(distance(real), rel=1e-4)
    assert found["sampled_semantics"] == pytest.approx(distance(own), rel=1e-4)
    assert found["gain"] == pytest.approx(found["sampled_semantics"] - found["real_semantics"])
    assert found["real_semantics"] == pytest.approx(opened.distance_with_real_semantics())
    part = np.arange(COUNT) % PARTS
    gains = np.array([distance(own[part != left]) - distance(real[part != left]) for left in range(PARTS)])
    error = np.sqrt((PARTS - 1) / PARTS * ((gains - gains.mean()) ** 2).sum())
    assert found["gain_standard_error"] == pytest.approx(error, rel=1e-4)


def test_the_same_images_on_both_sides_gain_nothing_without_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_real(sampler: object, store: object, count: int, _: bool) -> PairedImages:
        return PairedImages(sampler, store, count, True)  # type: ignore[arg-type]

    monkeypatch.setattr(oracle, "PairedImages", always_real)
    found = Oracle.open(settings).measure()
    assert (found["gain"], found["gain_standard_error"]) == (0, 0)


def test_a_store_of_other_latents_is_refused(settings: Settings) -> None:
    other = settings.paths.latents.with_name("other")
    store_of(other, normal(COUNT, TEXTURE), normal(COUNT, SEMANTIC), std=0.8)
    paths = settings.paths.model_copy(update={"latents": other})
    with refusal(settings.paths.dit, other, "other statistics"):
        Oracle.open(settings.model_copy(update={"paths": paths}))


def test_too_few_images_and_no_images_to_compare_with_are_refused(settings: Settings) -> None:
    sample = settings.sample.model_copy(update={"num_images": 19})
    with refusal("sample.num_images", 19, 20):
        Oracle.open(settings.model_copy(update={"sample": sample})).measure()
    (settings.paths.images / "manifest.json").unlink()
    with refusal(settings.paths.images, "sfd prepare-data"):
        Oracle.open(settings).measure()
