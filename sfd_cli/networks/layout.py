"""How the weights of a network lie in a device's memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from sfd_cli.devices import kind_of

N = TypeVar("N", bound=nn.Module)


def laid_out(network: N, device: torch.device) -> N:
    """The network on the device, weights of convolutions with their channels last where these are what it computes on.

    A convolution takes the layout from its weights; its values are the same to the rounding of the device's kernels.
    """
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if kind_of(device).channels_last else network
