"""Other people's weights files: training checkpoints are read, and whatever is pickled in them is never run."""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import enum
import functools
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from refusals import refusal
from safetensors.torch import save_file

from sfd_cli.errors import UserError
from sfd_cli.formats.torch_files import read_weights_file

FORMATS = {"zip": True, "legacy": False}
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture(params=FORMATS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Write a checkpoint in torch's zip format and in the one before."""

    def write(content: Any, name: str = "checkpoint.pt") -> Path:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=FORMATS[request.param])
        return tmp_path / name

    return write


def training_checkpoint(config: Any) -> dict[str, Any]:
    """What training scripts save: weights, their moving average, optimizer state and settings."""
    parameters = [torch.nn.Parameter(tensor.float()) for tensor in TENSORS.values()]
    optimizer = torch.optim.AdamW(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    ema = OrderedDict((key, tensor + 1) for key, tensor in TENSORS.items())
    return {"model": TENSORS, "ema": ema, "opt": optimizer.state_dict(), "config": config, "train_steps": 7}


def assert_read(checkpoint: dict[str, Any]) -> None:
    for offset, key in enumerate(("model", "ema")):
        assert checkpoint[key].keys() == TENSORS.keys()
        assert all(torch.equal(checkpoint[key][name], TENSORS[name] + offset) for name in TENSORS)
    assert checkpoint["opt"]["state"][0]["exp_avg"].shape == (2, 3)
    assert checkpoint["train_steps"] == 7


def test_a_checkpoint_with_an_omegaconf_configuration_is_read_without_it(save: Callable[[Any], Path]) -> None:
    config = OmegaConf.create({"model": {"depth": 28, "betas": [0.9, 0.999]}, "name": "${model.depth}", "none": None})
    config.sizes = DictConfig({"width": 4}, key_type=str, element_type=int, ref_type=dict[str, int])
    checkpoint = read_weights_file(save(training_checkpoint(config)))
    assert_read(checkpoint)
    assert "config" not in checkpoint


@pytest.mark.parametrize(
    "settings_object",
    [
        argparse.Namespace(lr=1e-4, folder=Path("out"), betas=(0.9, 0.999), nested=argparse.Namespace(a=1)),
        PurePosixPath("results/000"),
        np.float64(2.5),
        np.arange(3),
        type(None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_settings_objects_are_left_out(save: Callable[[Any], Path], settings_object: Any) -> None:
    checkpoint = read_weights_file(save(training_checkpoint(settings_object)))
    assert_read(checkpoint)
    assert "config" not in checkpoint


def test_a_default_dictionary_becomes_a_plain_one(save: Callable[[Any], Path]) -> None:
    counts = defaultdict(list, {"loss": [1.0, 2.0]})
    checkpoint = read_weights_file(save(training_checkpoint(counts)))
    assert_read(checkpoint)
    assert checkpoint["config"] == {"loss": [1.0, 2.0]}


def test_a_settings_object_inside_another_entry_does_nothing(save: Callable[[Any], Path]) -> None:
    checkpoint = read_weights_file(save(training_checkpoint({"args": argparse.Namespace(lr=1.0), "seed": 3})))
    assert checkpoint["config"]["seed"] == 3
    assert not hasattr(checkpoint["config"]["args"], "lr")


def test_lightning_checkpoints_are_read(save: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks, parsing = "pytorch_lightning.callbacks.model_checkpoint", "pytorch_lightning.utilities.parsing"
    checkpoint = type("ModelCheckpoint", (), {"__module__": callbacks})
    attributes = type("AttributeDict", (dict,), {"__module__": parsing})
    for name in (callbacks, parsing):
        for depth in range(1, name.count(".") + 2):
            monkeypatch.setitem(sys.modules, name.rsplit(".", depth - 1)[0], types.SimpleNamespace(__path__=[]))
    sys.modules[callbacks].ModelCheckpoint, sys.modules[parsing].AttributeDict = checkpoint, attributes
    content = {"state_dict": TENSORS, "hyper_parameters": attributes(lr=0.1), "callbacks": {checkpoint: {"best": 1.0}}}
    path = save(content)
    monkeypatch.undo()
    read = read_weights_file(path)
    assert read["state_dict"].keys() == TENSORS.keys()
    assert read["hyper_parameters"] == {"lr": 0.1}
    assert list(read["callbacks"].values()) == [{"best": 1.0}]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_torch_files_and_their_wrappers_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": {"weight": torch.arange(3)}, "epoch": 2}, path)
    read = read_weights_file(path)
    assert read["epoch"] == 2
    assert torch.equal(read["state_dict"]["weight"], torch.arange(3))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux how much of a file is in memory")
def test_tensors_nobody_asks_for_are_not_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    torch.save({"ema": {"weight": torch.ones(1000)}, "opt": torch.ones(8 << 20), "config": OmegaConf.create({})}, path)
    checkpoint = read_weights_file(path)
    assert checkpoint["ema"]["weight"].sum() == 1000
    mappings = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    resident = [int(part.split("Rss:")[1].split()[0]) for part in mappings]  # kB
    assert resident
    assert sum(resident) < 4096


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


HOSTILE = {
    "posix.system": lambda canary: Call(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Call(eval, f"open({canary!r}, 'w')"),
    "builtins.exec": lambda canary: Call(exec, f"open({canary!r}, 'w')"),
    "io.open": lambda canary: Call(open, canary, "w"),
    "builtins.getattr": lambda canary: Call(getattr, Call(importlib.import_module, "os"), "system"),
    "importlib.import_module": lambda canary: Call(importlib.import_module, "antigravity"),
    "subprocess.Popen": lambda canary: Call(subprocess.Popen, ["touch", canary]),
    "functools.partial": lambda canary: Call(functools.partial(os.system, f"touch {canary}")),
    "torch.serialization.load": lambda canary: Call(torch.load, canary),
    "torch.hub.load": lambda canary: Call(torch.hub.load, canary, "model"),
    "torch.storage._load_from_bytes": lambda canary: Call(torch.storage._load_from_bytes, b""),
    "copyreg._reconstructor": lambda canary: Call(copyreg._reconstructor, dict, object, None),
    "enum._make_class_unpicklable": lambda canary: Call(enum._make_class_unpicklable, dict),
    "shutil.copy": lambda canary: Call(shutil.copy, "/etc/hostname", canary),
}


def inside_configuration(trap: Any) -> Any:
    """The trap deep in the state of an object whose class is let in."""
    config = OmegaConf.create({"a": {"b": 1}})
    object.__setattr__(config, "_flags_cache", [{"x": trap}])
    return {"model": TENSORS, "config": argparse.Namespace(a=config, b=[trap])}


@pytest.mark.parametrize("place", ["top", "inside a configuration"])
@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_checkpoint_is_refused_by_name_and_never_run(
    name: str, place: str, save: Callable[[Any], Path], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    trap = HOSTILE[name](str(canary))
    path = save({"ema": TENSORS, "config": trap} if place == "top" else inside_configuration(trap))
    with refusal(path, f" {name},", "model.state_dict()"):
        read_weights_file(path)
    assert not canary.exists()


def test_a_bare_pickle_is_not_run_either(tmp_path: Path) -> None:
    path, canary = tmp_path / "checkpoint.pt", tmp_path / "canary"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"ema": Call(os.system, f"touch {canary}")}, protocol=protocol))
        with refusal(path, " posix.system,"):
            read_weights_file(path)
    assert not canary.exists()


def with_pickle(path: Path, program: bytes, form: str) -> Path:
    """A torch file whose object is this pickle program."""
    torch.save({}, path, _use_new_zipfile_serialization=FORMATS[form])
    if form == "zip":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, program if name.endswith("data.pkl") else data)
    else:
        path.write_bytes(path.read_bytes().replace(pickle.dumps({}, protocol=2), program))
    return path


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


# `{command}` is replaced by a text that would make the canary if it were run. Beside it: what the refusal names.
PROGRAMS = {
    "a dotted STACK_GLOBAL": (
        b"\x80\x04" + short("pathlib") + short("os.system") + b"\x93" + b"{command}" + b"\x85R.",
        "torch.save",
    ),
    "a dotted STACK_GLOBAL of another module": (
        b"\x80\x04" + short("shutil") + short("os.system") + b"\x93" + b"{command}" + b"\x85R.",
        " shutil.os.system,",
    ),
    "a STACK_GLOBAL of names from the memo": (
        b"\x80\x04" + short("os") + b"\x94" + short("system") + b"\x94" + b"00h\x00h\x01\x93{command}\x85R.",
        " os.system,",
    ),
    "a dotted name below a package that is let in": (
        b"\x80\x02cpathlib\nos.system\n{command}\x85R.",
        "settings object",
    ),
    "attributes of a class that is let in": (
        b"\x80\x02}" + text("a") + b"comegaconf\nOmegaConf.__init__.__globals__\n{command}\x85Rs.",
        None,
    ),
    "INST of protocol 0": (b"({command}ios\nsystem\n.", " os.system,"),
    "OBJ": (b"\x80\x02(cos\nsystem\n{command}o.", " os.system,"),
    "state set on a function": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b")s\x86b.",
        "torch.save",
    ),
    "state set on a class": (
        b"\x80\x02ctorch.nn.parameter\nParameter\nN}" + text("__new__") + b"comegaconf\nX\ns\x86b.",
        "torch.save",
    ),
    "state set on a stand-in's class": (
        b"\x80\x02comegaconf\nX\nN}" + text("__new__") + b"cbuiltins\nset\ns\x86b.",
        "torch.save",
    ),
    "an extension code": (b"\x80\x02\x82\x01.", "torch.save"),
    "a persistent id in text": (b"Psystem\n.", "torch.save"),
    "a pickled module": (
        b"\x80\x02(" + text("module") + b"comegaconf\nX\n" + text("a.py") + text("source") + b"tQ.",
        "torch.save",
    ),
    "a storage of no type": (
        b"\x80\x02(" + text("storage") + b"comegaconf\nX\n" + text("0") + text("cpu") + b"K\x01NtQ.",
        "damaged",
    ),
    "items of a thing that is no dictionary": (b"\x80\x02comegaconf\nX\n)R" + text("a") + b"K\x01s.", "torch.save"),
    "a stand-in as what builds a tensor": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(comegaconf\nX\ncomegaconf\nY\n)}tR.",
        "settings object",
    ),
    "a name with Storage in it": (b"\x80\x02cos\nStorage_system\n{command}\x85R.", " os.Storage_system,"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("trick", PROGRAMS)
def test_tricks_with_pickle_instructions_run_nothing(trick: str, form: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    program, named = PROGRAMS[trick]
    path = with_pickle(tmp_path / "trick.pt", program.replace(b"{command}", text(f"touch {canary}")), form)
    allowed = torch.serialization.get_safe_globals()
    defaults, new = torch._utils._rebuild_tensor_v2.__defaults__, torch.nn.Parameter.__new__
    if named is None:
        assert read_weights_file(path) == {}
    else:
        with refusal(path, named):
            read_weights_file(path)
    assert not canary.exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ is defaults
    assert torch.nn.Parameter.__new__ is new
    assert not list(Path.cwd().glob("*.patch"))
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("elements", "offset", "size"),
    [(6, 0, 7), (1 << 20, 0, 1 << 20), (6, 5, 6), (6, -1, 6), (-1, 0, 6), (6, 0, -1), (1 << 62, 0, 1 << 62)],
)
def test_a_tensor_never_reaches_beyond_its_storage(
    form: str, elements: int, offset: int, size: int, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.arange(6.0), "config": argparse.Namespace()}, path, _use_new_zipfile_serialization=True)

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(elements)
    storage += b"tQ" if form == "zip" else b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + number(size) + b"\x85K\x01\x85"
    program = b"\x80\x02}" + text("weight") + tensor + b"\x89ccollections\nOrderedDict\n)RtRs."
    if form == "zip":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, program if name.endswith("data.pkl") else data)
    else:
        with_pickle(path, program, form)
    try:
        weight = read_weights_file(path)["weight"]
    except UserError:
        return
    assert form == "legacy"  # which makes room for what is claimed, so that nothing lies beyond
    assert weight.untyped_storage().nbytes() >= 4 * (offset + size)


def test_the_old_tar_format_and_programs_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = pickle.dumps(Call(os.system, f"touch {canary}"), protocol=2)
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(hostile)
            archive.addfile(member, io.BytesIO(hostile))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "program.pt")
    for name in ("old.pt", "program.pt"):
        with refusal(tmp_path / name, "state_dict()"):
            read_weights_file(tmp_path / name)
    assert not canary.exists()


WHOLE = ("whole.safetensors", "zip.pt", "legacy.pt", "zip-config.pt", "legacy-config.pt")


def written(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.exists():
        content: dict[str, Any] = {"weight": torch.arange(50.0)}
        if "config" in name:
            content["config"] = OmegaConf.create({"a": 1})
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=name.startswith("zip"))
    return path.read_bytes()


@given(part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str, part: float) -> None:
    data = written(tmp_path, name)
    cut = tmp_path / f"cut{Path(name).suffix}"
    cut.write_bytes(data[: int(part * len(data))])
    with refusal(cut):
        read_weights_file(cut)


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=3)), min_size=1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["zip-config.pt", "legacy-config.pt"])
def test_a_file_with_bytes_changed_anywhere_is_read_or_refused(
    tmp_path: Path, name: str, changes: list[tuple[float, bytes]]
) -> None:
    data = bytearray(written(tmp_path, name))
    for place, replacement in changes:
        start = int(place * len(data))
        data[start : start + len(replacement)] = replacement
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(data)
    with contextlib.suppress(UserError):
        assert isinstance(read_weights_file(damaged), dict)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with refusal(tmp_path / "missing.pt"):
        read_weights_file(tmp_path / "missing.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with refusal(tmp_path / "notes.txt", ".safetensors", ".pt"):
        read_weights_file(tmp_path / "notes.txt")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><p>Not found</p>")
    with refusal(tmp_path / "page.pt"):
        read_weights_file(tmp_path / "page.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with refusal(tmp_path / "list.pt", "list"):
        read_weights_file(tmp_path / "list.pt")
