"""One output of one row as it stands in a reply: JSON numbers, a JSON list, base64. What `near` may keep of it.

The text of a reply is then a join (`reply_skeletons.py`). A form says which output is meant and how it is written.
"""

from __future__ import annotations

import base64
from enum import IntEnum

import orjson

from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.tensors import json_of_raw
from foreseen.types import Form, Prediction

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_KINDS = 4


class TextForm(IntEnum):
    """How an output of a row is written."""

    ELEMENTS = 0
    """JSON elements with commas between, in row-major order, without brackets."""
    NESTED = 1
    """A JSON value, nested as the row is; of numbers."""
    BASE64 = 2
    """A JSON string: the base64 of its bytes."""
    RAW = 3
    """Its bytes."""


def form(place: int, written: TextForm) -> Form:
    """The form of the output at this place of the prediction."""
    return Form(place * _KINDS + written)


def fragment(prediction: Prediction, wanted: Form) -> bytes:
    """An output in a form. Raises BadRequest where it is text that is not UTF-8."""
    place, written = divmod(wanted, _KINDS)
    raw = prediction.data[place]
    if written == TextForm.RAW:
        return raw
    if written == TextForm.BASE64:
        return b'"' + base64.b64encode(raw) + b'"'
    head = prediction.outputs[place]
    flat = json_of_raw(raw, DATATYPES[head.datatype], elements(head.shape), f"outputs.{head.name}")
    if written == TextForm.ELEMENTS:
        return orjson.dumps(flat, option=_NUMPY)[1:-1]
    return orjson.dumps(flat.reshape(head.shape) if head.shape else flat[0], option=_NUMPY)
