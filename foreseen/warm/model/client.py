"""A synchronous V2 client, for the model's own process or a proxy.

It keeps as many connections open as threads use at a time. If the server is away or full, it retries until `patience`
is over. If the server refuses a request, its input is wrong: BadInput.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson
from msgspec import Struct

from foreseen.errors import BadInput, BadRequest, ModelFailed, ModelUnavailable, SetupError, TooLarge
from foreseen.protocol.members import read_canonical
from foreseen.protocol.wire import Response, parse_response
from foreseen.protocol.wire_render import render_request
from foreseen.types import Array

LEAST_SECONDS = 10.0
"""A server that is only asked what it serves has this long, whatever the patience."""
PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 2.0
HEADER_LENGTH = "Inference-Header-Content-Length"
BACKGROUND = 2
"""The lowest priority (Triton's numbers: 1 is the most urgent)."""

_T = TypeVar("_T")


class ClientReply(Struct, frozen=True):
    """An answered question: its tensors, what `Cache-Status` said, and how long it took."""

    response: Response
    cache_status: str
    seconds: float


class V2Client:
    """One V2 server at `unix:/path` or `http://host:port`."""

    def __init__(self, address: str, model: str, patience_seconds: float, key: str | None = None) -> None:
        """`key` is a tenant's, where the server asks for one."""
        self._key = {} if key is None else {"X-API-Key": key}
        self._address = address
        self._model = model
        self._patience = patience_seconds
        self._timeout = max(patience_seconds, LEAST_SECONDS)
        self._free: list[http.client.HTTPConnection] = []  # append and pop are atomic
        self._base = urlsplit(address).path.rstrip("/") if address.startswith("http") else ""

    def metadata(self) -> dict[str, Any]:
        """The server's metadata of the model, without retries. Raises ModelUnavailable."""
        try:
            status, _, body = self._exchange("GET", f"{self._base}/v2/models/{self._model}", None, self._key)
            ready, _, _ = self._exchange("GET", f"{self._base}/v2/models/{self._model}/ready", None, {})
        except (OSError, http.client.HTTPException):
            raise ModelUnavailable(f"{self._address} cannot be reached") from None
        if status in (401, 403):
            raise SetupError(f"{self._address}: needs a tenant's key that may use {self._model!r}; give --key-file")
        if status == 404:
            raise SetupError(f"{self._address} serves no model {self._model!r}; GET /v2/models lists what it has")
        if status != 200 or ready != 200:
            raise ModelUnavailable(f"model {self._model!r} is not ready")
        document = orjson.loads(body)
        return document if isinstance(document, dict) else {}

    def infer(self, tensors: Sequence[tuple[str, str, Array]], parameters: bytes) -> ClientReply:
        """Raises BadInput (the input is wrong), ModelFailed (the model fails on it), SetupError after `patience`."""
        members = read_canonical(parameters)
        body, length = render_request(tensors, {**members.parameters, "priority": BACKGROUND}, None, members)
        headers = {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream", **self._key}
        return self._patiently(lambda: self._infer(body, headers))

    def import_rows(
        self, tensors: Sequence[tuple[str, str, Array]], parameters: dict[str, Any], token: str, tenant: str | None
    ) -> list[int]:
        """Import rows with their outputs, for a tenant; which of them the proxy had already. Raises as `infer` does."""
        body, length = render_request(tensors, parameters)
        headers = {HEADER_LENGTH: str(length), "Authorization": f"Bearer {token}"}
        if tenant is not None:
            headers["Foreseen-Tenant"] = tenant
        content = self._patiently(lambda: self._post("import", body, headers))[1]
        had: list[int] = orjson.loads(content)["had"]
        return had

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        over, pause = time.monotonic() + self._patience, PAUSE_SECONDS
        while True:
            try:
                return ask()
            except ModelUnavailable as error:
                if time.monotonic() > over:
                    raise SetupError(f"{error}; run the same command to continue where it stopped") from None
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def _infer(self, body: bytes, headers: dict[str, str]) -> ClientReply:
        started = time.perf_counter()
        reply_headers, content = self._post("infer", body, headers)
        length = reply_headers.get(HEADER_LENGTH.lower())
        try:
            response = parse_response(content, int(length) if length else None)
        except (BadRequest, ValueError) as error:
            raise ModelFailed(f"the reply cannot be read: {error}") from None
        return ClientReply(response, reply_headers.get("cache-status", ""), time.perf_counter() - started)

    def _post(self, verb: str, body: bytes, headers: dict[str, str]) -> tuple[dict[str, str], bytes]:
        """Headers and body of a reply with status 200; any other is raised as an error."""
        where = f"model {self._model!r} at {self._address}"
        try:
            status, reply_headers, content = self._exchange(
                "POST", f"{self._base}/v2/models/{self._model}/{verb}", body, headers
            )
        except (OSError, http.client.HTTPException) as error:
            raise ModelUnavailable(f"{where}: {error or type(error).__name__}") from None
        if status == 200:
            return reply_headers, content
        try:
            said = str(orjson.loads(content)["error"])[:300]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            said = f"status {status}"
        if status in (400, 422):
            raise BadInput(said)
        if status == 413:
            raise TooLarge(said)
        if status in (429, 503, 504):
            raise ModelUnavailable(f"{where}: {said}")
        if status in (401, 403):
            fix = "give --admin-token-file (an operator's key; of the proxy: DATA/admin-token), or --key-file"
            raise SetupError(f"{where}: {said}; {fix}")
        if status == 404:
            raise SetupError(f"{where}: {said}")
        raise ModelFailed(said)

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connection()
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            answered = reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        self._free.append(connection)
        return answered

    def close(self) -> None:
        while self._free:
            self._free.pop().close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._address.startswith("unix:"):
            return _UnixConnection(self._address.removeprefix("unix:"), self._timeout)
        parts = urlsplit(self._address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError(f"{self._address}: give http://HOST:PORT or unix:/PATH")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=self._timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("model", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
