"""JSON numbers are decided from their digits: what a double cannot hold is neither taken for its neighbour nor lost."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from foreseen.errors import BadInput, BadRequest
from foreseen.modelspec.manifest import Manifest, find
from foreseen.modelspec.normalize import cast
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.strict_json import doubles_may_differ
from foreseen.protocol.tensors import rounded
from foreseen.protocol.wire import parse_request
from foreseen.proxy.predict.dialects.decode import decode_v1, decode_v2
from foreseen.settings import Common
from foreseen.warm.read.columns import tensor
from foreseen.warm.read.files import files_of
from foreseen.warm.read.reader import chunks

WHOLE = {
    "1": 1,
    "1.0": 1,
    "1e0": 1,
    "-0.0": 0,
    "10e-1": 1,
    "9007199254740991.0": 2**53 - 1,
    "9007199254740992.0": 2**53,
    "-9007199254740992e0": -(2**53),
    "900719925474099.2e1": 2**53,
    "9007199254740993": 2**53 + 1,
    "1.000000000000000000000000000": 1,
}
BROKEN = (
    "1.5",
    "1.0000000000000001",
    "0.99999999999999999",
    "9007199254740991.5",
    "9007199254740992.5",
    "9007199254740993.0",
    "-9007199254740993.0",
    "900719925474099.3e1",
    "9223372036854775808",
    "-9223372036854775809",
    "1e19",
    "1e300",
    "1e-400",
    "4.9e-325",
)


def body(number: str, datatype: str = "INT64") -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"%s","shape":[2],"data":[%s,7]}]}' % (datatype.encode(), number.encode())


@pytest.mark.parametrize(("number", "value"), WHOLE.items())
def test_an_integer_is_what_its_digits_say(number: str, value: int) -> None:
    """However it is spelled, and also where the double of these digits is another number."""
    assert parse_request(body(number), None).inputs[0].array.tolist() == [value, 7]


@pytest.mark.parametrize("number", BROKEN)
def test_what_is_no_integer_is_refused(number: str) -> None:
    """Also where the double of its digits is one, or where it fits no datatype."""
    with pytest.raises(BadInput, match="INT64"):
        parse_request(body(number), None)


def test_nested_data_and_other_tensors_are_no_obstacle() -> None:
    """The digits are looked up in the tensor that they stand in."""
    document = b"""{"parameters": {"data": [1.0000000000000001]}, "inputs": [
        {"name": "f", "datatype": "FP64", "shape": [1], "data": [0.12345678901234567]},
        {"name": "x", "datatype": "INT64", "shape": [2, 2], "data": [[9007199254740991.0, 1], [2.0, 3e0]]}]}"""
    first, second = parse_request(document, None).inputs
    assert first.array.tolist() == [0.12345678901234567]
    assert second.array.tolist() == [[2**53 - 1, 1], [2, 3]]


def test_what_is_nested_too_deep_to_be_read_again_is_400() -> None:
    """The parser that keeps digits recurses; the usual one does not."""
    deep = b'{"parameters":{"a":' + b"[" * 1000 + b"]" * 1000 + b"}," + body("9007199254740991.0")[1:]
    with pytest.raises(BadRequest, match="too deep"):
        parse_request(deep, None)


def test_few_digits_need_no_second_look() -> None:
    """15 of them and a double say the same."""
    assert not doubles_may_differ(b"[1.0, -123456789012.34, 1e-99, 0.00001]")
    assert all(doubles_may_differ(f"[{number}]") for number in ("1.0000000000000001", "9007199254740993.0", "1e-400"))


@pytest.fixture(scope="module")
def fingerprint() -> Manifest:
    return find("fingerprint", Common(data=Path("data")).model_folders)


@pytest.mark.parametrize("form", ["instances", "plain", "columns"])
def test_v1_reads_the_same(fingerprint: Manifest, form: str) -> None:
    """By row, with and without names, and by column."""
    row = "[" + ",".join(["9007199254740991.0", *"0" * 15]) + "]"
    text = {
        "instances": '{"instances":[{"x":%s}]}',
        "plain": '{"instances":[%s]}',
        "columns": '{"inputs":{"x":[%s]}}',
    }[form]
    assert decode_v1((text % row).encode(), fingerprint).inputs[0].array.tolist() == [[2**53 - 1, *[0] * 15]]
    with pytest.raises(BadInput, match="exactly"):
        decode_v1((text % row.replace("1.0", "3.0")).encode(), fingerprint)


def test_the_spellings_of_an_integer_are_one_question(fingerprint: Manifest) -> None:
    """As before: what was keyed alike stays so."""

    def array(*data: str) -> Any:
        text = (
            f'{{"inputs":[{{"name":"x","datatype":"INT64","shape":[1,16],"data":[{",".join([*data, *"0" * 13])}]}}]}}'
        )
        return decode_v2(text.encode(), None, fingerprint).inputs[0].array.tobytes()

    assert array("1", "2", "3") == array("1.0", "2e0", "30e-1") == array("1.00000000000000000", "2", "3")


@pytest.mark.parametrize("number", ["1.003906250000000909", "1.00390625", "1.0078125", "3.3895313892515355e38", "-0.0"])
def test_bf16_is_rounded_once(number: str) -> None:
    """1.003906250000000909 lies above the middle between 1 and 1.0078125; as a float32 it would lie in the middle."""
    array = parse_request(body(number, "BF16"), None).inputs[0].array
    assert array[0] == nearest_bfloat16(float(number))


def test_every_double_is_rounded_to_the_nearest_bf16() -> None:
    """Held against fractions, where float32 lies in the middle and a little is missing, on 2,000 doubles."""
    chance = random.Random(8)
    for _ in range(2000):
        middle = (1 + (2 * chance.randrange(128) + 1) / 256) * 2.0 ** chance.randrange(-130, 120)
        value = middle * (1 + chance.choice((-1, 0, 1)) * 2.0 ** -chance.randrange(20, 53)) * chance.choice((-1, 1))
        made = rounded(np.array([value]), DATATYPES["BF16"])[0]
        assert made == nearest_bfloat16(value), value
    with np.errstate(over="ignore"):
        assert np.isinf(rounded(np.array([1e300]), DATATYPES["BF16"]).astype(np.float32)[0])
    cut = cast(np.array([1.003906250000000909]), DATATYPES["FP64"], DATATYPES["BF16"], "x")
    assert float(cut[0]) == 1.0078125


def nearest_bfloat16(value: float) -> Any:
    """Of the three candidates the nearest, the even one in the middle."""
    near = np.array([value], np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)[0]
    candidates = [np.array([(int(near) + step) % 2**16], np.uint16).view(ml_dtypes.bfloat16)[0] for step in (-1, 0, 1)]
    exact = Fraction(Decimal(value))

    def distance(one: Any) -> tuple[Fraction, int]:
        return abs(Fraction(float(one)) - exact), int(np.array([one]).view(np.uint16)[0]) % 2

    return min((one for one in candidates if np.isfinite(np.float32(one))), key=distance)


def test_json_of_other_datatypes_is_what_it_was() -> None:
    """Floats are the doubles that their digits are nearest to; 17 digits say which."""
    for datatype in ("FP16", "FP32", "FP64"):
        numbers = [0.1, 1 / 3, 65504.0, -1e-7, 12345.678901234567]
        text = {"inputs": [{"name": "x", "datatype": datatype, "shape": [5], "data": numbers}]}
        array = parse_request(json.dumps(text).encode(), None).inputs[0].array
        assert array.tolist() == np.array(numbers, np.float64).astype(DATATYPES[datatype].dtype).tolist()


def test_files_of_batches_read_the_same(fingerprint: Manifest, tmp_path: Path) -> None:
    """A line of JSON, whatever its column is called, and a cell of text."""
    path = tmp_path / "rows.jsonl"
    numbers = ("9007199254740991.0", "9007199254740993.0", "1.0000000000000001")
    path.write_text("".join(f'{{"mine": [{number}{", 0" * 15}]}}\n' for number in numbers))
    (chunk,) = chunks(files_of([str(path)])[0], fingerprint, {"mine": "x"}, 0, 10)
    rows = chunk.batch.column("mine").to_pylist()
    assert rows == [[2**53 - 1, *[0] * 15], None, None]
    cells = pa.record_batch({"x": [f"[{number}{', 0' * 15}]" for number in numbers]})
    bad: dict[int, str] = {}
    assert tensor(cells, ["x"], fingerprint.seen.inputs[0], bad)[0].tolist() == [2**53 - 1, *[0] * 15]
    assert set(bad) == {1, 2}
