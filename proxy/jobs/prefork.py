"""Prefork for job workers: the parent loads the program, a forked child works, a killed child is replaced.

Loading the program takes most of a second of CPU, on a busy machine many seconds; a fork takes milliseconds.
The parent holds no threads, no connections and no event loop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import structlog

PR_SET_PDEATHSIG = 1
STARTED_SECONDS = 1.0
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.02, 10.0

log = structlog.get_logger()


def worked_in_child() -> bool:
    """In a child: True, it is to do the work. In the parent, when a child has ended by itself: False.

    A child that a signal has ended is replaced, at once where it had run for a while. SIGTERM and SIGINT go on to it.
    Raises SystemExit with the child's own status where that is an error.
    """
    stopping: list[int] = []
    ends = 0
    while True:
        started = time.monotonic()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _die_with(parent)
            return True

        def pass_on(number: int, frame: object, child: int = child) -> None:
            stopping.append(number)
            os.kill(child, number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        _, status = os.waitpid(child, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        code = os.waitstatus_to_exitcode(status)
        if code > 0:
            sys.exit(code)
        if code == 0 or stopping:
            return False
        ends = 0 if time.monotonic() - started > STARTED_SECONDS else ends + 1
        log.warning("worker ended; another takes over", signal=-code)
        time.sleep(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**ends))


def _die_with(parent: int) -> None:
    """A killed parent leaves no worker behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)
