"""The sockets that grpcio has on a port, which it does not show: to stop listening before its server stops.

A server of grpcio that is stopped cancels calls that arrive while its GOAWAY is on the way to the client. One that
merely does not listen any more serves its connections until each has reached its age and was closed in good order.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def stop_listening(port: int) -> None:
    """Connections go to other processes' listeners on the port from now on (Linux)."""
    with _on(port) as found:
        for one in found:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                with contextlib.suppress(OSError):  # grpcio holds each listener twice
                    one.shutdown(socket.SHUT_RDWR)


def connections(port: int) -> int:
    """How many connections clients have to this process on the port."""
    with _on(port) as found:
        return sum(_is_connected(one) for one in found)


@contextlib.contextmanager
def _on(port: int) -> Iterator[list[socket.socket]]:
    """Duplicates of this process's TCP sockets whose own port it is, closed again afterwards."""
    with contextlib.ExitStack() as opened:
        found = []
        for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.exists() else ():
            with contextlib.suppress(OSError):  # it was closed in between
                if not stat.S_ISSOCK(entry.stat().st_mode):
                    continue
                one = opened.enter_context(socket.socket(fileno=os.dup(int(entry.name))))
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                    found.append(one)
        yield found


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True
