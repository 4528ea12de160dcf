"""When training is compiled, that it is one graph, and what is said where it cannot be."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from sfd_cli.networks.compilation import can_compile, choose_compile, compile_network
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig


def test_pytorchs_warning_of_a_missing_gpu_is_not_passed_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.warning("No CUDA runtime is found, using CUDA_HOME='/usr'")
    assert len(caplog.records) == 1
    can_compile(torch.device("cpu"))
    logger.warning("No CUDA runtime is found, using CUDA_HOME='/usr'")
    assert len(caplog.records) == 1


def test_without_a_compiler_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(torch.device("cpu"))
    assert "C++ compiler" in capsys.readouterr().err
    assert can_compile(torch.device("cuda"))


class Network(nn.Module):
    """A network that notes how it is compiled."""

    options: dict[str, Any] | None = None

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        self.options = options


@pytest.mark.parametrize(
    ("name", "device", "steps", "expected"),
    [
        ("auto", "cpu", 400_000, False),
        ("auto", "cuda", 999, False),
        ("auto", "cuda", 1000, True),
        ("auto", "npu", 400_000, False),
        ("auto", "xpu", 400_000, False),
        (True, "cpu", 1, True),
        (False, "cuda", 400_000, False),
    ],
)
def test_auto_compiles_on_cuda_where_there_are_steps_enough(
    name: bool | Literal["auto"], device: str, steps: int, expected: bool
) -> None:
    # PyTorch knows an npu by its name only where the package is there.
    named = SimpleNamespace(type=device)
    assert choose_compile(name, cast(torch.device, named), steps) is expected


def test_what_a_gpus_compiler_lacks_is_told_and_the_network_left_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compile_network(network := Network(), cuda)
    assert network.options is None
    assert "Triton" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    compile_network(network, cuda)
    assert network.options is None
    assert "C compiler" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: name if name == "clang" else None)
    compile_network(network, cuda)
    assert network.options == {"fullgraph": True, "dynamic": False}
    assert not capsys.readouterr().err


def test_a_graph_that_breaks_is_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return x + 1

    compile_network(network := Broken(), torch.device("cpu"))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        network(torch.ones(2))


def test_the_semantic_vae_is_one_graph_for_training_and_keeps_its_names() -> None:
    torch.manual_seed(0)
    network = SemanticVAE(SemanticVAEConfig(6, 2, 16, 3, 2))
    tokens, noise, names = torch.randn(2, 5, 6), torch.randn(2, 5, 2), list(network.state_dict())
    expected = network(tokens, noise)
    torch.compiler.reset()
    counters.clear()
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(tokens, noise), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert list(network.state_dict()) == names
