"""Findings of `foreseen doctor` on the machine: libraries, interpreter, clock, open files, memory, cores."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from foreseen.proxy.tools.finding import Finding, Grade, numbers
from foreseen.web.listen import BACKLOG, OTHER_FILES

MIN_FILES = 1024
EARLIEST_UNIX_SECONDS = 1_735_689_600.0
"""2025-01-01: a machine whose clock was never set starts in 1970."""
_FLOOR = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?(?:<[0-9.]+,)?(?:>=|==)([0-9][0-9.]*)")
_EXTRA = re.compile(r"""extra == ['"](\w+)['"]""")
_OURS = frozenset(("proxy", "cpu"))
"""Extras of a machine that serves; those of builds and development are left out."""


def versions(installed: Callable[[str], str] = version) -> Iterator[Finding]:
    """Python and every library at or above its floor, which is a security floor."""
    low = []
    for requirement in requires("foreseen") or ():
        wanted, _, marker = requirement.partition(";")
        floor, extra = _FLOOR.match(wanted.strip()), _EXTRA.search(marker)
        if floor is None or (extra is not None and extra[1] not in _OURS):
            continue
        try:
            have = installed(floor[1])
        except PackageNotFoundError:
            if extra is None:
                low.append(f"{floor[1]} is missing")
            continue
        if numbers(have) < numbers(floor[2]):
            low.append(f"{floor[1]} {have} is below {floor[2]}")
    python = ".".join(map(str, sys.version_info[:3]))
    if low:
        fix = "install foreseen into a new environment of its own"
        yield Finding("must", "versions", ", ".join(low), fix)
    else:
        yield Finding("ok", "versions", f"foreseen {installed('foreseen')}, Python {python}, libraries at their floors")


def interpreter(fast: bool) -> Iterator[Finding]:
    """Only a fault: the Python version is part of the finding on the libraries."""
    if not fast:
        fix = "take the distribution's Python, or build yours with --enable-optimizations; then make a new environment"
        yield Finding("note", "interpreter", "Python was built without its profile: it takes 1.4 times as long", fix)


def clock(now: float) -> Iterator[Finding]:
    if now < EARLIEST_UNIX_SECONDS:
        text = f"this machine thinks that it is {time.strftime('%Y-%m-%d', time.gmtime(now))}"
        yield Finding("must", "clock", f"{text}; entries would expire at once", "run NTP (timedatectl set-ntp true)")
    else:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def files(limit: int, connections: int) -> Iterator[Finding]:
    """Every connection is a file. `limit` is the hard one: a worker raises its soft limit by itself."""
    fix = f"LimitNOFILE={connections + OTHER_FILES} of its unit, or ulimit -Hn; or fewer --connections"
    if limit == resource.RLIM_INFINITY or limit >= connections + OTHER_FILES:
        text = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} open files"
        yield Finding("ok", "files", f"{text}, enough for --connections {connections}")
        return
    grade: Grade = "must" if limit < MIN_FILES else "note"
    has = max(1, limit - OTHER_FILES)
    yield Finding(grade, "files", f"{limit} open files: a worker takes {has} connections, not {connections}", fix)


def backlog(path: Path = Path("/proc/sys/net/core/somaxconn")) -> Iterator[Finding]:
    """The kernel's limit on the accept queue; a connection above it is dropped and retried after a second."""
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):
        return
    if limit < BACKLOG:
        fix = f"sysctl net.core.somaxconn={BACKLOG}"
        yield Finding("note", "backlog", f"the kernel queues {limit} connections, not {BACKLOG}", fix)


def workers(count: int, cores: int) -> Iterator[Finding]:
    if count < 1:
        yield Finding("must", "workers", f"{count} workers answer nothing", "--workers 1 or more")
    elif count > cores:
        fix = f"--workers {cores} or fewer; models want cores, too"
        yield Finding("note", "workers", f"{count} workers share {cores} cores and only get in each other's way", fix)
    else:
        yield Finding("ok", "workers", f"{count} on {cores} cores")


def memory_bytes() -> int | None:
    """Memory of this machine or, if less, of this container."""
    limits = []
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # "max"
            continue
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)
