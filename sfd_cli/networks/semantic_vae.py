"""The Semantic VAE: a transformer that compresses a frozen encoder's patch tokens to a few channels each.

Encoder and decoder are alike: a linear layer in, pre-norm attention blocks, LayerNorm, a linear layer out
(arXiv 2512.04926, Semantic VAE). It knows no positions; the encoder's tokens carry theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.architecture import DEEPEST, require_counts, require_heads
from sfd_cli.networks.gaussian import LOGVAR_RANGE, draw
from sfd_cli.networks.tiles import join_tiles, split_tiles


@dataclass(frozen=True)
class SemanticVAEConfig:
    """The whole architecture.

    `feature_width` is the width D of the patch tokens, `channels` the C_s of the latent; `width`, `depth` and
    `heads` are of the transformer, the same in encoder and decoder. The tokens of each of `tiles` x `tiles` parts of
    the grid attend to each other only, so that a network made for 16x16 tokens works on four quadrants of 32x32.
    """

    feature_width: int
    channels: int
    width: int
    depth: int
    heads: int
    tiles: int = 1

    def __post_init__(self) -> None:
        require_heads(self.width, self.heads)
        require_counts(feature_width=self.feature_width, channels=self.channels, tiles=self.tiles)
        require_counts(0, DEEPEST, depth=self.depth)


class SemanticVAE(nn.Module):
    """Patch tokens to a diagonal Gaussian over semantic latents, and back."""

    def __init__(self, config: SemanticVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Transformer(config.feature_width, config, 2 * config.channels)
        self.decoder = Transformer(config.channels, config, config.feature_width)

    def forward(self, tokens: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training needs of patch tokens (B, N, D) and posterior noise (B, N, C_s).

        Returns:
            The reconstruction (B, N, D) of a posterior sample, and the posterior's mean and logvar.
        """
        mean, logvar = self.encode(tokens)
        return self.decode(draw(mean, logvar, noise)), mean, logvar

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, N, D) -> mean and logvar, each (B, N, C_s), logvar clamped to [-30, 20]."""
        mean, logvar = self._by_tiles(self.encoder, tokens).chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Semantic latents (B, N, C_s) -> patch tokens (B, N, D)."""
        return self._by_tiles(self.decoder, latents)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block, in place, with `torch.compile`'s arguments; all share one graph."""
        for transformer in (self.encoder, self.decoder):
            for block in transformer.blocks:
                block.compile(*args, **kwargs)

    def _by_tiles(self, transformer: nn.Module, tokens: Tensor) -> Tensor:
        tiles = self.config.tiles
        return transformer(tokens) if tiles == 1 else join_tiles(transformer(split_tiles(tokens, tiles)), tiles)


class Transformer(nn.Module):
    """Linear in, pre-norm blocks, LayerNorm, linear out, token by token (B, N, in) -> (B, N, out)."""

    def __init__(self, in_width: int, config: SemanticVAEConfig, out_width: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(in_width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.linear_out = nn.Linear(config.width, out_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, in) to (B, N, out)."""
        tokens = self.linear_in(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.linear_out(self.norm(tokens))


class Block(nn.Module):
    """Pre-norm self-attention and a GELU MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, width) to (B, N, width)."""
        qkv = self.qkv(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head width)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.mlp_norm(tokens))))
