"""Two machines that are none: network namespaces with a cable between them, which can be cut and put back."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "cable"
_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000  # of setns(2) and unshare(2)


@dataclass(frozen=True)
class Machines:
    """Machines 0 and 1; they share the file system, as those of a cluster do.

    Attributes:
        names: of their network namespaces.
    """

    names: tuple[str, str]

    @staticmethod
    def address(number: int) -> str:
        """Of a machine, on the cable."""
        return f"10.99.0.{number + 1}"

    def enter(self, number: int) -> None:
        """Move this process to a machine; what it starts from now on is there too."""
        system = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self.names[number]}") as place:
            for failed in (system.setns(place.fileno(), _NEW_NETWORK), system.unshare(_NEW_NAMES)):
                if failed:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        socket.sethostname(f"machine-{number}")

    def cut(self) -> None:
        """Cut the cable."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "up")


def lacking() -> str:
    """Why there can be no such machines here; "" where there can."""
    if not shutil.which("ip"):
        return "no `ip` here (Debian: apt-get install iproute2)"
    try:
        with two_machines():
            return ""
    except subprocess.CalledProcessError as error:
        return f"no right to network namespaces here ({error.stderr.strip()})"


@contextmanager
def two_machines() -> Iterator[Machines]:
    """A block with two machines."""
    machines = Machines((f"sfd-{os.getpid()}-0", f"sfd-{os.getpid()}-1"))
    first, second = machines.names
    try:
        for name in machines.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for number, name in enumerate(machines.names):
            _ip("-n", name, "address", "add", f"{machines.address(number)}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
        yield machines
    finally:
        for name in machines.names:
            if Path(f"/run/netns/{name}").exists():
                _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
