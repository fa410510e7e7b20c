"""The answer cache: bodies and whole requests looked up by a hash, confirmed by every byte; replies while valid."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
import pytest
from msgspec import structs
from xxhash import xxh3_64_intdigest

from foreseen.errors import ForeseenError
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.near import Near
from foreseen.proxy.fastpath.known_heads import END_OF_HEAD
from foreseen.proxy.predict.answer_cache import AnswerCache, Lookup, rendered_before
from foreseen.proxy.predict.answer_memory import (
    BODY_OVERHEAD_BYTES,
    MAX_HASHES,
    REQUEST_OVERHEAD_BYTES,
    ROW_BYTES,
    CachedBody,
    PreparedRows,
)
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import DecodedRequest, decode_v1, decode_v2
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.tenants.tenant import PUBLIC, PUBLIC_TENANT, own_scope
from foreseen.types import Output, Prediction, Scope, Space
from foreseen.web.caller import Caller
from tests.collisions import chosen_pair, second_preimage
from tests.doubles import numbered, predicted
from tests.proxy.predict.test_decode_render import ONE, TWO, render, v2


class Facts(NamedTuple):
    """What a model process says of itself."""

    digest: str = "d1"
    preparation: str | None = ""
    row_independent: bool = True


class Served:
    """What the cache needs of a served model."""

    def __init__(self) -> None:
        self.facts: Facts | None = Facts()


class Purged:
    """The generation in force."""

    generation: int | None = 0

    @property
    def worked_out(self) -> dict[tuple[Scope, str, str], int]:
        return {}

    def of(self, scope: Scope, model: str, digest: str) -> int | None:
        return self.generation


V2, V1 = RequestHead("m", None, "v2", PUBLIC_TENANT), RequestHead("m", None, "v1", PUBLIC_TENANT)
SERVED = Served()
PREPARER = Preparer(ONE, {})
DATA = [[1, 2], [3, 4]]
KEYS = numbered(3)
SPACE = Space("public", "m", "d1")


def cache_of(capacity_bytes: int) -> AnswerCache:
    return AnswerCache(capacity_bytes, Near(10_000), {"m": cast(ServedModel, SERVED)}, Purged())


def read(ask: RequestHead, body: bytes) -> DecodedRequest:
    return decode_v1(body, ONE) if ask.protocol == "v1" else decode_v2(body, ask.header_length, ONE)


def keep(cache: AnswerCache, body: bytes, ask: RequestHead = V2) -> CachedBody | None:
    """What a body came to, once."""
    decoded = read(ask, body)
    prepared = PreparedRows(PREPARER, tuple(PREPARER.rows(decoded.inputs)))
    return cache.keep(cache.find(ask, body), cast(ServedModel, SERVED), decoded, prepared)


def learn(cache: AnswerCache, body: bytes, ask: RequestHead = V2) -> CachedBody | None:
    """What a body came to, twice."""
    keep(cache, body, ask)
    entry = keep(cache, body, ask)
    if entry is not None:
        entry.prepared.space, entry.prepared.keys = SPACE, KEYS
    return entry


def test_a_body_is_kept_at_its_second_time_and_found_by_all_its_bytes() -> None:
    """A body that never comes again costs a hint; every byte counts, wherever it stands."""
    cache, body = cache_of(100_000), v2(DATA)
    assert keep(cache, body) is None
    entry = keep(cache, body)
    assert entry is not None
    assert cache.find(V2, body).entry is entry
    for at in range(len(body)):
        assert cache.find(V2, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]).entry is None
    assert cache.find(V2, body + b" ").entry is None


def test_what_a_body_means_is_part_of_it() -> None:
    """The same bytes for another model, protocol or header length are another question."""
    cache = cache_of(100_000)
    body = np.array(DATA, np.float32).tobytes()
    assert learn(cache, body, RequestHead("m", None, "v2", PUBLIC_TENANT, 0)) is not None
    for other in (
        RequestHead("n", None, "v2", PUBLIC_TENANT, 0),
        RequestHead("m", None, "v2", PUBLIC_TENANT),
        RequestHead("m", None, "v2", PUBLIC_TENANT, 1),
        RequestHead("m", None, "v1", PUBLIC_TENANT, 0),
    ):
        assert cache.find(other, body).entry is None
    assert cache.find(RequestHead("m", "1", "v2", PUBLIC_TENANT, 0, seconds=1), body).entry is not None


@pytest.mark.parametrize("recipe", ["chosen", "second"])
def test_colliding_bodies_are_two(recipe: str) -> None:
    """Raw tensors that XXH3 takes for one another: one hint, two bodies, whichever is known first."""
    picture = np.random.default_rng(5).standard_normal(4096).astype(np.float32)
    pair = chosen_pair(picture) if recipe == "chosen" else (picture, second_preimage(picture))
    one, other = (tensor.tobytes() for tensor in pair)
    assert xxh3_64_intdigest(one) == xxh3_64_intdigest(other)
    ask = RequestHead("m", None, "v2", PUBLIC_TENANT, 0)
    for first, second in ((one, other), (other, one)):
        cache = cache_of(10**6)
        entry = learn(cache, first, ask)
        assert cache.find(ask, first).entry is entry is not None
        assert cache.find(ask, second).entry is None
        assert learn(cache, second, ask) is not None
        assert cache.find(ask, first).entry is None
        assert cache.memory.bytes == sum(entry.size for entry in cache.memory.bodies.values())


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"%s",' + v2(DATA)[1:],
        b'{"id": "%s", ' + v2(DATA)[1:],
        v2(DATA)[:-1] + b',"id":"%s"}',
        b'{"parameters":{"x":{"y":1}},"id":"%s",' + v2(DATA)[1:],
    ],
)
def test_bodies_that_differ_in_their_id_alone_are_one(body: bytes) -> None:
    """Wherever the id stands, whatever its length; the reply gives each its own."""
    cache, first = cache_of(100_000), body % b"a-1"
    entry = learn(cache, first)
    assert entry is not None
    assert cache.find(V2, first)[4:] == (b"a-1", first.index(b"a-1"))
    predictions = [predicted(n) for n in range(len(KEYS))]
    for own in (b"a-1", b"7", b"550e8400-e29b-41d4-a716-446655440000"):
        found = cache.find(V2, body % own)
        assert (found.entry, found.id) == (entry, own)
        asked = read(V2, body % own)
        assert asked.output_options.id == own.decode()
        rendered = codecs.render(TWO, [], asked.output_options)
        assert rendered.with_id(own.decode()) == render(TWO, [], asked.output_options)
        cache.keep_reply(entry, rendered, predictions, SPACE)
        assert rendered_before(entry, predictions) is rendered
        assert rendered_before(entry, []) is rendered_before(entry, predictions[::-1]) is None
        assert b',"id":"%b",' % own in cache.reply(entry, 0.0, found.id, None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"parameters":{"id":"a1"},' + v2(DATA)[1:],
        b'{"parameters":{"id":"a1"},"id":"a1",' + v2(DATA)[1:],
        v2(DATA).replace(b'"name"', b'"parameters":{"id":"a1"},"name"'),
    ],
    ids=["parameter", "both", "tensor"],
)
def test_an_id_of_something_else_is_never_cut_out(body: bytes) -> None:
    """A parameter called id may change the answer: such a body is not kept, neither is one that hides its own behind
    it."""
    assert learn(cache_of(100_000), body) is None


@pytest.mark.parametrize("own", ['a"b', "a\\b", "ü", "a b", "", "x" * 129, "\u0001"])
def test_an_id_that_is_not_plain_stays_where_it_is(own: str) -> None:
    """Then the whole body counts, id and all."""
    cache = cache_of(100_000)
    body = v2(DATA, id=own)
    entry = learn(cache, body)
    found = cache.find(V2, body)
    assert found.entry is entry is not None
    assert found.id is None
    assert entry.decoded.output_options.id == (own or None)
    predictions = [predicted(n) for n in range(len(KEYS))]
    cache.keep_reply(entry, codecs.render(TWO, [], entry.decoded.output_options), predictions, SPACE)
    head, _, answer = cache.reply(entry, 0.0, None, None).partition(END_OF_HEAD)
    assert answer == render(TWO, [], entry.decoded.output_options)[0]
    assert b"Content-Length: %d\r\n" % len(answer) in head
    assert cache.find(V2, v2(DATA, id=own + "x")).entry is None


def test_an_empty_id_and_a_cut_one_are_not_the_same() -> None:
    """What is left of a body without its id may itself be sent: it has none, and gets none."""
    cache = cache_of(100_000)
    assert learn(cache, v2(DATA, id="abc")) is not None
    found = cache.find(V2, v2(DATA, id=""))
    assert (found.entry, found.id) == (None, None)


def test_a_binary_bodys_id_moves_its_header_length() -> None:
    """JSON part and tensors: the id is cut out of the first, and an `"id":"…"` among the second's bytes is not."""
    cache = cache_of(100_000)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    raw = b'"id":"ab'

    def asking(own: str) -> tuple[RequestHead, bytes]:
        head = orjson.dumps({"id": own, "inputs": [tensor]})
        return RequestHead("m", None, "v2", PUBLIC_TENANT, len(head)), head + raw

    ask, body = asking("first")
    entry = learn(cache, body, ask)
    assert entry is not None
    other, longer = asking("another-one")
    assert cache.find(other, longer).entry is entry
    assert cache.find(ask, longer).entry is None
    bare = orjson.dumps({"inputs": [tensor]})
    assert cache.find(RequestHead("m", None, "v2", PUBLIC_TENANT, len(bare)), bare + raw).id is None
    options = decode_v2(longer, other.header_length, ONE).output_options
    cache.keep_reply(entry, codecs.render(ONE, [], options), [predicted(n) for n in range(len(KEYS))], SPACE)
    assert cache.reply(entry, 0.0, b"another-one", None).endswith(END_OF_HEAD + render(ONE, [], options)[0])


def large(first: int = 0, rows: int = 40_000) -> bytes:
    """A raw binary body of 320 KB."""
    return (np.arange(first, first + 2 * rows, dtype=np.float32)).tobytes()


def cut(body: bytes, *places: int) -> list[bytes]:
    return [body[start:end] for start, end in zip((0, *places), (*places, len(body)), strict=True)]


RAW = RequestHead("m", None, "v2", PUBLIC_TENANT, 0)


@pytest.mark.parametrize("places", [(), (0,), (1,), (1023, 1024), (500, 200_000), (100_000, 200_000, 319_999)])
def test_a_large_body_is_found_in_the_pieces_that_it_came_in(places: tuple[int, ...]) -> None:
    """Wherever it was cut; every byte counts, and so do its length and what it means."""
    cache, body = cache_of(100_000_000), large()
    entry = learn(cache, body, RAW)
    found = cache.find_large(RAW, cut(body, *places), len(body))
    assert found is not None
    assert (found.entry, found.text, found.id) == (entry, body, None)
    for at in (0, 1, 1023, 1024, 65_536, 200_000, len(body) - 1):
        other = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert cache.find_large(RAW, cut(other, *places), len(body)) is None
    for other in (body[:-1], body + b"x", body[:-4]):
        assert cache.find_large(RAW, cut(other, *places), len(other)) is None
        assert cache.find_large(RAW, cut(other, *places), len(body)) is None
    for ask in (
        RequestHead("n", None, "v2", PUBLIC_TENANT, 0),
        RequestHead("m", None, "v1", PUBLIC_TENANT, 0),
        RequestHead("m", None, "v2", PUBLIC_TENANT),
        RequestHead("m", None, "v2", PUBLIC_TENANT, 1),
    ):
        assert cache.find_large(ask, cut(body, *places), len(body)) is None


def test_large_bodies_that_begin_alike_are_told_apart() -> None:
    """The later is looked for; the earlier is found by its hash."""
    cache = cache_of(100_000_000)
    one, two = large(), large()[:-4] + b"\0\0\0\0"
    first, second = learn(cache, one, RAW), learn(cache, two, RAW)
    assert cache.find_large(RAW, [one], len(one)) is None
    found = cache.find_large(RAW, [two], len(two))
    assert found is not None
    assert found.entry is second
    assert cache.find(RAW, one).entry is first


def test_a_large_body_with_an_id_is_found_by_its_hash_alone() -> None:
    """Its id is cut out, so its bytes are not the entry's."""
    cache = cache_of(100_000_000)
    rows = [[float(n), 1.0] for n in range(10_000)]
    inputs = [{"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}]
    body = orjson.dumps({"id": "a", "inputs": inputs})
    entry = learn(cache, body)
    assert cache.find(V2, body).entry is entry
    assert cache.find_large(V2, [body], len(body)) is None
    assert not cache.memory.large


def test_large_bodies_go_with_their_entries() -> None:
    """Those that had to go are found in no way, and nothing is left of them."""
    cache = cache_of(100_000_000)
    bodies = [large(number) for number in range(12)]
    for body in bodies:
        learn(cache, body, RAW)
    for body in bodies:
        entry, found = cache.find(RAW, body).entry, cache.find_large(RAW, [body], len(body))
        assert (None if found is None else found.entry) is entry
    assert len(cache.memory.large) == len(cache.memory.bodies) < 12


def test_memory_is_bounded_and_the_oldest_go() -> None:
    """Bytes are counted exactly over any number of bodies; one larger than a quarter of it is not kept."""
    cache = cache_of(20_000)
    for n in range(50):
        entry = learn(cache, v2([[n, 1]], (1, 2)))
        assert entry is not None
        if n % 3:
            cache.keep_reply(entry, codecs.render(ONE, [], entry.decoded.output_options), [], None)
        assert cache.memory.bytes == sum(one.size for one in cache.memory.bodies.values()) <= 20_000
    assert len(cache.memory.bodies) > 3
    assert cache.find(V2, v2([[0, 1]], (1, 2))).entry is None
    assert cache.find(V2, v2([[49, 1]], (1, 2))).entry is not None
    assert learn(cache, v2([[0.5, 1]] * 1000, (1000, 2))) is None
    assert learn(cache_of(0), v2(DATA)) is None


def test_hashes_are_bounded() -> None:
    """A flood of bodies that never come again."""
    cache = cache_of(20_000)
    for n in range(MAX_HASHES + 10):
        cache.memory.came_before(n)
    assert len(cache.memory._hashes) == MAX_HASHES


def test_no_reading_of_mutated_bodies_differs_from_the_plain_one() -> None:
    """Ten thousand mutations of known bodies: what is found is what decoding finds."""
    rng = np.random.default_rng(8)
    cache = cache_of(10**6)
    seeds = [b'{"id":"a1",' + v2(DATA)[1:], v2(DATA)[:-1] + b',"id":"b"}', v2(DATA), v2(DATA, parameters={"id": "q"})]
    for seed in seeds:
        learn(cache, seed)
    alphabet = b'"id":,{}[] 0123456789.e-a\\\n'
    hits = 0
    for step in range(10_000):
        body = bytearray(seeds[step % len(seeds)])
        for _ in range(rng.integers(0, 4)):
            at = int(rng.integers(len(body)))
            body[at : at + int(rng.integers(0, 3))] = bytes(rng.choice(list(alphabet), int(rng.integers(0, 3))))
        found: Lookup = cache.find(V2, bytes(body))
        if found.entry is None:
            continue
        hits += 1
        plain: Any = outcome(bytes(body))
        assert plain is not None
        own = found.entry.decoded.output_options.id if found.id is None else found.id.decode()
        assert own == plain.output_options.id
        assert found.entry.decoded.parameters == plain.parameters
        rows = PREPARER.rows(plain.inputs)
        assert [row.tensors[0].tobytes() for row in found.entry.prepared.rows] == [
            row.tensors[0].tobytes() for row in rows
        ]
    assert hits > 1000


def outcome(body: bytes) -> DecodedRequest | None:
    try:
        return decode_v2(body, None, ONE)
    except ForeseenError:
        return None


def request(body: bytes, **headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + END_OF_HEAD + body


class System:
    """A cache with a body whose reply stands on entries in near, made at 999,995 for 100 seconds."""

    def __init__(self, capacity_bytes: int = 100_000, body: bytes | None = None) -> None:
        self.near, self.served, self.purged = Near(100_000), Served(), Purged()
        self.models: dict[str, ServedModel] = {"m": cast(ServedModel, self.served)}
        self.cache = AnswerCache(capacity_bytes, self.near, self.models, self.purged)
        self.body = body or v2(DATA)
        self.predictions = [predicted(n, made_at=999_995.0, ttl=100) for n in range(len(KEYS))]
        for key, prediction in zip(KEYS, self.predictions, strict=True):
            self.near.put(key, prediction)
        decoded = read(V2, self.body)
        self.prepared = PreparedRows(PREPARER, (), SPACE, b"", KEYS)
        for _ in range(2):
            entry = self.cache.keep(self.cache.find(V2, self.body), self.models["m"], decoded, self.prepared)
        assert entry is not None
        self.entry: CachedBody = entry
        self.keep_reply()

    def keep_reply(self, predictions: list[Prediction] | None = None, space: Space | None = SPACE) -> None:
        rendered = codecs.render(TWO, [], self.entry.decoded.output_options)
        self.cache.keep_reply(self.entry, rendered, predictions or self.predictions, space)

    def keep_request(self, raw: bytes) -> None:
        for _ in range(2):
            self.cache.keep_request(raw, V2, self.entry)

    def valid(self, now: float = 1_000_000.0) -> bool:
        return self.cache.is_valid(self.entry, now)


def test_a_reply_carries_the_time_of_its_sending() -> None:
    """Age and ttl are those of the second; a whole request's reply is the same bytes within it."""
    system, raw = System(), request(v2(DATA))
    system.keep_request(raw)
    found = system.cache.find_request(raw)
    assert found is not None
    first = system.cache.repeated(found, 1_000_000.4, "replay")
    timed = b"\r\nCache-Status: foreseen;hit;ttl=94;detail=near\r\nAge: 5\r\nServer-Timing: replay\r\nContent-Length: "
    assert timed in first
    assert re.search(rb"\r\nDate: [A-Z][a-z]{2}, [0-9A-Za-z :]+ GMT\r\n\r\n\{", first)
    assert system.cache.repeated(found, 1_000_000.9, "replay") is first
    later = system.cache.repeated(found, 1_000_010.0, "replay")
    assert b";ttl=85;" in later
    assert b"Age: 15\r\n" in later
    assert b"Server-Timing" not in system.cache.reply(system.entry, 1_000_000.0, None, None)


def test_one_changed_byte_is_another_request() -> None:
    """Every byte of head and body counts."""
    system, raw = System(), request(v2(DATA))
    system.keep_request(raw)
    for at in range(len(raw)):
        assert system.cache.find_request(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) is None
    for other in (raw[:-1], raw + b"x", b""):
        assert system.cache.find_request(other) is None
    assert system.cache.find_request(raw) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda system: system.near.forget(KEYS[1]),
        lambda system: system.near.put(KEYS[1], predicted(1)),
        lambda system: system.near.clear(),
        lambda system: setattr(system.purged, "generation", 1),
        lambda system: setattr(system.purged, "generation", None),
        lambda system: setattr(system.served, "facts", Facts("d2")),
        lambda system: setattr(system.served, "facts", Facts(preparation="other")),
        lambda system: setattr(system.served, "facts", Facts(row_independent=False)),
        lambda system: setattr(system.served, "facts", None),
        lambda system: system.models.update(m=cast(ServedModel, Served())),
        lambda system: system.models.clear(),
        lambda system: system.cache.close(),
        lambda system: system.keep_reply(space=None),
        lambda system: system.keep_reply(space=Space("public", "m", "d2")),
    ],
    ids=["forgotten", "replaced", "cleared", "purged", "unknown", "digest", "preparation", "independence", "away",
         "another-model", "no-model", "closed", "far", "old-digest"],
)  # fmt: skip
def test_a_reply_is_valid_as_long_as_what_it_stands_on(change: Callable[[System], object]) -> None:
    """One entry of several forgotten or replaced, another digest, generation, preparation or model object in force."""
    system = System()
    assert system.valid()
    change(system)
    assert not system.valid()


def test_a_reply_is_valid_until_its_first_row_expires() -> None:
    """To the second in which it does."""
    system = System()
    assert system.valid(1_000_094.9)
    assert not system.valid(1_000_095.0)


def test_the_same_said_anew_changes_nothing() -> None:
    """A model process is asked each second what it is; an equal answer is not another model."""
    system = System()
    system.served.facts = Facts()
    assert system.valid()
    assert system.entry.facts is system.served.facts


def test_another_reply_of_a_body_forgets_its_requests() -> None:
    """A whole request never gets the reply that its body had before."""
    system, raw = System(), request(v2(DATA))
    system.keep_request(raw)
    before = system.cache.memory.bytes
    system.keep_reply()
    assert system.cache.find_request(raw) is None
    assert system.entry.requests == set()
    system.keep_request(raw)
    assert system.cache.memory.bytes == before


def test_nothing_of_one_request_is_kept_for_the_next() -> None:
    """Its caller and its trace context are its own; another request's second time is not this one's."""
    system, raw = System(), request(v2(DATA))
    head = RequestHead(
        "m", None, "v2", PUBLIC_TENANT, traceparent=f"00-{7:032x}-{7:016x}-01", caller=Caller("192.0.2.7", b"")
    )
    for _ in range(2):
        system.cache.keep_request(raw, head, system.entry)
    found = system.cache.find_request(raw)
    assert found is not None
    assert (found.head.traceparent, found.head.caller) == (None, None)
    other = request(v2(DATA)) + b" "
    system.cache.keep_request(other, V2, system.entry)
    assert system.cache.find_request(other) is None


def test_a_request_is_kept_at_its_second_hit() -> None:
    """Requests that never come again cost a hash; nothing is kept of a body that has gone or has no valid reply."""
    system, raw = System(), request(v2(DATA))
    system.cache.keep_request(raw, V2, system.entry)
    assert system.cache.find_request(raw) is None
    system.cache.keep_request(raw, V2, system.entry)
    assert system.cache.find_request(raw) is not None
    system.keep_reply(space=None)
    system.cache.keep_request(raw, V2, system.entry)
    assert system.cache.find_request(raw) is None
    system.keep_reply()
    system.cache.close()
    system.cache.keep_request(raw, V2, system.entry)
    assert (system.cache.find_request(raw), len(system.cache.memory.bodies), system.cache.memory.bytes) == (None, 0, 0)


def test_requests_take_a_part_of_the_memory_and_the_oldest_go() -> None:
    """Bytes are counted exactly over any number of requests of one body, whose entry stays."""
    system = System(30_000)
    raws = [request(v2(DATA), X=f"{n}") for n in range(100)]
    for raw in raws:
        system.keep_request(raw)
        assert system.cache.memory._request_bytes == sum(one.size for one in system.cache.memory.requests.values())
        assert system.cache.memory.bytes == system.entry.size + system.cache.memory._request_bytes <= 30_000
        assert system.entry.requests == set(system.cache.memory.requests)
    assert system.cache.find_request(raws[-1]) is not None
    assert system.cache.find_request(raws[0]) is None
    assert len(system.cache.memory.bodies) == 1
    assert 3 < len(system.cache.memory.requests) < 60


def test_requests_go_with_their_body() -> None:
    """An entry that has to go takes every request that carries it."""
    system, raw = System(20_000), request(v2(DATA))
    system.keep_request(raw)
    for n in range(50):
        learn(system.cache, v2([[n, 1]], (1, 2)))
    assert system.cache.find(V2, system.body).entry is None
    assert system.cache.find_request(raw) is None
    assert system.cache.memory._request_bytes == 0
    assert not system.valid()


def test_a_request_that_collides_takes_the_others_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of one hash: each is found by its own bytes or not at all, and bytes are counted exactly."""
    system = System()
    one, other = request(v2(DATA), X="1"), request(v2(DATA), X="2")
    monkeypatch.setattr("foreseen.proxy.predict.answer_cache.xxh3_64_intdigest", lambda data: 7)
    system.keep_request(one)
    assert system.cache.find_request(one) is not None
    assert system.cache.find_request(other) is None
    system.keep_request(other)
    assert system.cache.find_request(one) is None
    assert system.cache.find_request(other) is not None
    assert system.cache.memory._request_bytes == system.cache.memory.requests[7].size


def test_a_binary_reply_states_the_length_of_its_json_with_the_id() -> None:
    """The id stands in the JSON part, so both lengths grow with it; the rest of the head is that of the second."""
    system = System()
    rendered = RenderedBody(b'{"a":1', b"}RAW", 7)
    system.cache.keep_reply(system.entry, rendered, system.predictions, SPACE)
    plain = system.cache.reply(system.entry, 1_000_000.0, None, "x;dur=1")
    named = system.cache.reply(system.entry, 1_000_000.0, b"ab", "x;dur=1")
    for reply, body, length in ((plain, b'{"a":1}RAW', 7), (named, b'{"a":1,"id":"ab"}RAW', 17)):
        head, _, after = reply.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert after == body
        assert b"content-length: %d" % len(body) in lines
        assert b"inference-header-content-length: %d" % length in lines
        assert b"server-timing: x;dur=1" in lines
        assert b"cache-status: foreseen;hit;ttl=95;detail=near" in lines
    assert (
        plain.replace(b": 7\r\n", b": 17\r\n")
        .split(b"\r\n\r\n")[0]
        .replace(b"Content-Length: 10\r\n", b"Content-Length: 20\r\n")
        == named.split(b"\r\n\r\n")[0]
    )


def test_a_head_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of one second and one timing share their head; of a negative age there is none."""
    system, made = System(), []
    monkeypatch.setattr(system.cache, "lines", lambda *args: made.append(args) or "Age: 0\r\n")
    for now, timing in ((5.0, None), (5.9, None), (6.0, None), (6.5, "x"), (6.9, "x")):
        system.cache.reply(system.entry, now, None, timing)
    assert [args[1:] for args in made] == [(5.0, None), (6.0, None), (6.5, "x")]
    monkeypatch.undo()
    assert "Age: 0\r\n" in system.cache.lines(system.entry, 999_990.0, None)
    assert "Age: 0\r\n" in system.cache.lines(system.entry, 999_995.9, None)


def test_a_cached_request_counts_its_bytes_and_those_of_its_reply() -> None:
    """Its size is what it takes: the request, and the reply of this second."""
    system, raw = System(), request(v2(DATA))
    system.keep_request(raw)
    (kept,) = system.cache.memory.requests.values()
    rendered = system.entry.rendered
    assert rendered is not None
    assert kept.size == REQUEST_OVERHEAD_BYTES + len(raw) + len(rendered.before) + len(rendered.after)
    assert (kept.reply, kept.second) == (b"", -1)
    assert kept.head == V2
    assert kept.head.caller is None


def test_a_cached_request_holds_no_caller() -> None:
    """Another client may send the same bytes."""
    system, raw = System(), request(v2(DATA))
    head = structs.replace(V2, caller=Caller("192.0.2.1", raw))
    for _ in range(2):
        system.cache.keep_request(raw, head, system.entry)
    found = system.cache.find_request(raw)
    assert found is not None
    assert found.head == V2


def test_what_is_a_quarter_of_the_memory_is_kept_and_no_more() -> None:
    """A body or request above it would push out all others."""
    system, raw = System(100_000), request(v2(DATA), X="x" * 3000)
    system.cache._longest = len(raw)
    system.keep_request(raw)
    assert system.cache.find_request(raw) is not None
    longer = request(v2(DATA), X="x" * 3001)
    system.keep_request(longer)
    assert system.cache.find_request(longer) is None


def test_a_rendering_is_taken_again_for_the_same_bytes_only() -> None:
    """The data and heads of every output decide; who made the prediction, and when, does not."""
    system = System()
    entry, own = system.entry, system.predictions
    other_age = [structs.replace(one, made_at=1.0, digest="d2") for one in own]
    other_data = [*own[:-1], structs.replace(own[-1], data=tuple(b"x" + raw[1:] for raw in own[-1].data))]
    other_head = [*own[:-1], structs.replace(own[-1], outputs=(Output("other", "FP32", (1,)),))]
    assert rendered_before(entry, own) is entry.rendered is not None
    assert rendered_before(entry, other_age) is entry.rendered
    assert rendered_before(entry, other_data) is None
    assert rendered_before(entry, other_head) is None
    assert rendered_before(entry, own[:-1]) is None
    assert rendered_before(entry, [*own, own[0]]) is None


def test_purges_that_are_read_already_are_not_asked_for_again() -> None:
    """The generation of the scope, model and digest, from the table where it stands there, else by the call."""
    system, asked = System(), []

    class Table(Purged):
        def __init__(self) -> None:
            self.known: dict[tuple[Scope, str, str], int] = {}

        @property
        def worked_out(self) -> dict[tuple[Scope, str, str], int]:
            return self.known

        def of(self, scope: Scope, model: str, digest: str) -> int | None:
            asked.append((scope, model, digest))
            return 0

    purges = system.cache._purges = Table()
    assert system.valid()
    assert asked == [("public", "m", "d1")]
    purges.known = {(PUBLIC, "m", "d1"): 0}
    assert system.valid()
    assert asked == [("public", "m", "d1")]
    purges.known = {(own_scope("a"), "m", "d1"): 5, **purges.known}
    assert system.valid()
    purges.known = {(PUBLIC, "m", "d1"): 5}
    assert not system.valid()


def test_only_a_reply_of_the_space_in_force_is_sent_again() -> None:
    """None where near lacked a row, where the keys are of another space, or where the model's digest has moved."""
    for space, facts in ((None, Facts()), (Space("public", "m", "d2"), Facts()), (SPACE, Facts("d2")), (SPACE, None)):
        system = System()
        system.served.facts = facts
        system.keep_reply(space=space)
        assert system.entry.until == 0.0
        assert system.entry.rows == ()
    system = System()
    system.keep_reply(space=Space("public", "m", "d1", 1))
    assert system.entry.until == 0.0


def test_a_kept_body_counts_its_bytes_and_its_rows() -> None:
    """Its size is what it takes: text, tensors, and what each row costs beside them."""
    cache, body = cache_of(100_000), v2(DATA)
    entry = learn(cache, body)
    assert entry is not None
    rows = entry.prepared.rows
    tensors = sum(tensor.nbytes for row in rows for tensor in row.tensors)
    assert entry.size == cache.memory.bytes == BODY_OVERHEAD_BYTES + ROW_BYTES * len(rows) + len(body) + tensors
    assert (len(rows), tensors) == (2, 16)
    assert (entry.until, entry.made_at, entry.saved, entry.rows, entry.id) == (0.0, 0.0, 0.0, (), None)
    assert entry.facts is SERVED.facts


def test_a_body_too_long_to_keep_is_not_hashed() -> None:
    """A quarter of the memory is the most; its look-up has no entry and no hash."""
    body = v2(DATA)
    fits, too_small = cache_of(4 * len(body)), cache_of(4 * len(body) - 4)
    assert fits.find(V2, body).hash == xxh3_64_intdigest(body, V2.tenant.seed) != 0
    found = too_small.find(V2, body)
    assert (found.entry, found.hash, found.id, found.start, found.text) == (None, 0, None, 0, body)
    assert found.meaning == ("m", "v2", None, True, V2.tenant.scope)
