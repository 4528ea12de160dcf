"""Whether `torch.compile` can work here."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from sfd_cli.devices import kind_of
from sfd_cli.messages import say


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
