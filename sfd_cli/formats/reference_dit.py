"""LightningDiT checkpoints of the public reference code: `{"ema", "model"}`, either of them, or a bare state dict.

The architecture is read off the tensors wherever they tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts
from sfd_cli.formats.model_folder import POSITIONS, TABLES, configured
from sfd_cli.formats.reference_statistics import LatentStatistics, statistics_to_reference
from sfd_cli.formats.state_dicts import count_numbers, renamed, require_fit, shape_of
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig, rotary_tables, sincos_positions

DIT_MODULES = {
    "x_embedder.proj": "patch_embedding",
    "y_embedder.embedding_table": "class_embedding",
    "t_embedder.mlp.0": "time.linear_in",
    "t_embedder.mlp.2": "time.linear_out",
    "t_embedder_sem.mlp.0": "semantic_time.linear_in",
    "t_embedder_sem.mlp.2": "semantic_time.linear_out",
    "t_embedder_tex.mlp.0": "texture_time.linear_in",
    "t_embedder_tex.mlp.2": "texture_time.linear_out",
    "repa_projector.0": "projector.0",
    "repa_projector.2": "projector.2",
    "repa_projector.4": "projector.4",
    "final_layer.norm_final": "final_norm",
    "final_layer.adaLN_modulation.1": "final_modulation",
    "final_layer.linear": "final_linear",
}
DIT_BLOCK_MODULES = {
    "adaLN_modulation.1": "modulation",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
}
SWIGLU_MODULES = {"mlp.w12": "mlp.gate_up", "mlp.w3": "mlp.down"}
MLP_MODULES = {"mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
# Tables that the reference stores, and the buffers that compute them here.
DIT_TABLES = dict(zip(("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"), POSITIONS, strict=True))
KIND = "a LightningDiT"

PUBLISHED_DELTA_T = 0.3
"""The offset of the published models with two times (arXiv 2512.04926)."""

STATISTICS_SUFFIXES = ("_latents_stats", "_latents_sv_stats")
"""What the reference calls the statistics of textures and of semantics, behind the name of the transformer's file."""


def dit_from_reference(
    weights: Mapping[str, Tensor],
    heads: int | None = None,
    semantic_channels: int | None = None,
    repa_depth: int = 2,
) -> tuple[LightningDiTConfig, dict[str, Tensor]]:
    """A reference LightningDiT's state dict as our configuration and state dict; the other arguments are as in `Hints`.

    Its tables of positions are no weights here; `dit_tables_from_reference` gives them where they differ from ours.

    Raises:
        FormatError: something is missing, unknown or of another shape, by the reference's names, or a hint is needed.
    """
    config = _dit_config(weights, heads, semantic_channels, repa_depth)
    tables = _dit_tables(config)
    _check_tables(weights, tables)
    names = _dit_names(config)
    ours = {reference: name for name, reference in names.items()}
    trained = {key: tensor for key, tensor in weights.items() if key not in tables}
    converted, name_of = renamed(trained, lambda key: _renamed(key, ours), lambda key: _renamed(key, names))
    converted["patch_embedding.weight"] = converted["patch_embedding.weight"].flatten(1)
    with torch.device("meta"):
        require_fit(LightningDiT(config), converted, name_of)
    return config, converted


def dit_tables_from_reference(config: LightningDiTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables of a reference checkpoint that are not bit for bit those of the network built here.

    Averaging makes them drift: the reference's moving average goes over the positions as well, and 0.9999 of a
    number plus 0.0001 of it is not the number in float32.

    Returns:
        Tensors under the names and shapes of the network's buffers, in the checkpoint's dtype; empty if all agree.
    """
    return {
        DIT_TABLES[key]: _to_buffer(key, weights[key])
        for key, table in _dit_tables(config).items()
        if weights[key].dtype != table.dtype or not torch.equal(weights[key], table)
    }


def dit_to_reference(
    config: LightningDiTConfig, state_dict: Mapping[str, Tensor], tables: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our LightningDiT's state dict under the reference's names, with the tables that the reference stores.

    `tables` are those that `dit_tables_from_reference` gave when the network was imported.

    Raises:
        FormatError: the network predicts something else than velocities.
    """
    if config.prediction != "velocity":
        problem = f"has prediction: {config.prediction}, and the reference's networks predict the velocity"
        raise FormatError(problem, "train with prediction: velocity to export it")
    names = _dit_names(config)
    exported = {_renamed(key, names): tensor for key, tensor in state_dict.items()}
    kernel = (config.width, config.in_channels, config.patch_size, config.patch_size)
    exported["x_embedder.proj.weight"] = exported["x_embedder.proj.weight"].reshape(kernel)
    buffers = {ours: reference for reference, ours in DIT_TABLES.items()}
    own = {buffers[name]: _from_buffer(buffers[name], table) for name, table in (tables or {}).items()}
    return exported | _dit_tables(config) | own


def _dit_config(
    weights: Mapping[str, Tensor], heads: int | None, semantic_channels: int | None, repa_depth: int
) -> LightningDiTConfig:
    kernel = shape_of(weights, "x_embedder.proj.weight", 4, KIND)
    width, in_channels, patch_size = kernel[:3]
    if kernel[3] != patch_size:
        raise FormatError(f"x_embedder.proj.weight is {kernel}, but patches are square")
    qk_norm = "blocks.0.attn.q_norm.weight" in weights
    dual = "t_embedder_sem.mlp.0.weight" in weights
    swiglu = "blocks.0.mlp.w12.weight" in weights
    hidden = shape_of(weights, "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight", 2, KIND)[1]
    projector = "repa_projector.0.weight" in weights
    if dual and semantic_channels is None:
        remedy = (
            "give foreign.semantic_channels (--foreign-semantic-channels), or `sfd weights import --semantic-channels`"
        )
        raise FormatError("does not tell how many of its channels are semantic", remedy)
    if not 0 <= (semantic_channels or 0) <= in_channels:
        raise FormatError(f"has {in_channels} channels, of which semantic_channels {semantic_channels} cannot be")
    if "pos_embed" not in weights:
        raise FormatError("has no pos_embed, which tells the size of its grid", "export it whole")
    widths = {}
    if projector:
        layers = {"repa_width": "repa_projector.0.weight", "feature_width": "repa_projector.4.weight"}
        widths = {name: shape_of(weights, key, 2, KIND)[0] for name, key in layers.items()}
    try:
        return LightningDiTConfig(
            grid=round(shape_of(weights, "pos_embed", 3, KIND)[1] ** 0.5) * patch_size,
            in_channels=in_channels,
            num_classes=shape_of(weights, "y_embedder.embedding_table.weight", 2, KIND)[0] - 1,
            semantic_channels=semantic_channels or 0,
            width=width,
            depth=count_numbers(weights, r"blocks\.(\d+)\."),
            heads=_heads(weights, width, heads),
            patch_size=patch_size,
            mlp_ratio=_mlp_ratio(width, hidden, swiglu),
            qk_norm=qk_norm,
            swiglu=swiglu,
            rope="feat_rope.freqs_cos" in weights,
            rms_norm="blocks.0.norm1.weight" in weights,
            time_embedding="dual" if dual else "single",
            repa_depth=repa_depth if projector else 0,
            prediction="velocity",
            **widths,
        )
    except ValueError as error:
        raise FormatError(f"is not a LightningDiT that can be built here: {error}") from None


def _heads(weights: Mapping[str, Tensor], width: int, heads: int | None) -> int:
    """Attention heads: as the q/k norms show, where there are any, else as the hint says."""
    if "blocks.0.attn.q_norm.weight" in weights:
        heads = width // shape_of(weights, "blocks.0.attn.q_norm.weight", 1, KIND)[0]
    if heads is None:
        remedy = "give foreign.heads (--foreign-heads), or `sfd weights import --heads`"
        raise FormatError("has no q/k norms that tell the number of attention heads", remedy)
    if heads < 1:
        raise FormatError(f"of width {width} cannot have heads {heads}", "give another number")
    return heads


def _mlp_ratio(width: int, hidden: int, swiglu: bool) -> float:
    """The roundest ratio whose hidden width is `hidden`, since rounding down made many ratios equal."""
    exact = hidden / width * (1.5 if swiglu else 1.0)
    for denominator in (1, 2, 4, 8, 64, 512, 4096):
        for ratio in (round(exact * denominator) / denominator, (int(exact * denominator) + 1) / denominator):
            if hidden == (int(2 / 3 * width * ratio) if swiglu else int(width * ratio)):
                return ratio
    raise FormatError(f"has a hidden width {hidden}, which no mlp_ratio gives at width {width}")


def _dit_names(config: LightningDiTConfig) -> dict[str, str]:
    """Our module path -> the reference's, for every module the configuration may have."""
    block = DIT_BLOCK_MODULES | (SWIGLU_MODULES if config.swiglu else MLP_MODULES)
    names = {ours: theirs for theirs, ours in DIT_MODULES.items()}
    for number in range(config.depth):
        names |= {f"blocks.{number}.{ours}": f"blocks.{number}.{theirs}" for theirs, ours in block.items()}
    return names


def _renamed(key: str, modules: Mapping[str, str]) -> str:
    """`key` with its module path replaced; an unknown one comes back as it is."""
    module, _, leaf = key.rpartition(".")
    return f"{modules[module]}.{leaf}" if module in modules else key


def _dit_tables(config: LightningDiTConfig) -> dict[str, Tensor]:
    """The reference's stored tables that are functions of the configuration."""
    tables = {"pos_embed": sincos_positions(config.width, config.tokens_per_side)}
    if config.rope:
        rotary = rotary_tables(config.head_width, config.tokens_per_side)
        for key, table in zip(("feat_rope.freqs_cos", "feat_rope.freqs_sin"), rotary, strict=True):
            tables[key] = _from_buffer(key, table)
    return tables


def _to_buffer(key: str, table: Tensor) -> Tensor:
    """A table of the reference in the shape of our buffer, which has an axis for the heads."""
    if key == "pos_embed":
        return table
    return (_signed(table) if key == "feat_rope.freqs_sin" else table).unsqueeze(1)


def _from_buffer(key: str, buffer: Tensor) -> Tensor:
    """The inverse of `_to_buffer`."""
    if key == "pos_embed":
        return buffer
    table = buffer.squeeze(1)
    return _signed(table) if key == "feat_rope.freqs_sin" else table


def _signed(sines: Tensor) -> Tensor:
    """Our sines carry the sign of the rotation in the even channels, the reference's carry none; changes over."""
    channels = torch.arange(sines.shape[-1])
    return torch.where(channels % 2 == 0, -sines, sines)


def _check_tables(weights: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    """Positions that were trained, or made by another rule, must not be dropped in silence."""
    for key, table in tables.items():
        found = weights.get(key)
        if found is None or found.shape != table.shape or not torch.allclose(found.float(), table, atol=1e-2):
            raise FormatError(f"{key} is not the fixed table of its architecture", "it cannot be used")


def _read(content: Content, hints: Hints) -> ModelParts:
    """The weights, averaged (`ema`) and last (`model`); optimiser state and settings objects are not carried over."""
    semantic = hints.semantic_channels
    if semantic is None and hints.semantic_statistics is not None:
        semantic = len(hints.semantic_statistics.mean)
    configs: dict[str, LightningDiTConfig] = {}
    weights: dict[str, dict[str, Tensor]] = {}
    for wrapper, tensors in content.state_dicts.items():
        # Samplers take the averaged weights, so a state dict that does not say what it is stands for these.
        stem = "model" if wrapper == "model" else "ema"
        if stem in weights:
            continue
        configs[stem], weights[stem] = dit_from_reference(tensors, hints.heads, semantic, hints.repa_depth or 2)
        tables = dit_tables_from_reference(configs[stem], tensors)
        if tables:
            weights[f"{stem}{TABLES}"] = tables
    config = next(iter(configs.values()))
    if any(other != config for other in configs.values()):
        raise FormatError("holds an ema and a model of different architectures", "take out the one you want")
    delta_t = hints.delta_t
    if delta_t is None:
        delta_t = PUBLISHED_DELTA_T if config.time_embedding == "dual" else 0.0
    if not 0 <= delta_t <= 1:
        raise FormatError(f"cannot have delta_t {delta_t:g}", "give an offset from 0 to 1")
    return ModelParts("LightningDiT", config, weights, {"delta_t": delta_t} | _joined_statistics(hints))


def _joined_statistics(hints: Hints) -> dict[str, Any]:
    """`statistics` of a transformer's `config.json`, textures first; nothing where there are none."""
    parts = [part for part in (hints.texture_statistics, hints.semantic_statistics) if part is not None]
    joined = {key: [value for part in parts for value in getattr(part, key)] for key in ("mean", "std")}
    return {"statistics": joined} if parts else {}


def _write(model: ModelParts) -> dict[str, dict[str, Any]]:
    """`{"model", "ema"}` as far as there are both; latent statistics beside it, split by stream, in float32."""
    config, weights = model.config, model.weights
    exported: dict[str, Any] = {
        stem: dit_to_reference(config, weights[stem], weights.get(f"{stem}{TABLES}"))
        for stem in ("model", "ema")
        if stem in weights
    }
    if not exported:
        raise FormatError("holds neither ema.safetensors nor model.safetensors", "run what makes it again")
    files = {"": exported}
    if model.facts.get("statistics") is not None:
        both = configured(LatentStatistics, model.facts["statistics"])
        if len(both.mean) != config.in_channels:
            problem = f"has statistics of {len(both.mean)} channels, but the transformer has {config.in_channels}"
            raise FormatError(problem, "run what makes it again")
        textures = config.in_channels - config.semantic_channels
        for suffix, part in zip(STATISTICS_SUFFIXES, (slice(0, textures), slice(textures, None)), strict=True):
            if both.mean[part]:
                files[suffix] = statistics_to_reference(LatentStatistics(both.mean[part], both.std[part]))
    return files


FORMAT = Format(
    "LightningDiT",
    LightningDiTConfig,
    matches=lambda content: content.has("x_embedder.", "y_embedder.", "t_embedder", "final_layer."),
    read=_read,
    write=_write,
    hints=("heads", "semantic_channels", "repa_depth", "delta_t", "texture_statistics", "semantic_statistics"),
)
