"""Lists by themselves: what the typed readers accept, the general one reads as the same bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.errors import ForeseenError
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.strict_json import load_json
from foreseen.protocol.tensors import Written, array_of_json, raw_of
from foreseen.protocol.typed_lists import REFUSED, number_reader, read_texts

NUMBERS = sorted(name for name, datatype in DATATYPES.items() if datatype.kind != "s" and name != "BF16")
SPELLINGS = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.integers(-300, 300).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-70_000, 70_000, width=32).map(repr),
    st.decimals(-1000, 1000, places=12).map(str),
    st.sampled_from(["0", "-0", "-0.0", "1e5", "1E+5", "1e-400", "1e400", "true", "false", "null", '"1"', "01", "1.",
                     "65504", "65519.99", "65520", "3.4028235e38", "3.4028236e38", "16777217", "9007199254740993",
                     "18446744073709551615", "18446744073709551616", "2.0000000000000001", "{}", "[]", "[1]", ""]),
)  # fmt: skip
SPACES = st.sampled_from(["", " ", "\n", "\t \r"])


def general(text: bytes, name: str, shape: tuple[int, ...]) -> bytes | None:
    """What `/infer` makes of it."""
    try:
        data = load_json(b'{"data":' + text + b"}")["data"]
        written = Written(text, lambda document: document)
        return raw_of(array_of_json(data, DATATYPES[name], shape, "x", written), DATATYPES[name])
    except ForeseenError:
        return None


def typed(text: bytes, name: str, shape: tuple[int, ...], *, any_rows: bool = False) -> bytes | None:
    read = number_reader(DATATYPES[name], shape[1:], None if any_rows else shape[0])
    if read is None:
        return None
    try:
        return read(text)
    except REFUSED:
        return None


@given(st.sampled_from(NUMBERS), st.lists(SPELLINGS, max_size=5), SPACES, st.data())
def test_what_is_read_is_what_the_general_reader_reads(name: str, listed: list[str], space: str, data: Any) -> None:
    """Any datatype, any spelling, flat: the same bytes, or left to the general reader."""
    text = f"[{space}{f'{space},{space}'.join(listed)}{space}]".encode()
    shape = data.draw(st.sampled_from([(len(listed),), (1, len(listed)), (len(listed), 1), (2, 2), (1,)]))
    read = typed(text, name, shape)
    if read is not None:
        assert read == general(text, name, shape)


@given(st.sampled_from(NUMBERS), st.lists(st.lists(SPELLINGS, max_size=3), max_size=3), st.booleans())
def test_nested_lists_are_read_alike(name: str, rows: list[list[str]], any_rows: bool) -> None:
    """Of a known number of rows and of any: ragged ones and wrong counts are refused."""
    text = f"[{','.join('[' + ','.join(row) + ']' for row in rows)}]".encode()
    shape = (len(rows), len(rows[0]) if rows else 1)
    read = typed(text, name, shape, any_rows=any_rows)
    if read is not None:
        assert read == general(text, name, shape)


@pytest.mark.parametrize("name", NUMBERS)
def test_plain_numbers_are_read(name: str) -> None:
    """The test above proves something: ordinary lists are not refused, flat, nested and of any number of rows."""
    values: list[Any] = [True, False, True, True] if name == "BOOL" else [1, 2, 3, 100]
    flat, nested = orjson.dumps(values), orjson.dumps([values[:2], values[2:]])
    wanted = general(flat, name, (2, 2))
    assert wanted is not None
    assert (
        typed(flat, name, (2, 2)) == typed(nested, name, (2, 2)) == typed(nested, name, (2, 2), any_rows=True) == wanted
    )
    assert typed(flat, name, (4,), any_rows=True) == wanted
    assert typed(flat, name, (2, 2), any_rows=True) is None
    deep = orjson.dumps([[values[:2]], [values[2:]]])
    assert typed(deep, name, (2, 1, 2)) == typed(deep, name, (2, 1, 2), any_rows=True) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [("INT64", b"[1.0]"), ("INT64", b"[true]"), ("FP32", b"[null]"), ("BOOL", b"[1]"), ("INT8", b"[128]"),
     ("UINT8", b"[-1]"), ("FP32", b"[1e39]"), ("FP16", b"[65520]"), ("INT64", b"[1],[2]"), ("INT64", b"[1]]"),
     ("INT64", b""), ("INT64", b"1"), ("INT64", b"[9223372036854775808]"), ("INT64", b'["1"]')],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_general_reader(name: str, text: bytes) -> None:
    """Another kind, out of range, more than one value."""
    assert typed(text, name, (1,)) is None
    assert typed(text, name, (1,), any_rows=True) is None


def test_shapes_without_elements_and_bf16_have_no_reader() -> None:
    """What is special stays with the general reader."""
    assert number_reader(DATATYPES["BF16"], (2,), 1) is None
    assert number_reader(DATATYPES["BYTES"], (), 1) is None
    assert number_reader(DATATYPES["INT64"], (0,), 1) is None
    assert number_reader(DATATYPES["INT64"], (2,), 0) is None


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.booleans())
def test_texts_are_the_strings_in_utf8(listed: list[str], escaped: bool) -> None:
    """Escaped or not; one string in place of a list is a list of one."""
    try:
        wanted = [one.encode() for one in listed]
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    text = msgspec.json.encode(listed) if not escaped else json.dumps(listed).encode()
    assert read_texts(text) == wanted
    assert read_texts(orjson.dumps(listed[0])) == wanted[:1]


@pytest.mark.parametrize(
    "text", [b"[]", b"[1]", b'["a",1]', b'[["a"]]', b"{}", b"null", b'["\\ud800"]', b'["a"', b'["\xff"]']
)
def test_what_is_no_flat_list_of_strings_is_refused(text: bytes) -> None:
    """As are strings that are no UTF-8."""
    with pytest.raises(REFUSED):
        read_texts(text)
