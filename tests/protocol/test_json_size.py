"""How much a JSON text would come to is known before it is parsed, and what may be parsed comes to little."""

from __future__ import annotations

import json
import random
import re

import pytest

from foreseen.errors import BadInput, TooLarge
from foreseen.protocol.json_size import MAX_ELEMENTS, MAX_TEXT_BYTES, _elements, check_size, string_end
from foreseen.protocol.strict_json import load_json
from foreseen.protocol.wire import MAX_TENSORS, parse_request
from tests.raw import binary

MANY = MAX_ELEMENTS // 2
AMPLIFIERS = {
    "empty objects": b'{"inputs":[' + b",".join([b"{}"] * MANY) + b"]}",
    "empty lists": b'{"instances":[' + b",".join([b"[]"] * MANY) + b"]}",
    "numbers": b"[" + b",".join([b"1"] * MAX_ELEMENTS) + b"]",
    "members": b'{"a":{' + b",".join(b'"%x":1' % i for i in range(MANY)) + b"}}",
    "strings": b"[" + b",".join([b'"ab"'] * MANY) + b',""]',
    "nesting": b"[" + b",".join([b"[" * 1000 + b"]" * 1000] * (MANY // 1000)) + b"]",
}


@pytest.mark.parametrize("text", AMPLIFIERS.values(), ids=AMPLIFIERS)
def test_more_elements_than_may_be_are_refused_unparsed(text: bytes) -> None:
    """Whatever they are; the answer names the binary form, which has no such limit."""
    with pytest.raises(TooLarge, match="binary form"):
        load_json(text)


def test_as_many_elements_as_may_be_are_read() -> None:
    """A list of n numbers counts n + 1."""
    numbers = [0.5] * (MAX_ELEMENTS - 1)
    assert load_json(json.dumps(numbers).encode()) == numbers


def test_what_stands_in_strings_is_no_element() -> None:
    """Text is full of commas, and a quote in it may be escaped."""
    texts = ['Well, this: is [text], {as} "people\\" write it\\'] * 60_000
    assert load_json(json.dumps({"texts": texts}).encode()) == {"texts": texts}


@pytest.mark.parametrize(("character", "bytes_each"), [("a", 1), ("ŝ", 2), ("\N{HORSE}", 4)])
def test_strings_are_bounded_by_what_they_take(character: str, bytes_each: int) -> None:
    """One character above U+FFFF makes every other character of its string take four bytes."""
    most = MAX_TEXT_BYTES // (1 + bytes_each)
    for escaped in (False, True):
        one = json.dumps(character, ensure_ascii=escaped).encode()[1:-1]
        check_size(b'"' + one + b"a" * (most - 100) + b'"')
        with pytest.raises(TooLarge, match="strings"):
            check_size(b'"' + one + b"a" * (most + 100) + b'"')


def test_the_end_of_a_string_is_found_whatever_is_escaped() -> None:
    """Held against the regular expression of RFC 8259 on 20,000 texts of quotes and backslashes."""
    string, chance = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL), random.Random(15)
    for _ in range(20_000):
        text = b"\\" * chance.randrange(140) * chance.randrange(2)
        text += bytes(chance.choice(b'a"\\') for _ in range(chance.randrange(1, 200)))
        match = string.match(text)
        assert string_end(text, 0) == (len(text) if match is None else match.end())


def test_elements_are_counted_as_a_reader_would() -> None:
    """Held against a count of tokens on 40 documents, whose strings and escapes lie across the slices in all ways."""
    chance, token = random.Random(73), re.compile(r'"(?:[^"\\]|\\.)*"|[,:\[\]{}]', re.DOTALL)
    for _ in range(40):
        texts = [
            "".join(chance.choices('a,:[]{}"\\\n\u00e9', k=chance.randrange(60))) for _ in range(chance.randrange(3000))
        ]
        text = json.dumps({"a": texts, "b": [{"c": 1.5}] * chance.randrange(500)}, ensure_ascii=chance.random() < 0.5)
        assert _elements(text.encode()) == len(token.findall(text))


def test_tensors_are_counted_and_named_before_they_are_made() -> None:
    """An array of its own for each of 100,000 empty tensors would be what the elements were bounded for."""
    tensor = {"datatype": "INT64", "shape": [0], "data": []}
    many = {"inputs": [{"name": f"x{i}"} | tensor for i in range(MAX_TENSORS + 1)]}
    with pytest.raises(BadInput, match="at most 1024"):
        parse_request(json.dumps(many).encode(), None)
    twice = {"inputs": [{"name": "x"} | tensor, {"name": "x", "datatype": "none", "shape": [0], "data": []}]}
    with pytest.raises(BadInput, match="same name"):
        parse_request(json.dumps(twice).encode(), None)


def test_binary_strings_are_elements_too() -> None:
    """Each is an object of its own, though four bytes of length are all that came."""
    count = MAX_ELEMENTS + 1
    body, head = binary([{"name": "x", "datatype": "BYTES", "shape": [count]}], bytes(4 * count))
    with pytest.raises(TooLarge, match="BYTES elements"):
        parse_request(body, int(next(iter(head.values()))))
