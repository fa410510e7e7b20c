"""A graph written tensor by tensor is the same bytes as one serialized whole, and is checked without being copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.graphs import onnx_write
from foreseen.models.graphs.graph import Graph, to_bytes
from foreseen.models.quantize import quantize
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature

SIGNATURE = ModelSignature((ModelInput("x", "FP32", ("rows", 64)),), (ModelOutput("y", "FP32", ("rows", 700)),))


def graph(size: int = 700) -> ModelProto:
    made = Graph()
    weight = np.random.default_rng(1).standard_normal((64, size)).astype(np.float32)
    made.add("MatMul", "x", made.constant("w", weight), name="y")
    return made.model(SIGNATURE)


def with_more(model: ModelProto) -> ModelProto:
    """Fields on both sides of the graph, and of the initializers."""
    model.doc_string, model.domain, model.model_version = "doc", "d", 3
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "inner"
    model.graph.value_info.add(name="z")
    return model


@pytest.mark.parametrize("precision", ["fp32", "int8-rowwise", "matmul-nbits"])
def test_the_bytes_are_those_of_protobuf(tmp_path: Path, precision: str) -> None:
    model = with_more(quantize(graph(), precision))  # type: ignore[arg-type]
    onnx_write.write(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == to_bytes(model)


def test_a_graph_finished_twice_is_the_same() -> None:
    made = Graph()
    made.add("Relu", "x", name="y")
    assert to_bytes(made.model(SIGNATURE)) == to_bytes(made.model(SIGNATURE))


def test_large_weights_are_checked_by_what_uses_them() -> None:
    """A tensor of over a megabyte is shown to the checker as an input: a wrong operator is still found."""
    model = graph(5000)
    onnx_write.check(model)
    model.graph.node[0].op_type = "Nothing"
    with pytest.raises(onnx.checker.ValidationError, match="Nothing"):
        onnx_write.check(model)


def test_large_tensors_in_a_second_file(tmp_path: Path) -> None:
    """What is measured of a model that no ONNX file can hold: the same graph, its large data beside it."""
    model = graph(5000)
    onnx_write.write_apart(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    (read,), (made,) = onnx.load(tmp_path / "m.onnx").graph.initializer, model.graph.initializer
    assert (read.name, read.raw_data, list(read.dims)) == (made.name, made.raw_data, list(made.dims))


def test_what_no_onnx_file_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_write, "LARGEST_BYTES", 1000)
    with pytest.raises(SetupError, match="an ONNX file has at most"):
        onnx_write.write(graph(), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
