"""Numpy arrays and operator names → an `onnx.ModelProto`, for the builders.

Names are numbered in the order of writing, and nothing of the machine enters (no paths, no times), so that the same
weights give the same bytes everywhere: the artifact digest depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from foreseen.models.graphs import onnx_write
from foreseen.modelspec.manifest import Dim, ModelInput, ModelOutput, ModelSignature
from foreseen.protocol.datatypes import DATATYPES
from foreseen.types import Array

OPSET = 20  # the first with Gelu; LayerNormalization is there since 17
IR_VERSION = 10  # what ONNX Runtime ≥ 1.19 reads; onnx.helper would write its own newest
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators (MatMulNBits, …)


class Graph:
    """A graph being written: `constant` and `add` give back the name of the tensor that they made."""

    def __init__(self) -> None:
        # Written in place: `onnx.helper` copies every weight twice on the way into a model.
        self._model = ModelProto()
        self._nodes: list[NodeProto] = []
        self._constants: set[str] = set()

    def constant(self, name: str, array: Array) -> str:
        """Put a named constant into the graph; the same name twice is the same constant."""
        return self._put(name, np.ascontiguousarray(array))

    def _put(self, name: str, array: Array) -> str:
        if name not in self._constants:
            self._constants.add(name)
            tensor = self._model.graph.initializer.add()
            tensor.dims.extend(array.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor.name = name
            tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return name

    def numbers(self, *values: int) -> str:
        """A 1-d INT64 constant: axes, shapes, starts, ends."""
        return self.constant("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        """A 0-d INT64 constant, which Range, CumSum and a Gather that drops an axis want."""
        return self._put(f"s{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        """A scalar FP32 constant."""
        return self.constant(f"f{value!r}", np.array(value, np.float32))

    def add(self, op: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Write one node with one output, which is called `name` or after its operator and its place."""
        output = name or f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def model(self, signature: ModelSignature) -> ModelProto:
        """The finished, checked model with the inputs and outputs of a manifest's `[model]` part."""
        model = self._model
        for listed in (model.opset_import, model.graph.node, model.graph.input, model.graph.output):
            del listed[:]  # a graph may be written on and finished again
        model.ir_version, model.producer_name = IR_VERSION, "foreseen"
        model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
        model.graph.name = "foreseen"
        model.graph.node.extend(self._nodes)
        model.graph.input.extend([value_info(i) for i in signature.inputs])
        model.graph.output.extend([value_info(o) for o in signature.outputs])
        onnx_write.check(model)
        return model


def value_info(spec: ModelInput | ModelOutput) -> onnx.ValueInfoProto:
    dims: Sequence[Dim] = spec.shape
    return helper.make_tensor_value_info(spec.name, onnx_type(spec.datatype), dims)


def onnx_type(datatype: str) -> int:
    """An Open Inference Protocol datatype as ONNX's element type."""
    if datatype == "BYTES":
        return TensorProto.STRING
    if datatype == "BF16":
        return TensorProto.BFLOAT16
    return helper.np_dtype_to_tensor_dtype(DATATYPES[datatype].dtype)


def to_bytes(model: ModelProto) -> bytes:
    """The model as it is published: deterministic, everything inside, no external data."""
    return bytes(model.SerializeToString(deterministic=True))
