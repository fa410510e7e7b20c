"""The Open Inference Protocol's datatypes as numpy dtypes, sizes in bytes and one-byte codes.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md "Tensor Data Types"; BF16 from
Triton's clients. The codes are ours: they are part of frames and entries, so they never change.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from msgspec import Struct


class Datatype(Struct, frozen=True):
    name: str
    code: int
    dtype: np.dtype[np.generic]
    """Little-endian; BYTES are object arrays of `bytes`."""
    size: int
    """Bytes per element, 0 for BYTES."""
    kind: str
    """b(ool), i(nteger), f(loat) or s(tring)."""


def _table() -> dict[str, Datatype]:
    plain = [
        ("BOOL", 1, "|b1", "b"),
        ("UINT8", 2, "|u1", "i"),
        ("UINT16", 3, "<u2", "i"),
        ("UINT32", 4, "<u4", "i"),
        ("UINT64", 5, "<u8", "i"),
        ("INT8", 6, "|i1", "i"),
        ("INT16", 7, "<i2", "i"),
        ("INT32", 8, "<i4", "i"),
        ("INT64", 9, "<i8", "i"),
        ("FP16", 10, "<f2", "f"),
        ("FP32", 11, "<f4", "f"),
        ("FP64", 12, "<f8", "f"),
    ]
    table = {name: Datatype(name, code, np.dtype(s), np.dtype(s).itemsize, kind) for name, code, s, kind in plain}
    table["BYTES"] = Datatype("BYTES", 13, np.dtype(object), 0, "s")
    table["BF16"] = Datatype("BF16", 14, np.dtype(ml_dtypes.bfloat16), 2, "f")
    return table


DATATYPES: dict[str, Datatype] = _table()
BY_CODE: dict[int, Datatype] = {datatype.code: datatype for datatype in DATATYPES.values()}
BY_DTYPE: dict[np.dtype[np.generic], Datatype] = {datatype.dtype: datatype for datatype in DATATYPES.values()}


def elements(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape, with Python's integers: `np.prod([2**32, 2**32])` is 0."""
    return math.prod(shape)
