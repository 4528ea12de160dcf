"""Images dealt to several processes: every batch once, in order, and an error of one is told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal
from stand_ins import put
from tiny_project import SIDE, random_images, tiny_settings, write_models, write_training_images
from torch import Tensor
from two_processes import in_two_processes

from sfd_cli.config import Settings
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import SfdError, StageFailure, UserError
from sfd_cli.evaluation.dealing import computed
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.evaluation.npz import open_npz
from sfd_cli.evaluation.untrained import UntrainedImages
from sfd_cli.stages import fid, memorisation

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Numbers:
    """Images of one pixel that are their own number."""

    numbers: Sequence[int]
    announced: int | None = None

    @property
    def count(self) -> int:
        return len(self.numbers) if self.announced is None else self.announced

    def at(self, indices: Sequence[int]) -> Numbers:
        return Numbers([self.numbers[index] for index in indices])

    def batches(self, size: int) -> Any:
        pixels = torch.tensor(self.numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)
        return iter(pixels.split(size) if len(pixels) else [])


def seen(images: Numbers, processes: Processes) -> list[tuple[int, list[int], int]]:
    """Of every batch: who computed it, its images, and the number up to its end."""

    def compute(batch: Tensor, end: int) -> tuple[int, list[int], int]:
        return processes.rank, batch[:, 0, 0, 0].tolist(), end

    return list(computed(images, "images", 3, compute, processes))


@pytest.mark.parametrize("count", [1, 3, 4, 12, 14])
def test_processes_take_batches_in_turn_and_the_first_has_them_in_order(count: int, tmp_path: Path) -> None:
    alone = seen(Numbers(range(count)), ALONE)
    assert [images for _, images, _ in alone] == [list(range(count))[at : at + 3] for at in range(0, count, 3)]
    assert [end for _, _, end in alone] == [min(at + 3, count) for at in range(0, count, 3)]
    first, second = in_two_processes(tmp_path, lambda processes: seen(Numbers(range(count)), processes))
    assert [part[1:] for part in first] == [part[1:] for part in alone]
    assert [part[0] for part in first] == [batch % 2 for batch in range(len(alone))]
    assert second == []


@pytest.mark.parametrize("announced", [5, 8])
def test_more_or_fewer_images_than_announced_are_refused(announced: int) -> None:
    with refusal("images", announced, 7 if announced == 8 else 6, kind=StageFailure):
        seen(Numbers(range(7), announced), ALONE)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_raised_in_the_first_alone(rank: int, tmp_path: Path) -> None:
    def compute(processes: Processes) -> Any:
        def step(batch: Tensor, end: int) -> None:
            if end == 3 * rank + 3:
                raise UserError("image", f"is damaged in {processes.rank}")

        try:
            return list(computed(Numbers(range(12)), "images", 3, step, processes))
        except (SfdError, SystemExit) as error:
            return error

    told, silent = in_two_processes(tmp_path, compute)
    assert (told.subject, told.problem) == ("image", f"is damaged in {rank}")
    assert isinstance(silent, SystemExit)
    assert silent.code == 1


def test_some_of_the_images_are_those_of_all_of_them(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    write_models(settings)
    random_images(tmp_path / "files", [f"{index}.png" for index in range(9)], seed=0)
    files = ImageFiles(sorted((tmp_path / "files").iterdir()))
    (pixels,) = files.batches(9)
    for name, save in (("plain", np.savez), ("compressed", np.savez_compressed)):
        save(tmp_path / f"{name}.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    packed = [open_npz(tmp_path / f"{name}.npz")[0] for name in ("plain", "compressed")]
    for source in (files, *packed, UntrainedImages.open(settings, 9, CPU)):
        assert source is not None
        everything = torch.cat(list(source.batches(2)))
        some = source.at([0, 1, 4, 5, 8])
        batches = list(some.batches(2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert torch.equal(torch.cat(batches), everything[[0, 1, 4, 5, 8]])
        assert torch.equal(torch.cat(list(some.at([1, 3]).batches(2))), everything[[1, 5]])
        assert (some.count, some.at([1, 3]).count) == (5, 2)


def test_an_archive_that_is_damaged_behind_the_wanted_images_is_told(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=np.zeros((200, 8, 8, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[-400] ^= 255
    path.write_bytes(content)
    source = open_npz(path)[0]
    assert source is not None
    with refusal(path, "arr_0.npy"):
        list(source.at([0, 1]).batches(2))


def features() -> Extractor:
    """Cheap, of a few numbers."""
    weights = torch.randn(3 * SIDE * SIDE, 5, generator=torch.Generator().manual_seed(0)) / 30
    return Extractor.of("pixels", 5, CPU, lambda images: (images.float() / 255).flatten(1) @ weights)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project of 24 training images and 11 samples of elsewhere, with others beside them."""
    found = tiny_settings(tmp_path)
    write_training_images(found)
    write_models(found)
    random_images(tmp_path / "samples", [f"{index:02}.png" for index in range(11)], seed=2, brightness=0.8)
    (pixels,) = ImageFiles(sorted((tmp_path / "samples").iterdir())).batches(11)
    np.savez(tmp_path / "beside.npz", arr_0=pixels.flip(2).permute(0, 2, 3, 1).numpy())
    put(monkeypatch, "encoder", features)
    section = found.fid.model_copy(update={"batch_size": 3, "num_images": 10, "beside": [tmp_path / "beside.npz"]})
    return found.model_copy(update={"fid": section})


def test_two_processes_score_to_the_bytes_of_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = settings.paths.metrics
    names = ("fid.json", "scores.json", "memorisation.json", "closest_pairs.png")

    def score(_: Processes) -> list[Any]:
        return [stage.run(settings) for stage in (fid, memorisation)]

    alone = score(ALONE)
    written = {name: (metrics / name).read_bytes() for name in names}
    assert b"untrained" in written["fid.json"]
    for name in names:
        (metrics / name).unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert in_two_processes(tmp_path, score) == [alone, [{}, {}]]
    assert {name: (metrics / name).read_bytes() for name in names} == written


def test_processes_that_see_other_images_are_refused_before_any_is_scored(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    plain = settings.model_copy(update={"fid": settings.fid.model_copy(update={"num_images": None, "beside": []})})
    fewer = settings.model_copy(update={"fid": plain.fid.model_copy(update={"num_images": 9})})

    def score(processes: Processes) -> Any:
        try:
            return fid.run(fewer if processes.rank else plain)
        except (SfdError, SystemExit) as error:
            return error

    told, silent = in_two_processes(tmp_path, score)
    assert isinstance(told, StageFailure)
    assert "samples" in told.problem
    assert isinstance(silent, SystemExit)
    assert not (settings.paths.metrics / "fid.json").exists()


def test_features_are_sent_without_what_they_are_a_part_of() -> None:
    tokens = torch.zeros(4, 100, 5)
    found = Extractor.of("pixels", 5, CPU, lambda images: tokens[:, 0])(torch.zeros(4, 3, 1, 1, dtype=torch.uint8))
    assert found[POOLED].untyped_storage().nbytes() == 4 * 5 * 4
