"""The device that `runtime.device` names."""

from __future__ import annotations

import torch

from sfd_cli.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; any other name is the device torch knows by it.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("runtime.device", f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            "runtime.device", f"{name!r} is not here (CUDA devices: {torch.cuda.device_count()})", "use auto or cpu"
        )
    return device
