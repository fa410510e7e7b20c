"""What users of other proxies and clients reported as lost on the way to a server, tried here. Reports are linked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from tests.embedding_servers import EmbeddingStub, embedding_proxy, vector
from tests.foreign import Foreign, Front, fronted, listening
from tests.proxy.backend.test_embedding_upstream import NAME, infer
from tests.questions import fingerprint, numbers
from tests.rerank_servers import RerankStub


def question(tensor: Any = None, **top: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": numbers(1), **(tensor or {})}],
        **top,
    }


async def twice(front: Front, first: Any, second: Any) -> tuple[str, str]:
    """Cache-Status of two questions."""
    told = []
    for body in (first, second):
        status, headers, answer = await front.post(body)
        assert status == 200, answer
        told.append(headers["Cache-Status"])
    return told[0], told[1]


async def test_parameters_of_an_input_arrive(tmp_path: Path) -> None:
    """https://github.com/kserve/kserve/issues/3365: `InferInput.parameters` were dropped between two servers."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path, upstream_probe=False) as front:
        first, second = (question({"parameters": {"hello": said}}) for said in ("world", "moon"))
        seen = await twice(front, first, second)
        assert "hit" not in "".join(seen)
        assert [one["inputs"][0]["parameters"]["hello"] for one in foreign.documents[-2:]] == ["world", "moon"]


async def test_parameters_that_are_objects_arrive(tmp_path: Path) -> None:
    """https://github.com/kserve/kserve/issues/2793: `{"pixel-size": {"width": 2.4}}` came out as `{}`."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path, upstream_probe=False) as front:
        size: dict[str, Any] = {"pixel-size": {"width": 2.4, "height": 2.4}, "confidences": [0.5, 0.55]}
        other = {**size, "pixel-size": {"width": 2.4, "height": 2.5}}
        seen = await twice(front, question(parameters=size), question(parameters=other))
        assert "hit" not in "".join(seen)
        assert foreign.documents[-2]["parameters"] == size


async def test_parameters_of_a_reply_come_back(tmp_path: Path) -> None:
    """https://github.com/SeldonIO/seldon-core/issues/4602: parameters of a reply were missing, here on hits as
    well."""
    foreign = Foreign()
    foreign.lie = lambda reply: {**reply, "parameters": {"feature_names": ["a", "b"]}}
    async with listening(foreign.application()) as url, fronted(url, tmp_path) as front:
        for _ in range(3):
            _, _, answer = await front.post(question())
            assert answer["parameters"]["feature_names"] == ["a", "b"]


async def test_a_server_that_refuses_encoding_format_is_not_asked_for_one(tmp_path: Path) -> None:
    """https://github.com/BerriAI/litellm/issues/38661: a proxy that adds the field breaks servers that refuse it."""
    stub = EmbeddingStub()

    @web.middleware
    async def strict(request: web.Request, handler: Any) -> Any:
        if request.can_read_body and "encoding_format" in await request.json():
            return web.json_response({"error": {"message": "encoding_format: not supported"}}, status=400)
        return await handler(request)

    app = stub.application()
    app.middlewares.append(strict)
    async with listening(app) as address, embedding_proxy(tmp_path, address) as (front, url):
        assert (await infer(url, "a"))[1] == [vector("a")]
        status, told = await front.post_to("/v1/embeddings", {"model": NAME, "input": "a", "encoding_format": "base64"})
        assert status == 200
        assert isinstance(told["data"][0]["embedding"], str)


async def test_dimensions_reach_the_server_and_its_refusal_the_caller(tmp_path: Path) -> None:
    """https://github.com/BerriAI/litellm/issues/23119, 26787: `dimensions` is neither dropped nor turned into a
    500."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path, address) as (front, _):
        status, told = await front.post_to("/v1/embeddings", {"model": NAME, "input": "a", "dimensions": 4})
        assert (status, len(told["data"][0]["embedding"])) == (200, 4)
        assert stub.requests[-1]["dimensions"] == 4
        stub.status = (422, {"error": {"message": "dimensions: not supported"}}, {})
        status, told = await front.post_to("/v1/embeddings", {"model": NAME, "input": "b", "dimensions": 4096})
        assert (status, told["error"]["message"]) == (400, "dimensions: not supported")


async def test_fields_that_no_specification_names_arrive(tmp_path: Path) -> None:
    """https://github.com/BerriAI/litellm/issues/12110: `normalize` of one provider was refused or dropped."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path, address) as (front, _):
        for value in (True, False, True):
            asked = {"model": NAME, "input": "a", "normalize": value}
            assert (await front.post_to("/v1/embeddings", asked))[0] == 200
        assert [one["normalize"] for one in stub.requests if one["input"] == ["a"]] == [True, False]


async def test_shortened_vectors_are_the_servers_own(tmp_path: Path) -> None:
    """https://github.com/michaelfeil/infinity/issues/538: that server does not normalise what it cuts. Its vector
    is passed on as it is, and not made of the long vector's entry."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path, address) as (front, _):
        await front.post_to("/v1/embeddings", {"model": NAME, "input": "a"})
        _, told = await front.post_to("/v1/embeddings", {"model": NAME, "input": "a", "dimensions": 4})
        assert np.array(told["data"][0]["embedding"], np.float32).tolist() == vector("a", 4)
        assert [one.get("dimensions") for one in stub.requests if one["input"] == ["a"]] == [None, 4]


async def test_truncate_and_normalize_of_tei_arrive(tmp_path: Path) -> None:
    """https://github.com/huggingface/huggingface_hub/issues/1877: a client could not say `truncate` and
    `normalize`."""
    stub = EmbeddingStub("tei")
    async with listening(stub.application()) as address, embedding_proxy(tmp_path, address) as (front, _):
        for more in ({"truncate": True}, {"truncate": True, "normalize": False}, {"truncate": True}):
            assert (await front.post_to("/embed", {"inputs": "a", **more}))[0] == 200
        asked = [one for one in stub.requests if one["inputs"] == ["a"]]
        assert [(one["truncate"], one.get("normalize")) for one in asked] == [(True, None), (True, False)]


async def test_truncation_of_rerank_requests_arrives_and_none_is_made_up(tmp_path: Path) -> None:
    """https://github.com/BerriAI/litellm/pull/39363 (dropped) and https://github.com/Tencent/WeKnora/pull/2160
    (added unasked, so that scores collapsed)."""
    stub = RerankStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path, address) as (front, _):
        model = next(iter(front.proxy.served))
        for more in ({}, {"truncate_prompt_tokens": 512}, {"truncation_side": "left"}, {}):
            asked = {"model": model, "query": "q", "documents": ["a"], **more}
            assert (await front.post_to("/v1/rerank", asked))[0] == 200
        told = [{name: one[name] for name in one if "trunc" in name} for one in stub.asked]
        assert told == [{}, {"truncate_prompt_tokens": 512}, {"truncation_side": "left"}]


@pytest.mark.parametrize("query", ["?region=a", "?region=b"])
async def test_a_query_string_is_no_part_of_a_question(query: str, tmp_path: Path) -> None:
    """https://github.com/directus/directus/issues/26929: a cache that forwards a query string and leaves it out of
    the key crosses answers. It is not forwarded here, so the server cannot answer by it."""
    foreign = Foreign()
    seen: list[str] = []

    @web.middleware
    async def noted(request: web.Request, handler: Any) -> Any:
        seen.append(request.query_string)
        return await handler(request)

    app = foreign.application()
    app.middlewares.append(noted)
    async with listening(app) as url, fronted(url, tmp_path) as front:
        status, told = await front.post_to(f"/v2/models/fp/infer{query}", question())
        assert status == 200
        assert told["outputs"][0]["data"] == fingerprint(numbers(1))
        assert set(seen) == {""}


class Closing:
    """A V2 server as Python's `http.server` makes one: it refuses binary tensors, and reads nothing behind a request
    with `Connection: close`, though its reply does not say so."""

    def __init__(self, foreign: Foreign) -> None:
        self.foreign = foreign
        self.ignored = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        last = False
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if last:
                    self.ignored += 1
                    break
                length = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                status, document = self._answer(head, body)
                content = json.dumps(document).encode()
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
                last = "connection: close" in head
        writer.close()

    def _answer(self, head: str, body: bytes) -> tuple[int, Any]:
        path = head.split(" ", 2)[1]
        if path == "/v2/models":
            return 200, {"models": ["fp"]}
        if path == "/v2/models/fp/ready":
            return 200, {}
        if path == "/v2/models/fp":
            return 200, self.foreign.metadata
        if path != "/v2/models/fp/infer":
            return 404, {}
        if "inference-header-content-length" in head:
            return 400, {"error": "no binary here"}
        asked = json.loads(body)
        flat = asked["inputs"][0]["data"]
        rows = [flat[at : at + 16] for at in range(0, len(flat), 16)]
        data = [value for row in rows for value in fingerprint(row)]
        output = {"name": "digest", "datatype": "INT64", "shape": [len(rows), 4], "data": data}
        return 200, {"model_name": "fp", "id": asked.get("id"), "outputs": [output]}


async def test_nothing_is_sent_behind_the_last_request_of_a_connection(tmp_path: Path) -> None:
    """A server of Python's `http.server`: the first request is binary, is refused and ends its connection. The same as
    JSON must not go there, or its row is taken for one that ends the server's process, and refused for ten minutes."""
    closing = Closing(Foreign())
    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, fronted(url, tmp_path) as front:
        for at in range(3):
            assert (await front.infer(numbers(at)))[2] == [fingerprint(numbers(at))]
        assert closing.ignored == 0
