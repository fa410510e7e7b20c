"""In front of embedding servers that are not ours: what is found out, what is sent, what is never believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from foreseen.proxy.backend.text_servers.embedding_process import EmbeddingProcess
from tests.embedding_servers import EmbeddingStub, embedding_proxy, vector
from tests.foreign import Front, listening

NAME = "BAAI--bge-m3"


async def until(reached: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - it is looked at, not signalled
            await asyncio.sleep(0.01)


async def infer(url: str, *texts: str, **parameters: Any) -> tuple[int, Any, str]:
    """Status, vectors or the error, and Cache-Status."""
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    body = {"inputs": [tensor], "parameters": parameters}
    async with aiohttp.ClientSession() as client, client.post(f"{url}/v2/models/{NAME}/infer", json=body) as reply:
        told = await reply.json()
        if reply.status != 200:
            return reply.status, told, ""
        output = told["outputs"][0]
        rows = np.array(output["data"], np.float32).reshape(output["shape"]).tolist()
        return 200, rows, reply.headers["Cache-Status"]


async def parameters_of(front: Front) -> dict[str, Any]:
    told: dict[str, Any] = (await front.get(f"/v2/models/{NAME}"))["parameters"]
    return told


@pytest.mark.parametrize("stub", [EmbeddingStub(), EmbeddingStub(prefix=""), EmbeddingStub("tei")])
async def test_a_server_is_recognised_and_every_text_is_computed_once(stub: EmbeddingStub, tmp_path: Path) -> None:
    """The API is found by its routes; rows are independent by the probe; any batch and order is made of the rows."""
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (front, url):
        told = await parameters_of(front)
        assert (told["rows"], told["digest_from"], told["worst_difference"]) == ("each", "version", 0.0)
        assert await infer(url, "a", "b") == (200, [vector("a"), vector("b")], "foreseen;fwd=miss;stored")
        assert (await infer(url, "c", "b", "a", "c"))[1] == [vector(text) for text in "cbac"]
        assert [stub.texts_like(text) for text in "abc"] == [1, 1, 1]


async def test_what_changes_by_itself_is_no_part_of_the_version(tmp_path: Path) -> None:
    """`created` and `stats` count up with every listing, and the digest stays; `root` or the version do change it."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (front, _):
        first = (await parameters_of(front))["digest"]
        seen = stub.listings
        await until(lambda: stub.listings >= seen + 3)
        assert (await parameters_of(front))["digest"] == first
        stub.identity["root"] = "another"
        await front.until(lambda told: told["digest"] != first, NAME)


async def test_nims_metadata_name_the_version(tmp_path: Path) -> None:
    """`/v1/metadata` as NIM documents it: another container or another profile of the model is another version. Another
    server's reply on that path says nothing."""
    stub = EmbeddingStub()
    stub.identity, stub.version = {"root": "nvidia/nv-embedqa-e5-v5", "owned_by": "vllm"}, None
    one = {"shortName": "nv-embedqa-e5-v5:fp16", "modelUrl": "ngc://nim/nvidia/nv-embedqa-e5-v5:5_FP16_onnx"}
    stub.nim = {
        "version": "1.3.0",
        "modelInfo": [one],
        "assetInfo": [],
        "licenseInfo": {"name": "LICENSE", "sha": "4a29", "size": 2},
        "repository_override": "",
    }
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "a", address) as (front, _):
        told = await parameters_of(front)
        assert told["digest_from"] == "version"
        stub.nim = {**stub.nim, "licenseInfo": {"name": "LICENSE", "sha": "another", "size": 2}}
        seen = stub.listings
        await until(lambda: stub.listings >= seen + 3)
        assert (await parameters_of(front))["digest"] == told["digest"]
        stub.nim = {**stub.nim, "modelInfo": [{**one, "modelUrl": one["modelUrl"].replace("FP16", "FP8")}]}
        await front.until(lambda now: now["digest"] != told["digest"], NAME)
        second = (await parameters_of(front))["digest"]
        stub.nim = {**stub.nim, "version": "1.4.0"}
        await front.until(lambda now: now["digest"] not in (told["digest"], second), NAME)
    stub.nim = {"pages": []}
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "b", address) as (front, _):
        assert (await parameters_of(front))["digest_from"] == "unobservable"


async def test_a_server_without_a_version_is_unobservable_unless_a_digest_is_declared(tmp_path: Path) -> None:
    """Nothing but an id names no version."""
    stub = EmbeddingStub()
    stub.identity, stub.version = {}, None
    async with listening(stub.application()) as address:
        async with embedding_proxy(tmp_path / "a", address) as (front, _):
            assert (await parameters_of(front))["digest_from"] == "unobservable"
        async with embedding_proxy(tmp_path / "b", address, upstream_digest="v7") as (front, _):
            assert (await parameters_of(front))["digest_from"] == "declared"


async def test_requests_are_split_at_the_servers_limit(tmp_path: Path) -> None:
    """TEI's `max_client_batch_size`; and a 422 that speaks of the batch halves and is remembered."""
    tei = EmbeddingStub("tei")
    async with listening(tei.application()) as address, embedding_proxy(tmp_path / "a", address) as (_, url):
        texts = [f"t{at}" for at in range(10)]
        assert (await infer(url, *texts))[1] == [vector(text) for text in texts]
        assert max(tei.batches) == 4
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "b", address) as (_, url):
        stub.most = 3
        assert (await infer(url, *texts))[1] == [vector(text) for text in texts]
        seen = len(stub.batches)
        assert (await infer(url, *(text + "!" for text in texts)))[0] == 200
        assert max(stub.batches[seen:]) <= 3


async def test_base64_is_asked_only_where_it_is_understood(tmp_path: Path) -> None:
    """A server that refuses it is asked for numbers from its first answer on, and the float32 are the same."""
    stub = EmbeddingStub()
    stub.packs = False
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (_, url):
        seen = len(stub.requests)
        assert (await infer(url, "a"))[1] == [vector("a")]
        assert [asked.get("encoding_format") for asked in stub.requests[seen:]] == [None]


async def test_parameters_go_on_and_are_part_of_the_key(tmp_path: Path) -> None:
    """`dimensions` and unknown fields reach the server; the same text with others is another entry."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (_, url):
        assert (await infer(url, "a"))[1] == [vector("a")]
        assert (await infer(url, "a", dimensions=4, truncate="END"))[1] == [vector("a", 4)]
        assert stub.requests[-1]["dimensions"] == 4
        assert stub.requests[-1]["truncate"] == "END"
        assert (await infer(url, "a", truncate="END", dimensions=4))[2].startswith("foreseen;hit")


def without_one(reply: Any) -> Any:
    return {**reply, "data": reply["data"][:-1]}


def same_index(reply: Any) -> Any:
    return {**reply, "data": [{**one, "index": 0} for one in reply["data"]]}


def shorter(reply: Any) -> Any:
    return {**reply, "data": [{**one, "embedding": [1.0] * (8 - one["index"])} for one in reply["data"]]}


def nan(reply: Any) -> Any:
    return {**reply, "data": [{**one, "embedding": [float("nan")] * 8} for one in reply["data"]]}


@pytest.mark.parametrize(
    "lie", [without_one, same_index, shorter, nan, lambda r: {**r, "data": []}, lambda r: {**r, "error": "overloaded"}]
)
async def test_a_lie_is_502_and_never_stored(lie: Callable[[Any], Any], tmp_path: Path) -> None:
    """Count, index, dimensions, NaN, nothing, an error inside a 200: refused, and the truth is asked for after."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (_, url):
        stub.lie = lie
        status, told, _ = await infer(url, "a", "b")
        assert (status, told["code"]) == (502, "model_failed")
        stub.lie = lambda reply: reply
        assert (await infer(url, "a", "b"))[1] == [vector("a"), vector("b")]


@pytest.mark.parametrize(
    ("status", "document", "headers", "wanted"),
    [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}, (503, "overloaded", "7")),
        (424, {"error": "backend", "error_type": "backend"}, {"Retry-After": "2"}, (502, "model_failed", "2")),
        (400, {"error": {"message": "too long"}}, {}, (400, "bad_input", None)),
        (401, {"error": {"message": "key"}}, {}, (502, "model_failed", None)),
        (500, {"detail": "broken"}, {}, (502, "model_failed", None)),
    ],
)
async def test_errors_become_ours(
    status: int, document: Any, headers: dict[str, str], wanted: tuple[int, str, str | None], tmp_path: Path
) -> None:
    """Overload is 503, a failed backend 502, each with Retry-After; nothing is stored."""
    stub = EmbeddingStub()
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (_, url):
        stub.status = status, document, headers
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/v2/models/{NAME}/infer", json={"inputs": [tensor]}) as reply,
        ):
            told = await reply.json()
            assert (reply.status, told["code"], reply.headers.get("Retry-After")) == wanted
        stub.status = None
        assert (await infer(url, "a"))[1] == [vector("a")]


async def test_rows_of_a_noisy_server_are_judged_by_the_cosine(tmp_path: Path) -> None:
    """1e-4 a component, as fp16 on a GPU varies, is 1e-8 in the cosine: independent, and the worst is published."""
    stub = EmbeddingStub()
    stub.noise = 1e-4
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "a", address) as (front, _):
        told = await parameters_of(front)
        assert told["rows"] == "each"
        assert 0 < told["worst_difference"] <= 1e-5
    stub.noise = 0.1
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "b", address) as (front, _):
        told = await parameters_of(front)
        assert told["rows"] == "together"
        assert told["worst_difference"] > 1e-5


async def test_the_key_of_the_upstream_is_read_from_a_file_and_callers_keys_stay_here(tmp_path: Path) -> None:
    """A file that changes is read again; the caller's Authorization is not what the server gets."""
    stub, key = EmbeddingStub(), tmp_path / "key"
    stub.key = "one"
    key.write_text("one\n")
    async with (
        listening(stub.application()) as address,
        embedding_proxy(tmp_path / "data", address, upstream_key_file=key) as (_, url),
    ):
        assert (await infer(url, "a"))[1] == [vector("a")]
        stub.key = "two"
        key.write_text("two-longer\n")
        assert (await infer(url, "b"))[0] == 502
        key.write_text("two\n")
        assert (await infer(url, "b"))[1] == [vector("b")]


async def test_replicas_share_the_work_and_a_failed_one_is_left_out(tmp_path: Path) -> None:
    """The one with the fewest requests under way is asked. One that is gone costs no caller an error, and when it is
    back it is asked again."""
    one, two = EmbeddingStub(), EmbeddingStub()
    async with (
        listening(one.application()) as first,
        listening(two.application()) as second,
        embedding_proxy(tmp_path / "data", first, second) as (front, url),
    ):
        one.gate.clear()
        held = asyncio.create_task(infer(url, "a"))
        await until(lambda: bool(one.batches))
        assert (await infer(url, "b"))[1] == [vector("b")]
        assert two.batches == [1]
        one.gate.set()
        assert (await held)[1] == [vector("a")]
        process = front.proxy.served[NAME].process
        assert isinstance(process, EmbeddingProcess)
        gone = process._replicas.servers[0]
        gone.address, address = "http://127.0.0.1:1", gone.address
        assert (await infer(url, "c"))[1] == [vector("c")]
        assert process._replicas.left_out == ["http://127.0.0.1:1"]
        gone.address = address
        await until(lambda: not process._replicas.left_out)


async def test_a_server_that_embeds_nothing_is_refused_unless_declared(tmp_path: Path) -> None:
    """The route answers 404: no model is served, and the reason is said."""
    stub = EmbeddingStub()
    stub.embeds = False
    async with listening(stub.application()) as address, embedding_proxy(tmp_path / "data", address) as (front, _):
        assert front.proxy.upstream is not None
        assert "--upstream-kind" in str(front.proxy.upstream.missing)
