"""The stand-in as a device of PyTorch: compiled, loaded, and entered in the table of devices. Once per process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

from sfd_cli.devices import DeviceKind
from sfd_cli.tables import DEVICES

NAME = "standin"
SOURCE = Path(__file__).with_suffix(".cpp")


def build(folder: Path) -> Path:
    """The compiled library; takes a C++ compiler and half a minute."""
    library = folder / "device.so"
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    links = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", "-DAT_PER_OPERATOR_HEADERS", abi, *includes]
    subprocess.run([*command, str(SOURCE), "-o", str(library), *links], check=True)
    return library


class Module:
    """What PyTorch asks a kind of device for."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """It has no generator of its own that lasts."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return []

    @staticmethod
    def get_device_name(device: torch.device) -> str:
        return "made of a CPU"


def load(library: Path) -> DeviceKind:
    """Make PyTorch know the device, and the table; by STAND_IN_FLOAT64=0 it has no float64."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module)  # type: ignore[arg-type]
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.ops.load_library(str(library))
    kind = DeviceKind(NAME, autocast=(), float64=os.environ.get("STAND_IN_FLOAT64") != "0", compiles=False)
    DEVICES.add(NAME, kind)
    return kind
