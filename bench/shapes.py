"""Models of the shapes that benchmarks ask for, of one operator each: what surrounds the graph is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from bench.interleaved import ROOT
from foreseen.errors import SetupError
from foreseen.models.add import add
from foreseen.models.build.build import build
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.artifact import read_record
from foreseen.modelspec.manifest import find

DATA = ROOT / "build" / "bench-data"
FOLDER = ROOT / "build" / "bench-models"
NAMES = ("wide", "embed", "picture")
ALL = (*NAMES, "vector")


def made() -> tuple[Path, Path]:
    """`wide`: 128 INT64 a row → 4 INT64; `embed`: 16 INT64 a row → 384 FP32; `picture`: 224×224×3 FP32 a row → 3 FP32;
    `vector`: as many FP32 a row as there are → 1 FP32.
    The data directory with all in force, and the folder of their manifests; built where missing."""
    DATA.mkdir(parents=True, exist_ok=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ALL:
        if not (FOLDER / name / "model.toml").exists():
            file = DATA / f"{name}.onnx"
            save(_graph(name), file)
            add(file, name, FOLDER, DATA, SilentProgress())
        manifest = find(name, (FOLDER,))
        try:
            read_record(DATA, name)
        except SetupError:
            build(manifest, DATA, quick=True, say=SilentProgress())
    return DATA, FOLDER


def _graph(name: str):  # type: ignore[no-untyped-def] # onnx has no types
    rng = np.random.default_rng(7)
    ints, floats = TensorProto.INT64, TensorProto.FLOAT
    if name == "wide":
        weights = [numpy_helper.from_array(rng.integers(1, 1000, (128, 4)), "m")]
        nodes = [helper.make_node("MatMul", ["x", "m"], ["digest"])]
        ends = [("x", ints, ["rows", 128])], [("digest", ints, ["rows", 4])]
    elif name == "embed":
        weights = [numpy_helper.from_array(rng.standard_normal((16, 384)).astype(np.float32), "m")]
        nodes = [
            helper.make_node("Cast", ["x"], ["f"], to=floats),
            helper.make_node("MatMul", ["f", "m"], ["y"]),
        ]
        ends = [("x", ints, ["rows", 16])], [("y", floats, ["rows", 384])]
    elif name == "vector":
        weights = [numpy_helper.from_array(np.array([1]), "axes")]
        nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)]
        ends = [("x", floats, ["rows", "numbers"])], [("y", floats, ["rows", 1])]
    else:
        weights = [numpy_helper.from_array(np.array([1, 2]), "axes")]
        nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
        ends = [("x", floats, ["rows", 224, 224, 3])], [("y", floats, ["rows", 3])]
    inputs, outputs = ([helper.make_tensor_value_info(*end) for end in side] for side in ends)  # type: ignore[arg-type] # sizes and names of sizes
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
