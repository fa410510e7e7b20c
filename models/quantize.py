"""An fp32 graph → the same graph in another precision. Pure: the input is never changed.

`int8-rowwise` is ours, since ONNX Runtime's dynamic int8 takes one activation scale for a whole tensor, so a row's
answer depends on its batch-mates (DESIGN section 5). Here every row of activations, that is every token, has its own.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from foreseen.errors import SetupError
from foreseen.manifest import Precision
from foreseen.nouns import Array

ZERO_POINT = 128  # u8s8: MLAS's MatMulInteger is fastest with unsigned activations
LARGEST = 127  # symmetric: -128 is left out, so x and -x quantize alike
LEAST_MAXIMUM = 1e-30  # guards a row of zeros; far below any activation, far above denormals


def quantize(model: ModelProto, precision: Precision) -> ModelProto:
    """The candidate of that precision. Raises SetupError for one that cannot be made of this model."""
    return MAKERS[precision](model)


def _fp32(model: ModelProto) -> ModelProto:
    return model


def int8_rowwise(model: ModelProto) -> ModelProto:
    """MatMuls with a constant FP32 weight [k, n] → MatMulInteger, u8 activations per row, s8 weights per column."""
    made = copy.deepcopy(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    rewriter = _Rowwise(constants)
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        nodes += rewriter.rewrite(node)
    if not rewriter.weights:
        raise SetupError("int8-rowwise: the graph has no MatMul with a constant weight")
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.node[:]
    del made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([*kept, *rewriter.weights])
    return made


class _Rowwise:
    """Rewrites node after node; remembers which activations are quantized already: Q, K and V share theirs."""

    def __init__(self, constants: dict[str, TensorProto]) -> None:
        self._constants = constants
        self._done: dict[str, tuple[str, str]] = {}
        self._made: set[str] = set()
        self.weights: list[TensorProto] = []

    def rewrite(self, node: NodeProto) -> list[NodeProto]:
        weight = self._constants.get(node.input[1]) if node.op_type == "MatMul" and len(node.input) == 2 else None
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2:
            return [node]
        nodes: list[NodeProto] = []
        rows, scale = self._rows(node.input[0], nodes)
        columns, column_scale = self._columns(weight)
        out = node.output[0]
        nodes += [
            helper.make_node("MatMulInteger", [rows, columns, "rowwise.zero"], [f"{out}.i32"], name=f"{out}.matmul"),
            helper.make_node("Cast", [f"{out}.i32"], [f"{out}.f32"], name=f"{out}.cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}.f32", scale], [f"{out}.rows"], name=f"{out}.rows"),
            helper.make_node("Mul", [f"{out}.rows", column_scale], [out], name=f"{out}.columns"),
        ]
        return nodes

    def _rows(self, x: str, nodes: list[NodeProto]) -> tuple[str, str]:
        """u8 rows and their FP32 scales [..., 1] of an activation."""
        if x in self._done:
            return self._done[x]
        self._constant("rowwise.zero", np.array(ZERO_POINT, np.uint8))
        self._constant("rowwise.middle", np.array(ZERO_POINT, np.float32))
        self._constant("rowwise.largest", np.array(LARGEST, np.float32))
        self._constant("rowwise.least", np.array(LEAST_MAXIMUM, np.float32))
        self._constant("rowwise.axis", np.array([-1], np.int64))

        def add(op: str, *inputs: str, **attributes: Any) -> str:
            name = f"{x}.{op.lower()}{len(nodes)}"
            nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            return name

        peak = add("ReduceMax", add("Abs", x), "rowwise.axis", keepdims=1)
        scale = add("Div", add("Max", peak, "rowwise.least"), "rowwise.largest")
        middle = add("Add", add("Round", add("Div", x, scale)), "rowwise.middle")
        self._done[x] = add("Cast", middle, to=TensorProto.UINT8), scale
        return self._done[x]

    def _columns(self, weight: TensorProto) -> tuple[str, str]:
        """s8 weight [k, n] and its FP32 scales [n]."""
        values, scales = f"{weight.name}.s8", f"{weight.name}.scale"
        if values not in self._made:
            quantized, scale = quantized_columns(numpy_helper.to_array(weight))
            self._constant(values, quantized)
            self._constant(scales, scale)
        return values, scales

    def _constant(self, name: str, array: Array) -> None:
        if name not in self._made:
            self._made.add(name)
            self.weights.append(numpy_helper.from_array(array, name))


def quantized_columns(weight: Array) -> tuple[Array, Array]:
    """W FP32 [k, n] → INT8 [k, n] and FP32 scales [n], so that W ≈ q·s. A column of zeros gets the scale 1."""
    scale = (np.abs(weight).max(axis=0) / LARGEST).astype(np.float32)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale


def int8_dynamic(model: ModelProto) -> ModelProto:
    """ONNX Runtime's own dynamic int8: one activation scale per tensor. Listed to be measured, rarely to be chosen."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="foreseen-") as folder:
        made = Path(folder) / "made.onnx"
        quantize_dynamic(model, made, weight_type=QuantType.QInt8)
        return onnx.load(made)


MAKERS: dict[Precision, Callable[[ModelProto], ModelProto]] = {
    "fp32": _fp32,
    "int8-rowwise": int8_rowwise,
    "int8-dynamic": int8_dynamic,
}
