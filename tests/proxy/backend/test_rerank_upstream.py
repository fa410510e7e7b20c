"""In front of rerank servers that are not ours: what is found out, what is sent, what is never believed or cached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.predict.test_rerank import DOCUMENTS, NAME, QUERY, Asker, asking
from tests.rerank_servers import PairV2, RerankStub, each, listwise, logit, score

SERVED = "BAAI--bge-reranker-v2-m3"


async def parameters_of(asker: Asker, model: str = SERVED) -> dict[str, Any]:
    told: dict[str, Any] = (await asker.front.get(f"/v2/models/{model}"))["parameters"]
    return told


def capable() -> RerankStub:
    """infinity: routes without a prefix, and what a model does among its capabilities."""
    stub = RerankStub(prefix="")
    stub.capabilities = ["rerank"]
    return stub


@pytest.mark.parametrize("stub", [RerankStub(), RerankStub(prefix="/openai/v1"), capable(), RerankStub("tei")])
async def test_a_server_is_recognised_and_every_pair_is_computed_once(stub: RerankStub, tmp_path: Path) -> None:
    """By its routes, capabilities or /info. Rows are independent by the probe, and the metadata say so."""
    async with asking(tmp_path / "data", stub) as asker:
        told = await parameters_of(asker)
        assert (told["rows"], told["worst_difference"], told["cached"]) == ("each", 0.0, True)
        assert "differ by 0 at most" in told["rows_why"]
        for documents in (DOCUMENTS[:3], DOCUMENTS[2::-1], DOCUMENTS[1:4]):
            reply = await asker.rerank(documents)
            assert [reply.scores[at] for at in range(3)] == each(QUERY, documents)
        assert sorted(stub.pairs) == sorted((QUERY, text) for text in DOCUMENTS[:4])


async def test_a_server_that_lists_no_models_is_declared(tmp_path: Path) -> None:
    """Cohere's list has another form: API, kind and name are given by the operator."""
    stub = RerankStub()
    stub.lists = False
    more = {"upstream_api": "openai", "upstream_kind": "rerank", "model": ("rerank-v3.5",)}
    async with asking(tmp_path / "data", stub, **more) as asker:
        reply = await asker.rerank(["a"], model="rerank-v3.5")
        assert reply.scores == {0: score(QUERY, "a")}
        assert stub.asked[-1]["model"] == "rerank-v3.5"


@pytest.mark.parametrize("kind", ["openai", "tei"])
async def test_requests_are_split_at_the_servers_limit(kind: str, tmp_path: Path) -> None:
    """TEI's `max_client_batch_size`; a 422 that speaks of the batch halves, and that is remembered."""
    stub = RerankStub(kind)
    async with asking(tmp_path / "data", stub) as asker:
        if kind == "openai":
            stub.most = 20
        reply = await asker.rerank(DOCUMENTS)
        assert [reply.scores[at] for at in range(50)] == each(QUERY, DOCUMENTS)
        sizes = [len(one.get("documents") or one["texts"]) for one in stub.asked]
        if kind == "tei":
            assert sizes == [16, 16, 16, 2]
        await asker.rerank([text + "!" for text in DOCUMENTS])
        assert max(len(one.get("documents") or one["texts"]) for one in stub.asked[len(sizes) :]) <= 20


async def test_a_query_is_one_request_for_its_unknown_documents(tmp_path: Path) -> None:
    """Two requests of one query that wait at a time share their pairs; another query is another request."""
    stub = RerankStub()
    async with asking(tmp_path / "data", stub) as asker:
        stub.gate.clear()
        asked = [(DOCUMENTS[:3], QUERY), (DOCUMENTS[1:4], QUERY), (DOCUMENTS[:2], "another?")]
        calls = [asyncio.create_task(asker.rerank(documents, query=query)) for documents, query in asked]
        async with asyncio.timeout(20):
            while len(stub.pairs) < 6:  # noqa: ASYNC110 - it is looked at, not signalled
                await asyncio.sleep(0.01)
        stub.gate.set()
        for call, (documents, query) in zip(calls, asked, strict=True):
            reply = await call
            assert [reply.scores[at] for at in range(len(documents))] == each(query, documents)
        assert len(stub.pairs) == len(set(stub.pairs)) == 6
        assert all(one["query"] in (QUERY, "another?") for one in stub.asked)


def by_rank(query: str, documents: Sequence[str]) -> list[float]:
    """The scores of a server that sorts them and calls the first of them document 0."""
    return sorted(each(query, documents), reverse=True)


def of_many(query: str, documents: Sequence[str]) -> list[float]:
    """A listwise model that shows itself only where a document's duplicate is beside it."""
    whales = sum("Whales" in one for one in documents) > 1
    return [
        value - 0.01 * (whales and "Whales" in one)
        for value, one in zip(each(query, documents), documents, strict=True)
    ]


@pytest.mark.parametrize("scores", [listwise, by_rank, of_many])
@pytest.mark.parametrize("kind", ["openai", "tei"])
async def test_a_listwise_server_is_never_cached_by_the_pair(
    kind: str, scores: Callable[[str, Sequence[str]], list[float]], tmp_path: Path
) -> None:
    """A request is one entry, is sent whole, and the metadata say why; only the probe's own texts have found it out."""
    stub = RerankStub(kind)
    stub.scores = scores
    async with asking(tmp_path / "data", stub) as asker:
        told = await parameters_of(asker)
        assert told["rows"] == "together"
        assert "changes by" in told["rows_why"]
        assert "batch-mates" in told["rows_why"]
        assert not stub.asked
        for documents in (DOCUMENTS[:20], DOCUMENTS[:19], DOCUMENTS[:20][::-1]):
            reply = await asker.rerank(documents)
            assert reply.cache_status.startswith("foreseen;fwd=miss")
            assert [reply.scores[at] for at in range(len(documents))] == scores(QUERY, documents)
            assert (await asker.rerank(documents, top_n=3)).cache_status.startswith("foreseen;hit")
        assert [len(one.get("documents") or one["texts"]) for one in stub.asked] == [20, 19, 20]


async def test_sorted_outputs_of_a_v2_server_are_found_out(tmp_path: Path) -> None:
    """NIM's reranker over V2 answers with its logits sorted: they are the batch's, not the rows'."""
    stub = PairV2()
    stub.answer = lambda pairs: sorted((logit(*pair) for pair in pairs), reverse=True)
    async with asking(tmp_path / "data", stub) as asker:
        told = (
            await asker.front.until_described(
                lambda one: "batch-mates" in one["parameters"].get("rows_why", ""), "ranker"
            )
        )["parameters"]
        assert told["rows"] == "together"


async def test_usage_is_the_servers_and_the_same_on_a_hit(tmp_path: Path) -> None:
    """A group's tokens are split over its pairs, so that their sum is exact."""
    for kind in ("openai", "tei"):
        async with asking(tmp_path / kind, RerankStub(kind)) as asker:
            miss, hit = await asker.rerank(DOCUMENTS[:7]), await asker.rerank(DOCUMENTS[:7])
            assert miss.document["usage"]["total_tokens"] == hit.document["usage"]["total_tokens"] == 7 * 5


def without_one(reply: Any) -> Any:
    return reply[:-1] if type(reply) is list else {**reply, "results": reply["results"][:-1]}


def same_index(reply: Any) -> Any:
    if type(reply) is list:
        return [{**one, "index": 0} for one in reply]
    return {**reply, "results": [{**one, "index": 0} for one in reply["results"]]}


def nan(reply: Any) -> Any:
    if type(reply) is list:
        return [{**one, "score": float("nan")} for one in reply]
    return {**reply, "results": [{**one, "relevance_score": float("inf")} for one in reply["results"]]}


def nothing(reply: Any) -> Any:
    return [] if type(reply) is list else {**reply, "results": []}


def failed(reply: Any) -> Any:
    return {"error": "overloaded", "error_type": "Overloaded"}


def text(reply: Any) -> Any:
    if type(reply) is list:
        return [{**one, "score": "0.5"} for one in reply]
    return {**reply, "results": [{**one, "relevance_score": None} for one in reply["results"]]}


@pytest.mark.parametrize("lie", [without_one, same_index, nan, nothing, failed, text])
@pytest.mark.parametrize("kind", ["openai", "tei"])
async def test_a_lie_is_502_and_never_stored(kind: str, lie: Callable[[Any], Any], tmp_path: Path) -> None:
    """Count, index, NaN, nothing, an error inside a 200: refused, and the truth is asked for after."""
    stub = RerankStub(kind)
    async with asking(tmp_path / "data", stub) as asker:
        stub.lie = lie
        reply = await asker.rerank(["a", "b"])
        assert (reply.status, reply.document["error"]["code"]) == (502, "model_failed")
        stub.lie = lambda reply: reply
        truth = await asker.rerank(["a", "b"])
        assert truth.cache_status == "foreseen;fwd=miss;stored"
        assert [truth.scores[at] for at in range(2)] == each(QUERY, ["a", "b"])


@pytest.mark.parametrize(
    ("status", "document", "headers", "wanted"),
    [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}, (503, "overloaded", "7")),
        (424, {"error": "backend", "error_type": "backend"}, {"Retry-After": "2"}, (502, "model_failed", "2")),
        (400, {"message": "too long"}, {}, (400, "bad_input", None)),
        (500, {"detail": "broken"}, {}, (502, "model_failed", None)),
    ],
)
async def test_errors_become_ours_and_are_no_score(
    status: int, document: Any, headers: dict[str, str], wanted: tuple[int, str, str | None], tmp_path: Path
) -> None:
    """A rerank that failed is an error, not 0.0, and nothing of it is kept."""
    stub = RerankStub()
    async with asking(tmp_path / "data", stub) as asker:
        stub.status = status, document, headers
        reply = await asker.rerank(["a"])
        assert (reply.status, reply.document["error"]["code"], reply.headers.get("retry-after")) == wanted
        stub.status = None
        assert (await asker.rerank(["a"])).scores == {0: score(QUERY, "a")}


async def test_the_name_of_the_model_is_in_the_key(tmp_path: Path) -> None:
    """Another reranker's scores are not this one's."""
    stub = RerankStub()
    async with asking(tmp_path / "data", stub) as asker:
        before = (await parameters_of(asker))["digest"]
        await asker.rerank(["a"])
        stub.identity["root"] = "another"
        await asker.front.until(lambda told: told["digest"] != before, SERVED)
        assert (await asker.rerank(["a"], model=NAME)).cache_status.startswith("foreseen;fwd=miss")


async def test_a_list_that_is_too_long_is_refused_and_never_split(tmp_path: Path) -> None:
    """Where the score depends on the neighbours, half a list would be another question."""
    stub = RerankStub()
    stub.scores = listwise
    async with asking(tmp_path / "data", stub) as asker:
        stub.most = 3
        reply = await asker.rerank(DOCUMENTS[:4])
        assert (reply.status, reply.document["error"]["code"]) == (413, "too_large")
        assert [len(one["documents"]) for one in stub.asked] == [4]


async def test_equal_documents_are_sent_once(tmp_path: Path) -> None:
    """They are one row."""
    stub = RerankStub()
    async with asking(tmp_path / "data", stub) as asker:
        reply = await asker.rerank(["a", "b", "a", "a"])
        assert [reply.scores[at] for at in range(4)] == each(QUERY, ["a", "b", "a", "a"])
        assert stub.asked[-1]["documents"] == ["a", "b"]
