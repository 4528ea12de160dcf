"""Files of other code as our model folders, and our model folders as the reference's own files.

What a file is, is told by the names of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_json
from sfd_cli.formats.convert import (
    LatentStatistics,
    VisualEncoderConfig,
    dit_from_reference,
    dit_tables_from_reference,
    dit_to_reference,
    semantic_vae_from_reference,
    semantic_vae_to_reference,
    statistics_from_reference,
    statistics_to_reference,
    texture_vae_from_diffusers,
    texture_vae_from_ldm,
    texture_vae_to_ldm,
    visual_encoder_from_release,
)
from sfd_cli.formats.model_folder import (
    CONFIG,
    TABLES,
    built,
    configured,
    load_config,
    require_fit,
    save_model,
    without_prefixes,
)
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

PUBLISHED_DELTA_T = 0.3
"""The offset of the published models with two times (arXiv 2512.04926)."""

EXPORT_SUFFIXES = (".pt", ".pth", ".ckpt")
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"

# Where files keep their state dicts.
WRAPPERS = ("ema", "model", "model_state_dict", "state_dict")

# What the names of each kind's tensors begin with, in the order they are looked for.
NAMES_OF = {
    "LightningDiT": ("x_embedder.", "y_embedder.", "t_embedder", "final_layer."),
    "TextureVAE": ("encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid.", "quant_conv.", "post_quant_conv."),
    "SemanticVAE": ("encoder.0.", "encoder.1.", "decoder.0.", "decoder.1."),
    "VisualEncoder": ("blocks.0.ls1.",),
}
NAMES_OF_OURS = ("patch_embedding.", "class_embedding.", "encoder.linear_in.", "autoencoder.")
NAMES_OF_DIFFUSERS = ("encoder.down_blocks.", "decoder.up_blocks.")

# What the reference calls the statistics of textures and of semantics, behind the name of the exported transformer.
STATISTICS_FILES = ("latents_stats", "latents_sv_stats")

ACCEPTED = (
    "accepted are a LightningDiT or Semantic VAE of the reference code, an LDM autoencoder, a folder of diffusers'"
    " AutoencoderKL, a DINOv2 backbone, and latent statistics"
)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Hints:
    """What no tensor of a file tells; None where nothing is known. What a kind of model has no use for is ignored.

    Attributes:
        heads: attention heads, of a LightningDiT without q/k norms and of every Semantic VAE.
        semantic_channels: how many of the last channels are semantic, of a LightningDiT with two times; None: as the
            semantic statistics say.
        repa_depth: the block that a REPA projector reads; None: 2.
        delta_t: the offset a LightningDiT was trained with; None: 0.3 with two times, else 0.
        texture_statistics: of the texture latents that a LightningDiT was trained on.
        semantic_statistics: of its semantic latents.
        tiles: of the encoder whose tokens a Semantic VAE compresses.
        space_to_depth: how the latent of a texture VAE is folded; None: not.
        texture_channels: of the transformer that a texture VAE decodes for, which tells the folding better.
    """

    heads: int | None = None
    semantic_channels: int | None = None
    repa_depth: int | None = None
    delta_t: float | None = None
    texture_statistics: LatentStatistics | None = None
    semantic_statistics: LatentStatistics | None = None
    tiles: int | None = None
    space_to_depth: int | None = None
    texture_channels: int | None = None


@dataclass(frozen=True)
class Foreign:
    """A file of other code in our terms, ready to be saved as a model folder.

    Attributes:
        module_type: "LightningDiT", "SemanticVAE", "TextureVAE", "VisualEncoder" or "LatentStatistics".
        config: its configuration dataclass.
        weights: state dicts by file stem. Of a LightningDiT `ema` and `model` as far as the file has them, and
            `ema_tables` and `model_tables` where its tables of positions are not just ours; of latent statistics
            none; else `model`.
        extra: further keys of `config.json`.
    """

    module_type: str
    config: Any
    weights: dict[str, dict[str, Tensor]]
    extra: dict[str, Any]


def read_foreign(source: Path, hints: Hints = Hints(), wanted: str | None = None) -> Foreign:
    """A file, or a folder of diffusers' AutoencoderKL, of whatever kind it is, or of the kind `wanted`.

    Of a training checkpoint the weights are taken, averaged (`ema`) and last (`model`); the optimiser's state and
    the configuration object beside them are no weights and are not carried over. Tensors keep their dtype.

    Raises:
        UserError: it is of no known kind, damaged, does not fit (naming the keys), or a hint is needed.
    """
    source = Path(source)
    if source.is_dir():
        _require_kind("TextureVAE", wanted, source)
        return _read_folder(source, hints)
    checkpoint = read_weights_file(source)
    with _named(source):
        if "mean" in checkpoint and "std" in checkpoint:
            _require_kind("LatentStatistics", wanted, source)
            return Foreign("LatentStatistics", statistics_from_reference(checkpoint), {}, {})
        state_dicts = _state_dicts(checkpoint)
        first = next(iter(state_dicts.values()))
        kind = _kind(first)
        if kind is not None:
            _require_kind(kind, wanted, source)
        if kind == "LightningDiT":
            return _read_dit(state_dicts, hints)
        if kind == "SemanticVAE":
            return _read_semantic_vae(checkpoint, first, hints)
        if kind == "TextureVAE":
            vae, weights = texture_vae_from_ldm(first)
            return Foreign(kind, replace(vae, space_to_depth=_fold(vae.channels, hints)), {"model": weights}, {})
        if kind == "VisualEncoder":
            encoder, weights = visual_encoder_from_release(first)
            return Foreign(kind, encoder, {"model": weights}, {})
        raise UserError(_stranger(first))


def save_foreign(foreign: Foreign, folder: Path) -> None:
    """Write the model folder, which must not be there yet."""
    weights = {stem: _separate(tensors) for stem, tensors in foreign.weights.items()}
    save_model(folder, foreign.module_type, foreign.config, weights, foreign.extra)


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder is diffusers', whatever model and whatever kind of weights are in it."""
    if (path / DIFFUSERS_WEIGHTS).exists():
        return True
    description = read_json(path / CONFIG) if (path / CONFIG).exists() else None
    return isinstance(description, dict) and "_class_name" in description


def export_model(folder: Path, target: Path) -> tuple[str, list[Path]]:
    """Write one of our model folders as the files that the reference code reads.

    A LightningDiT becomes `{"model", "ema"}` as far as the folder has them, a Semantic VAE
    `{"model_state_dict", "input_dim", "bottleneck_dim"}`, a texture VAE `{"state_dict"}` in LDM's names, latent
    statistics `{"mean", "std"}` of shape (1, C, 1, 1), a visual encoder the release's own dict. The statistics in a
    LightningDiT's folder, which sampling needs, go beside it: those of `dit.pt` to `dit_latents_stats.pt` (textures)
    and, where there are semantic channels, `dit_latents_sv_stats.pt`, rounded to float32.

    Args:
        folder: the model folder.
        target: the file, .pt, .pth or .ckpt. All files appear whole or none of them.

    Returns:
        The type of the model, as in `Foreign.module_type`, and the files, `target` first.

    Raises:
        UserError: no model, of a type the reference has no layout for, or a target that exists or has another suffix.
    """
    folder, target = Path(folder), Path(target)
    if target.suffix not in EXPORT_SUFFIXES:
        raise UserError(f"{target}: the reference's files are torch's; give a name that ends in .pt, .pth or .ckpt")
    description = load_config(folder)
    kind = description.get("type")
    if kind not in EXPORTERS:
        raise UserError(
            f"{folder} holds a {kind}, for which the reference has no layout; known: {', '.join(EXPORTERS)}"
        )
    with _named(folder):
        statistics = _statistics_beside(description, target) if kind == "LightningDiT" else {}
    for path in (target, *statistics):
        if path.exists():
            raise UserError(f"{path} exists already; remove it or give another name")
    with _named(folder):
        files = {target: EXPORTERS[kind](folder, description["config"]), **statistics}
    _save_together(files)
    return str(kind), list(files)


def _read_folder(folder: Path, hints: Hints) -> Foreign:
    description = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if isinstance(description, dict) and isinstance(description.get("type"), str):
        raise UserError(f"{folder} is one of our model folders already ({description['type']}); use it as it is")
    if not isinstance(description, dict) or "_class_name" not in description:
        raise UserError(f"{folder} is no folder of diffusers (no {CONFIG} with a _class_name); {ACCEPTED}")
    if not (folder / DIFFUSERS_WEIGHTS).exists():
        raise UserError(
            f"{folder} holds no {DIFFUSERS_WEIGHTS}, the only weights of diffusers that are read; save the model again"
            " with save_pretrained and safe_serialization=True"
        )
    weights = read_weights_file(folder / DIFFUSERS_WEIGHTS)
    with _named(folder):
        config, converted = texture_vae_from_diffusers(description, weights)
    folded = replace(config, space_to_depth=_fold(config.channels, hints))
    return Foreign("TextureVAE", folded, {"model": converted}, {})


def _state_dicts(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """State dicts by the key that wraps them, "" for a bare one, at least one; their names without prefixes."""
    wrapped = {key: checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)}
    found = {}
    for wrapper, tensors in (wrapped or {"": checkpoint}).items():
        strangers = [key for key, value in tensors.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
        if strangers or not tensors:
            where = f"under {wrapper!r} " if wrapper else ""
            what = f"{strangers[0]!r}, which is no tensor with a name" if strangers else "nothing"
            raise UserError(f"it holds {where}{what}; {ACCEPTED}")
        found[wrapper] = without_prefixes(tensors)
    return found


def _kind(names: Mapping[str, Tensor]) -> str | None:
    for kind, beginnings in NAMES_OF.items():
        if any(name.startswith(beginnings) for name in names):
            return kind
    return None


def _require_kind(found: str, wanted: str | None, source: Path) -> None:
    """Raise UserError for another kind, before anything is asked about it."""
    if wanted not in (None, found):
        raise UserError(f"{source} holds a {found}, but a {wanted} is wanted; check the path")


def _stranger(names: Mapping[str, Tensor]) -> str:
    """The sentence about a file of no known kind."""
    if any(name.startswith(NAMES_OF_OURS) for name in names):
        return f"it seems to be a file of one of our model folders already; use the folder with its {CONFIG} as it is"
    if any(name.startswith(NAMES_OF_DIFFUSERS) for name in names):
        return f"it seems to be the weights of diffusers' AutoencoderKL; give the folder with its {CONFIG} instead"
    return f"it holds {', '.join(list(names)[:4])}, which are the names of no kind known here; {ACCEPTED}"


def _read_dit(state_dicts: Mapping[str, dict[str, Tensor]], hints: Hints) -> Foreign:
    configs: dict[str, LightningDiTConfig] = {}
    weights: dict[str, dict[str, Tensor]] = {}
    for wrapper, tensors in state_dicts.items():
        # Samplers take the averaged weights, so a state dict that does not say what it is stands for these.
        stem = "model" if wrapper == "model" else "ema"
        if stem in weights:
            continue
        configs[stem], weights[stem] = dit_from_reference(
            tensors, hints.heads, _semantic_channels(hints), hints.repa_depth or 2
        )
        tables = dit_tables_from_reference(configs[stem], tensors)
        if tables:
            weights[f"{stem}{TABLES}"] = tables
    config = next(iter(configs.values()))
    if any(other != config for other in configs.values()):
        raise UserError(
            "its ema and model are LightningDiTs of different architectures; take the one you want out of it"
        )
    dual = config.time_embedding == "dual"
    delta_t = hints.delta_t if hints.delta_t is not None else (PUBLISHED_DELTA_T if dual else 0.0)
    if not 0 <= delta_t <= 1:
        raise UserError(f"delta_t is {delta_t:g}, but the offset lies between 0 and 1")
    return Foreign("LightningDiT", config, weights, {"delta_t": delta_t} | _joined_statistics(hints))


def _semantic_channels(hints: Hints) -> int | None:
    if hints.semantic_channels is None and hints.semantic_statistics is not None:
        return len(hints.semantic_statistics.mean)
    return hints.semantic_channels


def _joined_statistics(hints: Hints) -> dict[str, Any]:
    """`statistics` of a transformer's `config.json`, textures first; nothing where there are none."""
    parts = [part for part in (hints.texture_statistics, hints.semantic_statistics) if part is not None]
    joined = {key: [value for part in parts for value in getattr(part, key)] for key in ("mean", "std")}
    return {"statistics": joined} if parts else {}


def _fold(channels: int, hints: Hints) -> int:
    """How the latent of a texture VAE with so many channels is folded."""
    if hints.texture_channels is not None:
        fold = math.isqrt(hints.texture_channels // channels)
        return fold if fold * fold * channels == hints.texture_channels else 1
    return hints.space_to_depth or 1


def _read_semantic_vae(checkpoint: Mapping[str, Any], weights: dict[str, Tensor], hints: Hints) -> Foreign:
    if hints.heads is None:
        raise UserError(
            "no tensor of a Semantic VAE tells the number of its attention heads; give `heads` (--heads of"
            " `sfd weights import`)"
        )
    config, converted = semantic_vae_from_reference(weights, hints.heads)
    for key, expected in _semantic_vae_sizes(config).items():
        if checkpoint.get(key, expected) != expected:
            raise UserError(f"{key} is {checkpoint[key]}, but the tensors of the Semantic VAE say {expected}")
    return Foreign("SemanticVAE", replace(config, tiles=hints.tiles or 1), {"model": converted}, {})


def _semantic_vae_sizes(config: SemanticVAEConfig) -> dict[str, int]:
    """The sizes that the reference writes beside the weights."""
    return {"input_dim": config.feature_width, "bottleneck_dim": config.channels}


def _export_dit(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    config = configured(LightningDiTConfig, values, CONFIG)
    exported = {}
    for stem in ("model", "ema"):
        if (folder / f"{stem}.safetensors").exists():
            tables = folder / f"{stem}{TABLES}.safetensors"
            weights = _fitting(folder, stem, LightningDiT, config)
            exported[stem] = dit_to_reference(config, weights, read_weights_file(tables) if tables.exists() else None)
    if not exported:
        raise UserError("neither ema.safetensors nor model.safetensors is there; run what makes it again")
    return exported


def _export_semantic_vae(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    config = configured(SemanticVAEConfig, values, CONFIG)
    weights = semantic_vae_to_reference(config, _fitting(folder, "model", SemanticVAE, config))
    return {"model_state_dict": weights, **_semantic_vae_sizes(config)}


def _export_texture_vae(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    config = configured(TextureVAEConfig, values, CONFIG)
    return {"state_dict": texture_vae_to_ldm(config, _fitting(folder, "model", TextureVAE, config))}


def _export_encoder(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    found, weights = visual_encoder_from_release(read_weights_file(folder / "model.safetensors"))
    if found != configured(VisualEncoderConfig, values, CONFIG):
        raise UserError(f"{CONFIG} does not describe its weights, which are a {found.name}")
    return dict(weights)


def _export_statistics(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return dict(statistics_to_reference(configured(LatentStatistics, values, CONFIG)))


EXPORTERS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "LightningDiT": _export_dit,
    "SemanticVAE": _export_semantic_vae,
    "TextureVAE": _export_texture_vae,
    "VisualEncoder": _export_encoder,
    "LatentStatistics": _export_statistics,
}


def _statistics_beside(description: Mapping[str, Any], target: Path) -> dict[Path, dict[str, Tensor]]:
    """The files of a transformer's statistics beside the exported weights; none if its folder has none."""
    if description.get("statistics") is None:
        return {}
    both = configured(LatentStatistics, description["statistics"], f"statistics of {CONFIG}")
    config = configured(LightningDiTConfig, description["config"], CONFIG)
    if len(both.mean) != config.in_channels:
        channels = f"{len(both.mean)} channels, but the transformer has {config.in_channels}"
        raise UserError(f"the statistics in {CONFIG} are of {channels}; run what makes it again")
    textures = config.in_channels - config.semantic_channels
    parts = (slice(0, textures), slice(textures, None))
    return {
        target.with_name(f"{target.stem}_{name}.pt"): statistics_to_reference(
            LatentStatistics(both.mean[part], both.std[part])
        )
        for name, part in zip(STATISTICS_FILES, parts, strict=True)
        if both.mean[part]
    }


def _save_together(files: Mapping[Path, dict[str, Any]]) -> None:
    """All of the new files or, unless the process is killed between two renames, none of them."""
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                with open(stack.enter_context(atomic_path(path)), "wb") as file:
                    torch.save(content, file)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise


def _fitting(folder: Path, stem: str, module: type[M], config: Any) -> dict[str, Tensor]:
    """Weights as they were saved, in their own dtype, checked against the architecture."""
    path = folder / f"{stem}.safetensors"
    weights = read_weights_file(path)
    with torch.device("meta"):
        require_fit(built(module, config, CONFIG), weights, path.name)
    return weights


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors none of which is a piece of another's memory, or of a larger one's, which safetensors refuses."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(memory.data_ptr())
        separate[name] = tensor
    return separate


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Put the file or folder at the head of what is wrong with it, where it is not named yet."""
    try:
        yield
    except UserError as error:
        raise (error if str(source) in str(error) else UserError(f"{source}: {error}")) from None
