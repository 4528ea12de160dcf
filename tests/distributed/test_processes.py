"""Two processes that train one network: how their gradients are averaged, and what PyTorch is asked for."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from sfd_cli.distributed import processes as module
from sfd_cli.distributed.processes import Processes, _ddp_options


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))


def test_gradients_are_averaged_and_go_into_a_bucket_at_once(tmp_path: Path) -> None:
    def work(processes: Processes) -> tuple[list[str], dict[str, int], list[torch.Tensor]]:
        torch.set_num_threads(1)
        model = layers()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            network = processes.wrap(model)
        network(torch.ones(2, 8)).sum().backward()  # after which buckets are laid out anew
        model.zero_grad(set_to_none=True)
        with torch.profiler.profile() as profiler:
            network(torch.full((2, 8), 1.0 + processes.rank)).square().sum().backward()
        counts = {event.key: event.count for event in profiler.key_averages()}
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return [str(one.message) for one in told], counts, gradients

    one = layers()
    rows = torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None].expand(4, 8)
    (one(rows).square().sum() / 2).backward()
    for told, counts, gradients in in_two_processes(tmp_path, work):
        assert told == [], "nothing deprecated is asked for"
        for weight, gradient in zip(one.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-6, atol=1.2e-7)
        if "batched_grad_copy" in inspect.signature(DistributedDataParallel).parameters:
            assert (counts["aten::_foreach_copy_"], counts["aten::div_"]) == (1, 1), "of 40 tensors"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["broadcast_buffers"], {"broadcast_buffers": False}),
        (
            ["broadcast_buffers", "forward_sync_buffers", "batched_grad_copy"],
            {"forward_sync_buffers": False, "batched_grad_copy": True},
        ),
    ],
)
def test_every_supported_pytorch_is_asked_by_the_names_that_it_has(
    names: list[str], expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])

    class Known:
        __signature__: Any = signature

    monkeypatch.setattr(module, "DistributedDataParallel", Known)
    assert _ddp_options() == expected
