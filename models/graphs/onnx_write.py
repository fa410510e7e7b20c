"""A ModelProto → its bytes in a file, tensor after tensor: the bytes of `graph.to_bytes` without a second copy of them.

Source of the layout: protobuf's encoding (https://protobuf.dev/programming-guides/encoding/): fields in the order of
their numbers, a message inside another behind its tag and its length. A test compares both ways byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper

from foreseen.errors import SetupError

LARGEST_BYTES = (1 << 31) - 1  # protobuf's limit of one message, hence of one ONNX file
LENGTH_DELIMITED = 2
LARGE_BYTES = 1 << 20


def write(model: ModelProto, path: Path) -> None:
    """Write the model. Raises SetupError where it is larger than one ONNX file can be."""
    before, after = _around(model, ModelProto, ModelProto.GRAPH_FIELD_NUMBER)
    head, tail = _around(model.graph, GraphProto, GraphProto.INITIALIZER_FIELD_NUMBER)
    sizes = [tensor.ByteSize() for tensor in model.graph.initializer]
    tag = _tag(GraphProto.INITIALIZER_FIELD_NUMBER)
    length = len(head) + sum(len(tag) + len(_varint(size)) + size for size in sizes) + len(tail)
    if len(before) + length + len(after) + 16 > LARGEST_BYTES:
        raise SetupError(f"the graph has {length / 1e9:.1f} GB, an ONNX file has at most 2.1 GB")
    with path.open("xb") as file:
        file.write(before + _tag(ModelProto.GRAPH_FIELD_NUMBER) + _varint(length) + head)
        _write_tensors(file, model, tag, sizes)
        file.write(tail + after)


def write_apart(model: ModelProto, path: Path) -> None:
    """Write the model with its large tensors in a second file beside it, to measure one that no ONNX file can hold."""
    light = ModelProto()
    light.CopyFrom(_without(model, ModelProto, ModelProto.GRAPH_FIELD_NUMBER))
    light.graph.CopyFrom(_without(model.graph, GraphProto, GraphProto.INITIALIZER_FIELD_NUMBER))
    with data_of(path).open("xb") as file:
        for tensor in model.graph.initializer:
            if tensor.ByteSize() < LARGE_BYTES or not tensor.raw_data:
                light.graph.initializer.append(tensor)
                continue
            place = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            place.data_location = TensorProto.EXTERNAL
            raw = tensor.raw_data
            said = {"location": data_of(path).name, "offset": str(file.tell()), "length": str(len(raw))}
            for key, value in said.items():
                place.external_data.add(key=key, value=value)
            file.write(raw)
    write(light, path)


def data_of(path: Path) -> Path:
    """Where `write_apart` puts the data of a graph."""
    return path.with_name(f"{path.name}.data")


def is_large(model: ModelProto) -> bool:
    """Whether the model is larger than one ONNX file can be. (Near the limit, its nodes are counted as 16 MB.)"""
    size: int = sum(tensor.ByteSize() + 16 for tensor in model.graph.initializer)
    return size + (16 << 20) > LARGEST_BYTES


def check(model: ModelProto) -> None:
    """`onnx.checker` without its copy of the model: large tensors are shown to it as inputs, which need no data."""
    light = ModelProto()
    light.CopyFrom(_without(model, ModelProto, ModelProto.GRAPH_FIELD_NUMBER))
    light.graph.CopyFrom(_without(model.graph, GraphProto, GraphProto.INITIALIZER_FIELD_NUMBER))
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < LARGE_BYTES:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(light)


def _write_tensors(file: BinaryIO, model: ModelProto, tag: bytes, sizes: list[int]) -> None:
    for tensor, size in zip(model.graph.initializer, sizes, strict=True):
        file.write(tag + _varint(size))
        file.write(TensorProto.SerializeToString(tensor, deterministic=True))


def _around(message: Any, kind: Callable[[], Any], number: int) -> tuple[bytes, bytes]:
    """The bytes of a message's fields before and after one of them."""
    before, after = kind(), kind()
    for field, value in message.ListFields():
        if field.number != number:
            _copy(before if field.number < number else after, field, value)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _without(message: Any, kind: Callable[[], Any], number: int) -> Any:
    made = kind()
    for field, value in message.ListFields():
        if field.number != number:
            _copy(made, field, value)
    return made


def _copy(target: Any, field: Any, value: Any) -> None:
    if hasattr(value, "extend") or hasattr(value, "append"):
        getattr(target, field.name).extend(value)
    elif field.message_type is not None:
        getattr(target, field.name).CopyFrom(value)
    else:
        setattr(target, field.name, value)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])
