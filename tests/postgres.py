"""A real PostgreSQL of the tests' own: a folder, a unix socket, nobody's account, no port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWNER = "foreseen"


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    assert found, "there is no PostgreSQL; make test installs Debian's"
    programs = found[-1].parent
    # It refuses to run as root; a socket's path must be short.
    account: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        if account:
            shutil.chown(folder, "nobody", "nogroup")
        make = [
            str(programs / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            OWNER,
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(make, check=True, capture_output=True, cwd="/", **account)
        run = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder), "-c", "listen_addresses="]
        run += ["-c", "fsync=off"]
        server = subprocess.Popen(run, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", **account)
        try:
            ready = [str(programs / "pg_isready"), "-h", str(folder), "-q"]
            deadline = time.monotonic() + 30
            while subprocess.run(ready, check=False).returncode != 0:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"postgresql+psycopg://{OWNER}@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(folder)
