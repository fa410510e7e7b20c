"""The state store as tests have it: a real Valkey of their own."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from foreseen.stores import valkey


@contextlib.contextmanager
def state_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real Valkey in the state role, on a unix socket, with what the folder holds."""
    path = folder / "state.sock"
    process = subprocess.Popen(valkey.state_command(path, folder), stdout=subprocess.DEVNULL)
    try:
        with ThreadPoolExecutor(1) as thread:  # this thread may be running a loop already
            thread.submit(asyncio.run, valkey.until_answering(path, 10)).result()
        yield f"unix://{path}", process
    finally:
        process.kill()
        process.wait()
