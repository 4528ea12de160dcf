"""Images in a tar file, by their offsets: class folders, WebDataset shards, or tars of classes as ImageNet's."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sfd_cli.data.archives import Inner, Member
from sfd_cli.data.images import is_image
from sfd_cli.errors import UserError

LABEL = "cls"
"""Extension of a sample's class in a WebDataset shard."""


class TarArchive:
    """The format `tar`; `inner` is an offset and a size in bytes."""

    def members(self, path: Path) -> Iterator[Member]:
        """See `Archive`. Beside `KEY.cls` images are a WebDataset's; tars inside are one class each."""
        with open(path, "rb") as file:
            files = list(_files(file, path))
            for member in (one for one in files if one.name.endswith(".tar")):
                file.seek(member.offset_data)
                name = PurePosixPath(member.name).stem
                inner = _files(file, path)
                yield from (_member(f"{name}/{one.name}", one) for one in inner if is_image(one.name))
            labels = {_key(one.name): _label(file, one) for one in files if one.name.endswith(f".{LABEL}")}
        images = [one for one in files if is_image(one.name)]
        if labels:
            yield from _samples(path, images, labels)
        else:
            yield from (_member(one.name, one) for one in images)

    def read(self, path: Path, inner: Inner) -> bytes:
        """See `Archive`."""
        offset, size = (int(part) for part in inner)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


def _files(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of the tar that begins where `file` stands; offsets are those in `file`.

    Raises:
        UserError: it is none, is compressed, or ends before its end is marked.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield member
            file.seek(archive.offset)
            ends_marked = bool(file.read(1))
    except tarfile.ReadError as error:
        remedy = "copy it again; a compressed tar is to be unpacked to a plain one, in which images can be found"
        raise UserError("images.folder", f"{path} is no whole, plain tar file ({error})", remedy) from None
    # tarfile takes a file that is cut between two members, before the empty block that ends it, for a whole one.
    if not ends_marked:
        raise UserError("images.folder", f"{path} ends early: the mark of its end is missing", "copy it again")


def _samples(path: Path, images: list[tarfile.TarInfo], labels: dict[str, int | str]) -> Iterator[Member]:
    """The images of a WebDataset shard, of each sample the first."""
    seen = set()
    for image in images:
        key = _key(image.name)
        if key not in labels:
            raise UserError("images.folder", f"{path} has {image.name} without {key}.{LABEL}", "label every image")
        if key not in seen:
            seen.add(key)
            # Keys may begin anew in every shard.
            name = f"{path.stem}-{image.name.replace('/', '-')}"
            yield Member(name, (image.offset_data, image.size), labels[key])


def _member(name: str, found: tarfile.TarInfo) -> Member:
    return Member(name.removeprefix("./"), (found.offset_data, found.size))


def _key(name: str) -> str:
    """What the files of one sample have in common: the path up to the first dot of the file's own name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}" if folder else file.split(".", 1)[0]


def _label(file: BinaryIO, member: tarfile.TarInfo) -> int | str:
    file.seek(member.offset_data)
    text = file.read(member.size).decode(errors="replace").strip()
    return int(text) if text.isdigit() else text.replace("/", "-")


TAR = TarArchive()
