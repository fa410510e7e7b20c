"""A gate of Kafka's protocol in front of a real broker: TLS, SASL, refused rights, and a newer InitProducerId.

The broker of the tests (Tansu) has neither rights nor TLS with a key of its own, and keeps the users of SCRAM only in a
store that it cannot have here. The gate ends TLS, demands PLAIN or SCRAM (RFC 5802), and turns answers into refusals;
everything else is the broker's. aiokafka asks for producer ids by version 0, which Tansu does not answer: the gate asks
by version 4, as brokers since Kafka 2.5 are asked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import io
import os
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka.protocol.group import JoinGroupResponse_v5
from aiokafka.protocol.metadata import MetadataResponse_v5
from aiokafka.protocol.produce import ProduceResponse_v7

from foreseen.proxy.kafka.cluster import READ, WRITE
from foreseen.proxy.kafka.rights import MetadataResponse
from tests.kafka_broker import Broker

HANDSHAKE, API_VERSIONS, INIT_PRODUCER_ID, AUTHENTICATE = 17, 18, 22, 36
PRODUCE, METADATA, JOIN_GROUP, TOPICS = (0, 7), (3, 8), (11, 5), (3, 5)
"""API keys and versions of answers that are rewritten."""
NO_TOPIC, TOPIC_REFUSED, GROUP_REFUSED, SASL_FAILED, UNSUPPORTED = 3, 29, 30, 58, 33
OPERATIONS = {"read": READ, "write": WRITE}
ITERATIONS = 4096
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

Rewrite = Callable[[bytes], bytes]


@dataclass
class Gate:
    """What the gate asks of those who come, and what it makes of answers. It may be closed and opened again: for
    clients that is a broker that stops and starts with what it has."""

    broker: Broker
    port: int
    users: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    rewrites: dict[tuple[int, int], Rewrite] = field(default_factory=dict)
    """By API key and version: the body of an answer → another."""
    seen: list[int] = field(default_factory=list)
    """API keys in the order in which they came."""
    authenticated: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._arrived, "127.0.0.1", self.port, ssl=self.tls)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await _Connection(self, reader, writer).run()
        self._tasks.discard(task)
        writer.close()


@contextlib.asynccontextmanager
async def gate(
    one: Broker, port: int, users: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Gate]:
    """A gate at the port that the broker advertises, until the block ends."""
    before = Gate(one, port, users or {}, tls)
    await before.open()
    try:
        yield before
    finally:
        await before.close()


class _Connection:
    def __init__(self, settings: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gate, self._reader, self._writer = settings, reader, writer
        self._asked: dict[int, tuple[int, int]] = {}
        self._trusted = not settings.users
        self._exchange: _Exchange | None = None

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._gate.broker.port)
        answers = asyncio.create_task(self._pass_answers(reader))
        try:
            while True:
                frame = await _frame(self._reader)
                key, version, number = struct.unpack(">hhi", frame[:8])
                self._gate.seen.append(key)
                if key in (HANDSHAKE, AUTHENTICATE):
                    self._send(struct.pack(">i", number) + self._authenticate(key, version, _body(frame)))
                    continue
                if not self._trusted and key != API_VERSIONS:
                    return
                self._asked[number] = key, version
                writer.write(_framed(_newer(frame) if (key, version) == (INIT_PRODUCER_ID, 0) else frame))
        finally:
            answers.cancel()
            writer.close()

    async def _pass_answers(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                key, version = self._asked.pop(struct.unpack(">i", frame[:4])[0])
                if (key, version) == (INIT_PRODUCER_ID, 0):
                    frame = frame[:4] + frame[5:21]
                elif (key, version) in self._gate.rewrites:
                    frame = frame[:4] + self._gate.rewrites[key, version](frame[4:])
                self._send(frame)
        self._writer.close()

    def _send(self, frame: bytes) -> None:
        self._writer.write(_framed(frame))

    def _authenticate(self, key: int, version: int, body: bytes) -> bytes:
        """The body of the answer to SaslHandshake or SaslAuthenticate."""
        if key == HANDSHAKE:
            mechanism = body[2:].decode()
            self._exchange = _Exchange(mechanism, self._gate.users)
            named = b"".join(struct.pack(">h", len(one)) + one.encode() for one in MECHANISMS)
            return struct.pack(">hi", 0 if mechanism in MECHANISMS else UNSUPPORTED, len(MECHANISMS)) + named
        assert self._exchange is not None
        answer = self._exchange.step(body[4:])
        lifetime = b"" if version == 0 else bytes(8)
        if answer is None:
            text = b"Authentication failed"
            return struct.pack(">hh", SASL_FAILED, len(text)) + text + bytes(4) + lifetime
        if self._exchange.is_proved:
            self._trusted, self._gate.authenticated = True, self._gate.authenticated + 1
        return struct.pack(">hhi", 0, -1, len(answer)) + answer + lifetime


class _Exchange:
    """A server's side of PLAIN (RFC 4616) or SCRAM (RFC 5802)."""

    def __init__(self, mechanism: str, users: Mapping[str, str]) -> None:
        self._users = users
        self._hash = None if mechanism == "PLAIN" else mechanism.removeprefix("SCRAM-").replace("-", "").lower()
        self._first: tuple[bytes, bytes, bytes] | None = None
        self.is_proved = False

    def step(self, message: bytes) -> bytes | None:
        """The answer; None where the user is refused."""
        if self._hash is None:
            _, user, password = message.split(b"\0")
            self.is_proved = self._users.get(user.decode()) == password.decode()
            return b"" if self.is_proved else None
        return self._begin(message) if self._first is None else self._prove(message)

    def _begin(self, message: bytes) -> bytes | None:
        bare = message.partition(b"n,,")[2]
        said = dict(part.split(b"=", 1) for part in bare.split(b","))
        password = self._users.get(said[b"n"].decode())
        if password is None:
            return None
        salt, nonce = os.urandom(16), said[b"r"] + base64.b64encode(os.urandom(12))
        answer = b"r=%s,s=%s,i=%d" % (nonce, base64.b64encode(salt), ITERATIONS)
        assert self._hash is not None
        salted = hashlib.pbkdf2_hmac(self._hash, password.encode(), salt, ITERATIONS)
        self._first = bare, answer, salted
        return answer

    def _prove(self, message: bytes) -> bytes | None:
        assert self._first is not None
        assert self._hash is not None
        bare, answer, salted = self._first
        without, _, proof = message.rpartition(b",p=")
        client = hmac.digest(salted, b"Client Key", self._hash)
        signed = b",".join((bare, answer, without))
        signature = hmac.digest(hashlib.new(self._hash, client).digest(), signed, self._hash)
        claimed = bytes(x ^ y for x, y in zip(base64.b64decode(proof), signature, strict=True))
        self.is_proved = hmac.compare_digest(claimed, client)
        server = hmac.digest(hmac.digest(salted, b"Server Key", self._hash), signed, self._hash)
        return b"v=" + base64.b64encode(server) if self.is_proved else None


def refuse_topic(topic: str) -> Rewrite:
    """Produce answers of which this topic's partitions say that the user may not write there."""

    def rewritten(body: bytes) -> bytes:
        topics, throttled = _fields(ProduceResponse_v7, body)
        changed = [
            (name, [(part[0], TOPIC_REFUSED, *part[2:]) for part in parts] if name == topic else parts)
            for name, parts in topics
        ]
        return bytes(ProduceResponse_v7(changed, throttled).encode())

    return rewritten


def without_topic(topic: str) -> Rewrite:
    """Metadata of a broker that has no such topic and makes none."""

    def rewritten(body: bytes) -> bytes:
        *rest, topics = _fields(MetadataResponse_v5, body)
        changed = [(NO_TOPIC, topic, False, []) if one[1] == topic else one for one in topics]
        return bytes(MetadataResponse_v5(*rest, changed).encode())

    return rewritten


def granting(rights: Mapping[str, Sequence[str]]) -> Rewrite:
    """Metadata in which these are the rights on topics."""

    def rewritten(body: bytes) -> bytes:
        *rest, topics, cluster = _fields(MetadataResponse, body)
        changed = [(*one[:4], sum(1 << OPERATIONS[name] for name in rights.get(one[1], ()))) for one in topics]
        return bytes(MetadataResponse(*rest, changed, cluster).encode())

    return rewritten


def refuse_group(body: bytes) -> bytes:
    """JoinGroup answers that refuse the group."""
    throttled, _, *rest = _fields(JoinGroupResponse_v5, body)
    return bytes(JoinGroupResponse_v5(throttled, GROUP_REFUSED, *rest).encode())


def _fields(kind: type, body: bytes) -> tuple[object, ...]:
    one = kind.decode(io.BytesIO(body))
    return tuple(getattr(one, name) for name in kind.SCHEMA.names)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


def _framed(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


def _body(frame: bytes) -> bytes:
    """What follows a request's header (version 1)."""
    (length,) = struct.unpack(">h", frame[8:10])
    return frame[10 + max(0, length) :]


def _newer(frame: bytes) -> bytes:
    """InitProducerId v0 → v4: compact strings, tagged fields, and no producer id yet."""
    body = _body(frame)
    (length,) = struct.unpack(">h", body[:2])
    named, timeout = body[2 : 2 + length], body[2 + length :]
    head = struct.pack(">hh", INIT_PRODUCER_ID, 4) + frame[4 : len(frame) - len(body)] + b"\0"
    return head + bytes((length + 1,)) + named + timeout + struct.pack(">qh", -1, -1) + b"\0"
