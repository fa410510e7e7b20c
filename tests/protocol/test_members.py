"""What bodies hold beside their tensors: canonical in a key, kept in an entry."""

from __future__ import annotations

from typing import Any

import pytest

from foreseen.errors import BadRequest, EntryError, ModelFailed
from foreseen.keys.entry import EntryCodec
from foreseen.protocol.members import (
    NO_MEMBERS,
    REPLY_HEAD,
    ReplyMembers,
    RequestMembers,
    canonical,
    member_names,
    pack_reply,
    read_canonical,
    reply_members,
    reply_of,
    request_members,
    tensor_outputs,
)
from foreseen.types import Key, Output, Prediction

KEY = Key(bytes(32))


def prediction(members: ReplyMembers) -> Prediction:
    kept = pack_reply(members)
    outputs, data = (Output("y", "INT64", (1,)),), (bytes(8),)
    if kept is not None:
        outputs, data = (*outputs, REPLY_HEAD), (*data, kept)
    return Prediction(outputs, data, "d", 1.0, 2.0, 0.5)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_request_with_parameters_alone_is_what_it_always_was() -> None:
    """An object of its parameters, sorted, and nothing where it has none: keys that exist stay."""
    assert canonical(NO_MEMBERS) == b""
    assert canonical(RequestMembers({"b": 1, "a": {"d": 2, "c": 3}})) == b'{"a":{"c":3,"d":2},"b":1}'
    document = {"id": "7", "parameters": {"x": 1}, "inputs": [{"name": "x", "parameters": {"binary_data_size": 8}}]}
    assert request_members({**document, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}) == NO_MEMBERS


def test_more_than_parameters_is_an_array_in_any_order_of_members() -> None:
    """It never equals an object, whatever that holds, and reads back as it was."""
    one = RequestMembers({"p": 1}, {"t": 2}, {"b": {"m": 1}, "a": {"parameters": {"z": 1, "y": 2}}}, {"o": {"n": 3}})
    other = RequestMembers({"p": 1}, {"t": 2}, {"a": {"parameters": {"y": 2, "z": 1}}, "b": {"m": 1}}, {"o": {"n": 3}})
    assert canonical(one) == canonical(other)
    assert canonical(one).startswith(b"[")
    assert read_canonical(canonical(one)) == one
    assert read_canonical(canonical(RequestMembers({"p": 1}))) == RequestMembers({"p": 1})
    levels = [RequestMembers({"m": 1}), *(RequestMembers({}, *more) for more in ({"m": 1},))]
    levels += [RequestMembers(inputs={"x": {"m": 1}}), RequestMembers(outputs={"x": {"m": 1}})]
    assert len({canonical(one) for one in levels}) == len(levels)


@pytest.mark.parametrize("members", [RequestMembers({"m": nested(300)}), RequestMembers(top={"m": nested(300)})])
def test_what_could_not_be_sent_on_is_refused(members: RequestMembers) -> None:
    """Nesting that no writer takes is the caller's mistake, in a reply the server's."""
    with pytest.raises(BadRequest):
        canonical(members)
    with pytest.raises(ModelFailed):
        pack_reply(ReplyMembers({"m": nested(300)}))


def test_an_entry_keeps_what_its_reply_held() -> None:
    """Packed and unpacked; damage to it is damage to the entry."""
    codec = EntryCodec(bytes(32))
    members = ReplyMembers({"parameters": {"lang": "de"}}, {"y": {"parameters": {"content_type": "np"}}})
    entry = codec.pack(KEY, prediction(members))
    read = codec.unpack(KEY, "d", entry)
    assert reply_of([read]) == members
    assert tensor_outputs(read) == (Output("y", "INT64", (1,)),)
    with pytest.raises(EntryError):
        codec.unpack(KEY, "d", entry.replace(b'"de"', b'"en"'))


def test_an_entry_without_more_has_the_bytes_that_it_always_had() -> None:
    """Empty and null parameters say nothing."""
    codec, plain = EntryCodec(bytes(32)), Prediction((Output("y", "INT64", (1,)),), (bytes(8),), "d", 1.0, 2.0, 0.5)
    for parameters in ({}, None):
        document = {"model_name": "m", "parameters": parameters, "outputs": [{"name": "y", "parameters": parameters}]}
        assert codec.pack(KEY, prediction(reply_members(document))) == codec.pack(KEY, plain)
    assert reply_of([plain]) is None
    assert reply_of([]) is None


def test_rows_of_several_replies_come_with_what_these_agree_in() -> None:
    """A member that one of them lacks, or has otherwise, would be wrong of the others."""
    one = ReplyMembers({"parameters": {"lang": "de", "n": 1}, "only": 1}, {"y": {"unit": "kg", "parameters": {"a": 1}}})
    two = ReplyMembers({"parameters": {"lang": "de", "n": 2}}, {"y": {"unit": "kg", "parameters": {"a": 1.0}}})
    common = reply_of([prediction(one), prediction(two)])
    assert common == ReplyMembers({"parameters": {"lang": "de"}}, {"y": {"unit": "kg"}})
    assert reply_of([prediction(one), prediction(ReplyMembers())]) is None
    assert member_names(one) - member_names(common) == {
        ("", "parameters", "n"),
        ("", "only", ""),
        ("y", "parameters", "a"),
    }
