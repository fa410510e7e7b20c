"""Outputs of a batch → each row's own heads and bytes: all at once where they have one shape, one by one where not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foreseen.errors import ModelFailed
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature
from foreseen.modelspec.row_outputs import raw_of_outputs, raw_outputs, split_outputs
from foreseen.modelspec.rows import stack
from foreseen.types import Row

FIXED = ModelSignature(
    (ModelInput("x", "INT64", ("rows", 2)),),
    (
        ModelOutput("y", "FP32", ("rows", 3, 2)),
        ModelOutput("z", "INT8", ("rows",)),
        ModelOutput("o", "BF16", ("rows", 0)),
    ),
)
NAMED = ModelSignature(
    (ModelInput("ids", "INT64", ("rows", "n")),),
    (ModelOutput("tokens", "FP32", ("rows", "n", 2)), ModelOutput("any", "FP32", ("rows", "m"))),
)
TEXT = ModelSignature((ModelInput("x", "INT64", ("rows", 2)),), (ModelOutput("label", "BYTES", ("rows", 2)),))


def numbers(dtype: Any, *shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape).astype(dtype)


def fixed(count: int) -> dict[str, Any]:

    return {
        "y": numbers(np.float32, count, 3, 2),
        "z": numbers(np.int8, count),
        "o": numbers(ml_dtypes.bfloat16, count, 0),
    }


def rows_of(*lengths: int) -> list[Row]:
    return [Row((np.arange(length, dtype=np.int64),)) for length in lengths]


@pytest.mark.parametrize(
    ("signature", "lengths", "outputs"),
    [
        (FIXED, [2], fixed(1)),
        (FIXED, [2, 2, 2], fixed(3)),
        (FIXED, [], fixed(0)),
        (NAMED, [1, 4, 2], {"tokens": numbers(np.float32, 3, 4, 2), "any": numbers(np.float32, 3, 7)}),
        (TEXT, [2, 2], {"label": np.array([[b"a", b""], [b"bc", b"\xff"]], object)}),
        (FIXED, [2, 2], {**fixed(2), "y": np.asfortranarray(numbers(np.float32, 2, 3, 2))}),
    ],
)
def test_bytes_of_a_batch_are_those_of_its_rows(signature: ModelSignature, lengths: list[int], outputs: Any) -> None:
    """Whichever way they are cut."""
    rows = rows_of(*lengths)
    one_by_one = [raw_of_outputs(one, signature) for one in split_outputs(outputs, rows, signature)]
    assert raw_outputs(outputs, rows, signature) == one_by_one
    assert len(one_by_one) == len(rows)


@pytest.mark.parametrize(
    "wrong", [{"y": numbers(np.float32, 1, 3, 2)}, {"y": numbers(np.float64, 2, 3, 2)}, {"y": None}]
)
def test_what_the_signature_does_not_say_is_refused(wrong: Any) -> None:
    """Of another size, datatype, or not there."""
    outputs = {name: array for name, array in {**fixed(2), **wrong}.items() if array is not None}
    with pytest.raises(ModelFailed, match=r"outputs\.y"):
        raw_outputs(outputs, rows_of(2, 2), FIXED)
    with pytest.raises(ModelFailed, match="NaN"):
        raw_outputs({**fixed(2), "y": np.full((2, 3, 2), np.nan, np.float32)}, rows_of(2, 2), FIXED)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_rows_of_one_shape_are_stacked_as_they_are(shape: tuple[int, ...]) -> None:
    """Scalars, vectors, matrices and nothing at all."""
    signature = ModelSignature((ModelInput("x", "INT64", ("rows", *shape)),), FIXED.outputs)
    rows = [Row((np.full(shape, number, np.int64),)) for number in range(3)]
    batch = stack(rows, signature)["x"]
    assert batch.shape == (3, *shape)
    assert all((batch[number] == number).all() for number in range(3))
