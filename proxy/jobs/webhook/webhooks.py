"""Sends one webhook as a signed POST (Standard Webhooks 1.0), guarded against SSRF.

The receiver is not trusted. Its name is resolved once, every address is checked, and the connection goes to one of the
checked addresses only, which defeats DNS rebinding. The client follows no redirects, keeps no cookies, uses no proxies
of the environment and inflates nothing. Of the reply only the status counts; at most 4 KiB behind its head are read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct
from yarl import URL

from foreseen.errors import WebhookRefused
from foreseen.queue.outbox import Outcome
from foreseen.queue.signing import Signer
from foreseen.queue.targets import Allowed
from foreseen.types import Owner

READ_BYTES = 4096
CONNECT_SECONDS = 3.0
_LOOKING_UP = 4
_GONE = 410

LookUp = Callable[[str, int], Awaitable[list[tuple[socket.AddressFamily, str]]]]


class Delivery(Struct, frozen=True):
    """One event for one receiver. `id` is its webhook-id, the same however often it is sent."""

    id: str
    owner: Owner
    """Of the ticket; its receivers verify with secrets of its own."""
    url: str
    body: bytes


class WebhookSender:
    """Posts deliveries. `look_up` and `open_socket` are the way to the network, for tests to stand in."""

    def __init__(
        self,
        allowed: Allowed,
        signer: Signer,
        *,
        seconds: float,
        look_up: LookUp | None = None,
        open_socket: Callable[..., socket.socket] = socket.socket,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._signer = signer
        self._names = _Names(allowed, look_up)
        connector = aiohttp.TCPConnector(
            resolver=self._names,
            socket_factory=_Gate(allowed, open_socket),
            use_dns_cache=False,
            force_close=True,
            limit=0,  # `Deliveries` bounds the calls
            happy_eyeballs_delay=None,  # one address after the other: a refusal ends the call
            ssl=tls or ssl.create_default_context(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
            headers={"User-Agent": "foreseen-webhooks", "Content-Type": "application/json"},
        )

    async def call(self, delivery: Delivery) -> tuple[Outcome, str]:
        """Send it once; the outcome, and one word of why for the log."""
        try:
            target = self._allowed.target(delivery.url)  # what was allowed when it was asked for may not be by now
            headers = self._signer.headers(delivery.owner, delivery.id, delivery.body, datetime.now(UTC))
            url = URL(target.url, encoded=True)
            async with self._session.post(url, data=delivery.body, headers=headers, allow_redirects=False) as reply:
                return _outcome(reply.status), str(reply.status)
        except WebhookRefused:
            return "refused", "not-allowed"
        except AddressRefused as error:
            return "refused", str(error)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return "failed", type(error).__name__

    async def close(self) -> None:
        await self._session.close()
        await self._names.close()


class AddressRefused(Exception):
    """A name resolves, or a connection would go, to a forbidden address. Not an OSError, on which aiohttp would try the
    next address."""


class _Names(AbstractResolver):
    """Looks a name up once per connection; one bad address among its addresses spoils them all."""

    def __init__(self, allowed: Allowed, look_up: LookUp | None) -> None:
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(_LOOKING_UP, thread_name_prefix="names")
        self._look_up = look_up or self._ask_system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """What aiohttp connects to, in this order."""
        found = await self._look_up(host, port)
        for _, address in found:
            if why := self._allowed.why_not_name(address):
                raise AddressRefused(why)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=socket.IPPROTO_TCP, flags=flags)
            for kind, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask_system(self, host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
        """In threads of its own: a name server that hangs must not delay other work that needs a thread."""
        ask: Callable[[], list[Any]] = lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # noqa: E731
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [(family, sockaddr[0]) for family, _, _, _, sockaddr in found]


class _Gate:
    """Opens the socket of every connection, for the very address that it goes to: also of URLs that hold an address."""

    def __init__(self, allowed: Allowed, open_socket: Callable[..., socket.socket]) -> None:
        self._allowed = allowed
        self._open_socket = open_socket

    def __call__(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, proto, _, place = info
        if why := self._allowed.why_not_connect(str(place[0]), int(place[1])):
            raise AddressRefused(why)
        return self._open_socket(family=family, type=kind, proto=proto)


def _outcome(status: int) -> Outcome:
    """410 is how a receiver unsubscribes, by the specification."""
    if 200 <= status < 300:
        return "delivered"
    return "refused" if status == _GONE else "failed"
