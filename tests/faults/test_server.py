"""Weights from a server that is slow, cuts, lies and sends elsewhere: the published file, or none and a sentence."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger import Ledger
from misbehaving_server import BODY, PUBLISHED, Behaviour, serving

from sfd_cli.errors import UserError
from sfd_cli.weights import download, fetch
from sfd_cli.weights.registry import Https, Weights

pytestmark = pytest.mark.faults

TRIES = 25


def slow(server: Behaviour, chance: random.Random, url: str) -> None:
    server.pause = chance.uniform(0.005, 0.03)


def cutting(server: Behaviour, chance: random.Random, url: str) -> None:
    server.cuts = [chance.choice([0, chance.randrange(len(BODY))]) for _ in range(chance.randint(1, 8))]


def wrong_bytes(server: Behaviour, chance: random.Random, url: str) -> None:
    place = chance.randrange(len(BODY))
    server.body = BODY[:place] + bytes([BODY[place] ^ 1 << chance.randrange(8)]) + BODY[place + 1 :]
    server.cuts = [chance.randrange(len(BODY)) for _ in range(chance.randint(0, 2))]


def another_length(server: Behaviour, chance: random.Random, url: str) -> None:
    server.body = chance.choice([BODY[: chance.randrange(len(BODY))], BODY + b"more"])


def elsewhere(server: Behaviour, chance: random.Random, url: str) -> None:
    server.redirects = [f"{url}.{number}" for number in range(chance.randint(1, 20))]
    server.cuts = [chance.randrange(len(BODY)) for _ in range(chance.randint(0, 2))]


def to_nowhere(server: Behaviour, chance: random.Random, url: str) -> None:
    server.redirects = [
        chance.choice(["http://127.0.0.1:9/gone", "file:///etc/hostname", "ftp://127.0.0.1:9/x", "::"])
    ] * 9


def to_a_page(server: Behaviour, chance: random.Random, url: str) -> None:
    server.redirects, server.content_type, server.body = [f"{url}/login"], "text/html", b"<html>log in</html>"


def busy(server: Behaviour, chance: random.Random, url: str) -> None:
    server.status = [chance.choice([408, 429, 500, 502, 503]) for _ in range(chance.randint(1, 8))]


def silent(server: Behaviour, chance: random.Random, url: str) -> None:
    server.stalls = chance.randint(1, 6)


FAULTS: dict[str, Callable[[Behaviour, random.Random, str], None]] = {
    "slow": slow,
    "cuts": cutting,
    "wrong bytes": wrong_bytes,
    "another length": another_length,
    "redirected": elsewhere,
    "redirected to nowhere": to_nowhere,
    "redirected to a page": to_a_page,
    "busy": busy,
    "silent": silent,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_are_the_published_ones_or_absent(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random, ledger: Ledger
) -> None:
    """And once the server is itself again they come, from where they broke off where it told its version."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for attempt in range(TRIES):
        cache = tmp_path / str(attempt)
        for name in ("SFD_CACHE", "TORCH_HOME", "HF_HOME"):
            monkeypatch.setenv(name, str(cache))
        server, wrong = Behaviour(), []
        with serving(server) as url:
            entry = Weights("encoder", "encoder.pth", Https(url), "a test", "MIT", PUBLISHED, len(BODY))
            FAULTS[fault](server, chance, url)
            try:
                got = fetch.fetch_weights(entry).read_bytes() == BODY
                wrong += [] if got else [f"{fault}: other bytes"]
            except UserError:
                wrong += [f"{fault}: there is a file"] if (cache / "encoder.pth").exists() else []
            except Exception as error:
                wrong.append(f"{fault}: {type(error).__name__} {error}")
            vars(server).update(vars(Behaviour()) | {"requests": []})
            began = time.monotonic()
            try:
                lost = [] if fetch.fetch_weights(entry).read_bytes() == BODY else ["other bytes"]
            except Exception as error:
                lost = [f"{fault}: {type(error).__name__} {error}"]
        ledger.note(
            "a server that is slow, cuts, lies or redirects", lost=lost, wrong=wrong, seconds=time.monotonic() - began
        )
