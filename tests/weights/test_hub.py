"""Weights from a Hugging Face hub, which a local server plays: its mirror, token, cache and refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BODY = bytes(range(256)) * 4096
# huggingface_hub keeps what came in pieces of 10 MiB.
LONG = BODY * 12
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "someone/vae/folder/vae.ckpt": BODY,
    "someone/cut/vae.ckpt": LONG,
    "someone/several/model.safetensors": BODY,
    "someone/several/config.json": b'{"channels": 4}',
    "someone/half/model.safetensors": BODY,
}
REFUSALS = {"someone/private": (401, "RepoNotFound"), "someone/gated": (403, "GatedRepo"), "someone/odd": (403, "")}

# Every entry is fetched twice: what came first and, where it came, the cache without a question.
FETCH = """
import json, sys
from sfd_cli.errors import UserError
from sfd_cli.weights import fetch
from sfd_cli.weights.registry import Hub, Weights
for name, repository, path, also, sha256 in json.loads(sys.argv[1]):
    weights = Weights(name, name, Hub(repository, path, tuple(also)), "a test", "MIT", sha256, note=f"note on {name}")
    for _ in range(2):
        try:
            print(json.dumps([name, "path", str(fetch.fetch_weights(weights))]))
        except UserError as error:
            print(json.dumps([name, "error", str(error)]))
            break
"""


class FakeHub(BaseHTTPRequestHandler):
    """`/{owner}/{name}/resolve/{revision}/{path}` as the hub answers it, without its detour to a file server."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str | None, str | None]]
    cuts: list[int]

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        body = FILES.get(f"{repository}/{rest.partition('/')[2]}")
        if repository in REFUSALS or body is None:
            status, code = REFUSALS.get(repository, (404, "EntryNotFound"))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and with_body else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            cut = self.cuts.pop() if repository == "someone/cut" and self.cuts else None
            self.wfile.write(body[start : None if cut is None else start + cut])


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process fetches from all kinds of repositories; its results by name, what the hub saw, and the folders."""
    folder = tmp_path_factory.mktemp("hub")
    handler = type("Configured", (FakeHub,), {"seen": [], "cuts": [11 << 20]})
    published = hashlib.sha256(BODY).hexdigest()
    entries = [
        ("vae.ckpt", "someone/vae", "folder/vae.ckpt", [], published),
        ("cut.ckpt", "someone/cut", "vae.ckpt", [], hashlib.sha256(LONG).hexdigest()),
        ("several", "someone/several", "model.safetensors", ["config.json"], published),
        ("half", "someone/half", "model.safetensors", ["config.json"], None),
        ("tampered", "someone/several", "model.safetensors", [], "0" * 64),
        ("private", "someone/private", "vae.ckpt", [], None),
        ("gated", "someone/gated", "vae.ckpt", [], None),
        ("odd", "someone/odd", "vae.ckpt", [], None),
        ("missing", "someone/vae", "elsewhere.ckpt", [], None),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    environment = {key: value for key, value in environment.items() if not key.lower().endswith("_proxy")}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(folder / "HF_HOME"),
            "HF_TOKEN": "hf_secret",
            "SFD_CACHE": str(folder / "SFD_CACHE"),
        }
        command = [sys.executable, "-c", FETCH, json.dumps(entries)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        server.shutdown()
    assert run.returncode == 0, run.stderr
    results: dict[str, list[list[str]]] = {}
    for line in run.stdout.splitlines():
        name, *result = json.loads(line)
        results.setdefault(name, []).append(result)
    return {"results": results, "seen": handler.seen, "folder": folder}


def only_result(fetched: dict[str, Any], name: str) -> tuple[str, str]:
    first, *second = fetched["results"][name]
    assert all(other == first for other in second)
    return tuple(first)


def test_a_file_arrives_in_the_hubs_own_cache(fetched: dict[str, Any]) -> None:
    kind, path = only_result(fetched, "vae.ckpt")
    assert kind == "path"
    assert Path(path).read_bytes() == BODY
    assert path == str(fetched["folder"] / f"HF_HOME/hub/models--someone--vae/snapshots/{COMMIT}/folder/vae.ckpt")


def test_what_is_in_the_hubs_cache_is_not_asked_for_again(fetched: dict[str, Any]) -> None:
    requests = [seen[0] for seen in fetched["seen"] if "/someone/vae/" in seen[1] and "elsewhere" not in seen[1]]
    assert requests == ["HEAD", "GET"]


def test_the_users_token_is_sent(fetched: dict[str, Any]) -> None:
    assert {seen[3] for seen in fetched["seen"] if "/resolve/" in seen[1]} == {"Bearer hf_secret"}


def test_a_cut_connection_is_resumed(fetched: dict[str, Any]) -> None:
    kind, path = only_result(fetched, "cut.ckpt")
    assert kind == "path"
    assert Path(path).read_bytes() == LONG
    ranges = [seen[2] for seen in fetched["seen"] if seen[0] == "GET" and "/someone/cut/" in seen[1]]
    assert ranges[0] is None
    assert ranges[1].startswith(f"bytes={10 << 20}-")


def test_several_files_arrive_as_a_folder_of_one_version(fetched: dict[str, Any]) -> None:
    kind, path = only_result(fetched, "several")
    assert kind == "path"
    assert sorted(file.name for file in Path(path).iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((Path(path) / "config.json").read_text()) == {"channels": 4}
    revisions = [seen[1].split("/")[4] for seen in fetched["seen"] if "/someone/several/" in seen[1]]
    assert revisions[0] == "main"
    assert revisions[-1] == COMMIT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("private", "someone/private is private or does not exist (HTTP 401)"),
        ("gated", "accept its licence on https://huggingface.co/someone/gated and set HF_TOKEN"),
        ("odd", "accept its licence on https://huggingface.co/someone/odd and set HF_TOKEN"),
        (
            "missing",
            "no file elsewhere.ckpt in someone/vae (HTTP 404); look on https://huggingface.co/someone/vae/tree",
        ),
        ("half", "no file config.json in someone/half (HTTP 404)"),
    ],
)
def test_a_refusal_says_why_and_which_file_to_put_where(fetched: dict[str, Any], name: str, words: str) -> None:
    kind, message = only_result(fetched, name)
    assert kind == "error"
    assert words in message
    assert "by hand and save" in message
    assert str(fetched["folder"] / "SFD_CACHE" / name) in message
    assert message.endswith(f"note on {name}")
    assert "\n" not in message


def test_other_bytes_than_the_published_ones_are_refused(fetched: dict[str, Any]) -> None:
    kind, message = only_result(fetched, "tampered")
    assert kind == "error"
    assert f"published file {'0' * 64}" in message
