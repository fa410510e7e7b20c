"""Short cuts of bodies: found by a hash, proved by every byte, equal but for the request's own id."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import orjson
import pytest
from xxhash import xxh3_64_intdigest

from foreseen.errors import ForeseenError
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.decode import DecodedRequest, decode_v1, decode_v2
from foreseen.proxy.predict.render import draw, render
from foreseen.proxy.predict.shortcut import MAX_HINTS, Entry, Found, Known, Shortcuts
from tests.collisions import chosen_pair, second_preimage
from tests.doubles import predicted
from tests.proxy.predict.test_decode_render import ONE, TWO, v2

V2, V1 = RequestHead("m", None, "v2"), RequestHead("m", None, "v1")
SERVED = cast(ServedModel, object())
PREPARER = Preparer(ONE, {})
DATA = [[1, 2], [3, 4]]


def read(ask: RequestHead, body: bytes) -> DecodedRequest:
    return decode_v1(body, ONE) if ask.protocol == "v1" else decode_v2(body, ask.header_length, ONE)


def learn(shortcuts: Shortcuts, body: bytes, ask: RequestHead = V2) -> Entry | None:
    """What a body came to, twice."""
    asked = read(ask, body)
    known = Known(PREPARER, tuple(PREPARER.rows(asked.inputs)))
    for _ in range(2):
        entry = shortcuts.keep(shortcuts.find(ask, body), SERVED, asked, known)
    return entry


def test_a_body_is_kept_at_its_second_time_and_found_by_all_its_bytes() -> None:
    """A body that never comes again costs a hint; every byte counts, wherever it stands."""
    shortcuts, body = Shortcuts(100_000), v2(DATA)
    asked = read(V2, body)
    known = Known(PREPARER, tuple(PREPARER.rows(asked.inputs)))
    assert shortcuts.keep(shortcuts.find(V2, body), SERVED, asked, known) is None
    entry = shortcuts.keep(shortcuts.find(V2, body), SERVED, asked, known)
    assert entry is not None
    assert shortcuts.find(V2, body).entry is entry
    for at in range(len(body)):
        assert shortcuts.find(V2, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]).entry is None
    assert shortcuts.find(V2, body + b" ").entry is None


def test_what_a_body_means_is_part_of_it() -> None:
    """The same bytes for another model, protocol or header length are another question."""
    shortcuts = Shortcuts(100_000)
    body = np.array(DATA, np.float32).tobytes()
    assert learn(shortcuts, body, RequestHead("m", None, "v2", 0)) is not None
    for other in (
        RequestHead("n", None, "v2", 0),
        RequestHead("m", None, "v2"),
        RequestHead("m", None, "v2", 1),
        RequestHead("m", None, "v1", 0),
    ):
        assert shortcuts.find(other, body).entry is None
    assert shortcuts.find(RequestHead("m", "1", "v2", 0, seconds=1), body).entry is not None


@pytest.mark.parametrize("recipe", ["chosen", "second"])
def test_colliding_bodies_are_two(recipe: str) -> None:
    """Raw tensors that XXH3 takes for one another: one hint, two bodies, whichever is known first."""
    picture = np.random.default_rng(5).standard_normal(4096).astype(np.float32)
    pair = chosen_pair(picture) if recipe == "chosen" else (picture, second_preimage(picture))
    one, other = (tensor.tobytes() for tensor in pair)
    assert xxh3_64_intdigest(one) == xxh3_64_intdigest(other)
    ask = RequestHead("m", None, "v2", 0)
    for first, second in ((one, other), (other, one)):
        shortcuts = Shortcuts(10**6)
        entry = learn(shortcuts, first, ask)
        assert shortcuts.find(ask, first).entry is entry is not None
        assert shortcuts.find(ask, second).entry is None
        assert learn(shortcuts, second, ask) is not None
        assert shortcuts.find(ask, first).entry is None
        assert shortcuts.bytes == sum(entry.size for entry in shortcuts._entries.values())


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
    shortcuts, first = Shortcuts(100_000), body % b"a-1"
    entry = learn(shortcuts, first)
    assert entry is not None
    assert shortcuts.find(V2, first)[4:] == (b"a-1", first.index(b"a-1"))
    predictions = [predicted(1), predicted(2)]
    for own in (b"a-1", b"7", b"550e8400-e29b-41d4-a716-446655440000"):
        found = shortcuts.find(V2, body % own)
        assert (found.entry, found.id) == (entry, own)
        asked = read(V2, body % own)
        assert entry.output_options(found.id) == asked.output_options
        manifest = TWO
        drawn = draw(manifest, [], asked.output_options)
        assert drawn.reply(found.id) == render(manifest, [], asked.output_options)
    assert not draw(TWO, [], asked.output_options).of(predictions)


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
    assert learn(Shortcuts(100_000), body) is None


@pytest.mark.parametrize("own", ['a"b', "a\\b", "ü", "a b", "", "x" * 129, "\u0001"])
def test_an_id_that_is_not_plain_stays_where_it_is(own: str) -> None:
    """Then the whole body counts, id and all."""
    shortcuts = Shortcuts(100_000)
    body = v2(DATA, id=own)
    entry = learn(shortcuts, body)
    found = shortcuts.find(V2, body)
    assert found.entry is entry is not None
    assert found.id is None
    assert entry.asked.output_options.id == (own or None)
    assert shortcuts.find(V2, v2(DATA, id=own + "x")).entry is None


def test_an_empty_id_and_a_cut_one_are_not_the_same() -> None:
    """What is left of a body without its id may itself be sent: it has none, and gets none."""
    shortcuts = Shortcuts(100_000)
    assert learn(shortcuts, v2(DATA, id="abc")) is not None
    found = shortcuts.find(V2, v2(DATA, id=""))
    assert (found.entry, found.id) == (None, None)


def test_a_binary_bodys_id_moves_its_header_length() -> None:
    """JSON part and tensors: the id is cut out of the first, and an `"id":"…"` among the second's bytes is not."""
    shortcuts = Shortcuts(100_000)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    raw = b'"id":"ab'

    def asking(own: str) -> tuple[RequestHead, bytes]:
        head = orjson.dumps({"id": own, "inputs": [tensor]})
        return RequestHead("m", None, "v2", len(head)), head + raw

    ask, body = asking("first")
    entry = learn(shortcuts, body, ask)
    assert entry is not None
    other, longer = asking("another-one")
    assert shortcuts.find(other, longer).entry is entry
    assert shortcuts.find(ask, longer).entry is None
    bare = orjson.dumps({"inputs": [tensor]})
    assert shortcuts.find(RequestHead("m", None, "v2", len(bare)), bare + raw).id is None
    known = decode_v2(longer, other.header_length, ONE)
    drawn = draw(ONE, [], known.output_options)
    assert drawn.reply(b"another-one") == render(ONE, [], known.output_options)


def large(first: int = 0, rows: int = 40_000) -> bytes:
    """A raw binary body of 320 KB."""
    return (np.arange(first, first + 2 * rows, dtype=np.float32)).tobytes()


def cut(body: bytes, *places: int) -> list[bytes]:
    return [body[start:end] for start, end in zip((0, *places), (*places, len(body)), strict=True)]


RAW = RequestHead("m", None, "v2", 0)


@pytest.mark.parametrize("places", [(), (0,), (1,), (1023, 1024), (500, 200_000), (100_000, 200_000, 319_999)])
def test_a_large_body_is_found_in_the_pieces_that_it_came_in(places: tuple[int, ...]) -> None:
    """Wherever it was cut; every byte counts, and so do its length and what it means."""
    shortcuts, body = Shortcuts(100_000_000), large()
    entry = learn(shortcuts, body, RAW)
    found = shortcuts.find_whole(RAW, cut(body, *places), len(body))
    assert found is not None
    assert (found.entry, found.text, found.id) == (entry, body, None)
    for at in (0, 1, 1023, 1024, 65_536, 200_000, len(body) - 1):
        other = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert shortcuts.find_whole(RAW, cut(other, *places), len(body)) is None
    for other in (body[:-1], body + b"x", body[:-4]):
        assert shortcuts.find_whole(RAW, cut(other, *places), len(other)) is None
        assert shortcuts.find_whole(RAW, cut(other, *places), len(body)) is None
    for ask in (
        RequestHead("n", None, "v2", 0),
        RequestHead("m", None, "v1", 0),
        RequestHead("m", None, "v2"),
        RequestHead("m", None, "v2", 1),
    ):
        assert shortcuts.find_whole(ask, cut(body, *places), len(body)) is None


def test_large_bodies_that_begin_alike_are_told_apart() -> None:
    """The later is looked for; the earlier is found by its hash."""
    shortcuts = Shortcuts(100_000_000)
    one, two = large(), large()[:-4] + b"\0\0\0\0"
    first, second = learn(shortcuts, one, RAW), learn(shortcuts, two, RAW)
    assert shortcuts.find_whole(RAW, [one], len(one)) is None
    found = shortcuts.find_whole(RAW, [two], len(two))
    assert found is not None
    assert found.entry is second
    assert shortcuts.find(RAW, one).entry is first


def test_a_large_body_with_an_id_is_found_by_its_hash_alone() -> None:
    """Its id is cut out, so its bytes are not the entry's."""
    shortcuts = Shortcuts(100_000_000)
    rows = [[float(n), 1.0] for n in range(10_000)]
    inputs = [{"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}]
    body = orjson.dumps({"id": "a", "inputs": inputs})
    entry = learn(shortcuts, body)
    assert shortcuts.find(V2, body).entry is entry
    assert shortcuts.find_whole(V2, [body], len(body)) is None
    assert not shortcuts._large


def test_large_bodies_go_with_their_entries() -> None:
    """Those that had to go are found in no way, and nothing is left of them."""
    shortcuts = Shortcuts(100_000_000)
    bodies = [large(number) for number in range(12)]
    for body in bodies:
        learn(shortcuts, body, RAW)
    for body in bodies:
        entry, found = shortcuts.find(RAW, body).entry, shortcuts.find_whole(RAW, [body], len(body))
        assert (None if found is None else found.entry) is entry
    assert len(shortcuts._large) == len(shortcuts) < 12


def test_memory_is_bounded_and_the_oldest_go() -> None:
    """Bytes are counted exactly over any number of bodies; one larger than a quarter of it is not kept."""
    shortcuts = Shortcuts(20_000)
    for n in range(50):
        entry = learn(shortcuts, v2([[n, 1]], (1, 2)))
        assert entry is not None
        if n % 3:
            shortcuts.draw(entry, draw(ONE, [], entry.asked.output_options))
        assert shortcuts.bytes == sum(one.size for one in shortcuts._entries.values()) <= 20_000
    assert len(shortcuts) > 3
    assert shortcuts.find(V2, v2([[0, 1]], (1, 2))).entry is None
    assert shortcuts.find(V2, v2([[49, 1]], (1, 2))).entry is not None
    assert learn(shortcuts, v2([[0.5, 1]] * 1000, (1000, 2))) is None
    assert learn(Shortcuts(0), v2(DATA)) is None


def test_hints_are_bounded() -> None:
    """A flood of bodies that never come again."""
    shortcuts = Shortcuts(20_000)
    for n in range(MAX_HINTS + 10):
        shortcuts._seen(n)
    assert len(shortcuts._hints) == MAX_HINTS


def test_no_reading_of_mutated_bodies_differs_from_the_plain_one() -> None:
    """Ten thousand mutations of known bodies: what a short cut finds is what decoding finds."""
    rng = np.random.default_rng(8)
    shortcuts = Shortcuts(10**6)
    seeds = [b'{"id":"a1",' + v2(DATA)[1:], v2(DATA)[:-1] + b',"id":"b"}', v2(DATA), v2(DATA, parameters={"id": "q"})]
    for seed in seeds:
        learn(shortcuts, seed)
    alphabet = b'"id":,{}[] 0123456789.e-a\\\n'
    hits = 0
    for step in range(10_000):
        body = bytearray(seeds[step % len(seeds)])
        for _ in range(rng.integers(0, 4)):
            at = int(rng.integers(len(body)))
            body[at : at + int(rng.integers(0, 3))] = bytes(rng.choice(list(alphabet), int(rng.integers(0, 3))))
        found: Found = shortcuts.find(V2, bytes(body))
        if found.entry is None:
            continue
        hits += 1
        plain: Any = outcome(bytes(body))
        assert plain is not None
        assert found.entry.output_options(found.id) == plain.output_options
        assert found.entry.asked.parameters == plain.parameters
        rows = PREPARER.rows(plain.inputs)
        assert [row.tensors[0].tobytes() for row in found.entry.known.rows] == [
            row.tensors[0].tobytes() for row in rows
        ]
    assert hits > 1000


def outcome(body: bytes) -> DecodedRequest | None:
    try:
        return decode_v2(body, None, ONE)
    except ForeseenError:
        return None
