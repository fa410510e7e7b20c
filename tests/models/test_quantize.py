"""Other precisions of one small graph: right within their error, row-independent where they claim it, reproducible."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from foreseen.errors import SetupError
from foreseen.models.graphs.graph import Graph, to_bytes
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.quantize import quantize, quantized_blocks, quantized_columns
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature, Precision
from foreseen.types import Array, Row

SIGNATURE = ModelSignature((ModelInput("x", "FP32", ("rows", 64)),), (ModelOutput("y", "FP32", ("rows", 32)),))
CHANCE = np.random.default_rng(3)
WEIGHTS = {name: CHANCE.standard_normal((64, 32)).astype(np.float32) for name in ("q", "k")}
ROWS = [Row((CHANCE.standard_normal(64).astype(np.float32) * 10.0**scale,)) for scale in range(-2, 3)]


def two_products() -> Graph:
    """y = x·q + x·k: two MatMuls of one input."""
    graph = Graph()
    products = [graph.add("MatMul", "x", graph.constant(name, weight)) for name, weight in WEIGHTS.items()]
    graph.add("Add", *products, name="y")
    return graph


def expected(row: Row) -> Array:
    return np.asarray(row.tensors[0] @ WEIGHTS["q"] + row.tensors[0] @ WEIGHTS["k"])


@pytest.mark.parametrize(
    ("precision", "error"),
    [("fp32", 1e-5), ("fp16", 2e-2), ("int8-rowwise", 0.05), ("int8-dynamic", 0.05), ("matmul-nbits", 0.05),
     ("int8-rowwise-s8", 0.05), ("matmul-nbits-4", 0.2)],
)  # fmt: skip
def test_every_precision_computes_the_same_within_its_error(precision: Precision, error: float) -> None:
    """Relative to the answer's length; a row of its own, so that dynamic int8 has no batch-mates to be spoilt by."""
    session = GraphSession(to_bytes(quantize(two_products().model(SIGNATURE), precision)), SIGNATURE, precision)
    for row in ROWS:
        wanted, got = expected(row), session.run([row])[0][0]
        assert np.linalg.norm(got - wanted) <= error * np.linalg.norm(wanted)


def test_rowwise_answers_do_not_depend_on_the_batch_and_dynamic_ones_do() -> None:
    """The rows' sizes differ by 10,000: with one scale for all, the small ones drown."""
    model = two_products().model(SIGNATURE)
    for precision, independent in (("int8-rowwise", True), ("int8-dynamic", False)):
        session = GraphSession(to_bytes(quantize(model, precision)), SIGNATURE, precision)
        alone, together = session.alone(ROWS), session.run(ROWS)
        equal = all(a[0].tobytes() == b[0].tobytes() for a, b in zip(alone, together, strict=True))
        assert equal is independent


def test_activations_that_two_products_share_are_quantized_once() -> None:
    """Q, K and V of an attention layer take the same input."""
    made = quantize(two_products().model(SIGNATURE), "int8-rowwise")
    operators = [node.op_type for node in made.graph.node]
    assert operators.count("MatMulInteger") == 2
    assert operators.count("ReduceMax") == operators.count("Round") == 1
    assert "MatMul" not in operators


def test_a_row_of_zeros_gives_zeros() -> None:
    session = GraphSession(
        to_bytes(quantize(two_products().model(SIGNATURE), "int8-rowwise")), SIGNATURE, "int8-rowwise"
    )
    assert not session.run([Row((np.zeros(64, np.float32),)), ROWS[0]])[0][0].any()


def test_products_of_two_activations_are_left_alone() -> None:
    """Scores and mixtures of an attention layer have no constant weight; nothing else here to quantize."""
    graph = Graph()
    graph.add("MatMul", "x", graph.add("Transpose", "x", perm=[1, 0]), name="y")
    for precision in ("int8-rowwise", "matmul-nbits"):
        with pytest.raises(SetupError, match="MatMul with a constant weight"):
            quantize(graph.model(SIGNATURE), precision)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_same_graph_gives_the_same_bytes_and_stays_as_it_was(precision: Precision) -> None:
    model = two_products().model(SIGNATURE)
    before = to_bytes(model)
    assert to_bytes(quantize(model, precision)) == to_bytes(quantize(two_products().model(SIGNATURE), precision))
    assert to_bytes(model) == before


def test_weights_quantize_to_half_a_step() -> None:
    """Per column, and per block of 32 down a column; a column of zeros stays zeros."""
    weight = WEIGHTS["q"].copy()
    weight[:, 5] = 0
    columns, scale = quantized_columns(weight)
    assert (np.abs(columns * scale - weight) <= scale / 2 + 1e-6).all()
    for bits in (8, 4):
        blocks, scales = quantized_blocks(weight, bits)
        if bits == 4:
            blocks = np.stack((blocks & 15, blocks >> 4), axis=-1).reshape(32, 2, 32)
        back = ((blocks.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(32, 64).T
        assert (np.abs(back - weight) <= np.repeat(scales.T, 32, axis=0) / 2 + 1e-6).all()


def test_signed_activations_have_the_same_products() -> None:
    """u8 around 128 and s8 around 0 are the same integers: every bit of the answer is equal. Small values, since u8
    products of some processors saturate."""
    graphs = (quantize(two_products().model(SIGNATURE), precision) for precision in ("int8-rowwise", "int8-rowwise-s8"))
    unsigned, signed = (GraphSession(to_bytes(graph), SIGNATURE, "int8-rowwise") for graph in graphs)
    for row in ROWS:
        assert unsigned.run([row])[0][0].tobytes() == signed.run([row])[0][0].tobytes()


def test_bf16_rounds_to_nearest_and_keeps_the_ends_in_fp32() -> None:
    """ONNX's own interpreter runs it, since ONNX Runtime has no MatMul in BF16 on a CPU."""
    made = quantize(two_products().model(SIGNATURE), "bf16")
    onnx.checker.check_model(made, full_check=True)
    assert {tensor.data_type for tensor in made.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    kept = onnx.numpy_helper.to_array(made.graph.initializer[0]).astype(np.float32)
    assert np.abs(kept - WEIGHTS["q"]).max() <= np.abs(WEIGHTS["q"]).max() / 256
    assert (np.abs(kept - WEIGHTS["q"]) <= np.abs(WEIGHTS["q"]) / 256).all()
    got = ReferenceEvaluator(made).run(None, {"x": ROWS[2].tensors[0][None]})[0][0]
    assert got.dtype == np.float32
    wanted = expected(ROWS[2])
    assert np.linalg.norm(got - wanted) <= 2e-2 * np.linalg.norm(wanted)


def test_bf16_of_a_graph_with_a_branch_is_refused_in_words() -> None:
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        f (bool b, float[n] x) => (float[n] y) {
          y = If(b) <then_branch = a () => (float[n] t) { t = Neg(x) },
                     else_branch = c () => (float[n] e) { e = Abs(x) }>
        }"""
    )
    with pytest.raises(SetupError, match="a loop or a branch"):
        quantize(graph, "bf16")


@pytest.mark.parametrize("opset", range(11, 23))
@pytest.mark.parametrize(
    "precision", ["fp16", "int8-rowwise", "int8-dynamic", "matmul-nbits", "int8-rowwise-s8", "matmul-nbits-4"]
)
def test_every_precision_is_valid_on_every_opset(opset: int, precision: Precision) -> None:
    """ReduceMax takes its axes as an attribute before opset 18 and as an input from there on; the checker knows."""
    model = two_products().model(SIGNATURE)
    model.opset_import[0].version = opset
    model.ir_version = 8
    made = quantize(model, precision)
    if precision.startswith("int8-rowwise"):  # the others are written by ONNX Runtime's tools
        onnx.checker.check_model(made, full_check=True)
    session = GraphSession(to_bytes(made), SIGNATURE, precision)
    wanted, got = expected(ROWS[2]), session.run([ROWS[2]])[0][0]
    assert np.linalg.norm(got - wanted) <= (0.2 if precision == "matmul-nbits-4" else 0.05) * np.linalg.norm(wanted)


def test_an_older_graph_is_refused_in_words() -> None:
    model = two_products().model(SIGNATURE)
    model.opset_import[0].version = 10
    with pytest.raises(SetupError, match="opset is 10, it needs 11"):
        quantize(model, "int8-rowwise")
