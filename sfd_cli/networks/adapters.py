"""Low-rank updates (LoRA, arXiv 2106.09685) of a transformer's blocks, by the library `peft`.

The network stays a LightningDiT: `peft` puts a layer with two thin matrices A and B in the place of every linear layer
of the blocks, which computes W x + (alpha / rank) B A x. B is zero at first: nothing changes before the first step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfd_cli.errors import SettingError
from sfd_cli.networks.lightning_dit import LightningDiT

if TYPE_CHECKING:
    from peft import LoraConfig

LABELS = "class_embedding"
NAME = "default"
"""What `peft` calls an adapter that nobody names."""
PREFIX = "base_model.model."
"""Before a network's own names in the files of `peft`."""
HELD = "base_layer."
"""Before the names of the weights in a layer that is adapted."""


def lora(network: LightningDiT, rank: int, alpha: float, whole: Iterable[str], base: str) -> LoraConfig:
    """How `peft` describes an adapter of all linear layers of the blocks.

    Args:
        network: not adapted yet.
        rank: of every update.
        alpha: an update counts alpha over rank.
        whole: names of the modules that are trained whole.
        base: where the weights are that it is for.

    Raises:
        SettingError: `peft` is not installed; without a subject.
    """
    require_peft()
    from peft import LoraConfig

    layers = "|".join(sorted({re.escape(name.split(".", 2)[2]) for name, _ in block_layers(network)}))
    # A pattern, because of a set of names peft would write a list in any order.
    return LoraConfig(
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=alpha,
        target_modules=rf"blocks\.\d+\.({layers})",
        modules_to_save=sorted(whole),
    )


def require_peft() -> None:
    """Check that `peft` is there.

    Raises:
        SettingError: it is not; without a subject.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        problem = "an adapter needs the package peft, which is not installed"
        raise SettingError("", problem, "install it with `pip install 'sfd-cli[adapters]'`") from None


def adapt(network: LightningDiT, config: LoraConfig) -> None:
    """Put low-rank updates into a network, in place, and leave nothing else to be trained but what it is to save whole.

    The matrices A are drawn from PyTorch's global generator.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # Without the modules to be saved, of which peft would keep a copy beside the one that is trained.
    inject_adapter_in_model(LoraConfig(**{**config.to_dict(), "modules_to_save": None}), network)
    for name in config.modules_to_save or ():
        network.get_submodule(name).requires_grad_()


def adapter_state(network: LightningDiT, config: LoraConfig) -> dict[str, Tensor]:
    """The adapter of a network as `peft` saves it: both matrices of every layer, and the modules saved whole."""
    ours = _ours(network, config)
    return {_theirs(name): tensor for name, tensor in network.state_dict().items() if name in ours}


def load_adapter(network: LightningDiT, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Put what `adapter_state` gave into an adapted network.

    Raises:
        ValueError: other names or shapes; names the first that does not fit.
    """
    state = network.state_dict()
    expected = {_theirs(name): name for name in _ours(network, config)}
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(state[ours].shape)}"
        for name, ours in expected.items()
        if name in tensors and tensors[name].shape != state[ours].shape
    ]
    if wrong:
        raise ValueError(wrong[0] + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""))
    network.load_state_dict({ours: tensors[name] for name, ours in expected.items()}, strict=False)


@torch.no_grad()
def merged_state(network: LightningDiT) -> dict[str, Tensor]:
    """State dict of the plain LightningDiT that computes what an adapted one does, which stays as it is."""
    from peft.tuners.lora import LoraLayer

    found = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    for name, tensor in network.state_dict().items():
        layer, held, weight = name.partition(f".{HELD}")
        if held and weight == "weight":
            tensor = tensor + layers[layer].get_delta_weight(NAME)
        if held or not any(name.startswith(f"{layer}.") for layer in layers):
            found[name.replace(HELD, "")] = tensor
    return found


def block_layers(network: LightningDiT) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the blocks of a network that is not adapted, by name."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear)
    ]


def adapter_numbers(network: LightningDiT, rank: int) -> int:
    """How many numbers the matrices of an adapter have, of a network that is not adapted yet."""
    return sum(rank * (layer.in_features + layer.out_features) for _, layer in block_layers(network))


def _ours(network: LightningDiT, config: LoraConfig) -> set[str]:
    """The network's own names of what belongs to its adapter."""
    whole = tuple(f"{name}." for name in config.modules_to_save or ())
    return {name for name in network.state_dict() if f".{NAME}." in name or name.startswith(whole)}


def _theirs(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")


def as_written(config: LoraConfig) -> dict[str, Any]:
    """What `peft` reads the description of an adapter from, JSON-able and always in the same order."""
    values = config.to_dict() | {"inference_mode": True}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(values.items())}
