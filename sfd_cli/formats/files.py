"""Files of other code as models in our terms and back, in the first of FORMATS that matches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path
from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts, about
from sfd_cli.formats.model_folder import CONFIG, load_config, read_parts
from sfd_cli.tables import FORMATS

EXPORT_SUFFIXES = (".pt", ".pth", ".ckpt")


def hints_of(kind: str) -> tuple[str, ...]:
    """The hints that any format of a kind of model uses, in the order of `Hints`."""
    used = {name for form in _formats(kind) for name in form.hints}
    return tuple(name for name in Hints.__dataclass_fields__ if name in used)


def read_file(source: Path, hints: Hints | None = None, kind: str | None = None) -> ModelParts:
    """A file or folder of other code as a model in our terms, of this `kind` if one is given. Tensors keep their dtype.

    Raises:
        UserError: it is in no known format, of another kind, damaged, does not fit (naming the keys), or a hint is
            needed.
    """
    content = Content(Path(source))
    with about(source):
        form = _format_of(content)
        if kind not in (None, form.kind):
            raise FormatError(f"holds a {form.kind}, but a {kind} is wanted", "check the path")
        return form.read(content, hints or Hints())


def export_model(folder: Path, target: Path) -> tuple[str, list[Path]]:
    """Write one of our model folders in the first format for its type that can be written.

    Args and errors as of `export_parts`.
    """
    folder = Path(folder)
    kind = str(load_config(folder).get("type"))
    return kind, export_parts(folder, kind, target, lambda config_type: read_parts(folder, config_type))


def export_parts(source: Path, kind: str, target: Path, read: Callable[[type], ModelParts]) -> list[Path]:
    """Write a model in the first format for its type that can be written.

    Args:
        source: what it is of, for messages.
        kind: its type, as in `ModelParts.kind`.
        read: gives the model, by the configuration dataclass of its kind.
        target: the file, .pt, .pth or .ckpt. Formats may add files beside it; all appear whole or none of them.

    Returns:
        The files, `target` first.

    Raises:
        UserError: no model, of a type that no format writes, or a target that exists or has another suffix.
    """
    target = Path(target)
    if target.suffix not in EXPORT_SUFFIXES:
        raise UserError(target, "is no name of a file of torch", f"end it in {', '.join(EXPORT_SUFFIXES)}")
    writers = [(form.config, form.write) for form in _formats(kind) if form.write is not None]
    if not writers:
        known = ", ".join(sorted({form.kind for form in _formats() if form.write is not None}))
        raise UserError(source, f"holds a {kind}, which no format for export can hold", f"export one of {known}")
    config_type, write = writers[0]
    with about(source):
        contents = write(read(config_type))
    files = {
        target.with_name(f"{target.stem}{suffix}.pt") if suffix else target: content
        for suffix, content in contents.items()
    }
    for path in files:
        if path.exists():
            raise UserError(path, "exists already", "remove it or give another name")
    _save_together(files)
    return list(files)


def _formats(kind: str | None = None) -> Iterator[Format]:
    """All formats in the order of the table, or those of one kind of model."""
    for name in FORMATS:
        form: Format = FORMATS[name]
        if kind in (None, form.kind):
            yield form


def _format_of(content: Content) -> Format:
    """The first format that matches; FormatError where none does, saying what the content looks like."""
    for form in _formats():
        if form.matches(content):
            return form
    if content.has("patch_embedding.", "class_embedding.", "encoder.linear_in.", "autoencoder."):
        raise FormatError("is a file of one of our model folders already", f"give the folder with its {CONFIG}")
    if content.has("encoder.down_blocks.", "decoder.up_blocks."):
        raise FormatError("is the weights of diffusers' AutoencoderKL", f"give the folder with its {CONFIG}")
    raise FormatError(
        f"holds {', '.join(list(content.tensors)[:4])}, which are the names of no format known here",
        f"known formats: {', '.join(FORMATS)}",
    )


def _save_together(files: Mapping[Path, dict[str, Any]]) -> None:
    """All of the new files or, unless the process is killed between two renames, none of them."""
    try:
        with ExitStack() as stack:
            for path, content in files.items():
                with open(stack.enter_context(atomic_path(path)), "wb") as file:
                    torch.save(content, file)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
