"""How an upstream is reached: its credential, certificates, a proxy from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.proxy.backend.model_client import SILENT_HEADERS, UNBOUNDED

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class UpstreamAccess:
    """How connections to an upstream are made: its credential, certificates, a proxy from the environment."""

    def __init__(self, key_file: Path | None = None, ca_file: Path | None = None) -> None:
        self._key_file = key_file
        self._ca_file = ca_file
        self._key: tuple[int, str] = (-1, "")

    def headers(self) -> dict[str, str]:
        """The credential. The file is read again when it has changed. Raises SetupError."""
        if self._key_file is None:
            return {}
        try:
            changed = self._key_file.stat().st_mtime_ns
            if changed != self._key[0]:
                self._key = changed, self._key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise SetupError(f"--upstream-key-file {self._key_file}: cannot be read") from None
        if not self._key[1].isascii() or not self._key[1].isprintable() or not self._key[1]:
            raise SetupError(f"--upstream-key-file {self._key_file}: does not hold one line of a key")
        return {"Authorization": f"Bearer {self._key[1]}"}

    def credential(self, model: str) -> dict[str, str]:
        """The same for a request to a model. Raises ModelUnavailable."""
        try:
            return self.headers()
        except SetupError as error:
            raise ModelUnavailable(f"model {model!r}: {error}") from None

    def session(self, address: str, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        """A client for an address. HTTPS_PROXY and NO_PROXY are obeyed, but not for this machine itself."""
        return self._session(address, timeout, auto_decompress=True, skip_auto_headers=("User-Agent",))

    def tensor_session(self, address: str) -> aiohttp.ClientSession:
        """The same for exchanges of tensors: unbounded in time, nothing asked for that a model server need not read."""
        return self._session(address, UNBOUNDED, auto_decompress=False, skip_auto_headers=SILENT_HEADERS)

    def _session(self, address: str, timeout: aiohttp.ClientTimeout, **options: Any) -> aiohttp.ClientSession:
        tls: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            tls = ssl.create_default_context(cafile=str(self._ca_file))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=timeout,
            trust_env=urlsplit(address).hostname not in _LOOPBACK,
            **options,
        )
