"""Unknown members of V2 bodies, forwarded to and from an upstream server. Pure.

Another vendor's server may use anything in a request: parameters of a tensor or of a requested output (MLServer's
`content_type`), members that no specification names. All of it is forwarded, and all of it is part of the key. The
members of its reply beside the tensors are stored with the entry and returned with every hit.

The canonical form stands where request parameters stand in a frame (`keys/key.py`): an object of the parameters where
the request has nothing else, as ever, and an array of four objects where it has more. The two never collide.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct, structs

from foreseen.errors import BadRequest, ModelFailed
from foreseen.types import Output, Prediction

Members = Mapping[str, Any]

_REQUEST = frozenset(("id", "parameters", "inputs", "outputs"))
_REPLY = frozenset(("model_name", "model_version", "id", "outputs"))
_TENSOR = frozenset(("name", "shape", "datatype", "data", "parameters"))
_ENCODING = frozenset(("binary_data_size",))
_WANTED = frozenset(("name", "parameters"))
_WANTED_ENCODING = frozenset(("binary_data", "binary_data_size"))

REPLY_HEAD = Output("", "BYTES", ())
"""The last output of a prediction whose reply held more than tensors: its data is that rest, canonical JSON. No tensor
may have an empty name, so the entry format is what it was, and a reader that does not know of it passes it over."""


class RequestMembers(Struct, frozen=True):
    """The members of a request beside its id and tensors, by the name of the input or requested output."""

    parameters: Members = {}
    top: Members = {}
    inputs: Mapping[str, Members] = {}
    outputs: Mapping[str, Members] = {}


class ReplyMembers(Struct, frozen=True):
    """The same of a reply; `top` holds its `parameters`, too."""

    top: Members = {}
    outputs: Mapping[str, Members] = {}


NO_MEMBERS, NO_REPLY_MEMBERS = RequestMembers(), ReplyMembers()


def request_members(document: Mapping[str, Any]) -> RequestMembers:
    """Of a request's well-formed document, without its parameters."""
    return RequestMembers(
        top={name: value for name, value in document.items() if name not in _REQUEST},
        inputs=_by_name(document["inputs"], _TENSOR, _ENCODING),
        outputs=_by_name(document.get("outputs") or (), _WANTED, _WANTED_ENCODING),
    )


def naming(members: RequestMembers, outputs: Sequence[str]) -> RequestMembers:
    """With just these requested outputs, also where nothing more is said of them."""
    return structs.replace(members, outputs={name: members.outputs.get(name, {}) for name in outputs})


def reply_members(document: Mapping[str, Any]) -> ReplyMembers:
    """Of a reply's well-formed document."""
    top = {name: value for name, value in document.items() if name not in _REPLY}
    if not top.get("parameters", True):  # an empty object, or null, says nothing
        del top["parameters"]
    return ReplyMembers(top, _by_name(document["outputs"], _TENSOR, _ENCODING))


def canonical(members: RequestMembers) -> bytes:
    """Sorted JSON, empty for none. Raises BadRequest."""
    parameters, top, inputs, outputs = members.parameters, members.top, members.inputs, members.outputs
    only = not (top or inputs or outputs)
    if only and not parameters:
        return b""
    try:
        if only:
            orjson.dumps([parameters])  # in the request to the model they stand one level deeper; orjson ends at 254
            return orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)
        return orjson.dumps([parameters, top, inputs, outputs], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"parameters: {error}") from None


def read_canonical(raw: bytes) -> RequestMembers:
    """Parse the output of `canonical`."""
    document = orjson.loads(raw) if raw else {}
    return RequestMembers(*document) if isinstance(document, list) else RequestMembers(document)


def pack_reply(members: ReplyMembers) -> bytes | None:
    """The data of `REPLY_HEAD`; None where there is nothing to keep. Raises ModelFailed."""
    if not (members.top or members.outputs):
        return None
    try:
        text = orjson.dumps([members.top, members.outputs], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ModelFailed(f"its reply holds members that cannot be kept ({error})") from None
    return struct.pack("<I", len(text)) + text


def reply_of(predictions: Sequence[Prediction]) -> ReplyMembers | None:
    """The members, beside tensors, that the replies to all these rows agree in."""
    kept = {_kept(prediction) for prediction in predictions}
    if None in kept or not kept:
        return None
    documents = [ReplyMembers(*orjson.loads(raw[4:])) for raw in kept if raw is not None]
    first = documents[0]
    if len(documents) == 1:
        return first
    return ReplyMembers(
        _common([one.top for one in documents]),
        {name: _common([one.outputs.get(name, {}) for one in documents]) for name in first.outputs},
    )


def reply_usage(prediction: Prediction) -> int:
    """The tokens that an embedding server has counted for a row; 0 where it has not."""
    kept = _kept(prediction)
    usage = None if kept is None else orjson.loads(kept[4:])[0].get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int else 0


def member_names(members: ReplyMembers | None) -> set[tuple[str, ...]]:
    """The paths of all that it holds, down to single parameters."""
    if members is None:
        return set()
    listed = [("", members.top), *members.outputs.items()]
    found: set[tuple[str, ...]] = set()
    for where, more in listed:
        for name, value in more.items():
            inner = value if name == "parameters" and isinstance(value, dict) else {"": value}
            found |= {(where, name, one) for one in inner}
    return found


def tensor_outputs(prediction: Prediction) -> tuple[Output, ...]:
    """A prediction's outputs without the rest of the reply."""
    return prediction.outputs if _kept(prediction) is None else prediction.outputs[:-1]


def _kept(prediction: Prediction) -> bytes | None:
    outputs = prediction.outputs
    return prediction.data[-1] if outputs and not outputs[-1].name else None


def _by_name(listed: Sequence[Any], known: Collection[str], encoding: Collection[str]) -> dict[str, Members]:
    """Every tensor's unknown members and its parameters but those of the encoding; no tensor without any."""
    found: dict[str, Members] = {}
    for one in listed:
        members = {name: value for name, value in one.items() if name not in known}
        given = one.get("parameters") or {}
        parameters = {name: value for name, value in given.items() if name not in encoding}
        if parameters:
            members["parameters"] = parameters
        if members:
            found[one["name"]] = members
    return found


def _common(all_members: Sequence[Members]) -> Members:
    """The members that all have with one value; of `parameters`, those of its members."""
    first, *rest = all_members
    same: dict[str, Any] = {}
    for name, value in first.items():
        values = [value, *(one[name] for one in rest if name in one)]
        if len(values) < len(all_members):
            continue
        if len({orjson.dumps(one) for one in values}) == 1:
            same[name] = value
        elif name == "parameters" and all(isinstance(one, dict) for one in values):
            same[name] = _common(values)
    return {name: value for name, value in same.items() if name != "parameters" or value}
