"""LightningDiT: the transformer that predicts the velocity of a composite latent (arXiv 2501.01423, 2512.04926).

Differences from DiT (arXiv 2212.09748):
- 2-D rotary attention with RMSNorm on queries and keys, RMSNorm and SwiGLU in the blocks;
- two times, one per stream: each has an embedder of half the width, semantic first, then texture;
- a REPA projector reads the tokens after an early block (arXiv 2410.06940).
Each of these can be switched off, which leaves a plain DiT. The last layer may give the clean latent (JiT, arXiv
2511.13720); `forward` makes a velocity of it, so that nobody else needs to know. Tokens are row-major patches of the
latent grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfd_cli.architecture import WIDEST, require_counts, require_patches, require_positions, require_transformer
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.objective import velocity_of_data
from sfd_cli.errors import SettingError
from sfd_cli.networks.precision import autocast

TIME_FREQUENCIES = 256
PREDICTIONS = ("velocity", "data")
FEW_TOKENS = 256


@dataclass(frozen=True)
class LightningDiTConfig:
    """The whole architecture.

    `grid` is the side of the latent in latent pixels; `semantic_channels` of the `in_channels` (the last ones)
    are semantic, which the network itself does not use but its users do (`space`). `repa_depth` counts blocks from 1
    and 0 means no projector; `feature_width` is the width of the encoder's patch tokens. `prediction` is what the last
    layer gives, the velocity or the clean latent.
    """

    grid: int
    in_channels: int
    num_classes: int
    semantic_channels: int = 0
    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch_size: int = 1
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    rms_norm: bool = True
    time_embedding: Literal["dual", "single"] = "dual"
    repa_depth: int = 0
    repa_width: int = 2048
    feature_width: int = 0
    prediction: Literal["velocity", "data"] = field(default="velocity", metadata={"later": True})

    def __post_init__(self) -> None:
        require_transformer(
            width=self.width, depth=self.depth, heads=self.heads, rope=self.rope, repa_depth=self.repa_depth
        )
        require_patches(self.grid, self.patch_size)
        require_positions(self.tokens_per_side, self.width)
        require_counts(in_channels=self.in_channels, num_classes=self.num_classes, repa_width=self.repa_width)
        require_counts(0, self.in_channels, semantic_channels=self.semantic_channels)
        require_counts(0, feature_width=self.feature_width)
        if not 0 < self.mlp_ratio <= WIDEST:  # which is false of what is no number
            raise SettingError("mlp_ratio", f"{self.mlp_ratio} makes no hidden channels", "use another number")
        if self.repa_depth and not self.feature_width:
            raise SettingError("feature_width", "a REPA projector needs the width of the patch tokens", "give it")
        if self.prediction not in PREDICTIONS:
            raise SettingError("prediction", f"{self.prediction!r} is not known", f"use {' or '.join(PREDICTIONS)}")

    @property
    def space(self) -> LatentSpace:
        """Layout of the composite latent; the network does not know its scale."""
        return LatentSpace(self.in_channels - self.semantic_channels, self.semantic_channels, self.grid)

    @property
    def conditions(self) -> Conditions:
        """The rows of the class embedding, named by the numbers of the classes."""
        return Conditions.numbered(self.num_classes)

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def tokens_per_side(self) -> int:
        """Side of the grid of tokens."""
        return self.grid // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden channels of the MLP; SwiGLU takes two thirds so that its three matrices cost the same as two."""
        return int(2 / 3 * self.width * self.mlp_ratio) if self.swiglu else int(self.width * self.mlp_ratio)


class Outputs(NamedTuple):
    """What training takes of a network beside the velocity (B, C, h, w), as far as it was asked for.

    Attributes:
        velocity: (B, C, h, w).
        projection: (B, tokens, feature_width), for REPA.
        hidden: (B, tokens, width), tokens after an intermediate block.
    """

    velocity: Tensor
    projection: Tensor | None = None
    hidden: Tensor | None = None


class LightningDiT(nn.Module):
    """Velocity of a composite latent from its noisy value, the times of both streams and the condition.

    Set `checkpoint_activations` to recompute the blocks in the backward pass instead of storing them.
    """

    position: Tensor
    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        side, patch_values = config.tokens_per_side, config.patch_size**2 * config.in_channels
        self.patch_embedding = nn.Linear(patch_values, config.width)
        self.register_buffer("position", sincos_positions(config.width, side), persistent=False)
        if config.time_embedding == "dual":
            self.semantic_time = TimeEmbedding(config.width // 2)
            self.texture_time = TimeEmbedding(config.width - config.width // 2)
        else:
            self.time = TimeEmbedding(config.width)
        self.class_embedding = nn.Embedding(config.conditions.rows, config.width)
        if config.rope:
            cos, sin = rotary_tables(config.head_width, side)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.repa_depth:
            self.projector = nn.Sequential(
                nn.Linear(config.width, config.repa_width),
                nn.SiLU(),
                nn.Linear(config.repa_width, config.repa_width),
                nn.SiLU(),
                nn.Linear(config.repa_width, config.feature_width),
            )
        self.final_norm = _block_norm(config)
        self.final_modulation = nn.Linear(config.width, 2 * config.width)
        self.final_linear = nn.Linear(config.width, patch_values)
        self._initialise()

    def forward(
        self,
        x: Tensor,
        t_texture: Tensor,
        t_semantic: Tensor,
        rows: Tensor,
        project: bool = False,
        hidden_depth: int = 0,
    ) -> Tensor | Outputs:
        """Velocity, and what a training asks for beside it.

        Args:
            x: (B, C, h, w), texture channels first.
            t_texture: (B,) in [0, 1], data at 1. A network with a single time takes the mean of both.
            t_semantic: (B,) likewise.
            rows: (B,) int64, rows of the conditions: the class, or `num_classes` for no condition.
            project: also project the tokens after block `repa_depth`; a projector must exist.
            hidden_depth: also give the tokens after this block, counted from 1; 0 is none.

        Returns:
            Velocity (B, C, h, w), or all that was asked for.
        """
        condition = F.silu(self._time_condition(t_texture, t_semantic) + self.class_embedding(rows))
        rotary = (self.rotary_cos, self.rotary_sin) if self.config.rope else None
        # Weights may be held in another dtype than the latent; the embedding of patches is where the two meet.
        held = self.patch_embedding.weight.dtype
        tokens = self.patch_embedding(self._patchify(x).to(held)) + self.position.to(held)
        projection = hidden = None
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, rotary, use_reentrant=False)
            else:
                tokens = block(tokens, condition, rotary)
            if project and number == self.config.repa_depth:
                projection = self.projector(tokens)
            if number == hidden_depth:
                hidden = tokens
        velocity = self._unpatchify(self._output(tokens, condition))
        if self.config.prediction == "data":
            velocity = velocity_of_data(velocity, x, Streams(t_texture, t_semantic), self.config.space)
        if project and projection is None:
            raise ValueError("this network has no REPA projector (repa_depth is 0)")
        return Outputs(velocity, projection, hidden) if project or hidden_depth else velocity

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block, in place, with `torch.compile`'s arguments.

        The blocks share one graph, so the compiler's work does not grow with the depth; around them is little to fuse.
        """
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def with_mixed_rows(self, first: int, last: int, weights: Sequence[float]) -> LightningDiT:
        """The same network, its other weights shared, with one more row for each of `weights` behind its conditions'.

        The row of weight w is (1 - w) times the embedding of row `first` plus w times that of row `last`.
        """
        table = self.class_embedding.weight.detach()
        mixed = [(1 - weight) * table[first] + weight * table[last] for weight in weights]
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.class_embedding = nn.Embedding.from_pretrained(torch.cat((table, torch.stack(mixed))))
        return other

    def _time_condition(self, t_texture: Tensor, t_semantic: Tensor) -> Tensor:
        if self.config.time_embedding == "dual":
            return torch.cat((self.semantic_time(t_semantic), self.texture_time(t_texture)), dim=-1)
        return self.time((t_texture + t_semantic) / 2)

    def _output(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens after the last block -> the values of their patches (B, tokens, patch * patch * C)."""
        shift, scale = self.final_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        tokens = modulate(self.final_norm(tokens), shift, scale)
        if self.config.prediction == "velocity":
            return self.final_linear(tokens)
        # Near the data a clean latent's error counts twentyfold in the velocity, and bfloat16's rounding would show.
        with autocast("fp32", tokens.device):
            weight, bias = self.final_linear.weight, self.final_linear.bias
            exact = torch.promote_types(weight.dtype, torch.float32)
            return F.linear(tokens.to(exact), weight.to(exact), bias.to(exact))

    def _patchify(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, tokens, C * patch * patch), values ordered as a convolution kernel's."""
        side, patch = self.config.tokens_per_side, self.config.patch_size
        patches = x.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # (B, C, row, p, column, q)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _unpatchify(self, values: Tensor) -> Tensor:
        """(B, tokens, patch * patch * C) -> (B, C, h, w)."""
        side, patch = self.config.tokens_per_side, self.config.patch_size
        patches = values.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))  # (B, row, column, p, q, C)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _initialise(self) -> None:
        """DiT's initialisation (arXiv 2212.09748, section 3.2): every block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TimeEmbedding):
                nn.init.normal_(module.linear_in.weight, std=0.02)
                nn.init.normal_(module.linear_out.weight, std=0.02)
            elif isinstance(module, Block):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.final_linear.weight)


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN)."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.attention_norm = _block_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _block_norm(config)
        self.mlp = SwiGLU(config.width, config.mlp_width) if config.swiglu else MLP(config.width, config.mlp_width)

    def forward(self, tokens: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens (B, N, width) under the activated condition (B, width)."""
        modulation = self.modulation(condition).unsqueeze(1)  # (B, 1, 6 * width)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
        attended = self.attention(modulate(self.attention_norm(tokens), shift_attention, scale_attention), rotary)
        tokens = tokens + gate_attention * attended
        return tokens + gate_mlp * self.mlp(modulate(self.mlp_norm(tokens), shift_mlp, scale_mlp))


class Attention(nn.Module):
    """Multi-head self-attention with normalised, rotated queries and keys."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        norm: Callable[[int], nn.Module] = RMSNorm if config.rms_norm else nn.LayerNorm
        self.query_norm = norm(config.head_width) if config.qk_norm else nn.Identity()
        self.key_norm = norm(config.head_width) if config.qk_norm else nn.Identity()

    def forward(self, tokens: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens (B, N, width) -> (B, N, width)."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, N, heads, head width)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        # Tables and norms are float32; under autocast the attention kernel wants one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        mixed = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.out(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """`down(silu(gate) * up)`, gate and up from one matrix product (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., width) -> (..., width)."""
        gate, up = self.gate_up(tokens).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MLP(nn.Module):
    """DiT's two-layer MLP with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., width) -> (..., width)."""
        return self.down(F.gelu(self.up(tokens), approximate="tanh"))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32 at least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), 1e-6).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time in [0, 1], then two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear_in = nn.Linear(TIME_FREQUENCIES, width)
        self.linear_out = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Times (B,) -> (B, width)."""
        angles = time[:, None] * self.frequencies
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.linear_in.weight.dtype)
        return self.linear_out(F.silu(self.linear_in(waves)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`: the adaLN affine map, the identity where both are zero."""
    return x * (1 + scale) + shift


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of queries, keys and values (B, heads, N, head width) of one dtype."""
    # On a CPU the backward pass of PyTorch's fused attention is slow in bfloat16: forward and backward on one core take
    # 34 ms for 64 images of 16 tokens, 88 ms for 64 tokens; plain products take 3 and 22 ms. At 256 tokens both are
    # about equal, and the forward pass alone is not slow.
    if value.requires_grad and value.dtype == torch.bfloat16 and value.is_cpu and value.shape[2] <= FEW_TOKENS:
        scaled = query * query.shape[-1] ** -0.5
        return (scaled @ key.transpose(-2, -1)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (B, N, heads, head width) by the angles of `rotary_tables`."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((second, first), dim=-1).flatten(-2) * sin


def rotary_tables(head_width: int, side: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each (side * side, 1, head width), of 2-D rotary positions (as in EVA-02).

    The first half of the channels turns with the row, the second with the column. The sines of even channels
    are negative, so that a pair (a, b) becomes (a cos - b sin, b cos + a sin) by `rotate`. The arithmetic is the
    reference's, step by step, so that an exported checkpoint has its tables to the last bit.
    """
    half = head_width // 2
    frequencies = 1.0 / 10_000 ** (torch.arange(0, half, 2).float() / half)
    # Divided by the side and multiplied again, which rounds differently on some grids.
    places = torch.arange(side) / side * side
    angles = (places[:, None] * frequencies).repeat_interleave(2, dim=-1)  # (side, half)
    rows = angles[:, None, :].expand(side, side, half)
    columns = angles[None, :, :].expand(side, side, half)
    both = torch.cat((rows, columns), dim=-1).reshape(side * side, 1, head_width)
    signs = torch.tensor([-1.0, 1.0]).repeat(half)
    return both.cos(), both.sin() * signs


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sin-cos positions (1, side * side, width), as in MAE: column half first, then row half.

    In NumPy and float64, step by step as there, so that an exported checkpoint has them to the last bit.
    """
    quarter = width // 4
    frequencies = 1.0 / 10_000 ** (np.arange(quarter, dtype=np.float64) / (width / 4))
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    waves = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)  # (side, width / 2)
    shape = (side, side, 2 * quarter)
    columns, rows = np.broadcast_to(waves[None], shape), np.broadcast_to(waves[:, None], shape)
    table = np.concatenate((columns, rows), axis=-1).reshape(1, side * side, width)
    return torch.tensor(table, dtype=torch.float32)


def _block_norm(config: LightningDiTConfig) -> nn.Module:
    """The norm before a modulation; LayerNorm needs no scale of its own there, RMSNorm has one in LightningDiT."""
    return RMSNorm(config.width) if config.rms_norm else nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
