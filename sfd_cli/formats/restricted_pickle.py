"""Training checkpoints that hold a configuration object beside their tensors, read without running anything.

torch's reader for `weights_only=True` interprets a pickle itself and takes every global from a table of functions
that build tensors; it imports nothing. It stops at the first name it does not know, such as the omegaconf
configuration that many training scripts save along. Here the names that a file asks for are listed first, and for
those on `INERT` and `MAPPINGS` that same reader is given stand-ins, which take anything and do nothing. Every other
name stays refused. So a file gets at no more code than before, and what that reader closes off (TorchScript, the old
tar format, pickled modules, state set on anything but tensors, extension codes) stays closed.

`torch.serialization.get_unsafe_globals_in_checkpoint` would list the names too, but not of files in torch's older
format, not those of STACK_GLOBAL and INST, and in no order, so that a refusal could not always name what it is about.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import safe_globals

ZIP_MAGIC = b"PK\x03\x04"
# torch's older format is a row of pickles: magic number, version, platform, the object, names of the storages.
LEGACY_PICKLES = 5

# Classes of plain values; a file that names one as a setting's type needs no more than a name.
_BUILTINS = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "str", "tuple", "type")
_DATES = ("date", "datetime", "time", "timedelta", "timezone")
_NUMPY = ("dtype", "ndarray", "bool", "bool_", "float32", "float64", "int32", "int64")
_DTYPES = ("bool", "float*", "int*", "uint*", "bfloat16", "half", "double", "long")

# Objects under these names only ever hold settings or plain values.
INERT = (
    "omegaconf.*",
    "typing.*",
    "pathlib.*",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "operator.getitem",  # pickles write typing.Dict[str, Any] as a call of it
    *(f"builtins.{name}" for name in _BUILTINS),
    *(f"datetime.{name}" for name in _DATES),
    *(f"numpy.{name}" for name in _NUMPY),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "pytorch_lightning.callbacks.*",
    "lightning.pytorch.callbacks.*",
)
# Dictionaries under another name; they come back as ordinary ones.
MAPPINGS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
# What tensors are pickled with. Only tells which name to blame; what is let in is torch's decision.
TENSORS = (
    "torch._utils._rebuild_*",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.*Storage",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}" for name in _DTYPES),
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.set", "builtins.bytearray", "builtins.complex"),
)


# torch keeps the names it lets in for the whole process.
_ONE_AT_A_TIME = threading.Lock()


class StandIn:
    """Takes any construction and any state, and keeps none of it."""

    __slots__ = ()

    def __new__(cls, *_: object) -> StandIn:
        """An object without content."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


class PlainMapping:
    """In the place of a dictionary's class: makes an ordinary one, which the pickled items then fill."""

    def __new__(cls, *_: object) -> OrderedDict:  # type: ignore[misc]
        """An empty mapping, whatever the arguments (a default factory, mostly)."""
        return OrderedDict()


class RefusedError(Exception):
    """A file asks for something that is no data; `name` is its dotted name, printable."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name if name.isprintable() else ascii(name)


def load_with_stand_ins(path: Path, mmap: bool) -> Any:
    """What the torch file at `path` holds, on the CPU, with a `StandIn` wherever a configuration object was.

    Top-level entries that are nothing but a stand-in are left out. `mmap` is passed on to `torch.load`.

    Raises:
        RefusedError: it asks for a name that is neither torch's nor on the lists above.
        Exception: whatever torch's reader raises at a damaged file.
    """
    names = pickled_names(path)
    stand_ins = [(StandIn, name) for name in names if _matches(name, INERT)]
    stand_ins += [(PlainMapping, name) for name in names if name in MAPPINGS]  # type: ignore[misc]
    with _ONE_AT_A_TIME, safe_globals(stand_ins), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError:
            for name in names:
                if not _matches(name, INERT + MAPPINGS + TENSORS):
                    raise RefusedError(name) from None
            raise
    if isinstance(loaded, dict):
        return {key: value for key, value in loaded.items() if not (_is_stand_in(key) or _is_stand_in(value))}
    return loaded


def pickled_names(path: Path) -> list[str]:
    """Dotted names of all globals a torch file asks for, in order, as far as it can be parsed; nothing is loaded."""
    names: list[str] = []
    try:
        with open(path, "rb") as file:
            zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            file.seek(0)
            if zipped:
                with zipfile.ZipFile(file) as archive:
                    member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                    names.extend(_globals(io.BytesIO(archive.read(member))))
            else:
                for _ in range(LEGACY_PICKLES):
                    names.extend(_globals(file))
    except Exception:
        # Parsing a damaged file can fail in any way. The list only says which stand-ins to offer and whom to blame.
        pass
    return list(dict.fromkeys(names))


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Names in one pickle, which `stream` is left behind of."""
    texts: list[str] = []  # every string so far: STACK_GLOBAL takes the last two
    memo: dict[int, str | None] = {}
    latest: str | None = None  # the string the operation before has pushed
    for operation, argument, _ in pickletools.genops(stream):
        code = operation.name
        if code in ("GLOBAL", "INST"):
            yield _modern_name(*str(argument).split(" ", 1))
        elif code == "STACK_GLOBAL":
            yield _modern_name(*texts[-2:])
        if code in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = latest
            continue
        if code in ("GET", "BINGET", "LONG_BINGET") and argument is not None:
            latest = memo.get(argument)
        else:
            latest = argument if isinstance(argument, str) and code not in ("GLOBAL", "INST") else None
        if latest is not None:
            texts.append(latest)


def _modern_name(module: str, name: str) -> str:
    """`__builtin__.unicode` -> `builtins.str`: pickle protocol 2 writes the names of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, StandIn) or value is StandIn
