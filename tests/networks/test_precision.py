"""Which number format a network computes in, and whether it can be compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfd_cli.networks.compilation import can_compile
from sfd_cli.networks.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("can", "precision"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "fp32")],
)
def test_native_is_bf16_where_the_processor_multiplies_it(
    can: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert choose_precision("native", CPU) == precision
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("native", CUDA) == choose_precision("auto", CUDA) == "bf16"
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_pytorch_that_cannot_tell_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("native", CPU) == "fp32"


def test_without_a_compiler_networks_run_uncompiled_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(CPU)
    assert "C++" in capsys.readouterr().err
    assert can_compile(CUDA)
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert can_compile(CPU)
    assert not capsys.readouterr().err
