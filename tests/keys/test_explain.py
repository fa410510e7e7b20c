"""Explain, observe and the command line's view of keys: what an operator sees is what the proxy does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreseen.keys.explain import differences, read_frame
from foreseen.keys.key import Framer
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature
from foreseen.operate.commands.observed_command import summary_of, table
from foreseen.proxy.admin.explain_rows import explain_rows
from foreseen.proxy.predict.observe import Observer, closeness
from foreseen.types import Row, Space
from tests.doubles import BrokenFar, Clock, DictFar, ScriptedModel, pipeline, predicted, question, row
from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers

MIXED = ModelSignature(
    (ModelInput("x", "FP32", ("rows", "n")), ModelInput("t", "BYTES", ("rows",))),
    (ModelOutput("y", "FP32", ("rows",)),),
)


def mixed(values: list[float], text: bytes) -> Row:
    boxed = np.empty((), object)
    boxed[()] = text
    return Row((np.array(values, np.float32), boxed))


def frame(values: list[float], text: bytes = b"t", parameters: bytes = b"") -> bytes:
    return Framer(MIXED).frame(mixed(values, text), parameters)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=5), st.binary(max_size=5))
def test_a_frame_is_read_as_it_was_written(values: list[float], text: bytes) -> None:
    """Names, datatypes, shapes and every element come back."""
    seen = read_frame(frame(values, text, b'{"a":1}'))
    assert seen.parameters == '{"a":1}'
    assert [(i.name, i.datatype, i.shape) for i in seen.inputs] == [("t", "BYTES", ()), ("x", "FP32", (len(values),))]
    assert seen.inputs[1].array.tobytes() == np.array(values, np.float32).tobytes()
    assert seen.inputs[0].array.item() == text
    assert json.dumps(seen.shown())


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (frame([1, 2]), frame([1, 2]), []),
        (frame([1, 2]), frame([1, 3]), ["inputs.x.data[1]: 2.0 ≠ 3.0 (FP32)"]),
        (frame([1, 2, 5]), frame([0, 2, 6]), ["inputs.x.data[0]: 1.0 ≠ 0.0, and 1 more (FP32)"]),
        (frame([0.0]), frame([-0.0]), ["inputs.x.data[0]: 0.0 ≠ -0.0 (FP32)"]),
        (frame([1]), frame([1, 2]), ["inputs.x.shape: [1] ≠ [2]"]),
        (frame([1], b"a"), frame([1], b"b"), ["inputs.t.data[0]: 'a' ≠ 'b' (BYTES)"]),
        (frame([1], b"a", b'{"k":1}'), frame([1], b"a"), ['parameters: {"k":1} ≠ none']),
    ],
)
def test_the_field_that_differs_is_named(one: bytes, other: bytes, says: list[str]) -> None:
    """One line per field, with the first value that differs."""
    assert differences(read_frame(one), read_frame(other)) == says


def test_other_bytes_are_no_frame() -> None:
    """Only this format is read."""
    with pytest.raises(ValueError, match="format"):
        read_frame(b"fsn9....")


async def test_whereabouts_of_rows() -> None:
    """Near, far, and for a miss its reason; asking changes nothing and asks no model."""
    model, far, clock = ScriptedModel(ttl_seconds=100), DictFar(), Clock()
    story = pipeline(model, far, clock=clock)
    await story.answer(question(row(1)))
    await far.stored.wait()
    old = [Space("public", "m", "d1")]

    async def told(asked: Any, former: list[Space]) -> list[tuple[str, str | None]]:
        return [(one.where, one.reason) for one in await explain_rows(story, asked, former)]

    assert await told(question(row(1), row(2)), []) == [("near", None), ("nowhere", "cold")]
    story.tiers.near.clear()
    assert await told(question(row(1)), []) == [("far", None)]
    assert len(story.tiers.near) == 0
    assert await told(question(row(1), digest="d2"), old) == [("nowhere", "new-digest")]
    assert await told(question(row(2), digest="d2"), old) == [("nowhere", "cold")]
    assert await told(question(row(1), steps=frozenset(("model",))), []) == [("nowhere", "bypassed")]
    (key,) = far.values
    far.values[key] = (far.values[key][0][:-1] + b"x", far.values[key][1])
    assert await told(question(row(1)), []) == [("nowhere", "verify-failed")]
    await story.answer(question(row(3)))
    clock.now += 111
    assert await told(question(row(3)), []) == [("nowhere", "expired")]
    assert model.calls == [1, 1]
    broken = pipeline(model, BrokenFar())
    assert [one.reason for one in await explain_rows(broken, question(row(1)), [])] == ["far-down"]


async def test_an_observed_model_always_answers_itself_and_reports_every_difference() -> None:
    """Tampered entries are counted as different, replaced by nothing, and never served."""
    model, far = ScriptedModel(), DictFar()
    story = pipeline(model, far)
    observer = Observer(story, story._metrics, tolerance=0.0)
    asked = question(row(1), row(2), row(2))
    assert [answer.source for answer in await observer.answer(asked)] == ["bypass"] * 3
    for key in story.keys(question(row(1))):
        story.tiers.near.put(key, predicted(666))  # the test's hook: somebody tampered with what is stored
    answers = await observer.answer(asked)
    assert [int.from_bytes(answer.prediction.data[0], "little") for answer in answers] == [10, 20, 20]
    assert model.calls == [3, 3]
    told = summary_of(story._metrics.exposition().decode())["m"]
    assert {name: told[name] for name in ("rows", "hit-exact", "hit-different", "collapsed", "miss")} == {
        "rows": 6, "hit-exact": 1, "hit-different": 1, "collapsed": 2, "miss": 2,
    }  # fmt: skip
    assert told["saved_compute_seconds"] == 0.25
    assert "do not trust" in table({"m": told})
    assert "no model is observed" in table({})


def test_closeness() -> None:
    """Exact is bit equality; close is floats within the tolerance; integers are never close."""
    assert closeness(predicted(1), predicted(1), 0.0) == "exact"
    assert closeness(predicted(1), predicted(2), 9.0) == "different"
    heads = predicted(1).outputs
    one, other = (
        type(predicted(1))(
            (type(heads[0])("y", "FP32", (2,)),), (np.array([v, 1], np.float32).tobytes(),), "d", 0.0, 1.0, 0.0
        )
        for v in (0.5, 0.5001)
    )
    assert closeness(one, other, 1e-3) == "close"
    assert closeness(one, other, 1e-6) == "different"
    assert closeness(one, predicted(1), 9.0) == "different"


def foreseen(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "foreseen.cli", *words]
    return subprocess.run(command, check=False, input=given, capture_output=True, timeout=60)


def test_key_and_explain_on_the_command_line(live: Live, tmp_path: Path) -> None:
    """The key that the command prints is the key that the running proxy explains, and it says what differs."""
    first, second, third = (tmp_path / name for name in "abc")
    first.write_text(json.dumps(ask_minilm("Explain this")))
    second.write_text(json.dumps(ask_minilm("EXPLAIN   this")))
    third.write_text(json.dumps(ask_minilm("Explain that")))
    data = f"--data={live.data}"
    done = foreseen("key", str(first), "--model=minilm", data, "--json")
    (told,) = json.loads(done.stdout)
    token = (live.data / "admin-token").read_text().strip()
    path = "/v2/models/minilm/explain"
    status, _, body = live.post(path, first.read_bytes(), {"Authorization": f"Bearer {token}"})
    assert status == 200
    (explained,) = json.loads(body)["rows"]
    assert (explained["key"], explained["frame"]) == (told["key"], told["frame"])
    assert (explained["where"], explained["reason"]) == ("nowhere", "cold")
    assert told["frame"]["inputs"][0]["name"] == "input_ids"
    same = foreseen("explain", str(first), str(second), "--model=minilm", data)
    assert (same.returncode, same.stdout) == (0, b"row 0: one entry\n")
    other = foreseen("explain", str(first), str(third), "--model=minilm", data)
    assert other.returncode == 1
    assert b"inputs.input_ids.data[2]" in other.stdout
    stdin = foreseen("key", "-", "--model=minilm", data, given=first.read_bytes())
    assert told["key"].encode() in stdin.stdout
    live.post("/v2/models/minilm/infer", first.read_bytes())
    _, _, body = live.post(path, second.read_bytes(), {"Authorization": f"Bearer {token}"})
    assert json.loads(body)["rows"][0]["where"] == "near"


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])
def test_explain_is_for_operators(live: Live, given: dict[str, str]) -> None:
    """401 without the token, and nothing of the model is told."""
    status, headers, body = live.post("/v2/models/minilm/explain", ask_minilm("x"), given)
    assert (status, headers["www-authenticate"], json.loads(body)["code"]) == (401, "Bearer", "unauthorized")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["key", "/nowhere", "--model=fingerprint"], "No such file"),
        (["key", "-", "--model=nope"], "known models"),
        (["key", "-", "--model=fingerprint", "--digest=d"], "not valid JSON"),
        (["observed", "--url=http://127.0.0.1:9"], "no proxy answers"),
    ],
)
@pytest.mark.processes
def test_errors_on_the_command_line_are_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    """Status 1 and one line that says what to do."""
    done = foreseen(*words, *([f"--data={tmp_path}"] if words[0] == "key" else []), given=b"{")
    assert (done.returncode, done.stderr.count(b"\n"), done.stdout) == (1, 1, b"")
    assert says in done.stderr.decode()


def test_observe_on_a_running_proxy(built: Path, tmp_path: Path) -> None:
    """`--observe all`: the model answers every request, and `foreseen observed` says what the cache would have done."""
    from tests.live import started

    with started(built, tmp_path / "data", "--observe=all", models=["fingerprint"]) as system:
        for seed in (1, 2, 1, 1):
            _, headers, body = system.post("/v2/models/fingerprint/infer", ask_fingerprint(numbers(seed)))
            assert headers["cache-status"] == "foreseen;fwd=bypass;detail=observe"
            assert json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(seed))
        done = foreseen("observed", f"--url={system.url}", "--json")
        told = json.loads(done.stdout)["fingerprint"]
        assert (told["rows"], told["hit-exact"], told["hit-different"], told["miss"]) == (5, 2, 0, 3)
        assert b"would have been hits" in foreseen("observed", f"--url={system.url}").stdout
