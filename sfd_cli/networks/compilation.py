"""Whether and how `torch.compile` works here."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from typing import Literal

import torch
from torch import nn

from sfd_cli.devices import kind_of
from sfd_cli.messages import say

Compile = bool | Literal["auto"]
LONG = 1000
"""Steps from which compiling pays on a GPU, where it takes under a minute and spares some 50 ms a step of SFD-XL; this
is arithmetic, not measured."""


def can_compile(device: torch.device) -> bool:
    """Whether networks on this device can be compiled; says so where they cannot, because eager steps are slower.

    On a CPU the compiler writes C++, which needs a C++ compiler. The results are the same up to rounding.
    """
    kind = kind_of(device)
    if not kind.compiles:
        say(f"PyTorch compiles nothing for {kind.name} devices, so networks run uncompiled, at a lower speed")
        return False
    if not kind.is_cpu:
        return True
    # A build of PyTorch for CUDA warns that there is none, which a CPU does not need.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
        return True
    say("no C++ compiler is installed (g++ or clang++), so networks run uncompiled, at a lower speed")
    return False


def choose_compile(name: Compile, device: torch.device, steps: int) -> bool:
    """Whether a training of so many steps shall be compiled: `auto` is yes on CUDA where they are enough to pay."""
    return kind_of(device).auto_compile and steps >= LONG if name == "auto" else name


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compile a network for batches of one size, in place, where that can be done here; else say why not.

    It is one graph, or the first call fails: where a graph breaks, much of the gain is lost without a word. Nor is it
    cut where DDP's buckets of gradients are full: transformers are compiled block by block, and DDP averages the
    gradients of one block while those of the next are computed.
    """
    if not can_compile(device):
        return
    if kind_of(device).auto_compile and (missing := _missing()):
        say(f"{missing} is not installed, so networks run uncompiled, at a lower speed")
        return
    torch.compiler.reset()  # networks of other sizes that were compiled before count towards the compiler's limit
    torch._dynamo.config.optimize_ddp = False
    network.compile(fullgraph=True, dynamic=False)


def _missing() -> str | None:
    """What compiling for a GPU needs and is not here: Triton, or the C compiler by which Triton starts its kernels."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    return (
        None if any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))) else "a C compiler (gcc or clang)"
    )
