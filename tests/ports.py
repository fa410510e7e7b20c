"""Ports for servers of tests and benches.

Below those that the kernel gives to outgoing connections (from 32,768): a port that was merely free a moment ago may be
one of theirs by the time that its server starts, and there are many of them in a test run.
"""

from __future__ import annotations

import contextlib
import random
import socket

_LOWEST, _HIGHEST, _BUS = 12_000, 22_000, 10_000
_DICE = random.SystemRandom()
_GIVEN: set[int] = set()


def free_port() -> int:
    """A port that nobody has, nor the one 10,000 above it, the bus of a Cluster's node. None comes twice."""
    while True:
        port = _DICE.randrange(_LOWEST, _HIGHEST)
        if port in _GIVEN:
            continue
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + _BUS))
            _GIVEN.add(port)
            return port
