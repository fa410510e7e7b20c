"""A Redis URL → clients of its servers, and the map of slots to servers.

    redis://HOST:PORT/0, unix:///PATH            one server
    redis+cluster://HOST:PORT,HOST:PORT          a Redis Cluster, by some of its nodes
    redis+sentinel://HOST:PORT,HOST:PORT/NAME    the master called NAME, as these Sentinels say

(`rediss…` over TLS; USER:PASSWORD@ before the first host is for the Redis servers; `Access` holds the login of
Sentinels.) The master behind Sentinels holds all slots. `cluster.py` (the far tier, over all servers) and
`master_locator.py` (the state store and the queue, each on the current master) use this.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct
from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from foreseen.errors import FarError, SetupError
from foreseen.settings import StoreSettings
from foreseen.stores.error_kinds import kind_of

SLOTS = 16384
MAX_CONNECTIONS = 32
"""Concurrent calls; more wait. Redis executes commands in one thread: more connections would not make it faster."""
KINDS = ("cluster", "sentinel")
LOOK_SECONDS = 5.0
"""How long a command-line program waits for one Sentinel."""

SlotMap = Sequence[tuple[int, int, str]]
"""First slot, last slot, HOST:PORT of the server that holds them."""

_CONTEXTS: dict[str, Any] = {}
"""TLS contexts by their options."""


class Access(Struct, frozen=True):
    """Credentials and certificates, besides an address. `ca_file`: certificates to verify TLS servers with, beside the
    system's; user and password are for Sentinels."""

    ca_file: Path | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        return f"<Access ca_file={self.ca_file} sentinel_user={self.sentinel_user}>"


BY_ADDRESS = Access()
"""No credentials but those in the address."""


def access_of(settings: StoreSettings) -> Access:
    """From the settings. Raises SetupError if the password's file cannot be read or is empty."""
    path = settings.sentinel_password_file
    if path is None:
        if settings.sentinel_user is not None:
            raise SetupError("--sentinel-user: give --sentinel-password-file, too")
        return Access(settings.redis_ca_file)
    try:
        password = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--sentinel-password-file {path}: {getattr(error, 'strerror', None) or error}") from None
    if not password:
        raise SetupError(f"--sentinel-password-file {path}: is empty")
    return Access(settings.redis_ca_file, settings.sentinel_user, password)


def connect(url: str, budget_seconds: float, access: Access = BY_ADDRESS, **login: Any) -> Redis:
    """A client of one Redis. Opens no connection yet. Raises SetupError where `ca_file` holds no certificates."""
    client: Redis = Redis.from_url(
        url,
        protocol=2,
        decode_responses=False,
        socket_timeout=budget_seconds,
        socket_connect_timeout=budget_seconds,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        health_check_interval=0,
        max_connections=MAX_CONNECTIONS,
        driver_info=None,  # no CLIENT SETINFO: two round trips less before the first answer
        **login,
    )
    if url.startswith("rediss://"):
        _secure(client.connection_pool, access.ca_file)
    return client


def _secure(pool: ConnectionPool, ca_file: Path | None) -> None:
    """One TLS context for all connections, made now: redis-py reads the system's certificates again for each, which
    blocks the event loop for 45 ms (measured), nearly a whole budget."""
    if ca_file is not None:
        pool.connection_kwargs["ssl_ca_certs"] = str(ca_file)
    options = {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")}
    shared = _CONTEXTS.setdefault(repr(sorted(options.items())), SSLConnection(**pool.connection_kwargs).ssl_context)
    try:
        shared.get()
    except (OSError, ValueError) as error:
        raise SetupError(f"{ca_file or 'TLS'}: no certificates to verify Redis with ({error})") from None

    class Secured(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context = shared

    pool.connection_class = Secured


def several(url: str) -> RedisHosts | None:
    """An address with several hosts, parsed; None for one server's. Raises SetupError for a malformed address."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", *KINDS) or (scheme == "unix" and kind):
        raise SetupError(f"redis {shown(url)}: give redis://, rediss://, unix://PATH, or +cluster or +sentinel of them")
    return RedisHosts(url) if kind else None


def shown(url: str) -> str:
    """An address that may be logged: without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.split('://')[0]}://…{at}{after}" if at else url


class RedisHosts:
    """An address with several hosts: the hosts to read the slot map from, and the full address of each server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._scheme, _, self.kind = parts.scheme.partition("+")
        user, at, hosts = parts.netloc.rpartition("@")
        self._hosts = [host for host in hosts.split(",") if host]
        self._name = parts.path.strip("/")
        self._user, self._query = user + at, f"?{parts.query}" if parts.query else ""
        if not self._hosts or any(":" not in host for host in self._hosts):
            raise SetupError(f"redis+{self.kind}: give HOST:PORT,HOST:PORT")
        if self.kind == "sentinel" and not self._name:
            raise SetupError("redis+sentinel: give the master's name, redis+sentinel://HOST:PORT/NAME")

    def server(self, address: str) -> str:
        """The whole address of one Redis server."""
        return f"{self._scheme}://{self._user}{address}/0{self._query}"

    async def locate(self, budget_seconds: float, access: Access) -> SlotMap:
        """The slot map of the first host that answers, which is tried first the next time. Raises the last FarError."""
        failure = FarError("connect")
        for host in list(self._hosts):
            try:
                return await self._asked(host, budget_seconds, access)
            except (FarError, TypeError, ValueError) as error:
                failure = error if isinstance(error, FarError) else FarError("protocol")
                self._hosts.remove(host)
                self._hosts.append(host)
        raise failure

    async def _asked(self, host: str, budget_seconds: float, access: Access) -> SlotMap:
        if self.kind == "cluster":
            return await _ask_cluster(connect(self.server(host), budget_seconds, access), host)
        login = {"username": access.sentinel_user, "password": access.sentinel_password}
        address = f"{self._scheme}://{host}{self._query}"
        return await _ask_sentinel(connect(address, budget_seconds, access, **login), self._name)


def master_at(url: str, access: Access = BY_ADDRESS) -> str:
    """The address of the current master, for a program without an event loop. Raises SetupError for a Cluster, or where
    no Sentinel knows the master."""
    many = several(url)
    if many is None:
        return url
    if many.kind == "cluster":
        raise SetupError(f"redis {shown(url)}: a Cluster's entries lie on several servers; give --url of a proxy")
    try:
        ((_, _, address),) = asyncio.run(many.locate(LOOK_SECONDS, access))
    except FarError as error:
        raise SetupError(f"redis {shown(url)}: no Sentinel knows the master ({error.kind})") from None
    return many.server(address)


async def _ask_cluster(client: Redis, host: str) -> SlotMap:
    """CLUSTER SLOTS: [first, last, [ip, port, …], replicas …]; an empty ip means the answering node."""
    own = host.rpartition(":")[0]
    slot_map = []
    for first, last, master, *_ in await _ask_once(client, "CLUSTER", "SLOTS"):
        ip = master[0].decode() if master[0] else own
        slot_map.append(
            (int(first), int(last), f"[{ip}]:{master[1]}" if ":" in ip.strip("[]") else f"{ip}:{master[1]}")
        )
    return slot_map


async def _ask_sentinel(client: Redis, name: str) -> SlotMap:
    """SENTINEL GET-MASTER-ADDR-BY-NAME: [ip, port], nothing where it does not know the name."""
    reply = await _ask_once(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
    if not reply:
        raise FarError("connect")
    ip, port = (part.decode() for part in reply)
    return [(0, SLOTS - 1, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")]


async def _ask_once(client: Redis, *words: Any) -> Any:
    """One command on a connection of its own, without a breaker. Raises FarError."""
    try:
        return await execute(client, *words)
    except Exception as error:  # noqa: BLE001 - of damaged bytes redis-py and uvloop raise whatever they trip over
        raise FarError(kind_of(error)) from None
    finally:
        await client.aclose()


def execute(client: Redis, *words: Any) -> Awaitable[Any]:
    reply: Awaitable[Any] = client.execute_command(*words)  # type: ignore[no-untyped-call]
    return reply


def slot_of(name: bytes) -> int:
    """The Cluster's slot of a key: CRC16 of the text in its first braces (hash tag), or of the whole key."""
    begin = name.find(b"{")
    end = name.find(b"}", begin + 1)
    tag = name[begin + 1 : end] if begin >= 0 and end > begin + 1 else name
    return binascii.crc_hqx(tag, 0) % SLOTS
