"""Requests that cannot be cut into rows, refused inputs, and made-up rows, at the model process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from foreseen.errors import BadInput
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.types import Row
from tests import inference_fixture as tiny
from tests.inference.test_app import listening, tensor
from tests.signatures import manifest_text

STATE = manifest_text(
    "state",
    [("x", "FP32", ["rows", "samples"]), ("state", "FP32", [2, "rows", 1]), ("rate", "FP32", [])],
    [("sum", "FP32", ["rows", 1]), ("next", "FP32", [2, "rows", 1]), ("rate_out", "FP32", [])],
    top='rows = "together"',
)

IDS = manifest_text("ids", [("ids", "INT64", ["rows", "tokens"])], [("y", "FP32", ["rows", "tokens"])])

NUMBERS = manifest_text("numbers", [("text", "BYTES", ["rows"])], [("y", "FP32", ["rows"])])


def state() -> tiny.ModelProto:
    """A state whose second axis is the batch, and a scalar, as voice-activity detectors take them."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "rate"], ["step"]),
        helper.make_node("Add", ["state", "step"], ["next"]),
        helper.make_node("Identity", ["rate"], ["rate_out"]),
    ]
    kind = TensorProto.FLOAT
    inputs = [tiny.info("x", kind, "b", "s"), tiny.info("state", kind, 2, "b", 1), tiny.info("rate", kind)]
    outputs = [tiny.info("sum", kind, "b", 1), tiny.info("next", kind, 2, "b", 1), tiny.info("rate_out", kind)]
    return tiny.graph(nodes, inputs, outputs, axis=np.array([1]))


def looked_up() -> tiny.ModelProto:
    """Ids of a table of five."""
    ends = [tiny.info("ids", TensorProto.INT64, "b", "t")], [tiny.info("y", TensorProto.FLOAT, "b", "t")]
    table = np.arange(5, dtype=np.float32)
    return tiny.graph([helper.make_node("Gather", ["table", "ids"], ["y"])], *ends, table=table)


def numbers() -> tiny.ModelProto:
    """Numbers that are written as text."""
    ends = [tiny.info("text", TensorProto.STRING, "b")], [tiny.info("y", TensorProto.FLOAT, "b")]
    return tiny.graph([helper.make_node("Cast", ["text"], ["y"], to=TensorProto.FLOAT)], *ends)


async def test_a_request_without_an_axis_of_rows_goes_whole(tmp_path: Path) -> None:
    """A state and a scalar are fed as they were sent, and every output comes in its own shape."""
    async with listening(tiny.publish(tmp_path, STATE, state())) as client:
        inputs = [
            tensor("x", "FP32", [1, 2, 3, 4, 5, 6], 3, 2),
            tensor("state", "FP32", [0, 0, 0, 1, 1, 1], 2, 3, 1),
            {"name": "rate", "datatype": "FP32", "shape": [], "data": [2]},
        ]
        status, reply, _ = await client.infer({"inputs": inputs})
        assert status == 200, reply
        answered = {output["name"]: (output["shape"], output["data"]) for output in reply["outputs"]}
        assert answered == {
            "sum": ([3, 1], [3, 7, 11]),
            "next": ([2, 3, 1], [6, 14, 22, 7, 15, 23]),
            "rate_out": ([], [2]),
        }
        status, config, _ = await client.get("/v2/models/state/config")
        assert (config["max_batch_size"], config["input"][1]["dims"]) == (0, [2, -1, 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "state", "shape": [3, 3, 1], "data": [0.0] * 9}, "inputs.state.shape: is [3, 3, 1]"),
        ({"name": "state", "shape": [2, 2, 1], "data": [0.0] * 4}, "the model refuses this input"),
        ({"name": "rate", "shape": [1], "data": [1.0]}, "inputs.rate.shape: is [1], must be []"),
        ({"name": "other", "shape": [1], "data": [1.0]}, "inputs.other"),
    ],
)
async def test_what_does_not_fit_is_the_callers(tmp_path: Path, change: dict[str, object], says: str) -> None:
    """A shape that the signature or only the graph refuses is a 400, not a failure of the model."""
    async with listening(tiny.publish(tmp_path, STATE, state())) as client:
        inputs = {
            "x": tensor("x", "FP32", [1, 2, 3, 4, 5, 6], 3, 2),
            "state": tensor("state", "FP32", [0, 0, 0, 1, 1, 1], 2, 3, 1),
            "rate": {"name": "rate", "datatype": "FP32", "shape": [], "data": [2]},
        }
        inputs[str(change["name"])] = {"datatype": "FP32"} | change
        status, reply, _ = await client.infer({"inputs": [*inputs.values()]})
        assert (status, reply["code"]) == (400, "bad_input")
        assert says in reply["error"]


async def test_ids_outside_of_the_vocabulary_are_the_callers(tmp_path: Path) -> None:
    """A 400 that does not tell the value; whoever shares the batch is answered."""
    async with listening(tiny.publish(tmp_path, IDS, looked_up())) as client:
        asked = [[1, 2], [3, 7777], [4, 0]]
        replies = await asyncio.gather(
            *(client.infer({"inputs": [tensor("ids", "INT64", ids, 1, 2)]}) for ids in asked)
        )
        assert [status for status, _, _ in replies] == [200, 400, 200]
        assert replies[1][1]["error"] == "the model refuses this input: its Gather node takes no such numbers or sizes"


async def test_a_model_that_refuses_what_is_made_up_is_served_but_not_cached_by_the_row(tmp_path: Path) -> None:
    """Readiness does not depend on an invented input; nor does caching pretend to a proof."""
    async with listening(tiny.publish(tmp_path, NUMBERS, numbers())) as client:
        assert (await client.get("/v2/health/ready"))[0] == 200
        assert not client.served.row_independent
        status, reply, _ = await client.infer({"inputs": [tensor("text", "BYTES", ["2.5", "4"], 2)]})
        assert (status, reply["outputs"][0]["data"]) == (200, [2.5, 4])


async def test_hints_make_the_rows_of_the_self_test_valid(tmp_path: Path) -> None:
    """`[samples]` of the manifest says which texts the graph takes: the proof is there again."""
    manifest = NUMBERS + '[samples]\ntexts = { text = ["1", "2"] }\n'
    async with listening(tiny.publish(tmp_path, manifest, numbers())) as client:
        assert client.served.row_independent


def test_bits_do_not_depend_on_where_an_input_lies(tmp_path: Path) -> None:
    """A request's bytes lie where its head ends; sums over them start at an aligned address all the same."""
    settings = tiny.publish(tmp_path, STATE, state())
    session = open_session(tiny.load(tmp_path / "manifests" / "state" / "model.toml"), settings.data, SessionPlan())
    chance = np.random.default_rng(2)
    x, old, rate = chance.standard_normal((11, 12)), chance.standard_normal((2, 11, 1)), np.array(1, np.float32)
    seen = set()
    for offset in range(0, 64, 4):
        room = np.zeros(x.size * 4 + 128, np.uint8)
        start = -room.ctypes.data % 64 + offset
        placed = room[start : start + x.size * 4].view(np.float32).reshape(x.shape)
        placed[...] = x
        outputs = session.run([Row((placed, old.astype(np.float32), rate))])[0]
        seen.add(outputs[0].tobytes())
    session.close()
    assert len(seen) == 1


def test_a_refusal_is_no_failure_of_the_process(tmp_path: Path) -> None:
    """At the session itself: BadInput, without the text of ONNX Runtime, which holds values."""
    settings = tiny.publish(tmp_path, IDS, looked_up())
    session = open_session(tiny.load(tmp_path / "manifests" / "ids" / "model.toml"), settings.data, SessionPlan())
    with pytest.raises(BadInput) as refused:
        session.run([Row((np.array([9999], np.int64),))])
    session.close()
    assert "9999" not in str(refused.value)
