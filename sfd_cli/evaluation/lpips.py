"""LPIPS, the perceptual distance of two images (Zhang et al. 2018), version 0.1 with VGG-16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfd_cli.config import Settings
from sfd_cli.devices import float32_products
from sfd_cli.errors import UserError
from sfd_cli.evaluation.reasons import NotComputable
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.networks.texture_vae import to_signed
from sfd_cli.weights.fetch import fetch_weights, find_local
from sfd_cli.weights.registry import find_weights

NETWORK, LAYERS = "vgg16", "lpips_vgg16"
# After the ReLU at the end of each block of VGG-16's `features`.
TAKEN = (3, 8, 15, 22, 29)
# Mean and deviation of ImageNet's colours for images in [-1, 1], as version 0.1 rounds them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
AT_ONCE = 16


class Lpips(nn.Module):
    """Distance of pairs of images: weighted squared differences of unit features of five layers (their Equation 1).

    Args:
        network: state dict of torchvision's VGG-16, of which `features` is used.
        layers: the weights of the channels, `lin0.model.1.weight` (1, C, 1, 1) to `lin4.model.1.weight`.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """

    def __init__(self, network: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
        from torchvision.models import vgg16

        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        with torch.device("meta"):
            self.features = vgg16(init_weights=False).features[: TAKEN[-1] + 1]
        try:
            tensors = {name: network[f"features.{name}"] for name in self.features.state_dict()}
            self.features.load_state_dict(tensors, assign=True)
            for number, taken in enumerate(TAKEN):
                weights = layers[f"lin{number}.model.1.weight"]
                self.register_buffer(f"weights{number}", weights.view(1, self.features[taken - 1].out_channels, 1, 1))
        except (KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"a tensor is missing or of another shape ({error})") from None
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Uint8 images (n, 3, H, W) each -> distances (n,) float32, 0 for equal ones; without TF32, as other scores."""
        pairs = zip(images.split(AT_ONCE), others.split(AT_ONCE), strict=True)
        with float32_products(self.shift.device, tf32=False):
            return torch.cat([self._distances(self._units(one), self._units(other)) for one, other in pairs])

    def _units(self, images: Tensor) -> list[Tensor]:
        """Features of the five layers, each of unit length over the channels."""
        x = (to_signed(images.to(self.shift.device)) - self.shift) / self.scale
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAKEN:
                # A copy: what follows works in place.
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    def _distances(self, images: list[Tensor], others: list[Tensor]) -> Tensor:
        total = torch.zeros(len(images[0]), device=self.shift.device)
        for number, (one, other) in enumerate(zip(images, others, strict=True)):
            weights = getattr(self, f"weights{number}")
            total += ((one - other).square() * weights).sum(dim=1).mean(dim=(1, 2))
        return total


def open_lpips(settings: Settings, device: torch.device) -> Lpips:
    """The distance, where its weights are on this machine; they are half a gigabyte, and never fetched unasked.

    Raises:
        NotComputable: they are not here, or it is switched off.
        UserError: they are damaged or others.
    """
    if settings.fid.lpips == "none":
        raise NotComputable("switched off (fid.lpips: none)")
    entries = [find_weights(name, "metric") for name in (NETWORK, LAYERS)]
    absent = [entry.name for entry in entries if find_local(entry) is None]
    if absent:
        commands = " and ".join(f"`sfd weights fetch {name}`" for name in absent)
        raise NotComputable(f"its weights are not here; {commands} would bring them")
    network, layers = (read_weights_file(fetch_weights(entry)) for entry in entries)
    try:
        return Lpips(network, layers).to(device)
    except ValueError as error:
        raise UserError("LPIPS", f"cannot be computed by the weights here: {error}", "fetch them again") from None
