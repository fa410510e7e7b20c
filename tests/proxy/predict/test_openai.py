"""OpenAI's embeddings API: the faults of today's embedding caches, and what a request may ask."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreseen.errors import BadRequest
from foreseen.modelspec.manifest import find, load
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.predict.dialects.decode import prepared
from foreseen.proxy.predict.dialects.openai_embeddings import decode_openai, named_model
from tests.embedding_servers import EmbeddingStub, embedding_proxy, vector
from tests.foreign import Front, listening
from tests.models_fixture import PACKAGED

NAME = "BAAI/bge-m3"
SERVED = "BAAI--bge-m3"
MANIFEST = f"""
name = "{SERVED}"
upstream = "http://127.0.0.1:1"

[[model.inputs]]
name = "text"
datatype = "BYTES"
shape = ["rows"]

[[model.outputs]]
name = "embedding"
datatype = "FP32"
shape = ["rows", "d"]

[openai]
aliases = ["e5"]
matryoshka = [4]
prompts = {{ query = "query: ", document = "passage: " }}
"""


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def vectors(self) -> list[list[float]]:
        rows = [one["embedding"] for one in self.document["data"]]
        return [
            np.frombuffer(base64.b64decode(row), "<f4").tolist()
            if isinstance(row, str)
            else np.array(row, np.float32).tolist()
            for row in rows
        ]


class EmbeddingClient:
    """A client of a proxy in front of a stub."""

    def __init__(self, stub: EmbeddingStub, front: Front, url: str, client: aiohttp.ClientSession) -> None:
        self.stub, self.front, self.url, self._client = stub, front, url, client

    async def post(self, body: Any, path: str = "/v1/embeddings", headers: dict[str, str] | None = None) -> Reply:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self._client.post(self.url + path, data=io.BytesIO(data), headers=headers) as reply:
            told = {name.lower(): value for name, value in reply.headers.items()}
            return Reply(reply.status, told, await reply.read())

    async def embed(self, given: Any, *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        return await self.post({"model": NAME, "input": given, **fields}, headers=headers)


@pytest.fixture
async def embedding(tmp_path: Path) -> AsyncIterator[EmbeddingClient]:
    """In front of a stub, without a manifest."""
    stub = EmbeddingStub()
    async with (
        listening(stub.application()) as address,
        embedding_proxy(tmp_path / "data", address) as (front, url),
        aiohttp.ClientSession() as client,
    ):
        yield EmbeddingClient(stub, front, url, client)


@pytest.fixture
async def declared(tmp_path: Path) -> AsyncIterator[EmbeddingClient]:
    """In front of a stub, with a manifest that has `[openai]`."""
    stub, folder = EmbeddingStub(), tmp_path / "models" / SERVED
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MANIFEST)
    async with (
        listening(stub.application()) as address,
        embedding_proxy(tmp_path / "data", address, models=tmp_path / "models") as (front, url),
        aiohttp.ClientSession() as client,
    ):
        yield EmbeddingClient(stub, front, url, client)


# The faults of today's embedding caches.


async def test_fault_1_positions_of_a_sub_batch_are_positions_of_the_request(embedding: EmbeddingClient) -> None:
    """Where some texts are known, the others' answers stand at their own places."""
    await embedding.embed(["b", "d"])
    reply = await embedding.embed(["a", "b", "c", "d", "e"])
    assert reply.vectors == [vector(text) for text in "abcde"]
    assert [one["index"] for one in reply.document["data"]] == [0, 1, 2, 3, 4]
    assert embedding.stub.texts_like("b") == 1


async def test_fault_2_query_and_document_prompts_do_not_share_a_key(declared: EmbeddingClient) -> None:
    """One text under two prompts is two rows; the prompt stands before the text."""
    query = await declared.embed("a", input_type="query")
    document = await declared.embed("a", prompt_name="document")
    assert query.vectors == [vector("query: a")]
    assert document.vectors == [vector("passage: a")]
    assert (await declared.embed("a")).vectors == [vector("a")]
    assert (await declared.embed("query: a")).headers["cache-status"].startswith("foreseen;hit")


async def test_fault_3_equal_texts_of_a_request_are_sent_once(embedding: EmbeddingClient) -> None:
    """Three equal texts are one row."""
    assert (await embedding.embed(["a", "a", "a"])).vectors == [vector("a")] * 3
    assert embedding.stub.texts_like("a") == 1


async def test_fault_4_eight_equal_calls_at_a_time_are_asked_once(embedding: EmbeddingClient) -> None:
    """Calls that wait for the same row wait for one computation."""
    embedding.stub.gate.clear()
    calls = [asyncio.create_task(embedding.embed("a")) for _ in range(8)]
    async with asyncio.timeout(20):
        while not embedding.stub.batches:  # noqa: ASYNC110 - it is looked at, not signalled
            await asyncio.sleep(0.01)
    embedding.stub.gate.set()
    assert {(await call).body for call in calls} == {(await embedding.embed("a")).body}
    assert embedding.stub.texts_like("a") == 1


async def test_fault_5_float_and_base64_are_one_entry(embedding: EmbeddingClient) -> None:
    """The encoding is a matter of the reply."""
    plain, packed = await embedding.embed("a"), await embedding.embed("a", encoding_format="base64")
    assert packed.headers["cache-status"].startswith("foreseen;hit")
    assert plain.vectors == packed.vectors == [vector("a")]
    assert embedding.stub.texts_like("a") == 1


async def test_fault_6_usage_and_body_are_the_same_on_hit_and_miss(embedding: EmbeddingClient) -> None:
    """A hit's body is the miss's byte for byte, the tokens too."""
    miss, hit = await embedding.embed(["a", "b c"]), await embedding.embed(["a", "b c"])
    assert (miss.headers["cache-status"], hit.body) == ("foreseen;fwd=miss;stored", miss.body)
    assert hit.headers["cache-status"].startswith("foreseen;hit")
    assert miss.document["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (await embedding.embed("b c", user="another")).headers["cache-status"].startswith("foreseen;hit")


# What a request may ask.


async def test_names_are_echoed_and_matryoshka_sizes_are_cut_here(declared: EmbeddingClient) -> None:
    """The alias and `dimensions` are not in the key: one row answers all; a cut vector has length 1."""
    for name in (SERVED, NAME, "e5"):
        reply = await declared.post({"model": name, "input": "a"})
        assert (reply.status, reply.document["model"], reply.vectors) == (200, name, [vector("a")])
    cut = np.array((await declared.embed("a", dimensions=4)).vectors[0])
    wanted = np.array(vector("a")[:4], np.float64)
    assert np.allclose(cut, wanted / np.linalg.norm(wanted), atol=1e-7)
    assert declared.stub.texts_like("a") == 1


async def test_dimensions_that_are_not_declared_are_the_servers(declared: EmbeddingClient) -> None:
    """In front of an OpenAI upstream they go on, and are part of the key."""
    assert (await declared.embed("a", dimensions=6)).vectors == [vector("a", 6)]
    assert (await declared.embed("a")).vectors == [vector("a")]
    assert [asked.get("dimensions") for asked in declared.stub.requests[-2:]] == [6, None]


async def test_cache_control_tickets_and_request_ids_work_as_elsewhere(embedding: EmbeddingClient) -> None:
    """`only-if-cached` is a 504 that the SDK does not repeat; ids are echoed, also by errors."""
    reply = await embedding.embed("a", headers={"Cache-Control": "only-if-cached", "X-Request-Id": "r-7"})
    assert (reply.status, reply.document["error"]["code"]) == (504, "not_cached")
    assert (reply.headers["x-should-retry"], reply.headers["x-request-id"]) == ("false", "r-7")
    for _ in range(4):
        good = await embedding.embed("a", headers={"X-Request-Id": "r-8"})
        assert (good.status, good.headers["x-request-id"]) == (200, "r-8")


async def test_models_are_listed_in_three_forms(declared: EmbeddingClient) -> None:
    """KServe's, TensorFlow Serving's and OpenAI's in one, under both prefixes."""
    listed = await declared.front.get("/v1/models")
    assert listed["models"] == [SERVED]
    assert [one["id"] for one in listed["data"]] == [SERVED, "e5", NAME]
    assert listed == await declared.front.get("/openai/v1/models")
    one = await declared.front.get(f"/v1/models/{SERVED}")
    assert {"name", "ready", "model_version_status", "id", "object", "created", "owned_by"} <= one.keys()
    assert (await declared.front.get("/v1/models/BAAI%2Fbge-m3"))["id"] == NAME


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, "bad_request"),
        (b"[]", 400, None, "bad_request"),
        (b'{"input": "a"}', 400, "model", "bad_request"),
        (b'{"model": "BAAI/bge-m3"}', 400, "input", "bad_input"),
        (b'{"model": "BAAI/bge-m3", "input": null}', 400, "input", "bad_input"),
        (b'{"model": "BAAI/bge-m3", "input": []}', 400, "input", "bad_input"),
        (b'{"model": "BAAI/bge-m3", "input": [1, 2]}', 400, "input", "bad_input"),
        (b'{"model": "BAAI/bge-m3", "input": [[1], [2, "a"]]}', 400, "input[1][1]", "bad_input"),
        (b'{"model": "nope", "input": "a"}', 404, "model", "unknown_model"),
        (b'{"input": "a", "x": {"model": "BAAI/bge-m3"}}', 400, "model", "bad_request"),
        (b'{"model": "BAAI/bge-m3", "input": "a", "input": "b"}', 400, None, "bad_request"),
        (b'{"model": "BAAI/bge-m3", "input": "a", "encoding_format": 1}', 400, "encoding_format", "bad_request"),
    ],
)
async def test_bad_bodies_are_refused_in_openais_form(
    body: bytes, status: int, param: str | None, code: str, embedding: EmbeddingClient
) -> None:
    """A 400 that names the field; a 404 for the model; nothing reaches the server."""
    seen = len(embedding.stub.requests)
    reply = await embedding.post(body)
    error = reply.document["error"]
    assert (reply.status, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert len(embedding.stub.requests) == seen


async def test_ten_thousand_items_and_ten_megabytes_are_refused(embedding: EmbeddingClient) -> None:
    """400 and 413, both of `input`."""
    many, much = await embedding.embed(["a"] * 10_000), await embedding.embed("x" * 10_000_000)
    assert (many.status, many.document["error"]["param"]) == (400, "input")
    assert (much.status, much.document["error"]["param"]) == (413, "input")


async def test_routes_that_are_not_there_answer_in_openais_form(embedding: EmbeddingClient) -> None:
    """404 and 405 under these prefixes."""
    reply = await embedding.post({}, "/openai/v1/images")
    assert (reply.status, reply.document["error"]["code"]) == (404, "not_found")
    async with aiohttp.ClientSession() as client, client.get(f"{embedding.url}/v1/embeddings") as refused:
        assert (refused.status, (await refused.json())["error"]["code"]) == (405, "method_not_allowed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("input", "encoding_format", "dimensions", "user", "input_type", "prompt_name", "truncate", "model", "")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["a", ["a", "b"], NAME, "base64", 4])),
    named=st.booleans(),
)
def test_a_fuzzer_finds_no_5xx(fields: dict[str, Any], named: bool) -> None:
    """Whatever a body holds is rows of this model or a refusal that is the caller's to mend."""
    manifest = _declared_manifest()
    body = json.dumps({**fields, **({"model": NAME} if named else {})}).encode()
    with contextlib.suppress(BadRequest):
        if named_model(body) in (NAME, "e5", SERVED):
            decoded = decode_openai(body, manifest)
            assert len(decoded.inputs[0].array) >= 1


def _declared_manifest() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.toml"
        path.write_text(MANIFEST.replace('["e5"]', f'["e5", "{NAME}"]'))
        return load(path)


# Token ids, of a model with a tokenizer of its own.


def _minilm(built: Path, **section: Any) -> tuple[Any, Preparer]:
    from msgspec import structs

    from foreseen.modelspec.artifact import read_file, read_record

    manifest = find("minilm", PACKAGED)
    manifest = structs.replace(manifest, openai=structs.replace(manifest.openai, **section))
    artifact = read_record(built, "minilm").artifact
    return manifest, Preparer(manifest, {one.name: read_file(built, artifact, one) for one in artifact.assets})


def test_token_ids_are_rows_where_the_manifest_takes_them(built: Path) -> None:
    """The ids of a text are the text's row; ids that do not fit or do not exist are refused."""
    manifest, preparer = _minilm(built, accept_ids=True)
    of_text, rows = prepared(decode_openai(b'{"model":"minilm","input":["hello world"]}', manifest), preparer)
    ids = rows[0].tensors[0].tolist()
    body = json.dumps({"model": "minilm", "input": ids}).encode()
    of_ids, same = prepared(decode_openai(body, manifest), preparer)
    assert same[0].tensors[0].tolist() == ids
    assert same[0].tensors[0].dtype == rows[0].tensors[0].dtype
    assert of_text.output_options == of_ids.output_options
    assert of_ids.output_options.embedding is not None
    assert of_ids.output_options.embedding.tokens == len(ids) == 4
    for wrong in ([10**6], [[1], [1] * 257]):
        body = json.dumps({"model": "minilm", "input": wrong}).encode()
        with pytest.raises(BadRequest) as caught:
            prepared(decode_openai(body, manifest), preparer)
        assert caught.value.param is not None


def test_a_prompt_is_put_before_the_text_ahead_of_the_tokenizer(built: Path) -> None:
    """The row's ids are those of the prompted text; an undeclared prompt, or two, are refused."""
    manifest, preparer = _minilm(built, prompts={"query": "query: ", "document": "passage: "})
    ask = b'{"model":"minilm","input":"a","input_type":"query"}'
    _, rows = prepared(decode_openai(ask, manifest), preparer)
    _, same = prepared(decode_openai(b'{"model":"minilm","input":"query: a"}', manifest), preparer)
    assert rows[0].tensors[0].tolist() == same[0].tensors[0].tolist()
    for fields in ({"input_type": "other"}, {"input_type": "query", "prompt_name": "document"}):
        with pytest.raises(BadRequest):
            decode_openai(json.dumps({"model": "minilm", "input": "a", **fields}).encode(), manifest)


def test_the_manifests_section_is_no_part_of_the_digest(built: Path) -> None:
    """Another alias does not make another model."""
    from foreseen.modelspec.artifact import preparation_digest

    plain, other = find("minilm", PACKAGED), _minilm(built, aliases=("x",), matryoshka=(64,), prompts={"q": "q"})[0]
    assert preparation_digest(plain, ()) == preparation_digest(other, ())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('input = "x"', "openai.input"),
        ('output = "x"', "openai.output"),
        ('aliases = [""]', "openai.aliases"),
        ("matryoshka = [0]", "openai.matryoshka"),
        ('unknown = "x"', "unknown"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(line: str, wrong: str, tmp_path: Path) -> None:
    """The message names the field."""
    from foreseen.errors import SetupError

    path = tmp_path / "model.toml"
    path.write_text(MANIFEST.partition("[openai]")[0] + "[openai]\n" + line)
    with pytest.raises(SetupError, match=wrong):
        load(path)
