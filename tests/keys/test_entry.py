"""Entries prove themselves: whatever is not exactly the entry that was asked for is refused with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.errors import EntryError
from foreseen.keys.entry import EntryCodec, Table
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Output, Prediction
from tests.doubles import numbered, predicted

ONE, TWO = numbered(2)
CODEC = EntryCodec(bytes(range(32)))


def big() -> Prediction:
    return Prediction(
        (Output("embedding", "FP32", (2, 3)), Output("text", "BYTES", (1,)), Output("none", "INT64", (0,))),
        (bytes(range(24)), b"\x02\x00\x00\x00ab", b""),
        "d",
        1000.25,
        2000.75,
        0.5,
    )


def reason(value: bytes, codec: EntryCodec = CODEC) -> str:
    with pytest.raises(EntryError) as error:
        codec.unpack(ONE, "d", value)
    return error.value.reason


def test_what_is_packed_is_unpacked() -> None:
    """Outputs, shapes, bytes and times come back; the digest is the space's."""
    value = CODEC.pack(ONE, big())
    assert CODEC.unpack(ONE, "d", value) == big()
    assert CODEC.unpack(ONE, "d", value) == big()  # again, with the layout known
    assert len(value) == CODEC.size(big())


def test_a_reader_that_has_packed_nothing_reads_every_layout() -> None:
    """Names, datatypes, shapes of any rank and lengths, from the bytes alone; and again from what it remembers."""
    outputs = (Output("a", "FP32", (2, 1, 3)), Output("bc", "INT8", (4, 5)), Output("", "BYTES", ()))
    made = Prediction(outputs, (bytes(24), bytes(range(20)), b"rest"), "d", 1.5, 2.5, 0.25)
    value, reader = CODEC.pack(ONE, made), EntryCodec(bytes(range(32)))
    first = reader.unpack(ONE, "d", value)
    assert first == made
    assert reader.unpack(ONE, "d", value).outputs is first.outputs


@pytest.mark.parametrize(
    "layout",
    [
        b"\x01\x01y" + bytes((DATATYPES["INT8"].code, 1)) + (2).to_bytes(4, "little") + (3).to_bytes(4, "little"),
        b"\x00\x00",
        b"\x01",
        b"\x01\x01y\xff\x00\x00\x00\x00\x00",
    ],
    ids=["a length that is not the shape's", "bytes behind it", "cut off", "no such datatype"],
)
def test_a_layout_that_no_writer_makes_is_of_the_wrong_format(layout: bytes) -> None:
    """Under a right tag, too."""
    body = CODEC.pack(ONE, predicted(1))[:56] + len(layout).to_bytes(2, "little") + layout + bytes(3)
    assert reason(body + CODEC._tag(body), EntryCodec(bytes(range(32)))) == "format"


def test_layouts_are_those_of_each_prediction() -> None:
    """One codec after the other: none, one, another, text of other lengths, and the first again."""
    codec = EntryCodec(b"k" * 32)
    text = Output("t", "BYTES", (1,))
    made = [
        Prediction(outputs, data, "d", 1.0, 2.0, 0.5)
        for outputs, data in (
            ((), ()),
            ((Output("y", "INT8", (2,)),), (b"ab",)),
            ((text,), (b"abc",)),
            ((text,), (b"abcdef",)),
            ((), ()),
            ((Output("y", "INT8", (2,)),), (b"cd",)),
        )
    ]
    for prediction in made:
        packed = codec.pack(ONE, prediction)
        assert codec.unpack(ONE, "d", packed) == prediction
        assert len(packed) == codec.size(prediction)


def test_many_entries_of_one_layout_are_the_same_entries() -> None:
    """What is packed by the column is what is packed one by one."""
    dice = np.random.default_rng(0)
    one = big()
    keys = numbered(5)
    data = tuple(dice.integers(0, 255, (5, len(raw)), np.uint8) for raw in one.data)
    made, expires, seconds = dice.random(5), dice.random(5), dice.random(5).astype(np.float32)
    lines = CODEC.pack_table(keys, Table(one.outputs, data, made, expires, seconds))
    for i, key in enumerate(keys):
        raw = tuple(column[i].tobytes() for column in data)
        alone = Prediction(one.outputs, raw, "d", float(made[i]), float(expires[i]), float(seconds[i]))
        assert lines[i].tobytes() == CODEC.pack(key, alone)


def test_golden_entry() -> None:
    """The format, frozen: a change needs a new magic."""
    value = CODEC.pack(ONE, predicted(7, "d", made_at=1.0, ttl=2.0))
    assert value[:-16].hex() == (
        "465345310100000000000000000000000000000000000000000000000000000000000000000000000000"
        "f03f00000000000008400000803e0d00010179090101000000080000000700000000000000"
    )
    assert value[-16:].hex() == "6654f09bf1580af7db1ccb067c8fcce5"


def test_another_entry_is_refused_by_its_identity() -> None:
    """A reply to somebody else's command is a miss, however genuine."""
    assert reason(CODEC.pack(TWO, big())) == "identity"


def test_a_forged_entry_is_refused_by_its_tag() -> None:
    """Whoever can write to Redis but does not hold the secret cannot make an answer."""
    assert reason(EntryCodec(bytes(32)).pack(ONE, big())) == "tag"


def test_every_flipped_bit_is_noticed() -> None:
    """All bytes, all eight bits of each: never an answer."""
    value = CODEC.pack(ONE, big())
    for at in range(len(value)):
        for bit in range(8):
            flipped = value[:at] + bytes([value[at] ^ (1 << bit)]) + value[at + 1 :]
            assert reason(flipped) in ("format", "identity", "tag")


def test_every_truncation_and_extension_is_noticed() -> None:
    """Cut anywhere or grown: never an answer."""
    value = CODEC.pack(ONE, big())
    for length in range(len(value)):
        assert reason(value[:length]) in ("length", "tag")
    assert reason(value + b"\x00") == "tag"


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(value: bytes) -> None:
    """Foreign values have no other way out than EntryError."""
    assert reason(value) in ("length", "format", "identity", "tag")


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_a_writer_with_the_key_and_a_bug_crashes_nobody(layout: bytes, data: bytes) -> None:
    """Even under a right tag a layout is bounds-checked."""
    body = CODEC.pack(ONE, predicted(1))[:56] + len(layout).to_bytes(2, "little") + layout + data
    signed = body + CODEC._tag(body)
    try:
        prediction = CODEC.unpack(ONE, "d", signed)
    except EntryError:
        assert reason(signed) in ("format", "length")
        return
    assert sum(map(len, prediction.data)) == len(data)
    for output, part in zip(prediction.outputs, prediction.data, strict=True):
        assert output.datatype in DATATYPES
        assert isinstance(part, bytes)


def test_layouts_that_are_remembered_are_bounded() -> None:
    """Lengths differ from row to row; what is remembered of them has an end."""
    codec = EntryCodec(bytes(32))
    for n in range(1100):
        one = Prediction((Output("y", "INT8", (n,)),), (bytes(n),), "d", 0.0, 1.0, 0.0)
        assert codec.unpack(ONE, "d", codec.pack(ONE, one)) == one
    assert len(codec._layouts) == 1024
