"""A long JSON text that is parsed in parts: the same values and the same refusals as in one piece."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest

from foreseen.protocol.json_parts import flattened, free, in_parts, load_in_parts, types_of

SCALARS = (0, -7, 1.5, 1e300, True, False, None, "", "a", '"', "\\", '\\"', "[,]{}", ",", "é\U0001f40e", "\\\\")


SMALL = {"long_bytes": 8, "part_bytes": 5}
"""Parts of a few bytes, so that short texts are cut everywhere."""


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 5 or kind < 0.4:
        return chance.choice(SCALARS)
    if kind < 0.75:
        return [value(chance, depth + 1) for _ in range(chance.randrange(6))]
    return {f"{chance.choice(('a', 'ü', ',', 'x'))}{at}": value(chance, depth + 1) for at in range(chance.randrange(5))}


def outcome(text: bytes, *, parts: bool) -> Any:
    try:
        return repr(load_in_parts(text, orjson.loads, **SMALL) if parts else orjson.loads(text))
    except orjson.JSONDecodeError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(300))
def test_values_are_those_of_the_whole_text(seed: int) -> None:
    """Whatever is nested in what, with escapes and marks in strings, with and without spaces; cuts are everywhere."""
    chance = random.Random(seed)
    made = [value(chance) for _ in range(6)]
    for indent, ascii_only in ((None, True), (None, False), (2, True)):
        text = json.dumps(made, indent=indent, ensure_ascii=ascii_only).encode()
        assert outcome(text, parts=True) == outcome(text, parts=False)


@pytest.mark.parametrize("seed", range(300))
def test_texts_that_are_no_json_are_refused_alike(seed: int) -> None:
    """A byte is removed, doubled or exchanged for a mark: the same value, or the same error."""
    chance = random.Random(seed)
    text = bytearray(json.dumps([value(chance) for _ in range(4)]).encode())
    for _ in range(40):
        changed, at = bytearray(text), chance.randrange(len(text))
        changed[at : at + 1] = chance.choice(
            (b"", bytes(changed[at : at + 1] * 2), bytes([chance.choice(b'[]{},:"\\ 0')]))
        )
        if json_parts_decide(bytes(changed)):
            assert outcome(bytes(changed), parts=True) == outcome(bytes(changed), parts=False)


def json_parts_decide(text: bytes) -> bool:
    """Whether no member is given twice, which is refused by others."""
    try:
        json.loads(text, object_pairs_hook=_once)
    except KeyError:
        return False
    except ValueError:
        return True
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise KeyError
    return dict(pairs)


@pytest.mark.parametrize(
    "text",
    [
        b"[1,2,3,4,5,]",
        b"[,1,2,3,4,5]",
        b"[1,2,,3,4,5]",
        b'{"a":1,"b":2,}',
        b'{,"a":1,"b":2}',
        b"[1,2,3}",
        b"1,2,3,4,5,6",
        b"[[1,2,3],[4,5}]",
        b'["a,b,c,d',
        b"[1,2,3,4,5]]",
        b"[1,2,3,4,5] ,",
    ],
)
def test_a_comma_too_many_is_no_cut(text: bytes) -> None:
    """What stands at a cut is looked at: closing it must not make a valid text of an invalid one."""
    with pytest.raises(orjson.JSONDecodeError):
        load_in_parts(text, orjson.loads, **SMALL)


def test_texts_nested_deep_are_parsed_whole() -> None:
    """The value is the same."""
    text = b"[" * 200 + b"1,2,3,4,5" + b"]" * 200
    assert load_in_parts(text, orjson.loads, **SMALL) == orjson.loads(text)


def test_long_lists_are_read_and_freed_in_parts() -> None:
    """The same types and elements as in one call; nothing is left behind `free`."""
    data: list[Any] = [[1, 2.0], [True], [None, "a"], [], [3]]
    assert types_of(flattened(data, 3), 3) == {int, float, bool, type(None), str}
    assert flattened(data, 3) == [1, 2.0, True, None, "a", 3]
    assert [list(part) for part in in_parts([1, 2, 3, 4], 3)] == [[1, 2, 3], [4]]
    document = {"inputs": [{"data": [1, 2, 3, 4]}, {"data": data}]}
    free(document, 3)
    assert document == {"inputs": [{"data": []}, {"data": []}]}
