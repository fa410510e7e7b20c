"""An fp32 graph → the same graph in 16-bit floats, its inputs and outputs as before: for GPUs. Pure.

On CPUs most kernels of ONNX Runtime cast fp16 back, and few support bf16: a build reports that and continues.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from foreseen.errors import SetupError

_FLOAT_ONLY: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,)}
"""Operators with inputs that must stay FP32: the positions of these inputs."""


def fp16(model: ModelProto) -> ModelProto:
    """Weights and activations in FP16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one per constant below FP16's least, such as the norm's guard: meant to be
        made: ModelProto = convert_float_to_float16(copy.deepcopy(model), keep_io_types=True)
    return made


def bf16(model: ModelProto) -> ModelProto:
    """Weights and activations in BF16: FP32's range, 8 bits of precision, rounded to the nearest even. Raises
    SetupError for a graph with subgraphs, whose names would have to be followed."""
    made = copy.deepcopy(model)
    graph = made.graph
    if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in _attributes(graph.node)):
        raise SetupError("bf16: the graph has a loop or a branch")
    kept = {node.input[at] for node in graph.node for at in _FLOAT_ONLY.get(node.op_type, ()) if at < len(node.input)}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_rounded(tensor))
    for attribute in _attributes(graph.node):
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_rounded(attribute.t))
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.BFLOAT16
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    _cast_ends(graph)
    return made


def _attributes(nodes: Iterable[NodeProto]) -> list[AttributeProto]:
    return [attribute for node in nodes for attribute in node.attribute]


def _rounded(tensor: TensorProto) -> TensorProto:
    """An FP32 tensor in BF16."""
    bits = numpy_helper.to_array(tensor).astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return helper.make_tensor(tensor.name, TensorProto.BFLOAT16, list(tensor.dims), rounded.tobytes(), raw=True)


def _cast_ends(graph: GraphProto) -> None:
    """Cast FP32 inputs of the graph to BF16 and what becomes its FP32 outputs back."""
    begin = [_cast(one.name, f"{one.name}.bf16", TensorProto.BFLOAT16) for one in graph.input if _is_float(one)]
    end = [_cast(f"{one.name}.bf16", one.name, TensorProto.FLOAT) for one in graph.output if _is_float(one)]
    renamed = {cast.input[0]: cast.output[0] for cast in begin}
    results = {cast.output[0]: cast.input[0] for cast in end}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = results.get(name) or renamed.get(name, name)
        for at, name in enumerate(node.output):
            node.output[at] = results.get(name, name)
    nodes = [*begin, *graph.node, *end]
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to)


def _is_float(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)
