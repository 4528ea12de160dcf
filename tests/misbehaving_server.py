"""A server of one file that is slow, cuts, stalls, lies, sends elsewhere and changes its mind."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 4096
PUBLISHED = hashlib.sha256(BODY).hexdigest()


@dataclass
class Behaviour:
    """What the server serves, and how it misbehaves."""

    body: bytes = BODY
    etag: str | None = '"first"'
    status: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    content_type: str = "application/octet-stream"
    stalls: int = 0
    pause: float = 0.0
    redirects: list[str] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        behave = self.behaviour
        behave.requests.append(self.headers.get("Range"))
        behave.paths.append(self.path)
        self.close_connection = True
        if behave.status:
            self.send_error(behave.status.pop(0))
            return
        if behave.redirects:
            self.send_response(302)
            self.send_header("Location", behave.redirects.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and behave.ranges and self.headers.get("If-Range") == behave.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(behave.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(behave.body) - 1}/{len(behave.body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", behave.content_type)
        self.send_header("Content-Length", str(len(behave.body) - start))
        if behave.etag:
            self.send_header("ETag", behave.etag)
        self.end_headers()
        self._send(behave.body[start : start + behave.cuts.pop(0)] if behave.cuts else behave.body[start:])

    def _send(self, body: bytes) -> None:
        behave = self.behaviour
        for offset in range(0, len(body), 65536):
            if behave.stalls:
                behave.stalls -= 1
                time.sleep(0.6)
                return
            time.sleep(behave.pause)
            try:
                self.wfile.write(body[offset : offset + 65536])
            except OSError:
                return


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The URL of the file, as long as the block lasts."""
    handler = type("Configured", (Handler,), {"behaviour": behaviour})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/encoder.pth"
        httpd.shutdown()
