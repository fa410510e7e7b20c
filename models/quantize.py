"""An fp32 graph → the same graph in another precision. Pure: the input is never changed.

`int8-rowwise` is our own: ONNX Runtime's dynamic int8 uses one activation scale for a whole tensor, so a row's answer
depends on its batch-mates (docs/architecture.md, Exactness). Here every row of activations, that is every token, has
its own.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from foreseen.errors import SetupError
from foreseen.models.graphs.graph import MICROSOFT
from foreseen.models.half import bf16, fp16
from foreseen.modelspec.manifest import Precision
from foreseen.types import Array

ZERO_POINT = 128  # u8s8: MLAS's MatMulInteger is fastest with unsigned activations; CUDA's takes s8s8 only
LARGEST = 127  # symmetric: -128 is left out, so x and -x quantize alike
BLOCK = 32
ACCURACY_LEVEL = 4  # activations in int8 per block of a row: row-independent like the row-wise rewrite
LEAST_OPSET = 11  # of Round
AXES_INPUT_OPSET = 18  # from then on ReduceMax takes its axes as an input, before as an attribute
LEAST_MAXIMUM = 1e-30  # guards a row of zeros; far below any activation, far above denormals


def quantize(model: ModelProto, precision: Precision) -> ModelProto:
    """The candidate of that precision. Raises SetupError for one that cannot be made of this model."""
    return MAKERS[precision](model)


def _fp32(model: ModelProto) -> ModelProto:
    return model


def int8_rowwise(model: ModelProto, *, signed: bool = False) -> ModelProto:
    """MatMuls with a constant FP32 weight [k, n] → MatMulInteger, activations per row in u8 (`signed`: in s8, which
    is the same sum of products), s8 weights per column."""
    made = copy.deepcopy(model)
    opset = opset_of(made)
    if opset < LEAST_OPSET:
        raise SetupError(f"int8-rowwise: the graph's opset is {opset}, it needs {LEAST_OPSET} (Round) or later")
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    rewriter = _Rowwise(constants, axes_are_input=opset >= AXES_INPUT_OPSET, signed=signed)
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        nodes += rewriter.rewrite(node)
    if not rewriter.weights:
        raise SetupError("int8-rowwise: the graph has no MatMul with a constant weight")
    replace(made, nodes, rewriter.weights)
    return made


class _Rowwise:
    """Rewrites node after node; remembers which activations are quantized already: Q, K and V share theirs."""

    def __init__(self, constants: dict[str, TensorProto], *, axes_are_input: bool, signed: bool) -> None:
        self._constants = constants
        self._axes_are_input, self._signed = axes_are_input, signed
        self._done: dict[str, tuple[str, str]] = {}
        self._made: set[str] = set()
        self.weights: list[TensorProto] = []

    def rewrite(self, node: NodeProto) -> list[NodeProto]:
        weight = constant_weight(node, self._constants)
        if weight is None:
            return [node]
        nodes: list[NodeProto] = []
        rows, scale = self._rows(node.input[0], nodes)
        columns, column_scale = self._columns(weight)
        out = node.output[0]
        factors = [rows, columns] if self._signed else [rows, columns, "rowwise.zero"]
        nodes += [
            helper.make_node("MatMulInteger", factors, [f"{out}.i32"], name=f"{out}.matmul"),
            helper.make_node("Cast", [f"{out}.i32"], [f"{out}.f32"], name=f"{out}.cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}.f32", scale], [f"{out}.rows"], name=f"{out}.rows"),
            helper.make_node("Mul", [f"{out}.rows", column_scale], [out], name=f"{out}.columns"),
        ]
        return nodes

    def _rows(self, x: str, nodes: list[NodeProto]) -> tuple[str, str]:
        """u8 or s8 rows and their FP32 scales [..., 1] of an activation."""
        if x in self._done:
            return self._done[x]
        if not self._signed:
            self._constant("rowwise.zero", np.array(ZERO_POINT, np.uint8))
            self._constant("rowwise.middle", np.array(ZERO_POINT, np.float32))
        self._constant("rowwise.largest", np.array(LARGEST, np.float32))
        self._constant("rowwise.least", np.array(LEAST_MAXIMUM, np.float32))
        if self._axes_are_input:
            self._constant("rowwise.axis", np.array([-1], np.int64))

        def add(op: str, *inputs: str, **attributes: Any) -> str:
            name = f"{x}.{op.lower()}{len(nodes)}"
            nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            return name

        size = add("Abs", x)
        peak = (
            add("ReduceMax", size, "rowwise.axis", keepdims=1)
            if self._axes_are_input
            else add("ReduceMax", size, axes=[-1], keepdims=1)
        )
        scale = add("Div", add("Max", peak, "rowwise.least"), "rowwise.largest")
        whole = add("Round", add("Div", x, scale))
        if self._signed:
            self._done[x] = add("Cast", whole, to=TensorProto.INT8), scale
        else:
            self._done[x] = add("Cast", add("Add", whole, "rowwise.middle"), to=TensorProto.UINT8), scale
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


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that the graph is written for."""
    return max((int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)


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
        logging.disable(logging.WARNING)  # it advises pre-processing on the root logger, in the middle of the progress
        try:
            quantize_dynamic(model, made, weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(made)


def matmul_nbits(model: ModelProto, bits: int = 8) -> ModelProto:
    """MatMuls with a constant weight [k, n] → MatMulNBits, 8 or 4 bits in blocks of 32 along k.

    Written here since onnxruntime's own quantizer needs the package onnx-ir. Source of the layout: ONNX Runtime's
    ContribOperators.md, com.microsoft.MatMulNBits.
    """
    made = copy.deepcopy(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    nodes: list[NodeProto] = []
    weights: dict[str, TensorProto] = {}
    for node in made.graph.node:
        weight = constant_weight(node, constants)
        if weight is None or weight.dims[0] % BLOCK:
            nodes.append(node)
            continue
        k, n = weight.dims
        names = [f"{weight.name}.q{bits}", f"{weight.name}.scales"]
        for name, array in zip(names, quantized_blocks(numpy_helper.to_array(weight), bits), strict=True):
            weights[name] = numpy_helper.from_array(array, name)
        attributes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": ACCURACY_LEVEL}
        made_of = [node.input[0], *names]
        nodes.append(
            helper.make_node("MatMulNBits", made_of, node.output, name=node.output[0], domain=MICROSOFT, **attributes)
        )
    if not weights:
        raise SetupError(f"matmul-nbits: no MatMul with a constant weight whose rows are a multiple of {BLOCK}")
    if MICROSOFT not in {opset.domain for opset in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    replace(made, nodes, list(weights.values()))
    return made


def quantized_blocks(weight: Array, bits: int = 8) -> tuple[Array, Array]:
    """W FP32 [k, n] → UINT8 [n, k/32, 4·bits] around the middle of its range, and FP32 scales [n, k/32]. Of two 4-bit
    values in a byte the first is the low half."""
    k, n = weight.shape
    middle = 1 << (bits - 1)
    blocks = weight.T.reshape(n, k // BLOCK, BLOCK)
    scale = (np.abs(blocks).max(axis=2) / (middle - 1)).astype(np.float32)
    scale[scale == 0] = 1
    values = (np.rint(blocks / scale[..., None]) + middle).astype(np.uint8)
    return (values if bits == 8 else values[..., ::2] | values[..., 1::2] << 4), scale


def constant_weight(node: NodeProto, constants: dict[str, TensorProto]) -> TensorProto | None:
    """The FP32 matrix that a MatMul multiplies with, or None for any other node."""
    if node.op_type != "MatMul" or node.domain:
        return None
    weight = constants.get(node.input[1])
    return weight if weight is not None and weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 else None


def replace(model: ModelProto, nodes: list[NodeProto], added: list[TensorProto]) -> None:
    """Put other nodes into a graph, with the constants that they need and without those that nothing uses any more."""
    outputs = {output.name for output in model.graph.output}
    used = {name for node in nodes for name in node.input} | outputs
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *added])


MAKERS: dict[Precision, Callable[[ModelProto], ModelProto]] = {
    "fp32": _fp32,
    "int8-rowwise": int8_rowwise,
    "int8-dynamic": int8_dynamic,
    "fp16": fp16,
    "matmul-nbits": matmul_nbits,
    "bf16": bf16,
    "int8-rowwise-s8": partial(int8_rowwise, signed=True),
    "matmul-nbits-4": partial(matmul_nbits, bits=4),
}
