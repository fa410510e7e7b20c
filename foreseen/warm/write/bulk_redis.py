"""Bulk reads and writes of entries in Redis, as raw RESP2 over one blocking socket.

`far.py` is made for a proxy: asynchronous, bounded to milliseconds, behind a breaker. A batch run needs the opposite:
one connection kept busy, long timeouts, and no object per command. Expiry is `PXAT` (Redis 6.2), which has the
same number of digits for every entry, so that the commands of rows of one shape are one array of bytes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import numpy as np

from foreseen.errors import SetupError
from foreseen.stores.commands import PREFIX, SECRET_CHECK
from foreseen.types import Array, Key

KEYS_PER_CALL = 512
PATIENCE_SECONDS = 60.0
"""How long a Redis that says nothing, or takes nothing, is waited for."""
_STORED, _REFUSED = b"+OK\r\n", b"$-1\r\n"  # both 5 bytes: replies to n SETs are n × 5 bytes unless one is an error


class BulkRedis:
    """One connection. Raises SetupError in one line, for every error alike: a batch run stops and is resumed."""

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._url, self._patience = url, patience_seconds
        parts = urlsplit(url)
        if parts.scheme not in ("unix", "redis", "rediss"):
            raise SetupError(f"redis {_shown(url)}: give redis://, rediss:// or unix://PATH of one server, or --url")
        try:
            self._socket = _connected(url, patience_seconds)
        except OSError as error:
            raise SetupError(
                f"redis {_shown(url)}: {error.strerror or error}; start it (foreseen up), or give --redis or --url"
            ) from None
        # OpenSSL's connections are not for two threads at a time.
        self._turn: AbstractContextManager[Any] = threading.Lock() if parts.scheme == "rediss" else nullcontext()
        self._file = cast(BinaryIO, self._socket.makefile("rb", 1 << 20))
        try:
            self._enter(parts)
        except SetupError:
            self.close()
            raise

    def _enter(self, parts: SplitResult) -> None:
        """Password and database, as the URL says them."""
        if parts.password:
            user = [unquote(parts.username).encode()] if parts.username else []
            self._ask(b"AUTH", *user, unquote(parts.password).encode())
        database = parse_qs(parts.query).get("db", [parts.path.strip("/") if parts.scheme != "unix" else ""])[0]
        if database:
            self._ask(b"SELECT", database.encode())

    def check_secret(self, check: bytes) -> None:
        """Raises SetupError where this Redis was filled under another root secret: nothing would ever hit."""
        self._ask(b"SET", SECRET_CHECK, check, b"NX")
        if self._ask(b"GET", SECRET_CHECK) not in (check, None):
            raise SetupError("this Redis was filled under another root secret; give --secret-file of the proxies")

    def get(self, keys: Sequence[Key]) -> list[bytes | None]:
        """The values of keys, None where there is none. All calls are sent before the first reply is read."""
        parts = [keys[at : at + KEYS_PER_CALL] for at in range(0, len(keys), KEYS_PER_CALL)]
        found: list[bytes | None] = []
        for part in parts:
            reply = self._ask(b"MGET", *(PREFIX + key for key in part))
            if not isinstance(reply, list) or len(reply) != len(part):
                raise SetupError(f"redis {_shown(self._url)}: the reply is not the one to MGET")
            found += reply
        return found

    def put(self, keys: Sequence[Key], entries: Sequence[bytes], expires_at: Sequence[float]) -> Array:
        """Store entries, replacing existing ones; which were stored (all)."""
        commands = []
        for key, entry, expiry in zip(keys, entries, expires_at, strict=True):
            commands.append(_command((b"SET", PREFIX + key, entry, b"PXAT", b"%d" % int(expiry * 1000))))
        self.send(b"".join(commands))
        return self.stored(len(keys))

    def send(self, commands: bytes | memoryview) -> None:
        """Send commands; `stored` reads their replies. One thread may send while another reads."""
        try:
            with self._turn:
                self._socket.sendall(commands)
        except OSError as broken:
            raise self._broken(broken) from None

    @staticmethod
    def additions(keys: Sequence[Key], lines: Array, expires_at: Array) -> memoryview:
        """The commands that store entries of one length, but replace none (NX)."""
        count, length = lines.shape
        head = b"*6\r\n$3\r\nSET\r\n$%d\r\n%s" % (len(PREFIX) + 32, PREFIX)
        millis = (expires_at * 1000).astype(np.int64)
        assert int(millis.min()) >= 10**12 and int(millis.max()) < 10**13  # noqa: PT018 - 2001 to 2286
        digits = np.char.mod("%d", millis).astype("S13")
        parts = (
            _all(head, count),
            np.frombuffer(b"".join(keys), np.uint8).reshape(count, 32),
            _all(b"\r\n$%d\r\n" % length, count),
            lines,
            _all(b"\r\n$4\r\nPXAT\r\n$13\r\n", count),
            digits.view(np.uint8).reshape(count, 13),
            _all(b"\r\n$2\r\nNX\r\n", count),
        )
        return np.concatenate(parts, axis=1).data.cast("B")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def stored(self, count: int) -> Array:
        """Which of the next `count` stores that were sent took place, bool."""
        try:
            with self._turn:
                replies = self._file.read(5 * count) or b""  # None where the first byte did not come in time
            error = replies.startswith(b"-") or b"\n-" in replies
            line = replies[replies.find(b"-") :].split(b"\r\n")[0] if error else b""
            if error and b"\r\n" not in replies[replies.find(line) :]:
                line += self._file.readline().strip()
        except OSError as broken:
            raise self._broken(broken) from None
        if error:
            raise self._refused(line)
        if len(replies) != 5 * count:
            raise self._silent()
        stored: Array = np.frombuffer(replies, "S1")[::5] == b"+"
        return stored

    def _ask(self, *words: bytes) -> bytes | int | list[bytes | None] | None:
        try:
            self._socket.sendall(_command(words))
            return self._reply()
        except OSError as broken:
            raise self._broken(broken) from None

    def _reply(self) -> bytes | int | list[bytes | None] | None:
        line = self._file.readline() or b""
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b"*":
            return [cast("bytes | None", self._reply()) for _ in range(int(rest))]
        if kind == b"-":
            raise self._refused(line.strip())
        raise self._silent()

    def _bulk(self, length: int) -> bytes | None:
        if length < 0:
            return None
        value = self._file.read(length + 2) or b""
        if len(value) != length + 2:
            raise self._silent()
        return value[:-2]

    def _silent(self) -> SetupError:
        why = f"closed the connection, or said nothing for {self._patience:g} s"
        return SetupError(f"redis {_shown(self._url)} {why}; run the same command to go on")

    def _refused(self, line: bytes) -> SetupError:
        said = line.removeprefix(b"-").decode("utf-8", "replace")[:200]
        return SetupError(f"redis {_shown(self._url)}: {said}; correct it and run the same command to go on")

    def _broken(self, error: OSError) -> SetupError:
        said = error.strerror or str(error) or type(error).__name__
        return SetupError(f"redis {_shown(self._url)}: {said}; run the same command to go on")


def _connected(url: str, seconds: float) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        _patient(connection, seconds)
        try:
            connection.connect(unquote(parts.path))
        except OSError:
            connection.close()
            raise
        return connection
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    connection = socket.create_connection((host, port), seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _patient(connection, seconds)
    if parts.scheme == "rediss":
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    return connection


def _patient(connection: socket.socket, seconds: float) -> None:
    """Timeouts by the kernel: with Python's own a send of a megabyte is many system calls, each of which waits for the
    interpreter when it returns (measured: 220,000 instead of 370,000 rows/s)."""
    connection.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def _command(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _all(word: bytes, count: int) -> Array:
    return np.broadcast_to(np.frombuffer(word, np.uint8), (count, len(word)))


def _shown(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
