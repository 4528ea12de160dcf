"""Inception-v3 as ADM's evaluator has it: FID, sFID, Inception score, KID, precision and recall are of its features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sfd_cli.evaluation.extractor import LOGITS, POOLED, SPATIAL, Extractor
from sfd_cli.formats.torch_files import read_weights_file

SPATIAL_CHANNELS = 7
INCEPTION_WIDTHS = {POOLED: 2048, SPATIAL: SPATIAL_CHANNELS * 17 * 17, LOGITS: 1008}


def inception_extractor(weights: Path, device: torch.device) -> Extractor:
    """torch-fidelity's Inception-v3 with the outputs that ADM's evaluator takes, TensorFlow-compatible resizing.

    These are `pooled` (2048); `spatial` (2023), which is the first 7 channels of what ADM calls `mixed_6/conv`, the 1x1
    branch of the third 17x17 block after its ReLU, in ADM's order (row, column, channel); and `logits` (1008) without
    their bias.

    Raises:
        UserError: `weights` is not a plain state dict.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles the file, so refuse one that could execute code.
    read_weights_file(weights)
    outputs = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=str(weights))
    network.to(device)
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def compute(images: Tensor) -> dict[str, Tensor]:
        pooled, logits = network(images)
        spatial = seen.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {POOLED: pooled, SPATIAL: spatial, LOGITS: logits}

    return Extractor("inception", INCEPTION_WIDTHS, device, compute)
