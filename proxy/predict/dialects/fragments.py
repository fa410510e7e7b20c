"""One output of one row as it stands in a reply: JSON numbers, a JSON list, base64. What `near` may keep of it.

The text of a reply is then a join (`reply_skeletons.py`). A form says which output is meant and how it is written.
"""

from __future__ import annotations

import base64
from typing import Final

import numpy as np
import orjson

from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.tensors import json_of_raw
from foreseen.types import Form, Prediction

_NUMPY = orjson.OPT_SERIALIZE_NUMPY

ELEMENTS: Final = 0
"""JSON elements with commas between, in row-major order, without brackets."""
NESTED: Final = 1
"""A JSON value, nested as the row is; of numbers."""
BASE64: Final = 2
"""A JSON string: the base64 of its bytes."""
RAW: Final = 3
"""Its bytes."""
_WAYS = 4
_PLAIN = {name: one.dtype for name, one in DATATYPES.items() if one.kind != "s" and name != "BF16"}
"""Datatypes whose arrays are rendered as they are."""


def form(place: int, way: int) -> Form:
    """The form of the output at this place of the prediction, written in one of these ways."""
    return Form(place * _WAYS + way)


def fragment(prediction: Prediction, wanted: Form) -> bytes:
    """An output in a form. Raises BadRequest where it is text that is not UTF-8."""
    place, way = divmod(wanted, _WAYS)
    raw, head = prediction.data[place], prediction.outputs[place]
    if way == ELEMENTS:
        dtype = _PLAIN.get(head.datatype)
        if dtype is not None:  # what is ordinary, past the checks of what is not
            return orjson.dumps(np.frombuffer(raw, dtype), option=_NUMPY)[1:-1]
    if way == RAW:
        return raw
    if way == BASE64:
        return b'"' + base64.b64encode(raw) + b'"'
    flat = json_of_raw(raw, DATATYPES[head.datatype], elements(head.shape), f"outputs.{head.name}")
    if way == ELEMENTS:
        return orjson.dumps(flat, option=_NUMPY)[1:-1]
    return orjson.dumps(flat.reshape(head.shape) if head.shape else flat[0], option=_NUMPY)
