"""The images that `sfd sample` wrote, or a folder of somebody else's, as the stages after it read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.output import SETTINGS
from sfd_cli.artifacts.sample_files import LABELS, image_path
from sfd_cli.data.images import DECODE_ERRORS
from sfd_cli.errors import UserError
from sfd_cli.evaluation.images import image_files
from sfd_cli.files import read_json


@dataclass(frozen=True)
class Sampled:
    """A folder of samples.

    Attributes:
        files: image files in order.
        labels: class index of each; all zero for a folder that `sfd sample` did not write.
        side: side of the square images, pixels, from the first.
        description: where they are, and the fingerprint of what made them.
        settings: the settings `sfd sample` recorded, or nothing.
        class_names: of every class, or nothing.
        given_noise: whether the noise came from a file instead of the seed.
    """

    files: list[Path]
    labels: list[int]
    side: int
    description: str
    settings: dict[str, Any]
    class_names: list[str]
    given_noise: bool = False

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Look into a folder; only what `sfd sample` finished counts as its output.

        Raises:
            UserError: no images, unfinished, or images are missing from a finished folder.
        """
        if not Path(folder).is_dir():
            raise UserError(f"{folder} does not exist; run `sfd sample` first")
        if not (folder / SETTINGS).exists():
            files = image_files(folder)
            return cls(files, [0] * len(files), _side(files[0]), str(folder), {}, [])
        fingerprint = finished(folder, "sfd sample").fingerprint
        record = read_json(folder / SETTINGS)
        labels = [int(label) for label in read_json(folder / LABELS)]
        files = [image_path(folder, index) for index in range(len(labels))]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]} is missing ({len(missing)} of {len(files)} samples); run `sfd sample` again")
        description = f"{folder} {fingerprint[:16]}"
        names, given = record["facts"]["class_names"], "noise" in record.get("inputs", {})
        return cls(files, labels, _side(files[0]), description, record["settings"], names, given)

    def choose(self, count: int | None, seed: int) -> list[int]:
        """Indices of `count` random samples, ascending; of all where it is None.

        Raises:
            UserError: there are fewer.
        """
        available = len(self.files)
        if count is None:
            return list(range(available))
        if count > available:
            raise UserError(
                f"fid.num_images: {count} samples were asked for, but there are {available}; run `sfd sample` for more"
            )
        order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
        return sorted(order[:count].tolist())


def _side(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return min(image.size)
    except DECODE_ERRORS as error:
        raise UserError(f"{path} cannot be read as an image ({error}); run `sfd sample` again") from None
