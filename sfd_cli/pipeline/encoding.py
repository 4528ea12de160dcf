"""From images to composite latents: the three frozen networks, and the check that they fit together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.recipe import Facts
from sfd_cli.config import Features, Latents, Settings
from sfd_cli.data.contents import read_contents
from sfd_cli.data.images import AGAIN, ImageManifest, ImageReader
from sfd_cli.data.store import INDEX, Field, Store
from sfd_cli.data.transfer import fetching, host_buffer, one_behind, sent
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import SettingError, StageFailure, UserError
from sfd_cli.messages import say
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.layout import laid_out
from sfd_cli.networks.parts import by_parts
from sfd_cli.networks.precision import FrozenPrecision, choose_frozen_precision, computing, frozen
from sfd_cli.networks.texture_vae import to_signed
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.taking_over import latent_keys
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor, open_semantic, open_texture_vae
from sfd_cli.weights.visual_encoders import load_visual_encoder

Posterior = tuple[Tensor, Tensor]

ONE_BY_ONE = frozenset({"cpu"})
"""Devices on which an image goes through a network by itself, where what is made of it must not depend on others."""


def posteriors(
    texture_vae: TextureCompressor, semantic: SemanticCompressor | None, pixels: Tensor, tokens: Tensor | None
) -> dict[str, Posterior]:
    """Mean and logvar of each stream, (n, C, h, w) float32 each; without a semantic compressor of textures alone.

    Args:
        texture_vae: makes the texture latent.
        semantic: makes the semantic latent.
        pixels: uint8 (n, 3, H, W).
        tokens: patch tokens of the same images, (n, N, D); not needed without semantics.
    """
    texture, spread = by_parts(lambda part: texture_vae.encode(to_signed(part)), pixels)
    found: dict[str, Posterior] = {"texture": (texture, spread)}
    if semantic is not None:
        assert tokens is not None
        mean, logvar = semantic.encode(tokens.float())
        found["semantic"] = (as_grid(mean), as_grid(logvar))
    return found


def as_grid(values: Tensor) -> Tensor:
    """Tokens (B, N, C), row-major over a square grid, as an image (B, C, h, w)."""
    side = round(values.shape[1] ** 0.5)
    return values.transpose(1, 2).unflatten(2, (side, side))


def encode_flips(encoder: Callable[[Tensor], Sequence[Tensor]], images: Tensor, flips: int) -> Tensor:
    """Patch tokens (n, flips, N, D) float16 of the first `flips` views of uint8 images (n, 3, H, W) there."""
    # The tokens of a flipped image are not the flipped tokens, so each is a forward pass of its own.
    tokens = [encoder(view)[0].half() for view in _views(images.float() / 255, flips)]
    return torch.stack(tokens, dim=1)


def _views(images: Tensor, flips: int) -> list[Tensor]:
    """The first `flips` of (as is, flipped left to right) of images (n, 3, H, W)."""
    return [images, images.flip(-1)][:flips]


def images_of_a_pass(device: torch.device, batch_size: int) -> int:
    """Images that go through a network together where a row's bytes must not depend on the others in its batch.

    Kernels are chosen by the number of images, on a CPU too (a convolution of one image is another than that of two),
    and add in other orders. So it is always as many: one on a CPU, where it costs little, else a whole batch.
    """
    return 1 if device.type in ONE_BY_ONE else batch_size


def by_passes(network: Callable[..., Sequence[Tensor]], size: int, *arrays: Tensor) -> tuple[Tensor, ...]:
    """What a network makes of arrays (n, ...), `size` images at a time, the last ones with blank images behind them."""
    pieces = zip(*(array.split(size) for array in arrays), strict=True)
    made = [network(*(_filled(part, size) for part in piece)) for piece in pieces]
    count = len(arrays[0])
    # Contiguous, for sums over an array go by its layout.
    return tuple(torch.cat(parts)[: count * (len(parts[0]) // size)].contiguous() for parts in zip(*made, strict=True))


def _filled(images: Tensor, count: int) -> Tensor:
    missing = count - len(images)
    return images if not missing else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])


class LatentEncoder:
    """Images of the manifest to composite latents and patch tokens.

    Args:
        settings: the sections `images`, `encoder`, `latents`, `semvae`, `paths` and `runtime` are read.
        manifest: the images.
        inputs: fingerprints of the images and the encoder, which stored features must share.
        device: where the networks run.

    Attributes:
        space: layout of the composite latents; their statistics are known only when all are encoded.
        precision: what the networks compute in.

    Raises:
        UserError: a model is missing, models and settings do not fit together, or the device has no such precision.
    """

    def __init__(
        self, settings: Settings, manifest: ImageManifest, inputs: dict[str, str], device: torch.device
    ) -> None:
        self._settings, self._manifest, self._device = settings, manifest, device
        self.precision = precision_of("latents", settings.latents, device)
        self._flips = settings.images.flips
        self._texture_vae = laid_out(_open_texture_vae(settings), device)
        has_semantics = settings.semvae.compressor != "none"
        self._semantic = open_semantic(settings).load().to(device) if has_semantics else None
        channels = 0 if self._semantic is None else self._semantic.config.channels
        self.space = LatentSpace(self._texture_vae.latent_channels, channels, settings.grid)
        self._features = open_features(settings, inputs) if settings.needs_encoder else None
        self._rows = np.full(len(manifest), -1)
        if self._features is not None:
            self._rows[self._features.indices] = np.arange(len(self._features))
            self._require_width(self._features.fields["tokens"].shape[-1])
        self._contents = read_contents(settings.paths.images, manifest)
        self._pass = images_of_a_pass(device, settings.latents.batch_size)
        # What the posterior noise of every image is drawn by.
        self._names: Sequence[object] = range(len(manifest))
        if settings.latents.noise == "content":
            if self._contents is None:
                problem = f"'content', but {settings.paths.images} has no hashes of its images"
                raise UserError("latents.noise", problem, f"{AGAIN}; images that sfd draws have none: set it to index")
            self._names = [content.hex() for content in self._contents]

    def row_keys(self) -> list[bytes] | None:
        """Keys of the images' latents, see `taking_over`; None where the contents of the images are not known."""
        if self._contents is None:
            return None
        return latent_keys(self._settings, self._contents, self._features, self._pass, self.precision)

    @property
    def fields(self) -> dict[str, Field]:
        """What is stored of every image; axis 0 is (as is, flipped), or (as is) alone without `images.mirror`."""
        space, flips = self.space, self._flips
        fields = {"texture": Field((flips, space.texture, space.grid, space.grid))}
        if space.semantic:
            fields["semantic"] = Field((flips, space.semantic, space.grid, space.grid))
        if self._settings.latents.store_features:
            fields["features"] = Field((flips, space.grid**2, self._feature_width))
        return fields

    @property
    def streams(self) -> list[str]:
        """The fields that make up the composite latent, in its order."""
        return ["texture", "semantic"] if self.space.semantic else ["texture"]

    def encode_all(self, batches: Sequence[Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
        """`encode` for every batch of manifest indices, images being decoded ahead in threads.

        The device is given a batch's work before that of the batch before it is waited for.
        """
        settings = self._settings
        reader = ImageReader(self._manifest, settings.images.size, settings.runtime.threads, self._device)
        images = reader.iterate(batches)
        return one_behind(self.begin(batch, seen) for batch, seen in zip(batches, images, strict=True))

    def encode(self, indices: Sequence[int], images: Tensor) -> dict[str, np.ndarray]:
        """Arrays for `fields` of uint8 images (n, 3, S, S): posterior samples, float16, (n, *field shape).

        Raises:
            StageFailure: a value is not finite in float16; names the image.
        """
        return self.begin(indices, images)()

    def begin(self, indices: Sequence[int], images: Tensor) -> Callable[[], dict[str, np.ndarray]]:
        """Give the device the work of `encode`; what comes back waits until it is done, checks it and gives it."""
        with frozen(self.precision, self._device):
            images = images.to(self._device)
            tokens = self._tokens(np.asarray(indices), images) if self._settings.needs_encoder else None
            seen = self._posteriors(*([images] if tokens is None else [images, tokens]))
            found = dict(zip(self.streams, zip(seen[::2], seen[1::2], strict=True), strict=True))
            shapes = [mean.shape[1:] for mean, _ in found.values()]
            names = [self._names[index] for index in indices]
            noise = posterior_noise(self._settings.latents.seed, names, shapes, self._flips)
            encoded = {}
            for (name, (mean, logvar)), draws in zip(found.items(), noise, strict=True):
                sample = draw(mean.float(), logvar.float(), sent(draws, self._device).flatten(0, 1))
                encoded[name] = sample.unflatten(0, (-1, self._flips)).half()
            if self._settings.latents.store_features and tokens is not None:
                encoded["features"] = tokens
            return partial(when_finite, self._manifest, indices, fetching(encoded, self._device))

    def _posteriors(self, *arrays: Tensor) -> Sequence[Tensor]:
        """Mean and logvar of each stream, (n x flips, C, h, w), of images and their tokens, if they are needed."""

        def posteriors_of(images: Tensor, tokens: Tensor | None = None) -> Sequence[Tensor]:
            pixels = torch.stack(_views(images, self._flips), dim=1).flatten(0, 1)
            features = None if tokens is None else tokens.flatten(0, 1)
            found = posteriors(self._texture_vae, self._semantic, pixels, features)
            return [part for posterior in found.values() for part in posterior]

        return self._by_passes(posteriors_of)(*arrays)

    def _by_passes(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """A network in its precision, and, where rows have keys, by passes of as many images each."""
        network = computing(network, self.precision, self._device)
        return network if self._contents is None else partial(by_passes, network, self._pass)

    def _tokens(self, indices: np.ndarray, images: Tensor) -> Tensor:
        """Patch tokens (n, flips, N, D) float16 on the device: stored ones where there are any, else the encoder's."""
        rows = self._rows[indices]
        held, others = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        if not len(held):
            return self._seen(images)
        stored = self._stored(rows[held])
        if not len(others):
            return stored
        tokens = stored.new_empty(len(rows), *stored.shape[1:])
        places, rest = (sent(torch.from_numpy(where), self._device) for where in (held, others))
        tokens[places], tokens[rest] = stored, self._seen(images[rest])
        return tokens

    def _seen(self, images: Tensor) -> Tensor:
        """Patch tokens of images by the encoder."""
        return encode_flips(self._by_passes(self._encoder), images, self._flips)

    def _stored(self, rows: np.ndarray) -> Tensor:
        """Patch tokens of rows of the feature store."""
        assert self._features is not None
        buffer = host_buffer((len(rows), *self._features.fields["tokens"].shape), torch.float16, self._device)
        self._features.read("tokens", rows, out=buffer.numpy())
        return sent(buffer, self._device)

    @cached_property
    def _encoder(self) -> VisualEncoder:
        """Loaded only where an image has no stored features."""
        encoder = load_visual_encoder(self._settings.encoder)
        self._require_width(encoder.feature_width)
        return encoder.to(self._device)

    @property
    def _feature_width(self) -> int:
        """Width of the patch tokens, as the semantic compressor expects it."""
        return self._encoder.feature_width if self._semantic is None else self._semantic.config.feature_width

    def _require_width(self, width: int) -> None:
        expected = width if self._semantic is None else self._semantic.config.feature_width
        if width != expected:
            problem = f"was trained on tokens {expected} wide, but {self._settings.encoder.name} gives {width}"
            raise UserError(self._settings.paths.semvae, problem, "run `sfd train-semvae` again")


def precision_of(section: str, settings: Features | Latents, device: torch.device) -> FrozenPrecision:
    """What the frozen networks of a section compute in on a device.

    Raises:
        UserError: it has none of that.
    """
    try:
        return choose_frozen_precision(settings.precision, device)
    except SettingError as error:
        raise UserError(f"{section}.{error.subject}", error.problem, error.remedy) from None


def precision_facts(precision: FrozenPrecision) -> Facts:
    """What the record of what was encoded says beside `auto`, which differs by the device; nothing of fp32."""
    return {} if precision == "fp32" else {"precision": precision}


def when_finite(
    manifest: ImageManifest, indices: Sequence[int], arrays: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `arrays` gives once it is there, if it is finite; see `require_finite`."""
    found = arrays()
    require_finite(manifest, indices, found)
    return found


def require_finite(manifest: ImageManifest, indices: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
    """Check what networks made of the images `indices` of a manifest, arrays (n, ...) float16.

    Raises:
        StageFailure: a value is not finite; names the image.
    """
    for name, array in arrays.items():
        whole = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not whole.all():
            file, problem = manifest.path(indices[int(np.argmin(whole))]), f"its {name} are not finite in float16"
            raise StageFailure(file, problem, "the network that makes them may be damaged")


def _open_texture_vae(settings: Settings) -> TextureCompressor:
    """The texture VAE, whose grid must be the one that the settings promise to other stages."""
    texture_vae = open_texture_vae(settings).load()
    size, grid = settings.images.size, settings.grid
    if size != grid * texture_vae.downsampling:
        side = size / texture_vae.downsampling
        raise UserError(
            settings.paths.texture_vae,
            f"makes a {side:g} x {side:g} latent of {size} px images, but the settings promise {grid} x {grid}",
            "run `sfd train-texture-vae` again, or change images.size or encoder.image_size",
        )
    return texture_vae


def posterior_noise(seed: int, names: Iterable[object], shapes: Sequence[tuple[int, ...]], flips: int) -> list[Tensor]:
    """Standard normal float32 noise (n, flips, *shape) for each shape, of each image by the seed and its name alone.

    A name is the image's index, or the hash (hex) of its content. One generator for every (seed, image, flip), because
    batches, shards and processes may be cut differently. The first flip's noise is the same whether there is a second.
    """
    drawn: list[list[Tensor]] = [[] for _ in shapes]
    for name in names:
        for flip in range(flips):
            key = hashlib.sha256(f"{seed} {name} {flip}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
            for draws, shape in zip(drawn, shapes, strict=True):
                draws.append(torch.randn(shape, generator=generator))
    return [torch.stack(draws).unflatten(0, (-1, flips)) for draws in drawn]


def open_features(settings: Settings, inputs: dict[str, str]) -> Store | None:
    """The feature store, or None where there is none and the encoder must run on every image.

    Raises:
        UserError: the store is unfinished, damaged, of other images or another encoder, or has other views of them.
    """
    folder = Path(settings.paths.features)
    if not (folder / INDEX).exists():
        say(f"{folder} holds no features; the encoder runs on every image")
        return None
    record = finished(folder, "sfd extract-features")
    same_size = record.settings.get("image_size") == settings.images.size
    if not same_size or any(record.inputs.get(name) != value for name, value in inputs.items()):
        problem = "was made of other images or by another encoder"
        raise UserError(folder, problem, "run `sfd extract-features` again or remove it")
    store, flips = Store(folder), settings.images.flips
    if store.flips != flips:
        problem = f"has {store.flips} of (as is, flipped) of every image, but images.mirror asks for {flips}"
        raise UserError(folder, problem, "run `sfd extract-features` again or remove it")
    return store
