"""In front of a V2 server that is not ours: whatever it may answer by reaches it and is part of the key, and whatever
its reply holds comes back."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from foreseen.protocol.wire import parse_request
from tests.foreign import Foreign, Reply, fronted, listening
from tests.questions import fingerprint, numbers

EACH: Callable[[dict[str, Any]], bool] = lambda told: told.get("rows") == "each"  # noqa: E731


def asked(*rows: list[int], tensor: Any = None, outputs: Any = None, **top: Any) -> dict[str, Any]:
    """A request for digests, with members at whatever level."""
    flat = [value for row in rows for value in row]
    inputs = [{"name": "x", "shape": [len(rows), 16], "datatype": "INT64", "data": flat, **(tensor or {})}]
    wanted = {} if outputs is None else {"outputs": [{"name": "digest", **outputs}]}
    return {"inputs": inputs, **wanted, **top}


LEVELS: dict[str, Callable[[str], dict[str, Any]]] = {
    "parameter of the request": lambda value: {"parameters": {"mode": value}},
    "parameter of an input": lambda value: {"tensor": {"parameters": {"content_type": value}}},
    "parameter of an output": lambda value: {"outputs": {"parameters": {"content_type": value}}},
    "member of the request": lambda value: {"model_options": {"mode": value}},
    "member of an input": lambda value: {"tensor": {"layout": value}},
    "member of an output": lambda value: {"outputs": {"layout": value}},
    "reserved words of ours": lambda value: {"parameters": {"headers": {"x": value}}},
    "reserved words of Triton": lambda value: {"parameters": {"triton_mode": value}},
}


def found(document: dict[str, Any]) -> str | None:
    """What a request of LEVELS says, wherever it stands."""
    text = json.dumps({name: value for name, value in document.items() if name != "id"})
    return next((value for value in ("one", "two") if f'"{value}"' in text), None)


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("level", LEVELS)
async def test_what_a_server_may_answer_by_is_forwarded_and_keyed(level: str, probed: bool, tmp_path: Path) -> None:
    """Two values of a member are two questions, each computed once; without it there is a third, asked as ever."""
    foreign, marks = Foreign(), {"one": 1, "two": 2, None: 0}
    foreign.answer = lambda rows: [[*fingerprint(row)[:3], marks[found(foreign.documents[-1])]] for row in rows]
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=probed) as front,
    ):
        if probed:
            await front.until(EACH)
        row = numbers(3)
        for how in ("fwd=miss", "hit"):
            for value in ("one", "two", None):
                body = asked(row, **({} if value is None else LEVELS[level](value)))
                status, headers, document = await front.post(body)
                assert (status, document["outputs"][0]["data"][3]) == (200, marks[value])
                assert how in headers["Cache-Status"]
        assert foreign.rows_like(row) == 3
        assert "outputs" not in foreign.documents[-1]


async def test_how_tensors_are_encoded_is_not_keyed(tmp_path: Path) -> None:
    """Binary or JSON, empty or null parameters, another id, a priority: one question, one entry."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        row = numbers(4)
        bodies = [
            asked(row),
            asked(row, tensor={"parameters": {}}, parameters={}),
            asked(row, tensor={"parameters": None}, parameters=None, outputs={"parameters": {}}),
            asked(row, outputs={"parameters": {"binary_data": False}}, id="mine"),
            asked(row, parameters={"priority": 1, "timeout": 5_000_000, "binary_data_output": False}),
        ]
        for body in bodies:
            assert (await front.post(body))[0] == 200
        assert foreign.rows_like(row) == 1


async def test_what_a_reply_holds_comes_back_with_every_hit(tmp_path: Path) -> None:
    """Parameters and unknown members of the reply and of its outputs; a hit has them as the miss had."""
    foreign = Foreign()

    def lie(reply: Reply) -> Reply:
        outputs = [{**reply["outputs"][0], "parameters": {"content_type": "np"}, "unit": "kg"}]
        return {**reply, "outputs": outputs, "parameters": {"lang": "de"}, "usage": {"tokens": 3}}

    foreign.lie = lie
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        for how in ("fwd=miss", "hit", "hit", "hit"):
            status, headers, document = await front.post(asked(numbers(1), numbers(2)))
            assert (status, how in headers["Cache-Status"]) == (200, True)
            assert (document["parameters"], document["usage"]) == ({"lang": "de"}, {"tokens": 3})
            output = document["outputs"][0]
            assert (output["parameters"], output["unit"]) == ({"content_type": "np"}, "kg")


async def test_parameters_of_a_reply_that_depend_on_the_batch_keep_rows_together(tmp_path: Path) -> None:
    """Tensors row by row and a count of the whole request: an entry per row would answer with another's count."""
    foreign = Foreign()
    foreign.lie = lambda reply: {**reply, "parameters": {"rows": reply["outputs"][0]["shape"][0]}}
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        process = front.proxy.served["fp"].process
        await front.until(lambda told: "parameters of a reply" in process.why)  # type: ignore[attr-defined]
        for rows in ([numbers(1)], [numbers(1), numbers(2)], [numbers(1)]):
            assert (await front.post(asked(*rows)))[2]["parameters"] == {"rows": len(rows)}


async def test_parameters_of_a_reply_that_change_by_themselves_show_nothing(tmp_path: Path) -> None:
    """A number of the request is no sign that rows depend on each other; what rows do not share is left out."""
    foreign, turn = Foreign(), iter(range(1000))
    foreign.lie = lambda reply: {**reply, "parameters": {"turn": next(turn), "lang": "de"}}
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        one, two = numbers(1), numbers(2)
        first = (await front.post(asked(one)))[2]["parameters"]
        assert (await front.post(asked(one)))[2]["parameters"] == first
        assert (await front.post(asked(two, one)))[2]["parameters"] == {"lang": "de"}


async def test_a_server_that_classifies_does_so_with_its_own_labels(tmp_path: Path) -> None:
    """Triton knows labels that no metadata say. One that does not classify answers numbers, which are ranked here."""
    foreign = Foreign()
    wanted = {"parameters": {"classification": 2}}
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data") as front:
        await front.until(EACH)
        row = numbers(1)
        best = sorted(((value, at) for at, value in enumerate(fingerprint(row))), reverse=True)
        status, _, document = await front.post(asked(row, outputs=wanted))
        assert (status, document["outputs"][0]["data"]) == (200, [f"{value}:{at}" for value, at in best[:2]])
        labelled = ["9:0:cat", "8:1:dog"]
        classified = {"name": "digest", "datatype": "BYTES", "shape": [1, 2], "data": labelled}
        foreign.lie = lambda reply: {**reply, "outputs": [classified]} if "outputs" in foreign.documents[-1] else reply
        for _ in range(2):
            output = (await front.post(asked(numbers(2), outputs=wanted)))[2]["outputs"][0]
            assert (output["datatype"], output["shape"], output["data"]) == ("BYTES", [1, 2], labelled)
        assert (await front.infer(numbers(2)))[2] == [fingerprint(numbers(2))]


async def test_a_parameter_of_one_output_leaves_the_others_in_the_entry(tmp_path: Path) -> None:
    """Both outputs are asked for, with what was said of the one; each selection of them is a hit of one entry."""
    foreign = Foreign()
    other = {"name": "sum", "datatype": "INT64", "shape": [-1, 1]}
    foreign.metadata["outputs"].append(other)
    foreign.lie = lambda reply: {**reply, "outputs": [*reply["outputs"], {**other, "shape": [1, 1], "data": [7]}]}
    async with listening(foreign.application()) as url, fronted(url, tmp_path / "data", upstream_probe=False) as front:
        row, named = numbers(1), {"name": "digest", "parameters": {"precision": 3}}
        for wanted in ([named, {"name": "sum"}], [{"name": "sum"}, named], [named]):
            status, _, document = await front.post({**asked(row), "outputs": wanted})
            assert (status, [one["name"] for one in document["outputs"]]) == (200, [one["name"] for one in wanted])
        assert [one["outputs"] for one in foreign.documents] == [[named, {"name": "sum"}]]


async def test_members_go_with_binary_tensors_too(tmp_path: Path) -> None:
    """A server that takes binary tensors is sent the parameters of a tensor beside the size of its data."""
    seen: list[tuple[Any, Any]] = []

    async def described(_: web.Request) -> web.Response:
        tensor = {"name": "x", "datatype": "BYTES", "shape": [-1]}
        return web.json_response({"name": "t", "inputs": [tensor], "outputs": [{**tensor, "name": "y"}]})

    async def infer(request: web.Request) -> web.Response:
        body, length = await request.read(), int(request.headers["Inference-Header-Content-Length"])
        head, tensor = json.loads(body[:length]), parse_request(body, length).inputs[0]
        seen.append((head["inputs"][0]["parameters"], head.get("outputs")))
        encoded = head["inputs"][0]["parameters"].get("content_type") == "base64"
        texts = np.array([base64.b64decode(one) if encoded else one for one in tensor.array.tolist()], object)
        output = {"name": "y", "datatype": "BYTES", "shape": texts.shape, "data": [one.decode() for one in texts]}
        return web.json_response({"model_name": "t", "outputs": [output]})

    async def index(_: web.Request) -> web.Response:
        return web.json_response([{"name": "t"}])

    app = web.Application()
    app.router.add_post("/v2/repository/index", index)
    app.router.add_get("/v2/models/t", described)
    app.router.add_get("/v2/models/t/ready", described)
    app.router.add_post("/v2/models/t/infer", infer)
    async with listening(app) as url, fronted(url, tmp_path / "data", upstream_probe=False) as front:
        for content_type, answer in (("base64", "hello"), ("str", "aGVsbG8="), ("base64", "hello")):
            tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG8="]}
            body = {"inputs": [{**tensor, "parameters": {"content_type": content_type}}]}
            assert (await front.post(body, model="t"))[2]["outputs"][0]["data"] == [answer]
        assert seen == [({"content_type": one, "binary_data_size": 12}, None) for one in ("base64", "str")]


@pytest.mark.parametrize("probed", [True, False])
async def test_a_server_that_answers_what_is_asked_for_is_asked_for_it(probed: bool, tmp_path: Path) -> None:
    """One output by default, another where it is named (MLServer's scikit-learn: predict, predict_proba): which were
    named is forwarded and keyed from the first reply on that lacks one."""
    foreign = Foreign()
    other = {"name": "sum", "datatype": "INT64", "shape": [-1, 1]}
    foreign.metadata["outputs"].append(other)

    def lie(reply: Reply) -> Reply:
        asked_for = [one["name"] for one in foreign.documents[-1].get("outputs", [])] or ["digest"]
        flat, (rows, width) = foreign.documents[-1]["inputs"][0]["data"], foreign.documents[-1]["inputs"][0]["shape"]
        sums = [sum(flat[at * width : (at + 1) * width]) for at in range(rows)]
        outputs = [reply["outputs"][0], {**other, "shape": [rows, 1], "data": sums}]
        return {**reply, "outputs": [one for one in outputs if one["name"] in asked_for]}

    foreign.lie = lie
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=probed) as front,
    ):
        if probed:
            await front.until(EACH)
        row = numbers(1)
        first = await front.post(asked(row))
        assert [one["name"] for one in first[2]["outputs"]] == ["digest"]
        async with asyncio.timeout(20):
            while (reply := await front.post({**asked(row), "outputs": [{"name": "sum"}]}))[0] == 503:
                assert "send the request again" in reply[2]["error"]
        for names in (["sum"], ["digest"], ["sum", "digest"], ["digest", "sum"], None):
            wanted = {} if names is None else {"outputs": [{"name": name} for name in names]}
            for _ in range(2):
                status, headers, document = await front.post({**asked(row), **wanted})
                found = {one["name"]: one["data"] for one in document["outputs"]}
                right = {"digest": fingerprint(row), "sum": [sum(row)]}
                assert (status, found) == (200, {name: right[name] for name in names or ["digest"]})
            assert "hit" in headers["Cache-Status"]
        status, document = await front.post_to("/v1/models/fp:predict", {"instances": [row]})
        assert (status, document) == (200, {"predictions": [fingerprint(row)]})
