"""The rerank, score and ranking APIs: pairs are rows, what is rendered is not in the key, and forms of each client."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreseen.errors import BadRequest
from foreseen.protocol.texts.pair_bodies import read_ranking, read_rerank, read_score
from foreseen.proxy.predict.dialects.text_codecs import optional_model
from tests.embedding_servers import EmbeddingStub, embedding_proxy
from tests.foreign import Front, listening
from tests.rerank_servers import PairV2, RerankStub, each, logit, score

NAME = "BAAI/bge-reranker-v2-m3"
QUERY = "which animals swim?"
DOCUMENTS = [f"document {at}" for at in range(50)]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def scores(self) -> dict[int, float]:
        return {one["index"]: one["relevance_score"] for one in self.document["results"]}

    @property
    def cache_status(self) -> str:
        return self.headers["cache-status"]


class Asker:
    """A client of a proxy in front of a stub."""

    def __init__(self, stub: Any, front: Front, url: str, client: aiohttp.ClientSession) -> None:
        self.stub, self.front, self.url, self._client = stub, front, url, client

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self._client.post(self.url + path, data=data, headers=headers) as reply:
            told = {name.lower(): value for name, value in reply.headers.items()}
            return Reply(reply.status, told, await reply.read())

    async def rerank(self, documents: Any, path: str = "/v1/rerank", **fields: Any) -> Reply:
        return await self.post(path, {"model": NAME, "query": QUERY, "documents": documents, **fields})


@contextlib.asynccontextmanager
async def asking(data: Path, stub: Any, **more: Any) -> AsyncIterator[Asker]:
    async with (
        listening(stub.application()) as address,
        embedding_proxy(data, address, **more) as (front, url),
        aiohttp.ClientSession() as client,
    ):
        yield Asker(stub, front, url, client)


@pytest.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    """In front of a server of Jina's form."""
    async with asking(tmp_path / "data", RerankStub()) as one:
        yield one


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Asker]:
    """In front of a V2 server, whose logits are activated here as our own models' are."""
    async with asking(tmp_path / "data", PairV2()) as one:
        yield one


# A row is a pair.


async def test_known_pairs_are_not_asked_again(asker: Asker) -> None:
    """50 documents of which 45 are known: 5 are computed. Permuted: none, with the same scores. top_n 3, then 10:
    none."""
    await asker.rerank(DOCUMENTS[:45])
    seen = len(asker.stub.pairs)
    reply = await asker.rerank(DOCUMENTS)
    assert reply.cache_status == 'foreseen;fwd=partial;detail="45/50"'
    assert asker.stub.pairs[seen:] == [(QUERY, text) for text in DOCUMENTS[45:]]
    assert [reply.scores[at] for at in range(50)] == each(QUERY, DOCUMENTS)
    permuted = await asker.rerank(DOCUMENTS[::-1])
    assert [permuted.scores[at] for at in range(50)] == each(QUERY, DOCUMENTS)[::-1]
    best = [one["index"] for one in reply.document["results"]]
    for count in (3, 10):
        cut = await asker.rerank(DOCUMENTS, top_n=count)
        assert [one["index"] for one in cut.document["results"]] == best[:count]
        assert cut.cache_status.startswith("foreseen;hit")
    assert len(asker.stub.pairs) == 50


async def test_results_stand_best_first_and_equal_scores_in_the_requests_order(asker: Asker) -> None:
    """The order is by score; equal documents keep theirs."""
    asker.stub.scores = lambda query, documents: [0.5 if "same" in one else score(query, one) for one in documents]
    documents = ["same a", DOCUMENTS[0], "same b", "same c", DOCUMENTS[1]]
    results = (await asker.rerank(documents)).document["results"]
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert [one["index"] for one in results if one["relevance_score"] == 0.5] == [0, 2, 3]


async def test_a_hit_is_the_miss_byte_for_byte_and_its_id_is_of_what_was_asked(asker: Asker) -> None:
    """The id is the same on a hit, and another for another question."""
    miss, hit, repeat = [await asker.rerank(DOCUMENTS[:3]) for _ in range(3)]
    assert miss.body == hit.body == repeat.body
    assert (miss.cache_status, hit.cache_status[:12]) == ("foreseen;fwd=miss;stored", "foreseen;hit")
    assert len(miss.document["id"]) == 32
    assert miss.document["id"] != (await asker.rerank(DOCUMENTS[:2])).document["id"]
    assert miss.document["usage"]["total_tokens"] == 15


async def test_what_is_rendered_is_not_in_the_key(asker: Asker) -> None:
    """`return_documents`, `top_n`, `user` and the alias ask nothing new; documents come back as they were sent."""
    await asker.rerank(DOCUMENTS[:2])
    objects = [{"text": DOCUMENTS[0], "url": "a"}, DOCUMENTS[1]]
    reply = await asker.rerank(objects, return_documents=True, user="me", model="BAAI--bge-reranker-v2-m3")
    assert reply.cache_status.startswith("foreseen;hit")
    found = {one["index"]: one["document"] for one in reply.document["results"]}
    assert found == {0: objects[0], 1: {"text": DOCUMENTS[1]}}
    infinity = await asker.rerank(objects, "/rerank", return_documents=True)
    assert {one["index"]: one["document"] for one in infinity.document["results"]} == dict(enumerate(objects))
    assert len(asker.stub.pairs) == 2


async def test_other_fields_are_in_the_key_and_go_on(asker: Asker) -> None:
    """`raw_scores`, in either word, and `max_tokens_per_doc` are another question to a server."""
    await asker.rerank(["a"])
    raw = await asker.rerank(["a"], raw_scores=True)
    assert math.isclose(raw.scores[0], logit(QUERY, "a"))
    assert (await asker.rerank(["a"], use_activation=False)).cache_status.startswith("foreseen;hit")
    assert (await asker.rerank(["a"], raw_scores=False, use_activation=True)).cache_status.startswith("foreseen;hit")
    await asker.rerank(["a"], max_tokens_per_doc=9)
    assert asker.stub.asked[-1]["max_tokens_per_doc"] == 9
    assert len(asker.stub.pairs) == 3


# The forms of each client.


async def test_the_forms_of_every_route_share_their_pairs(asker: Asker) -> None:
    """Cohere v1 and v2, Jina, TEI by `texts`, score by its three names: one row each."""
    texts = DOCUMENTS[:3]
    wanted = each(QUERY, texts)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/openai/v1/rerank"):
        reply = await asker.rerank(texts, path)
        assert [reply.scores[at] for at in range(3)] == wanted
        version = reply.document["meta"]["api_version"]["version"]
        assert (version, reply.document["model"]) == ("2" if "v2" in path else "1", NAME)
    ranks = (await asker.post("/rerank", {"query": QUERY, "texts": texts, "return_text": True})).document
    assert [one["score"] for one in ranks] == sorted(wanted, reverse=True)
    assert {one["index"]: (one["score"], one["text"]) for one in ranks} == dict(
        enumerate(zip(wanted, texts, strict=True))
    )
    for first, second in (("queries", "documents"), ("text_1", "text_2"), ("data_1", "items")):
        for path in ("/v1/score", "/score"):
            reply = await asker.post(path, {"model": NAME, first: QUERY, second: texts})
            assert [one["score"] for one in reply.document["data"]] == wanted
            assert [one["index"] for one in reply.document["data"]] == [0, 1, 2]
    zipped = await asker.post("/score", {"model": NAME, "text_1": [QUERY] * 3, "text_2": texts})
    assert [one["score"] for one in zipped.document["data"]] == wanted
    assert len(asker.stub.pairs) == 3


async def test_a_score_of_several_queries_is_one_request_for_each(asker: Asker) -> None:
    """The pairs of a query go together, and come back at their places."""
    first, second = ["q", "r", "q", "s"], ["a", "b", "c", "d"]
    reply = await asker.post("/v1/score", {"model": NAME, "queries": first, "documents": second})
    assert [one["score"] for one in reply.document["data"]] == [
        score(*pair) for pair in zip(first, second, strict=True)
    ]
    assert sorted((one["query"], one["documents"]) for one in asker.stub.asked) == [
        ("q", ["a", "c"]), ("r", ["b"]), ("s", ["d"]),
    ]  # fmt: skip


async def test_rankings_are_logits(plain: Asker) -> None:
    """NIM's form: the raw output, best first."""
    body = {
        "model": "ranker",
        "query": {"text": QUERY},
        "passages": [{"text": text} for text in "abc"],
        "truncate": "END",
    }
    rankings = (await plain.post("/v1/ranking", body)).document["rankings"]
    assert [one["logit"] for one in rankings] == sorted([one["logit"] for one in rankings], reverse=True)
    for one in rankings:
        assert math.isclose(one["logit"], logit(QUERY, "abc"[one["index"]]), rel_tol=1e-6)


async def test_documents_of_several_fields_are_ranked_by_those_that_are_named(plain: Asker) -> None:
    """Cohere v1's `rank_fields`, a line each."""
    await plain.rerank([{"title": "t", "body": "b", "x": "x"}], rank_fields=["title", "body"], model="ranker")
    assert plain.stub.pairs == [(QUERY, "title: t\nbody: b")]


async def test_logits_are_activated_when_a_reply_is_rendered(plain: Asker) -> None:
    """The sigmoid of one output; `raw_scores` in either word asks nothing new. V2 asks for the same pairs."""
    reply = await plain.rerank(["a", "b"], model="ranker")
    for at, text in enumerate("ab"):
        assert math.isclose(reply.scores[at], score(QUERY, text), rel_tol=1e-6)
    for fields in ({"raw_scores": True}, {"use_activation": False}):
        raw = await plain.rerank(["a", "b"], model="ranker", **fields)
        assert math.isclose(raw.scores[0], logit(QUERY, "a"), rel_tol=1e-6)
    tensors = [{"name": name, "shape": [2], "datatype": "BYTES", "data": data} for name, data in
               (("query", [QUERY] * 2), ("document", ["a", "b"]))]  # fmt: skip
    v2 = await plain.post("/v2/models/ranker/infer", {"inputs": tensors})
    assert v2.cache_status.startswith("foreseen;hit")
    assert len(plain.stub.pairs) == 2


# The model.


async def test_a_body_without_a_model_is_for_the_only_one_of_its_kind(asker: Asker, tmp_path: Path) -> None:
    """TEI's form. With another kind beside it, too; with none of the kind it is 400, in TEI's form."""
    body = {"query": QUERY, "texts": ["a"]}
    for _ in range(4):
        assert (await asker.post("/rerank", body)).status == 200
    assert (await asker.post("/v1/rerank", {"query": QUERY, "documents": ["a"]})).document["model"] == (
        "BAAI--bge-reranker-v2-m3"
    )
    async with asking(tmp_path / "other", EmbeddingStub()) as other:
        refused = await other.post("/rerank", body)
        assert (refused.status, refused.document["error_type"], refused.document["param"]) == (
            400,
            "Validation",
            "model",
        )
        named = await other.post("/v1/rerank", {"model": "BAAI/bge-m3", "query": "q", "documents": ["a"]})
        assert (named.status, named.document["error"]["param"]) == (400, "model")


async def test_another_model_of_the_kind_makes_a_body_without_one_ambiguous(asker: Asker) -> None:
    """Also for a request that was answered, byte by byte, while there was one only."""
    body = {"query": QUERY, "texts": ["a"]}
    for _ in range(4):
        assert (await asker.post("/rerank", body)).status == 200
    served = asker.front.proxy.served
    served["another"] = next(iter(served.values()))
    assert (await asker.post("/rerank", body)).status == 400


def test_a_model_is_looked_for_in_the_body_alone() -> None:
    """Not in a document, nor in a text."""
    assert optional_model(b'{"model": "a", "query": "q", "documents": ["x"]}') == "a"
    assert optional_model(b'{"query": "q", "documents": ["\\"model\\": \\"x\\""]}') is None
    assert optional_model(b'{"query": "q", "documents": [{"text": "t", "model": "x"}]}') is None
    assert optional_model(b'{"model": "b", "documents": [{"text": "t", "model": "x"}]}') == "b"
    with pytest.raises(BadRequest):
        optional_model(b'{"model": 1, "documents": []}')


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/rerank", b"", 400, None),
        ("/v1/rerank", b"[]", 400, None),
        ("/v1/rerank", {"documents": ["a"]}, 400, "query"),
        ("/v1/rerank", {"query": "q"}, 400, "documents"),
        ("/v1/rerank", {"query": "q", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", 1]}, 400, "documents[1]"),
        ("/v1/rerank", {"query": "q", "documents": [{"title": "a"}]}, 400, "documents[0].text"),
        ("/v1/rerank", {"query": "q", "documents": [{"text": 1}]}, 400, "documents[0].text"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, 400, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "return_documents": 1}, 400, "return_documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 10_001}, 400, "documents"),
        ("/v1/rerank", {"query": "q" * 9000, "documents": ["a"] * 4000}, 413, "documents"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "model": "nope"}, 404, "model"),
        ("/rerank", {"query": "q", "texts": ["a", None]}, 400, "texts[1]"),
        ("/rerank", {"query": "q", "texts": ["a"], "raw_scores": "x"}, 400, "raw_scores"),
        ("/v1/score", {"text_2": ["a"]}, 400, "queries"),
        ("/v1/score", {"queries": "q", "text_1": "q", "documents": "a"}, 400, "text_1"),
        ("/v1/score", {"queries": ["q", "r"], "documents": ["a"]}, 400, "documents"),
        ("/v1/ranking", {"query": "q", "passages": [{"text": "a"}]}, 400, "query"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{}]}, 400, "passages[0].text"),
    ],
)
async def test_bad_bodies_are_refused_with_their_field(
    path: str, body: Any, status: int, param: str | None, asker: Asker
) -> None:
    """In OpenAI's form with a message, or in TEI's on its own routes. Nothing reaches the server."""
    reply = await asker.post(path, body)
    assert reply.status == status
    if path == "/rerank":
        assert (reply.document["param"], reply.document["error_type"]) == (param, "Validation")
        assert type(reply.document["error"]) is str
    else:
        assert (reply.document["error"]["param"], reply.document["error"]["type"]) == (param, "invalid_request_error")
        assert reply.document["message"] == reply.document["error"]["message"]
    assert not asker.stub.asked


async def test_errors_of_the_route_itself_have_its_form(asker: Asker) -> None:
    """405 of a GET."""
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{asker.url}/v1/rerank") as refused:
            assert (refused.status, (await refused.json())["error"]["code"]) == (405, "method_not_allowed")
        async with client.get(f"{asker.url}/rerank") as refused:
            assert (refused.status, (await refused.json())["code"]) == (405, "method_not_allowed")


async def test_cache_control_and_request_ids_work_as_elsewhere(asker: Asker) -> None:
    """`only-if-cached` is 504, an id is echoed, and counters name the protocol."""
    body = {"model": NAME, "query": QUERY, "documents": ["a"]}
    missed = await asker.post("/v2/rerank", body, {"Cache-Control": "only-if-cached", "X-Request-Id": "r-1"})
    assert (missed.status, missed.document["error"]["code"], missed.headers["x-request-id"]) == (
        504,
        "not_cached",
        "r-1",
    )
    for _ in range(4):
        assert (await asker.post("/v2/rerank", body, {"X-Request-Id": "r-2"})).headers["x-request-id"] == "r-2"
    async with aiohttp.ClientSession() as client, client.get(f"{asker.url}/metrics") as reply:
        text = await reply.text()
    assert 'protocol="rerank-v2"' in text


async def test_tenants_are_told_apart_in_each_routes_form(tmp_path: Path) -> None:
    """401 without a key, 403 for another's model, in OpenAI's form or TEI's; an id is of its tenant's question."""
    tables = [
        f'[tenant.{name}]\nkeys = ["sha256:{hashlib.sha256(name.encode()).hexdigest()}"]\nmodels = ["{models}"]\n'
        for name, models in (("all", "*"), ("second", "*"), ("none", "other"))
    ]
    (tmp_path / "keys.toml").write_text("".join(tables))
    body = {"query": QUERY, "documents": ["a"]}
    async with asking(tmp_path / "data", RerankStub(), keys_file=tmp_path / "keys.toml") as asker:
        for path in ("/v2/rerank", "/rerank"):
            refused = await asker.post(path, {**body, "model": NAME})
            forbidden = await asker.post(path, {**body, "model": NAME}, {"Authorization": "Bearer none"})
            told = [one.document if path == "/rerank" else one.document["error"] for one in (refused, forbidden)]
            assert (refused.status, told[0]["code"]) == (401, "unauthorized")
            assert (forbidden.status, told[1]["code"]) == (403, "model_not_allowed")
        missing = await asker.post("/rerank", body, {"X-API-Key": "none"})
        assert (missing.status, missing.document["param"]) == (400, "model")
        first, second = [await asker.post("/rerank", body, {"X-API-Key": name}) for name in ("all", "second")]
        assert first.scores == second.scores
        assert first.document["id"] != second.document["id"]
        assert len(asker.stub.asked) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "query", "documents", "texts", "passages", "queries", "text_1", "text_2", "top_n", "return_documents", "raw_scores",
    "use_activation", "rank_fields", "max_tokens_per_doc", "model",
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["q", ["a", "b"], [{"text": "a"}], True, 3])))
def test_a_fuzzer_finds_no_5xx(fields: dict[str, Any]) -> None:
    """Whatever a body holds is pairs or a refusal that names what to mend."""
    body = json.dumps(fields).encode()
    for read in (read_rerank, read_score, read_ranking):
        with contextlib.suppress(BadRequest):
            asked = read(body)
            assert len(asked.queries) == len(asked.documents) >= 1
