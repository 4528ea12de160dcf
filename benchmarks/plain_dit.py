"""The baseline of the training step: a LightningDiT and its training step in plain, eager PyTorch.

Written as a competent script is written before anyone has looked at its speed, after the public reference code:

- attention by `F.scaled_dot_product_attention`, queries, keys, values and SwiGLU's two halves from one matrix each;
- RMSNorm and the rotation written out (`x * rsqrt(mean(x^2) + eps)`, pairs stacked), one adaLN matrix per block;
- `torch.optim.AdamW` as it comes (its own choice of loop or `foreach`), gradients set to None;
- the average of the weights by a loop over the parameters, in place;
- the losses read with `.item()` after every step, as a progress bar wants them;
- bfloat16, where asked for, by autocast; no gradient norm, no check for NaN, which ours has to pay for.

Parameters and tables have the reference's names, so `dit_to_reference` fills it with our weights.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.networks.lightning_dit import LightningDiTConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.type_as(x) * self.weight


class Rotary(nn.Module):
    """2-D rotary positions from stored tables (tokens, head width)."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, tokens: int, head_width: int) -> None:
        super().__init__()
        self.register_buffer("freqs_cos", torch.empty(tokens, head_width))
        self.register_buffer("freqs_sin", torch.empty(tokens, head_width))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x (B, heads, tokens, head width)."""
        first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack((-second, first), dim=-1).reshape(x.shape)
        return x * self.freqs_cos + turned * self.freqs_sin


class Attention(nn.Module):
    """Self-attention with normalised, rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """(B, tokens, width) -> (B, tokens, width)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
        # Norm and tables are float32, and only CUDA's autocast casts the arguments of the attention itself.
        mixed = F.scaled_dot_product_attention(q.type_as(v), k.type_as(v), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """`w3(silu(a) * b)`, a and b from one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class Block(nn.Module):
    """Attention and MLP under adaLN."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.mlp_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(self, x: Tensor, condition: Tensor, rotary: Rotary) -> Tensor:
        """Tokens (B, tokens, width) under the condition (B, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rotary)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class TimeEmbedder(nn.Module):
    """256 sinusoids of a time and a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        frequencies = 10_000 ** (-torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None] * frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class PatchEmbed(nn.Module):
    """Patches as tokens, by a convolution."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, tokens, width)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class LabelEmbedder(nn.Module):
    """A vector per class, and one for none."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """Norm, shift, scale, and a linear map to the values of a patch."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, tokens, width) -> (B, tokens, values)."""
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class PlainDiT(nn.Module):
    """LightningDiT with everything on: two times, rotary, q/k norm, RMSNorm, SwiGLU, REPA projector."""

    pos_embed: Tensor

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, config.tokens_per_side**2
        self.x_embedder = PatchEmbed(config.in_channels, width, config.patch_size)
        self.register_buffer("pos_embed", torch.empty(1, tokens, width))
        self.t_embedder_sem = TimeEmbedder(width // 2)
        self.t_embedder_tex = TimeEmbedder(width - width // 2)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.feat_rope = Rotary(tokens, config.head_width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.repa_projector = nn.Sequential(
            nn.Linear(width, config.repa_width),
            nn.SiLU(),
            nn.Linear(config.repa_width, config.repa_width),
            nn.SiLU(),
            nn.Linear(config.repa_width, config.feature_width),
        )
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.in_channels)

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, C, h, w) and the projection (B, tokens, feature width)."""
        tokens = self.x_embedder(x) + self.pos_embed
        time = torch.cat((self.t_embedder_sem(t_semantic), self.t_embedder_tex(t_texture)), dim=-1)
        condition = time + self.y_embedder(labels)
        projection = tokens
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition, self.feat_rope)
            if number == self.config.repa_depth:
                projection = self.repa_projector(tokens)
        values = self.final_layer(tokens, condition)
        side, patch, channels = self.config.tokens_per_side, self.config.patch_size, self.config.in_channels
        values = values.reshape(-1, side, side, patch, patch, channels)
        velocity = torch.einsum("nhwpqc->nchpwq", values).reshape(-1, channels, side * patch, side * patch)
        return velocity, projection


class PlainTraining:
    """The objective and one optimiser step, in plain PyTorch.

    Args:
        model: on the training device, weights loaded.
        mean: of the latents, (C, 1, 1).
        std: likewise.
        delta_t: offset of the two times.
        bf16: compute under autocast.
    """

    def __init__(
        self, model: PlainDiT, mean: Tensor, std: Tensor, delta_t: float, learning_rate: float, bf16: bool
    ) -> None:
        self.model, self.mean, self.std, self.delta_t, self.bf16 = model, mean, std, delta_t, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)

    def losses(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Velocity error (twice on semantics), cosine term, REPA, and their sum, on one batch."""
        config, noise = self.model.config, draws["noise"]
        textures = config.in_channels - config.semantic_channels
        data = torch.cat((batch["texture"], batch["semantic"]), dim=1).float()
        data = (data - self.mean) / self.std
        progress = draws["level"] * (1 + self.delta_t)
        t_semantic = progress.clamp(0, 1)
        t_texture = (progress - self.delta_t).clamp(0, 1)
        t = torch.ones_like(data)
        t[:, :textures] = t_texture[:, None, None, None]
        t[:, textures:] = t_semantic[:, None, None, None]
        x = t * data + (1 - t) * noise
        labels = torch.where(draws["dropped"], config.num_classes, batch["labels"])
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            velocity, projection = self.model(x, t_texture, t_semantic, labels)
        velocity, projection = velocity.float(), projection.float()
        target = data - noise
        weight = torch.ones(config.in_channels, 1, 1, device=x.device)
        weight[textures:] = 2.0
        mse = ((velocity - target) ** 2 * weight).mean()
        cosine = (1 - F.cosine_similarity(velocity, target, dim=1)).mean()
        repa = (1 - F.cosine_similarity(projection, batch["features"].float(), dim=-1)).mean()
        return {"loss": mse + cosine + repa, "mse": mse, "cosine": cosine, "repa": repa}

    def step(self, batch: dict[str, Tensor], draws: dict[str, Tensor], ema_decay: float) -> dict[str, float]:
        """One optimiser step; the losses before it."""
        losses = self.losses(batch, draws)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.mul_(ema_decay).add_(parameter, alpha=1 - ema_decay)
        return {name: value.item() for name, value in losses.items()}
