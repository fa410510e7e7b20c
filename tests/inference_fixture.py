"""Tiny ONNX models, put in force like built ones: each is made to show one thing about the model process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from foreseen.modelspec.artifact import (
    Artifact,
    Record,
    artifact_digest,
    artifact_file,
    model_folder,
    preparation_digest,
    write_record,
)
from foreseen.modelspec.manifest import load
from foreseen.settings import InferenceSettings
from tests.signatures import manifest_text

WORDS = manifest_text(
    "words",
    [
        ("ids", "INT64", ["rows", "tokens"], "pad = 9"),
        ("mask", "INT64", ["rows", "tokens"], 'role = "mask"\nof = "ids"'),
    ],
    [("sum", "INT64", ["rows"]), ("twice", "FP32", ["rows", "tokens"])],
    top="exact = true",
    tables="[example]\nids = [3, 1, 2]",
)

INVERSE = manifest_text(
    "inverse",
    [("x", "FP32", ["rows", 1])],
    [("y", "FP32", ["rows", 1])],
    top='version = "7"',
    tables="[batching]\nmax_rows = 8\n[example]\nx = [4]",
)

ECHO = manifest_text(
    "echo", [("text", "BYTES", ["rows"])], [("text_out", "BYTES", ["rows"])], tables='[example]\ntext = ["a", "b"]'
)

CENTRED = manifest_text(
    "centred",
    [("x", "FP32", ["rows", 1])],
    [("y", "FP32", ["rows", 1])],
    top="{more}",
    tables="[example]\nx = [4, 8]",
)

COUNTED = manifest_text(
    "counted", [("n", "INT64", ["rows", 1])], [("y", "INT64", ["rows", 1])], tables="[example]\nn = [3]"
)


def words() -> ModelProto:
    """`sum` of the ids that are not masked; `twice` each id, as long as the row."""
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
        helper.make_node("Add", ["kept", "kept"], ["double"]),
        helper.make_node("Cast", ["double"], ["twice"], to=TensorProto.FLOAT),
    ]
    return graph(
        nodes,
        [info("ids", TensorProto.INT64, "b", "s"), info("mask", TensorProto.INT64, "b", "s")],
        [info("sum", TensorProto.INT64, "b"), info("twice", TensorProto.FLOAT, "b", "s")],
        axis=np.array([1]),
    )


def inverse() -> ModelProto:
    """1 / x: a row of 0 is a poisoned row."""
    x, y = info("x", TensorProto.FLOAT, "b", 1), info("y", TensorProto.FLOAT, "b", 1)
    return graph([helper.make_node("Reciprocal", ["x"], ["y"])], [x], [y])


def echo() -> ModelProto:
    """Strings as they are."""
    text, out = info("text", TensorProto.STRING, "b"), info("text_out", TensorProto.STRING, "b")
    return graph([helper.make_node("Identity", ["text"], ["text_out"])], [text], [out])


def centred() -> ModelProto:
    """x less the batch's mean: rows that depend on each other."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    x, y = info("x", TensorProto.FLOAT, "b", 1), info("y", TensorProto.FLOAT, "b", 1)
    return graph(nodes, [x], [y], axis=np.array([0]))


def counted() -> ModelProto:
    """Counts to the batch's largest n, one node a step: a large n is a run that hangs but can be told to stop."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "one_in"], ["value_out"]),
            helper.make_node("Identity", ["one_in"], ["one_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            info("value", TensorProto.INT64, "b", 1),
            info("one_in", TensorProto.INT64, 1),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            info("value_out", TensorProto.INT64, "b", 1),
            info("one_out", TensorProto.INT64, 1),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["trips"], keepdims=0),
        helper.make_node("Sub", ["n", "n"], ["zero"]),
        helper.make_node("Loop", ["trips", "", "zero", "one"], ["y", "unused"], body=body),
    ]
    return graph(
        nodes, [info("n", TensorProto.INT64, "b", 1)], [info("y", TensorProto.INT64, "b", 1)], one=np.array([1])
    )


def graph(
    nodes: list[NodeProto], inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], **constants: np.ndarray
) -> ModelProto:
    known = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, known)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def info(name: str, kind: int, *shape: str | int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def publish(folder: Path, manifest: str, model: ModelProto, **more: object) -> InferenceSettings:
    """Put a model in force under `folder` and return the settings that serve it on a free port."""
    name = manifest.split('name = "', 1)[1].split('"', 1)[0]
    manifests, data = folder / "manifests", folder / "data"
    (manifests / name).mkdir(parents=True)
    (manifests / name / "model.toml").write_text(manifest)
    described = load(manifests / name / "model.toml")
    made = data / "graph.onnx"
    data.mkdir(exist_ok=True)
    made.write_bytes(model.SerializeToString())
    file = artifact_file(made)
    preparation = preparation_digest(described, ())
    digest = artifact_digest("fp32", preparation, file)
    home = model_folder(data, name) / digest
    home.mkdir(parents=True)
    made.rename(home / file.name)
    write_record(data, Record(Artifact(name, "fp32", digest, preparation, file)))
    defaults: dict[str, object] = {"model": name, "data": data, "models": manifests, "port": 0}
    return InferenceSettings(**{**defaults, **more})  # type: ignore[arg-type]
