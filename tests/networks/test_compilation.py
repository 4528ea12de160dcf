"""Compiling on a CPU says what concerns a CPU."""

from __future__ import annotations

import logging

import pytest
import torch

from sfd_cli.networks.compilation import can_compile


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
