"""In front of a V2 server that is not ours: inputs that may be left out, and what that does to keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from aiohttp import web

from foreseen.errors import EntryError, SetupError
from foreseen.keys.key import Framer
from foreseen.modelspec.artifact import preparation_digest, refuse_optional
from foreseen.modelspec.manifest import Manifest
from foreseen.queue.frame_rows import rows_of
from foreseen.types import Row
from tests.foreign import Front, fronted, listening
from tests.signatures import signature

Flagged = Literal["metadata", "config", "nowhere"]


class Adder:
    """Serves `add`: y = a + b, row by row, with 100 for a `b` that is left out; `a` is needed."""

    def __init__(self, flagged: Flagged) -> None:
        self.flagged = flagged
        self.asked: list[dict[str, list[float]]] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v2/repository/index", self._index)
        app.router.add_get("/v2/models/add", self._metadata)
        app.router.add_get("/v2/models/add/ready", self._metadata)
        app.router.add_get("/v2/models/add/config", self._config)
        app.router.add_post("/v2/models/add/infer", self._infer)
        return app

    async def _index(self, _: web.Request) -> web.Response:
        return web.json_response([{"name": "add"}])

    async def _metadata(self, _: web.Request) -> web.Response:
        inputs: list[dict[str, Any]] = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "ab"]
        if self.flagged == "metadata":
            inputs[1]["optional"] = True
        return web.json_response({"name": "add", "inputs": inputs, "outputs": [{**inputs[0], "name": "y"}]})

    async def _config(self, _: web.Request) -> web.Response:
        if self.flagged != "config":
            return web.json_response({"error": "there is none"}, status=404)
        inputs = [{"name": name, "data_type": "TYPE_FP32", "dims": [2], "optional": name == "b"} for name in "ab"]
        return web.json_response({"name": "add", "input": inputs})

    async def _infer(self, request: web.Request) -> web.Response:
        if "Inference-Header-Content-Length" in request.headers:
            return web.json_response({"error": "JSON only"}, status=400)
        document = await request.json()
        given = {one["name"]: one["data"] for one in document["inputs"]}
        self.asked.append(given)
        if "a" not in given:
            return web.json_response({"error": "a is missing"}, status=400)
        b = given.get("b", [100.0] * len(given["a"]))
        data = [left + right for left, right in zip(given["a"], b, strict=True)]
        output = {"name": "y", "datatype": "FP32", "shape": document["inputs"][0]["shape"], "data": data}
        return web.json_response({"model_name": "add", "outputs": [output]})


def body(**inputs: list[float]) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "shape": [len(data) // 2, 2], "datatype": "FP32", "data": data}
            for name, data in inputs.items()
        ]
    }


@contextlib.asynccontextmanager
async def adding(adder: Adder, data: Path, *, probe: bool = True) -> AsyncIterator[Front]:
    async with listening(adder.application()) as url, fronted(url, data, upstream_probe=probe) as front:
        if probe:
            await front.until(lambda told: told.get("rows") == "each", "add")
        adder.asked.clear()
        yield front


async def told(front: Front, question: dict[str, Any]) -> tuple[int, Any]:
    status, headers, document = await front.post(question, "add")
    if status != 200:
        return status, document["error"]
    return status, (document["outputs"][0]["data"], "hit" in headers["Cache-Status"])


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("flagged", ["metadata", "config", "nowhere"])
async def test_an_input_may_be_left_out_and_that_is_another_question(
    flagged: Flagged, probe: bool, tmp_path: Path
) -> None:
    """With and without `b` are two entries; the server is asked with just what was given."""
    adder = Adder(flagged)
    async with adding(adder, tmp_path / "data", probe=probe) as front:
        for hit in (False, True):
            assert await told(front, body(a=[1, 2])) == (200, ([101, 102], hit))
            assert await told(front, body(a=[1, 2], b=[100, 0])) == (200, ([101, 2], hit))
        assert [set(one) for one in adder.asked if one["a"] == [1, 2]] == [{"a"}, {"a", "b"}]


@pytest.mark.parametrize("flagged", ["metadata", "config", "nowhere"])
async def test_an_input_that_is_needed_is_missed(flagged: Flagged, tmp_path: Path) -> None:
    """By name, here where it is known to be needed, else by the server."""
    adder = Adder(flagged)
    async with adding(adder, tmp_path / "data") as front:
        status, error = await told(front, body(b=[1, 2]))
        assert status == 400
        assert ("a is missing" if flagged == "nowhere" else "inputs.a: missing") in error
        assert bool(adder.asked) == (flagged == "nowhere")


async def test_rows_with_and_without_it_never_share_a_request(tmp_path: Path) -> None:
    """Rows of two requests at once, keyed one by one: each group is asked with its own inputs."""
    adder = Adder("metadata")
    async with adding(adder, tmp_path / "data") as front:
        rows = [float(n) for n in range(8)]
        assert (await told(front, body(a=rows)))[1][0] == [n + 100 for n in rows]
        assert (await told(front, body(a=rows, b=rows)))[1][0] == [2 * n for n in rows]
        assert (await told(front, body(a=rows[2:4])))[1] == ([102, 103], True)


@pytest.mark.parametrize("form", ["instances", "inputs"])
async def test_it_may_be_left_out_over_v1(form: str, tmp_path: Path) -> None:
    """By row, where all rows have the same inputs, and by column."""
    async with adding(Adder("metadata"), tmp_path / "data") as front:
        given: Any = [{"a": [1, 2]}, {"a": [3, 4]}] if form == "instances" else {"a": [[1, 2], [3, 4]]}
        status, document = await front.post_to("/v1/models/add:predict", {form: given})
        answers = document.get("predictions" if form == "instances" else "outputs")
        assert (status, answers) == (200, [[101, 102], [103, 104]])
        if form == "instances":
            status, document = await front.post_to(
                "/v1/models/add:predict", {form: [*given, {"a": [1, 2], "b": [1, 2]}]}
            )
            assert (status, "instances[2]" in document["error"]) == (400, True)


def declared(*, optional: bool = False, ignore: bool = False) -> Manifest:
    a = {"name": "a", "datatype": "FP32", "shape": ["rows", 2]}
    b = {"name": "b", "datatype": "FP32", "shape": ["rows", 2]}
    more = [{**b, "optional": optional}] if not ignore else []
    client = [a, {**b, "ignore": True} if ignore else {**b, "optional": optional}]
    output = {"name": "y", "datatype": "FP32", "shape": ["rows", 2]}
    return msgspec.convert(
        {
            "name": "add",
            "client": {"inputs": client, "outputs": [output]},
            "model": {"inputs": [a, *more], "outputs": [output]},
        },
        Manifest,
    )


TOML = (
    'name = "add"\nupstream = "{url}"\n'
    + signature(
        [("a", "FP32", ["rows", 2]), ("b", "FP32", ["rows", 2], "{how}")], [("y", "FP32", ["rows", 2])], "client"
    )
    + signature([("a", "FP32", ["rows", 2])], [], "model")
    + "{second}\n"
    + signature([], [("y", "FP32", ["rows", 2])], "model")
)
SECOND = '[[model.inputs]]\nname = "b"\ndatatype = "FP32"\nshape = ["rows", 2]\noptional = true'


@pytest.mark.parametrize("how", ["optional", "ignore"])
async def test_a_manifest_declares_what_may_be_left_out(how: str, tmp_path: Path) -> None:
    """Optional, or ignored: an ignored input is not needed, and given or not the question is the same."""
    adder = Adder("nowhere")
    async with listening(adder.application()) as url:
        (tmp_path / "models" / "add").mkdir(parents=True)
        text = TOML.format(url=url, how=f"{how} = true", second=SECOND if how == "optional" else "")
        (tmp_path / "models" / "add" / "model.toml").write_text(text)
        given = {"model": ("add",), "models": tmp_path / "models", "upstream_probe": False}
        async with fronted(None, tmp_path / "data", **given) as front:
            await front.until(lambda told: "digest" in told, "add")
            assert await told(front, body(a=[1, 2])) == (200, ([101, 102], False))
            expected = ([2, 4], False) if how == "optional" else ([101, 102], True)
            assert await told(front, body(a=[1, 2], b=[1, 2])) == (200, expected)
            assert (await told(front, body(b=[1, 2])))[0] == 400


def test_what_may_be_left_out_moves_no_key() -> None:
    """Complete rows are framed as ever and the model's digest is what it was; a row of a job reads back as it was."""
    plain, optional = declared(), declared(optional=True)
    assert preparation_digest(plain, ()) == preparation_digest(optional, ())
    tensors = (np.ones(2, np.float32), np.zeros(2, np.float32))
    one, other = Framer(plain.model), Framer(optional.model)
    assert one.frame(Row(tensors)) == other.frame(Row(tensors))
    for at in (0, 1):
        frame = other.frame(Row(tensors[at : at + 1], (at,)))
        assert frame != other.frame(Row(tensors))
        if at == 0:
            (row,) = rows_of([frame], optional.model)
            assert (row.given, row.tensors[0].tolist()) == ((0,), [1, 1])
        else:
            with pytest.raises(EntryError):
                rows_of([frame], optional.model)


def test_a_model_that_runs_here_takes_all_its_inputs() -> None:
    """An ONNX graph has no optional ones."""
    with pytest.raises(SetupError, match="'b' is optional, which needs an upstream"):
        refuse_optional(declared(optional=True))
    refuse_optional(declared(ignore=True))
