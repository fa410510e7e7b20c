"""Jobs, tickets and results ↔ the bytes in the state store.

    record = "FSJ1"              magic and format version
             kind u8             which of the structs below
             body                MessagePack of the struct's fields in order: length-prefixed throughout
             tag (16)            keyed BLAKE3 over all before it, cut to 16 bytes

The tag's key never reaches the store. A client that can write there can neither forge an answer nor swap the answers of
two jobs: every record names its job. A question is the canonical frames of its rows, which its keys are made of, too.
Values are untrusted, types are checked, nothing is pickled.

A ticket's id is base64url(job 16 ‖ nonce 12 ‖ mac 8), and the mac covers the tenant. Making one takes the secret, so a
valid id that is not in the store has expired.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from hmac import compare_digest
from typing import TypeVar

import msgspec
from blake3 import blake3
from msgspec import Struct

from foreseen.errors import EntryError
from foreseen.types import (
    Answer,
    Key,
    Output,
    OutputOptions,
    Owner,
    Prediction,
    Scope,
    Source,
    StaleReason,
    Steps,
)

MAGIC = b"FSJ1"
TAG_BYTES, JOB_BYTES, NONCE_BYTES, MAC_BYTES, NAME_BYTES = 16, 16, 12, 8, 16
_CONTEXT, _SAME_CONTEXT = "foreseen v1 job record", "foreseen v1 same question"
_ONCE_CONTEXT = "foreseen v1 idempotency"
NEVER_SAME = b""
"""The `same` of a question that never shares its job."""

T = TypeVar("T", bound=Struct)


class Head(Struct, frozen=True, array_like=True):
    """A job without its rows. `same` identifies its question; `preparation` is the digest of what made its rows."""

    job: bytes
    same: bytes
    scope: Scope
    model: str
    preparation: str
    rows: int
    steps: list[str]
    parameters: bytes = b""
    traceparent: str = ""  # empty unless the request was sampled
    tenant: str = ""
    """The tenant that model seconds are charged to; empty: none."""


class Rows(Struct, frozen=True, array_like=True):
    """A job's rows, as canonical frames. Equal rows are stored once; `places` is made by `distinct`."""

    job: bytes
    frames: list[bytes]
    places: bytes = b""


class Ticket(Struct, frozen=True, array_like=True):
    """How one caller wants a job's answer rendered. `question` names the question, or the job, that the ticket belongs
    to, so that a client of the store cannot move it to another job. `once` names its idempotency key."""

    nonce: bytes
    owner: Owner
    question: bytes
    output_options: OutputOptions
    once: bytes = b""

    def is_of(self, head: Head) -> bool:
        return self.question == (head.same or head.job)


class RowResult(Struct, frozen=True, array_like=True, gc=False):
    """One row's answer. `layout` numbers the part's layouts; the rest is as in `Answer` and its `Prediction`."""

    key: bytes
    layout: int
    data: tuple[bytes, ...]
    made_at: float
    expires_at: float
    seconds: float
    source: Source
    stored: bool
    why: StaleReason | None


class Part(Struct, frozen=True, array_like=True):
    """Answers of one key space. `layouts`: the distinct lists of name, datatype and shape of the outputs. The entries
    have no tags of their own: the record's tag covers all of them, and their job."""

    digest: str
    generation: int
    layouts: list[list[tuple[str, str, tuple[int, ...]]]]
    rows: list[RowResult]


class Result(Struct, frozen=True, array_like=True):
    """A job's answers, in the order of its rows; those of equal rows once, as in `Rows`."""

    job: bytes
    parts: list[Part]
    places: bytes = b""


class Failure(Struct, frozen=True, array_like=True):
    """Why a job has no answer: the error that `/infer` would have replied with."""

    job: bytes
    status: int
    code: str
    message: str


class Hook(Struct, frozen=True, array_like=True):
    """Where the end of a ticket's job is sent."""

    nonce: bytes
    owner: Owner
    url: str


class BatchLine(Struct, frozen=True, array_like=True):
    """One line of a batch: its caller's name for it, and its ticket, or why it has none."""

    custom_id: str | None
    job: bytes
    nonce: bytes
    failure: Failure | None = None


class Batch(Struct, frozen=True, array_like=True):
    """The lines of a batch, in their order."""

    job: bytes
    items: list[BatchLine]


_KINDS: tuple[type[Struct], ...] = (Head, Rows, Ticket, Result, Failure, Hook, Batch)


class Records:
    """Seals and opens records under keys that derive from the root secret."""

    def __init__(self, root: bytes) -> None:
        self._key = blake3(root, derive_key_context=_CONTEXT).digest()
        self._once_key = blake3(root, derive_key_context=_ONCE_CONTEXT).digest()
        self._same_key = blake3(root, derive_key_context=_SAME_CONTEXT).digest()
        self._decoders = {kind: msgspec.msgpack.Decoder(kind) for kind in _KINDS}
        self._encode = msgspec.msgpack.Encoder().encode

    def seal(self, record: Struct) -> bytes:
        """The bytes of a record."""
        body = MAGIC + bytes((_KINDS.index(type(record)),)) + self._encode(record)
        return body + self._tag(body)

    def open(self, kind: type[T], value: bytes) -> T:
        """A record of this kind. Raises EntryError("length" | "format" | "tag") for anything else."""
        if len(value) < len(MAGIC) + 1 + TAG_BYTES:
            raise EntryError("length")
        if not value.startswith(MAGIC) or value[len(MAGIC)] != _KINDS.index(kind):
            raise EntryError("format")
        if not compare_digest(self._tag(value[:-TAG_BYTES]), value[-TAG_BYTES:]):
            raise EntryError("tag")
        try:
            return self._decoders[kind].decode(memoryview(value)[len(MAGIC) + 1 : -TAG_BYTES])  # type: ignore[return-value]
        except msgspec.MsgspecError:
            raise EntryError("format") from None

    def open_of(self, kind: type[T], job: bytes, value: bytes) -> T:
        """The same, of exactly this job. Raises EntryError("identity") too."""
        record = self.open(kind, value)
        if getattr(record, "job", None) != job:
            raise EntryError("identity")
        return record

    def same(self, keys: Sequence[Key]) -> bytes:
        """The identity of a question, from its rows' keys, which cover tenant, model, digest and generation."""
        return blake3(b"".join(keys), key=self._same_key).digest()

    def once(self, owner: Owner, key: str) -> bytes:
        """The name in the store of a tenant's idempotency key, or of a caller: a keyed hash, which reveals neither."""
        return blake3(_prefixed(owner.encode(), key.encode()), key=self._once_key).digest()[:NAME_BYTES]

    def fingerprint(self, *parts: bytes) -> bytes:
        """A keyed hash of a request, 32 bytes."""
        return blake3(_prefixed(*parts), key=self._once_key).digest()

    def ticket_id(self, job: bytes, nonce: bytes, owner: Owner) -> str:
        return base64.urlsafe_b64encode(job + nonce + self._mac(job, nonce, owner)).decode()

    def read_ticket_id(self, ticket: str, owner: Owner) -> tuple[bytes, bytes] | None:
        """Job and nonce of an id that was given to this tenant; None for any other text."""
        try:
            raw = base64.b64decode(ticket.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        if len(raw) != JOB_BYTES + NONCE_BYTES + MAC_BYTES or base64.urlsafe_b64encode(raw).decode() != ticket:
            return None  # Python also reads base64's own alphabet, and padding that is not needed
        job, nonce = raw[:JOB_BYTES], raw[JOB_BYTES : JOB_BYTES + NONCE_BYTES]
        return (job, nonce) if compare_digest(raw[-MAC_BYTES:], self._mac(job, nonce, owner)) else None

    def _mac(self, job: bytes, nonce: bytes, owner: Owner) -> bytes:
        return blake3(b"ticket" + job + nonce + owner.encode(), key=self._key).digest()[:MAC_BYTES]

    def _tag(self, body: bytes) -> bytes:
        return blake3(body, key=self._key).digest()[:TAG_BYTES]


def part_of(digest: str, generation: int, keys: Sequence[Key], answers: Sequence[Answer]) -> Part:
    """Answers of one key space → a part of a result."""
    known: dict[tuple[Output, ...], int] = {}
    rows = []
    for key, answer in zip(keys, answers, strict=True):
        p, layout = answer.prediction, known.setdefault(answer.prediction.outputs, len(known))
        rows.append(
            RowResult(key, layout, p.data, p.made_at, p.expires_at, p.seconds, answer.source, answer.stored, answer.why)
        )
    return Part(digest, generation, [[(o.name, o.datatype, o.shape) for o in outputs] for outputs in known], rows)


def answers_of(result: Result) -> list[Answer]:
    """A result's answers, of equal rows one. Raises EntryError("format") where they are not what `part_of` makes."""
    answers: list[Answer] = []
    for part in result.parts:
        layouts = [tuple(Output(*output) for output in outputs) for outputs in part.layouts]
        for row in part.rows:
            if not (0 <= row.layout < len(layouts) and len(layouts[row.layout]) == len(row.data)):
                raise EntryError("format")
            facts = part.digest, row.made_at, row.expires_at, row.seconds
            prediction = Prediction(layouts[row.layout], row.data, *facts)
            answers.append(Answer(prediction, row.source, row.stored, why=row.why))
    return answers


def _prefixed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def steps_of(head: Head) -> Steps:
    """Which steps a job takes."""
    return frozenset(head.steps)  # type: ignore[arg-type] # a sealed record holds what was put in


def new_job() -> bytes:
    return secrets.token_bytes(JOB_BYTES)


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)
