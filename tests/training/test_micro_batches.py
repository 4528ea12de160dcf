"""As few micro-batches as fit: what is tried, what is chosen, and that nothing but rounding comes of it."""

from __future__ import annotations

import resource
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_task import BATCH, COUNT, SETTINGS, Regression, assert_same, network
from two_processes import in_two_processes

from sfd_cli.config import DiT, SemVAE, TextureVAE
from sfd_cli.data.order import EpochSampler
from sfd_cli.devices import DeviceKind
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.training.fit import LoopResult, fit
from sfd_cli.training.micro_batches import held_beside, micro_batch_counts, with_micro_batches
from sfd_cli.training.settings import LoopSettings, transformer_loop, vae_loop

CPU = torch.device("cpu")
AUTO = replace(SETTINGS, granule=1)


class Small(Regression):
    """The same on a device that has memory for so many images; notes what is tried."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen.append(len(batch["points"]))
        assert len(draws["noise"]) == len(batch["points"])
        found = super().losses(model, batch, draws)
        if len(batch["points"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found


@pytest.fixture
def _with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that tells what it holds, and holds no more than a megabyte."""
    monkeypatch.setattr(DeviceKind, "peak_memory", lambda kind, device: 0)
    monkeypatch.setattr(DeviceKind, "memory", lambda kind, device: 1 << 20)


def chosen(
    task: Regression, settings: LoopSettings, processes: Processes = ALONE, model: nn.Module | None = None
) -> int:
    sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
    return with_micro_batches(task, model or network(), sampler, settings, processes, CPU).accumulate


@pytest.mark.parametrize(
    ("most", "count", "tried"), [(8, 1, [8]), (5, 2, [8, 4]), (2, 4, [8, 4, 2]), (1, 8, [8, 4, 2, 1])]
)
@pytest.mark.usefixtures("_with_memory")
def test_the_fewest_that_fit_are_chosen(most: int, count: int, tried: list[int]) -> None:
    task = Small(most)
    assert chosen(task, AUTO) == count
    assert task.seen == tried
    assert task.fetched == 1


@pytest.mark.usefixtures("_with_memory")
def test_where_nothing_fits_the_smallest_are_tried_in_earnest(tmp_path: Path) -> None:
    assert chosen(Small(0), AUTO) == BATCH
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path, Small(0), AUTO)
    assert not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.usefixtures("_with_memory")
def test_a_number_that_is_given_is_taken_without_a_trial() -> None:
    task = Small(1)
    assert chosen(task, replace(SETTINGS, accumulate=2)) == 2
    assert task.seen == []


def test_on_a_cpu_nothing_is_tried() -> None:
    task = Small(1)
    assert chosen(task, AUTO) == 1
    assert (task.seen, task.fetched) == ([], 0)


@pytest.mark.usefixtures("_with_memory")
def test_a_trial_leaves_weights_gradients_and_the_global_generator_as_they_were() -> None:
    model, task = network(), Small(2)
    state = torch.get_rng_state()
    assert chosen(task, AUTO, model=model) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(model, network())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.usefixtures("_with_memory")
def test_an_error_of_another_kind_is_not_taken_for_full_memory() -> None:
    class Broken(Regression):
        def losses(self, *arguments: object) -> dict[str, Tensor]:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        chosen(Broken(), AUTO)


def trained(folder: Path, task: Regression, settings: LoopSettings) -> LoopResult[nn.Module]:
    sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
    return fit(task, network(), sampler, settings, folder / "checkpoints", folder / "log", CPU, "test")


@pytest.mark.usefixtures("_with_memory")
def test_training_gives_the_same_whatever_fits_and_a_resumed_run_may_take_another_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tmp_path / "whole", Regression(), SETTINGS)
    parts = Small(2)
    assert_same(whole.model, trained(tmp_path / "parts", parts, AUTO).model, 1e-6)
    assert max(parts.seen[3:]) == 2, "after the trials"
    assert "batch 8 = 4 micro-batches x 2" in capsys.readouterr().err
    trained(tmp_path / "both", Small(4), replace(AUTO, steps=6))
    assert_same(whole.model, trained(tmp_path / "both", Small(1), AUTO).model, 1e-6)


@pytest.mark.usefixtures("_with_memory")
def test_all_processes_take_the_number_that_one_of_them_needs(tmp_path: Path) -> None:
    """Rank 1 has memory for one image at a time, rank 0 for all of its four."""
    assert in_two_processes(tmp_path, lambda processes: chosen(Small((4, 1)[processes.rank]), AUTO, processes)) == [
        4,
        4,
    ]


@pytest.mark.parametrize(
    ("images", "granule", "counts"),
    [(12, 1, [1, 2, 3, 4, 6, 12]), (12, 4, [1, 3]), (32, 16, [1, 2]), (7, 1, [1, 7]), (8, 16, [1])],
)
def test_micro_batches_are_equal_and_hold_whole_granules(images: int, granule: int, counts: list[int]) -> None:
    assert micro_batch_counts(images, granule) == counts


def test_groups_of_the_dispersive_loss_are_never_cut() -> None:
    assert transformer_loop(DiT(dispersive_weight=0.5, dispersive_group=32), CPU).granule == 32
    assert transformer_loop(DiT(), CPU).granule == 1


def test_every_training_finds_its_own_number_unless_one_is_given() -> None:
    for section in (SemVAE(), TextureVAE()):
        assert (vae_loop(section, CPU).accumulate, vae_loop(section, CPU).granule) == (1, 1)
    assert (transformer_loop(DiT(), CPU).accumulate, DiT().micro_batches) == (1, 1)
    for loop in (vae_loop(SemVAE(accumulate=2), CPU), transformer_loop(DiT(accumulate=2), CPU)):
        assert (loop.accumulate, loop.granule) == (2, None)


def test_beside_gradients_there_are_two_moments_the_average_and_a_copy_on_the_way() -> None:
    model = nn.Linear(10, 10)
    own = 4 * 110
    assert held_beside(model, replace(AUTO, ema_decay=None), ALONE) == 2 * own
    assert held_beside(model, AUTO, ALONE) == 3 * own
    assert held_beside(model, AUTO, Processes(0, 2)) == 4 * own
    model.weight.requires_grad_(False)
    assert held_beside(model, AUTO, ALONE) == 2 * 4 * 10 + own


IMAGE = 4 << 20
"""Bytes that a forward pass keeps of an image for the backward pass, at least."""


class Large(Regression):
    """Keeps IMAGE bytes of every image, by a product of the weights with something as large."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        found = super().losses(model, batch, draws)
        wide = found["error"] * torch.ones(len(batch["points"]), IMAGE // 4)
        return found | {"loss": found["loss"] + wide.exp().mean()}


@pytest.mark.usefixtures("_with_memory")
def test_memory_that_is_really_full_is_found_and_what_is_chosen_fits() -> None:
    """A process of this system that may take so much more memory, of which the rest of a step needs its part too."""
    here, there = get_context("fork").Pipe()

    def member() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 150 * IMAGE
        settings = replace(AUTO, batch_size=64)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = chosen(Large(), settings)
        there.send(found)

    process = get_context("fork").Process(target=member)
    process.start()
    assert here.poll(60)
    found = here.recv()
    process.join()
    # Two arrays as large as IMAGE, and gradients of them, for every image: 64 do not fit into 150.
    assert 2 <= found <= 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_number_follows_from_its_memory() -> None:
    device = torch.device("cuda", 0)
    sampler = EpochSampler(COUNT, 64, 0)
    settings = replace(AUTO, batch_size=64)

    class OnTheGPU(Large):
        def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
            found = Regression.losses(self, model, batch, draws)
            wide = found["error"] * torch.ones(len(batch["points"]), 1 << 24, device=device)
            return found | {"loss": found["loss"] + wide.exp().mean()}

    assert with_micro_batches(Regression(), network(), sampler, settings, ALONE, device).accumulate == 1
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(0.08 + (4 << 30) / total, 1.0))
    try:
        found = with_micro_batches(OnTheGPU(), network(), sampler, settings, ALONE, device).accumulate
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found > 1
    assert torch.cuda.max_memory_allocated(device) < 1 << 20, "the peak of the trials is forgotten"
