"""The frozen visual encoder whose patch tokens are the semantics: any ViT of timm, fed and read out as it was trained.

DINOv2 gets special care because published SFD weights were trained on its tokens: the plain variants resample
their position embedding in a way of their own (`resample_dinov2_positions`), which timm does not follow.
"""

from __future__ import annotations

import difflib
import re
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.errors import UserError
from sfd_cli.networks.tiles import join_tiles

DINOV2_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_DINOV2_NAMES = [f"dinov2_vit{letter}14{suffix}" for letter in DINOV2_SIZES for suffix in ("", "_reg")]

# What a published file may hold beyond the blocks that give patch tokens: pooling, classifier, masking token.
_UNUSED_WEIGHTS = re.compile(r"(head|head_dist|head_drop|attn_pool|fc_norm|mask_token)\b")


class VisualEncoder(nn.Module):
    """A frozen vision transformer in evaluation mode, with random weights until `load`.

    Args:
        name: `dinov2_vit{s,b,l,g}14[_reg]`, or the timm name of a plain vision transformer
            (MAE, CLIP, SigLIP, DINOv3, ...), e.g. `vit_base_patch16_dinov3.lvd1689m`.
        image_size: side of the square the network sees, pixels; a multiple of the patch size.
        tiles: the image is cut into tiles x tiles crops, each seen at `image_size` on its own, and their grids are
            laid side by side: an encoder made for 224 px gives four quadrants of a 512 px image 32x32 tokens.
        **architecture: changes to the named architecture, handed to timm (`embed_dim`, `depth`, ...).

    Raises:
        UserError: unknown name, not a plain vision transformer, or a size that the patches do not tile.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: int, tiles: int = 1, **architecture: Any) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.tiles = tiles
        self.network = _create(name, image_size, architecture)
        self.patch_size = int(self.network.patch_embed.patch_size[0])
        if image_size % self.patch_size:
            below = max(image_size // self.patch_size, 1) * self.patch_size
            problem = f"{image_size} is not a multiple of the {self.patch_size} px patches of {name}"
            raise UserError("encoder.image_size", problem, f"try {below} or {below + self.patch_size}")
        self.grid = tiles * image_size // self.patch_size
        self.feature_width = int(self.network.embed_dim)
        mean, std = (torch.tensor(self.network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> VisualEncoder:
        """Stay in evaluation mode whatever the module around this one does: the encoder is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens and class token of images.

        Args:
            images: (B, 3, H, W), float in [0, 1], any size that the tiles divide.

        Returns:
            Patch tokens (B, N, D) after the final norm, row-major over the whole grid, and the class token (B, D),
            the mean over the tiles; where the architecture has no class token, the mean of the patch tokens stands
            in for it.
        """
        images = (images - self.mean) / self.std
        if self.tiles == 1:
            return self._see(images)
        tiles = self.tiles
        crops = images.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1))  # (B, 3, row, h, column, w)
        patches, classes = self._see(crops.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        return join_tiles(patches, tiles), classes.unflatten(0, (-1, tiles**2)).mean(1)

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch and class tokens of normalised images, each seen as one square."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            # The reference resizes after normalising and without antialiasing; its statistics depend on both.
            images = F.interpolate(images, size=size, mode="bicubic", antialias=False)
        return self.encode(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, from images (B, 3, image_size, image_size) already resized and normalised."""
        tokens = self.network.forward_features(images)
        patches = tokens[:, self.network.num_prefix_tokens :]
        if getattr(self.network, "cls_token", None) is None:
            return patches, patches.mean(dim=1)
        return patches, tokens[:, 0]

    def load(self, state_dict: dict[str, Tensor]) -> None:
        """Load published weights, under timm's key names or those of the original release.

        Position embeddings made for another grid are resampled: plain DINOv2 as its own code does, all others
        as timm does.

        Raises:
            ValueError: weights missing, left over or of the wrong shape; names the first.
        """
        weights = dict(state_dict)
        if self._is_plain_dinov2:
            positions = weights.get("pos_embed")
            if positions is not None:
                weights["pos_embed"] = resample_dinov2_positions(positions.float(), self.grid // self.tiles)
        # Every timm architecture module knows the names of the original releases.
        convert = import_module(type(self.network).__module__).checkpoint_filter_fn
        try:
            weights = convert(weights, self.network)
            missing, unexpected = self.network.load_state_dict(weights, strict=False)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"do not fit {self.name}: {' '.join(str(error).split())}") from None
        unexpected = [key for key in unexpected if not _UNUSED_WEIGHTS.match(key)]
        for what, keys in (("lack", missing), ("hold what it has no place for:", unexpected)):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise ValueError(f"do not fit {self.name}: they {what} {keys[0]}{more}")

    @property
    def _is_plain_dinov2(self) -> bool:
        return "dinov2" in self.name and "reg" not in self.name


def resample_dinov2_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embedding (1, 1 + M*M, D) of a plain DINOv2, resampled to (1, 1 + grid*grid, D).

    As the original release: bicubic without antialiasing, by the factor (grid + 0.1) / M instead of grid / M.
    The 0.1, there against rounding, shifts every sampling point; without it tokens differ visibly from the
    published encoder's.

    Raises:
        ValueError: the positions are not those of a class token and a square grid.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.ndim != 3 or side * side + 1 != positions.shape[1]:
        raise ValueError(f"pos_embed of shape {tuple(positions.shape)} is not a class token and a square grid")
    if side == grid:
        return positions
    factor = (grid + 0.1) / side
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)


def timm_name(name: str) -> str:
    """The timm name of an encoder: DINOv2's own short names are translated, others pass unchanged.

    Raises:
        UserError: timm has no such model; names the nearest.
    """
    import timm

    if found := re.fullmatch(r"dinov2_vit([sblg])14(_reg)?", name):
        registers = "_reg4" if found.group(2) else ""
        return f"vit_{DINOV2_SIZES[found.group(1)]}_patch14{registers}_dinov2"
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            tags = ", ".join(timm.list_models(f"{name.split('.')[0]}.*", pretrained=True))
            raise UserError("encoder.name", f"{name!r} is no model of timm ({error})", f"known: {tags}") from None
        return name
    close = difflib.get_close_matches(name, [*timm.list_models("vit_*"), *_DINOV2_NAMES], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "see timm.list_models()"
    raise UserError("encoder.name", f"{name!r} is neither dinov2_vit{{s,b,l,g}}14[_reg] nor a timm model", hint)


def _create(name: str, image_size: int, architecture: dict[str, Any]) -> Any:
    import timm

    refusal = f"{name!r} is not a plain vision transformer with patch tokens"
    try:
        # Without a pooling head the final norm is applied to the tokens themselves.
        network = timm.create_model(
            timm_name(name), pretrained=False, num_classes=0, global_pool="", img_size=image_size, **architecture
        )
    except (TypeError, KeyError, ValueError) as error:
        raise UserError("encoder.name", f"{refusal} ({error})", "choose another") from None
    except AssertionError as error:
        problem = f"{name!r} does not take {image_size} px images ({error})"
        raise UserError("encoder.image_size", problem, "choose another size") from None
    if not hasattr(network, "num_prefix_tokens") or not hasattr(network, "patch_embed"):
        raise UserError("encoder.name", refusal, "choose another")
    return network
