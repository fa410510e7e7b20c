"""HTTP to one model server: POST of a request body, its reply or the error that stands for it, and the metrics.

The server is reached over a unix socket (`unix:/path`, by our own pool) or at `http://host:port` (by aiohttp).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import aiohttp
import orjson

from foreseen.errors import (
    BadInput,
    BadRequest,
    DeadlineExceeded,
    ForeseenError,
    ModelFailed,
    ModelUnavailable,
    Overloaded,
    TooLarge,
    Unauthorized,
)
from foreseen.protocol.wire import Response, parse_response
from foreseen.proxy.backend.http_pool import Broken, HttpPool, HttpReply, NotReached, Unreadable
from foreseen.proxy.backend.model_metadata import PROBE_SECONDS
from foreseen.tenants.passed import PassedCredentials
from foreseen.types import RequestOptions
from foreseen.web.http import BINARY, HEADER_LENGTH

_ROW_LENGTH = f"{HEADER_LENGTH}: ".encode()
MAX_ERROR_CHARACTERS = 300
SILENT_HEADERS = ("Accept", "Accept-Encoding", "User-Agent")
"""Headers that model servers need not read."""
UNBOUNDED = aiohttp.ClientTimeout(total=None)
"""The deadline of every question bounds an exchange instead."""


class ConnectionBroke(ModelUnavailable):
    """The connection ended after the request was sent, so its rows may have ended the process."""


class WrongReply(ModelFailed):
    """A reply that cannot be right. Its request is not repeated in halves: a server that has mixed up one batch would
    not always be caught."""


class ModelClient:
    """The connections to one model's server. Subclasses for other kinds of server override how one is asked."""

    ours = True
    """Whether it is our own model process, which batches rows of several requests and reports what each row took."""

    def __init__(self, model: str, address: str, *, requests: int, on_send: Callable[[], None]) -> None:
        """At most `requests` are under way at a time; `on_send` is called before each."""
        self._model = model
        self.passed: PassedCredentials | None = None
        """Callers' credentials, where the server gets them."""
        self._address = address
        self._places = asyncio.Semaphore(requests)
        self._on_send = on_send
        self._session: aiohttp.ClientSession | None = None
        self._line = HttpPool(address.removeprefix("unix:")) if address.startswith("unix:") else None
        self._path = f"/v2/models/{model}/infer"
        self._row_head = f"POST {self._path} HTTP/1.1\r\nHost: model\r\nContent-Type: {BINARY}\r\n".encode()
        self._base = "http://model" if address.startswith("unix:") else address.rstrip("/")

    async def exposition(self) -> bytes:
        """What the process counts, in the Prometheus text format. Raises ModelUnavailable."""
        try:
            url = f"{self._base}/metrics"
            async with asyncio.timeout(PROBE_SECONDS), self._client().get(url) as reply:
                reply.raise_for_status()
                return await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise ModelUnavailable(f"model {self._model!r}: its metrics cannot be read") from None

    def renew(self) -> None:
        """Another process has taken the address over: no connection to the old one is used any more."""
        if self._line is not None:
            self._line.close()
            self._line = HttpPool(self._address.removeprefix("unix:"))

    async def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: bytes, headers: dict[str, str], options: RequestOptions) -> Response:
        """One exchange, without a bound on its time: the caller has one."""
        name = self._model
        if options.traceparent is not None:
            headers["traceparent"] = options.traceparent
        if self.passed is not None:
            headers |= self.passed.headers(options.scope)
        try:
            async with self._places:
                self._on_send()
                reply = await self.exchange(body, headers)
        except (aiohttp.ClientConnectorError, NotReached):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError, Broken):
            raise ConnectionBroke(f"model {name!r} cannot be reached") from None
        except TimeoutError:  # an OSError, too
            raise
        except (aiohttp.ClientConnectionError, OSError):
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except (aiohttp.ClientError, Unreadable) as error:
            raise ModelFailed(f"model {name!r}: its reply cannot be read ({type(error).__name__})") from None
        if self.passed is not None and reply.status in (401, 403):
            raise Unauthorized("the upstream refuses the key", headers={"WWW-Authenticate": "Bearer"})
        return self._read(reply)

    async def _post_row(self, body: bytes, json_length: int, seconds: float) -> HttpReply:
        """One exchange over the unix socket, with binary tensors. Raises DeadlineExceeded after so many seconds."""
        assert self._line is not None
        name = self._model
        head = b"%bContent-Length: %d\r\n%b%d\r\n\r\n" % (self._row_head, len(body), _ROW_LENGTH, json_length)
        try:
            async with self._places:
                self._on_send()
                return await self._line.exchange(head, body, seconds)
        except NotReached:
            raise ModelUnavailable(f"model {name!r} cannot be reached") from None
        except Broken:
            raise ConnectionBroke(f"model {name!r} cannot be reached") from None
        except TimeoutError:
            raise DeadlineExceeded(f"model {name!r} did not answer before the deadline") from None
        except Unreadable as error:
            raise ModelFailed(f"model {name!r}: its reply cannot be read ({type(error).__name__})") from None

    async def exchange(self, body: bytes, headers: dict[str, str]) -> HttpReply:
        if self._line is not None:
            return await self._line.post(self._path, headers, body)
        return await posted(self._client(), self._base + self._path, body, headers)

    def _read(self, reply: HttpReply) -> Response:
        name = self._model
        if reply.status != 200:
            raise _refusal(name, reply.status, reply.body, reply.headers.get("retry-after"))
        length = reply.headers.get(HEADER_LENGTH.lower())
        try:
            return parse_response(reply.body, int(length) if length is not None else None, ours=self.ours)
        except (BadRequest, ValueError) as error:
            raise ModelFailed(f"model {name!r}: {error}") from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._address.startswith("unix:"):
                # few requests, each on a new connection: they check which process is there now
                connector = aiohttp.UnixConnector(self._address.removeprefix("unix:"), limit=0, force_close=True)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=UNBOUNDED,
                auto_decompress=False,
                skip_auto_headers=SILENT_HEADERS,
            )
        return self._session


async def posted(client: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str]) -> HttpReply:
    """One exchange of a client."""
    async with client.post(url, data=body, headers=headers) as reply:
        lowered = {name.lower(): value for name, value in reply.headers.items()}
        return HttpReply(reply.status, lowered, await reply.read())


def _refusal(name: str, status: int, content: bytes, retry_after: str | None) -> ForeseenError:
    """A model process's error as ours. Only what it says of the input is passed on."""
    said = f"status {status}"
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        error = orjson.loads(content)["error"]
        said = error[:MAX_ERROR_CHARACTERS] if isinstance(error, str) else said
    seconds = int(retry_after) if retry_after is not None and retry_after.isdigit() else 1
    match status:
        case 400 | 422:
            return BadInput(said)
        case 413:
            return TooLarge(said)
        case 429 | 503:
            return Overloaded(f"model {name!r}: {said}", retry_after=seconds)
        case 504:
            return DeadlineExceeded(f"model {name!r}: {said}")
        case _:
            return ModelFailed(f"model {name!r}: {said}")
