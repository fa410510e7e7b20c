"""Keys: golden vectors that freeze every byte, and the property that every field counts and nothing else does."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.keys.key import (
    Framer,
    key_of,
    keys_of,
    keys_of_frames,
    opened_generation,
    passed_key,
    reply_id,
    reply_id_key,
    sealed_generation,
    secret_check,
    space_key,
    tag_key,
)
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Array, Row, Space

ROOT = bytes(range(32))
GOLDEN = Path(__file__).parent.parent / "golden" / "keys.json"
OUTPUTS = (ModelOutput("y", "FP32", ("rows",)),)


def signature(*inputs: tuple[str, str, tuple[int | str, ...]]) -> ModelSignature:
    return ModelSignature(
        tuple(ModelInput(name, datatype, ("rows", *shape)) for name, datatype, shape in inputs), OUTPUTS
    )


def texts(*items: bytes) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array


CASES: dict[str, tuple[ModelSignature, Row, bytes, Space]] = {
    "sixteen numbers": (
        signature(("x", "INT64", (4,))),
        Row((np.array([1, -2, 3, 2**62], np.int64),)),
        b"",
        Space("public", "fingerprint", "aa"),
    ),
    "two inputs, sorted by name": (
        signature(("z", "FP32", (2,)), ("a", "UINT8", ())),
        Row((np.array([0.5, -0.0], np.float32), np.array(7, np.uint8))),
        b"",
        Space("public", "m", "bb"),
    ),
    "token ids": (
        signature(("input_ids", "INT64", ("tokens",))),
        Row((np.array([101, 7592, 102], np.int64),)),
        b"",
        Space("public", "minilm", "cc", 5),
    ),
    "texts with parameters": (
        signature(("t", "BYTES", (2,))),
        Row((texts(b"ab", b""),)),
        b'{"k":1}',
        Space("tenant-1", "m", "dd"),
    ),
    "a tensor of halves": (
        signature(("h", "FP16", (2, 1))),
        Row((np.array([[1.5], [2.5]], np.float16),)),
        b"",
        Space("public", "m", "ee"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_vectors(name: str) -> None:
    """Frame and key are what they were when the file was made. A change here empties every cache in the field."""
    shape, row, parameters, space = CASES[name]
    golden = json.loads(GOLDEN.read_text())[name]
    frame = Framer(shape).frame(row, parameters)
    assert frame.hex() == golden["frame"]
    assert key_of(space_key(ROOT, space), frame).hex() == golden["key"]


def derived() -> dict[str, str]:
    """Keys and values made of the root secret alone."""
    return {"tag": tag_key(ROOT).hex(), "check": secret_check(ROOT).hex(), "passed": passed_key(ROOT).hex()}


def test_derived_keys_are_golden_too() -> None:
    """The tag key, the key of passed-on credentials and the secret's check value; none is the root or a space key."""
    golden = json.loads(GOLDEN.read_text())["derived"]
    assert derived() == golden
    assert len({ROOT, tag_key(ROOT), passed_key(ROOT), space_key(ROOT, Space("", "", ""))}) == 4


def test_a_frame_read_by_hand() -> None:
    """The grammar of the docstring, byte by byte."""
    frame = Framer(signature(("ab", "INT16", (2,)))).frame(Row((np.array([1, -1], np.int16),)), b"{}")
    assert frame == (
        b"fsn1" + struct.pack("<I", 2) + b"{}" + struct.pack("<H", 2) + b"ab" + bytes([7, 1])
        + struct.pack("<Q", 2) + struct.pack("<Q", 4) + b"\x01\x00\xff\xff"
    )  # fmt: skip


FIELDS: list[Any] = [
    ("scope", {"space": Space("tenant", "m", "d")}),
    ("model", {"space": Space("public", "n", "d")}),
    ("digest", {"space": Space("public", "m", "e")}),
    ("generation", {"space": Space("public", "m", "d", 1)}),
    ("root", {"root": bytes(32)}),
    ("name", {"signature": signature(("y", "INT32", (4,)))}),
    ("datatype", {"signature": signature(("x", "UINT32", (4,))), "row": Row((np.arange(4, dtype=np.uint32),))}),
    ("shape", {"row": Row((np.arange(4, dtype=np.int32).reshape(2, 2),))}),
    ("rank", {"row": Row((np.arange(4, dtype=np.int32).reshape(4, 1),))}),
    ("value", {"row": Row((np.array([0, 1, 2, 4], np.int32),))}),
    ("order", {"row": Row((np.array([3, 2, 1, 0], np.int32),))}),
    ("parameters", {"parameters": b'{"a":1}'}),
]


def made(**changed: Any) -> bytes:
    shape = changed.get("signature", signature(("x", "INT32", (4,))))
    row = changed.get("row", Row((np.arange(4, dtype=np.int32),)))
    space = changed.get("space", Space("public", "m", "d"))
    key = space_key(changed.get("root", ROOT), space)
    return key_of(key, Framer(shape).frame(row, changed.get("parameters", b"")))


def test_every_field_counts() -> None:
    """Thirteen questions that differ in one field each: thirteen keys."""
    assert len({made(), *(made(**changed) for _, changed in FIELDS)}) == len(FIELDS) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Space("ab", "c", "d"), Space("a", "bc", "d")),
        (Space("a", "bc", "d"), Space("a", "b", "cd")),
        (Space("", "a", "b"), Space("a", "", "b")),
    ],
)
def test_fields_do_not_run_into_each_other(one: Space, other: Space) -> None:
    """Length prefixes: joined without them, these would be one space."""
    assert space_key(ROOT, one) != space_key(ROOT, other)


def test_two_inputs_do_not_run_into_each_other() -> None:
    """What one input lacks is not made up for by the next."""
    two = signature(("a", "BYTES", (1,)), ("b", "BYTES", (1,)))
    framer = Framer(two)
    assert framer.frame(Row((texts(b"xy"), texts(b"")))) != framer.frame(Row((texts(b"x"), texts(b"y"))))
    one = Framer(signature(("a", "BYTES", (2,))))
    assert one.frame(Row((texts(b"xy", b""),))) != one.frame(Row((texts(b"x", b"y"),)))


def test_memory_order_and_byte_order_do_not_count() -> None:
    """Fortran order, strides and views: the same numbers are the same frame."""
    framer = Framer(signature(("x", "INT32", (2, 3))))
    plain = np.arange(6, dtype=np.int32).reshape(2, 3)
    strided = np.zeros((2, 6), np.int32)
    strided[:, ::2] = plain
    views = [plain, np.asfortranarray(plain), strided[:, ::2], plain.astype(">i4").astype("<i4")]
    assert len({framer.frame(Row((view,))) for view in views}) == 1


def test_known_heads_are_bounded() -> None:
    """Clients choose lengths; what is remembered of them has an end, and frames stay right beyond it."""
    framer = Framer(signature(("x", "INT8", ("tokens",))))
    frames = {framer.frame(Row((np.zeros(n, np.int8),))) for n in range(framer.MAX_HEADS + 50)}
    assert len(frames) == framer.MAX_HEADS + 50
    assert len(framer._heads) == framer.MAX_HEADS


_VALUES = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6)


@given(_VALUES, _VALUES)
def test_two_rows_share_a_frame_only_if_they_are_equal(one: list[int], other: list[int]) -> None:
    """No two different tensors have one frame."""
    framer = Framer(signature(("x", "INT32", ("n",))))
    frames = [framer.frame(Row((np.array(values, np.int32),))) for values in (one, other)]
    assert (frames[0] == frames[1]) == (one == other)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 63), st.integers(1, 255))
def test_any_changed_byte_of_a_frame_changes_the_key(frame: bytes, at: int, change: int) -> None:
    """The digest covers all of it."""
    at %= len(frame)
    other = frame[:at] + bytes([frame[at] ^ change]) + frame[at + 1 :]
    key = space_key(ROOT, Space("public", "m", "d"))
    assert key_of(key, frame) != key_of(key, other)


def regenerate() -> None:
    """Write the golden file anew: only with a new format version."""
    golden: dict[str, Any] = {"derived": derived()}
    for name, (shape, row, parameters, space) in CASES.items():
        frame = Framer(shape).frame(row, parameters)
        golden[name] = {"frame": frame.hex(), "key": key_of(space_key(ROOT, space), frame).hex()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    regenerate()


@pytest.mark.parametrize("shapes", [[(4,)], [(2, 3), ()], [(0,), (2,)]])
@pytest.mark.parametrize("parameters", [b"", b'{"k":1}'])
def test_frames_and_keys_by_the_column_are_the_same(shapes: list[tuple[int, ...]], parameters: bytes) -> None:
    """A million rows at a time have the identities that they have one by one."""
    dice = np.random.default_rng(0)
    names = ["z", "a"]
    one = signature(*((name, "FP32", shape) for name, shape in zip(names, shapes, strict=False)))
    columns = [dice.random((7, *shape), np.float32) for shape in shapes]
    rows = [Row(parts) for parts in zip(*([c[i, ...] for i in range(7)] for c in columns), strict=True)]
    alone = Framer(one).frames(rows, parameters)
    lines = Framer(one).table(columns, parameters)
    space = space_key(ROOT, Space("public", "m", "aa"))
    assert [line.tobytes() for line in lines] == alone
    assert keys_of(space, lines) == [key_of(space, frame) for frame in alone]
    assert Framer(one).column_frames(columns, parameters) == alone
    assert keys_of_frames(space, alone) == keys_of(space, lines)
    assert Framer(one).column_frames([column[:0] for column in columns]) == []


@pytest.mark.parametrize("name", CASES)
def test_a_frame_is_its_starts_with_the_data_between(name: str) -> None:
    """What stands before each input's data, put together with the data, is the frame; inputs in the frame's order."""
    shape, row, parameters, _ = CASES[name]
    framer = Framer(shape)
    parts = [
        start + raw_of(row.tensors[index], DATATYPES[shape.keyed[index].datatype])
        for index, start in framer.starts(row, parameters)
    ]
    assert b"".join(parts) == framer.frame(row, parameters)


def test_columns_of_another_memory_order_or_byte_order_are_the_same_frames() -> None:
    """The frame holds little-endian rows, whatever the arrays are in memory; a column of one row, too."""
    framer = Framer(signature(("x", "FP32", (2, 3))))
    for count in (1, 4):
        plain = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
        alone = framer.frames([Row((part,)) for part in plain])
        for column in (plain.astype(">f4"), np.asfortranarray(plain), np.repeat(plain, 2, axis=0)[::2]):
            assert framer.column_frames([column]) == alone
            assert [line.tobytes() for line in framer.table([column])] == alone


def test_rows_of_no_elements_have_frames_by_the_column() -> None:
    """A tensor of size 0 has a head and no data."""
    framer = Framer(signature(("x", "FP32", (0,))))
    column = np.empty((3, 0), np.float32)
    alone = framer.frames([Row((part,)) for part in column])
    assert framer.column_frames([column]) == alone
    assert [line.tobytes() for line in framer.table([column])] == alone


def test_columns_have_no_parameters_unless_given() -> None:
    """As a frame: the default is none."""
    framer, column = Framer(signature(("x", "INT8", ()))), np.array([1, 2], np.int8)
    alone = [framer.frame(Row((column[i, ...],))) for i in range(2)]
    assert framer.column_frames([column]) == alone
    assert [line.tobytes() for line in framer.table([column])] == alone


def test_a_generation_is_opened_only_as_it_was_sealed() -> None:
    """20 digits and a MAC of 16 bytes under the root secret: no other bytes, and no other secret."""
    sealed = sealed_generation(ROOT, 1_700_000_000_000_001)
    assert sealed[:20] == b"00001700000000000001"
    assert sealed.hex()[40:] == "7f518930fd8685832c29586754f38087"
    assert len(sealed) == 36
    assert opened_generation(ROOT, sealed) == 1_700_000_000_000_001
    assert opened_generation(bytes(32), sealed) is None
    assert opened_generation(ROOT, b"") is None
    assert opened_generation(ROOT, sealed + b"0") is None
    assert opened_generation(ROOT, sealed[:-1]) is None
    assert opened_generation(ROOT, b"x" * 36) is None
    for at in range(len(sealed)):
        assert opened_generation(ROOT, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None


def test_framers_of_given_inputs_are_kept_and_bounded() -> None:
    """Rows with other optional inputs have frames of their own; which were given is chosen by clients, so it is
    bounded how many are kept."""
    both = ModelSignature(tuple(ModelInput(name, "INT8", ("rows",), optional=True) for name in ("a", "b")), OUTPUTS)
    framer = Framer(both)
    one = np.array(7, np.int8)
    only_b = framer.frame(Row((one,), (1,)))
    assert only_b == Framer(both.of((1,))).frame(Row((one,)))
    assert only_b == framer.frame(Row((one,), (1,)))
    assert only_b != framer.frame(Row((one,), (0,)))
    assert len(framer._partial) == 2
    framer.MAX_HEADS = 2  # type: ignore[misc]
    assert framer.frame(Row((), ())) == Framer(both.of(())).frame(Row(()))
    assert len(framer._partial) == 2


def test_a_replys_id_is_of_every_field_and_the_secret() -> None:
    """32 hex digits, the same for the same question; fields do not run into each other."""
    key = reply_id_key(ROOT)
    one = reply_id(key, [b"m", b"ab", b""])
    assert one == "b0a7711762c0937584e2c9b0580f36d3"
    assert len(one) == 32
    others = [[b"m", b"a", b"b"], [b"m", b"ab"], [b"n", b"ab", b""], [b"ma", b"b", b""]]
    assert (
        len({one, *(reply_id(key, other) for other in others), reply_id(reply_id_key(bytes(32)), [b"m", b"ab", b""])})
        == 6
    )
