"""text-embeddings-inference's own routes and infinity's `/classify`: labels, vectors of each kind, similarity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.embedding_servers import EmbeddingStub, vector
from tests.proxy.predict.test_rerank import Asker, asking
from tests.rerank_servers import RerankStub, dense, labelled, of_tokens, sparse

ID = "BAAI/bge-reranker-v2-m3"


async def test_two_strings_are_one_pair(tmp_path: Path) -> None:
    """`["a", "b"]` is a pair, `[["a"], ["b"]]` two texts; one item alone has its labels without a list around."""
    stub = RerankStub("tei", task="classify")
    async with asking(tmp_path / "data", stub) as asker:
        for inputs, wanted in (
            (["a", "b"], labelled("a | b")),
            ([["a"], ["b"]], [labelled("a"), labelled("b")]),
            ("a", labelled("a")),
            (["a"], labelled("a")),
            ([["b", "a"], ["a", "b"]], [labelled("b | a"), labelled("a | b")]),
        ):
            reply = await asker.post("/predict", {"inputs": inputs})
            assert (reply.status, reply.document) == (200, wanted)
        asked = [tuple(item) for one in stub.asked for item in one["inputs"]]
        assert sorted(asked) == [("a",), ("a", "b"), ("b",), ("b", "a")]
        mixed = await asker.post("/predict", {"inputs": [["a"], ["a", "b"]]})
        assert (mixed.status, mixed.document["param"]) == (400, "inputs[1]")


async def test_infinitys_classify(tmp_path: Path) -> None:
    """A list of labels for each text, with an id that a hit repeats; every text is asked once."""
    stub = RerankStub(prefix="", task="classify")
    stub.capabilities = ["classify"]
    async with asking(tmp_path / "data", stub) as asker:
        body = {"model": ID, "input": ["a", "b"]}
        miss, hit = await asker.post("/classify", body), await asker.post("/classify", body)
        assert miss.document["data"] == [labelled("a"), labelled("b")]
        assert (miss.body, hit.cache_status[:12]) == (hit.body, "foreseen;hit")
        assert (miss.document["object"], miss.document["model"], len(miss.document["id"])) == ("classify", ID, 32)
        assert (await asker.post("/predict", {"inputs": [["b"], ["a"]]})).document == [labelled("b"), labelled("a")]
        assert [one["input"] for one in stub.asked] == [["a", "b"]]
        pair = await asker.post("/predict", {"inputs": ["a", "b"]})
        assert (pair.status, pair.document["param"]) == (400, "inputs")


async def test_vectors_of_tokens_beside_those_of_texts(tmp_path: Path) -> None:
    """A TEI server that embeds is two models; ragged vectors are an entry for each text."""
    stub = RerankStub("tei", task="embed")
    async with asking(tmp_path / "data", stub) as asker:
        reply = await asker.post("/embed_all", {"inputs": ["a b c", "d"], "truncate": True})
        assert reply.document == [of_tokens("a b c"), of_tokens("d")]
        again = await asker.post("/embed_all", {"inputs": ["d", "x y"], "truncate": True})
        assert again.document == [of_tokens("d"), of_tokens("x y")]
        assert again.cache_status == 'foreseen;fwd=partial;detail="1/2"'
        assert stub.asked[-1] == {"inputs": ["x y"], "truncate": True}
        single = await asker.post("/embed", {"inputs": "a b c"})
        assert np.allclose(single.document, [dense("a b c")], atol=1e-6)
        assert (await asker.front.get("/v2/models/" + (await named(asker, ".tokens"))))["parameters"]["rows"] == "each"


async def named(asker: Asker, end: str) -> str:
    models: list[str] = (await asker.front.get("/v2/models"))["models"]
    return next(name for name in models if name.endswith(end))


async def test_sparse_vectors(tmp_path: Path) -> None:
    """A splade server: a whole entry for each text."""
    stub = RerankStub("tei", task="sparse")
    async with asking(tmp_path / "data", stub) as asker:
        assert (await asker.post("/embed_sparse", {"inputs": ["a b", "c"]})).document == [sparse("a b"), sparse("c")]
        reply = await asker.post("/embed_sparse", {"inputs": "c"})
        assert (reply.document, reply.cache_status[:12]) == ([sparse("c")], "foreseen;hit")
        refused = await asker.post("/embed", {"inputs": "c"})
        assert (refused.status, refused.document["param"]) == (400, "model")


async def test_embed_shares_the_entries_of_openais_route(tmp_path: Path) -> None:
    """`/embed`, `/v1/embeddings` and `/similarity` ask for the same rows, also with defaults written out."""
    stub = EmbeddingStub("tei")
    async with asking(tmp_path / "data", stub) as asker:
        said = {"normalize": True, "truncation_direction": "Right", "prompt_name": None}
        reply = await asker.post("/embed", {"inputs": ["a", "b"], **said})
        assert np.allclose(reply.document, [vector("a"), vector("b")], atol=1e-7)
        openai = await asker.post("/v1/embeddings", {"model": "BAAI/bge-m3", "input": ["b", "a"]})
        assert openai.cache_status.startswith("foreseen;hit")
        body = {"inputs": {"source_sentence": "a", "sentences": ["b", "c", "a"]}}
        similar = await asker.post("/similarity", body)
        wanted = [float(np.dot(vector("a"), vector(text))) for text in "bca"]
        assert np.allclose(similar.document, wanted, atol=1e-6)
        assert [stub.texts_like(text) for text in "abc"] == [1, 1, 1]
        await asker.post("/embed", {"inputs": "a", "normalize": False})
        assert stub.requests[-1]["normalize"] is False


async def test_embed_of_a_model_that_does_not_normalize(tmp_path: Path) -> None:
    """In front of another server length 1 is made here, when a reply is rendered."""
    stub = EmbeddingStub()
    async with asking(tmp_path / "data", stub) as asker:
        first, plain = [
            (await asker.post("/embed", {"inputs": "a", "normalize": one})).document for one in (True, False)
        ]
        assert math.isclose(np.linalg.norm(first[0]), 1.0, rel_tol=1e-6)
        assert np.array(plain, np.float32).tolist() == [vector("a")]
        assert stub.texts_like("a") == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/predict", {}, "inputs"),
        ("/predict", {"inputs": []}, "inputs"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, "inputs[0]"),
        ("/predict", {"inputs": [["a"], [1]]}, "inputs[1]"),
        ("/classify", {"input": []}, "input"),
        ("/embed", {"inputs": [1]}, "inputs[0]"),
        ("/embed", {"inputs": "a", "normalize": 1}, "normalize"),
        ("/embed", {"inputs": "a", "dimensions": 0}, "dimensions"),
        ("/embed_all", {"inputs": None}, "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a"}}, "inputs.sentences"),
        ("/similarity", {"inputs": ["a"]}, "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": 1}, "parameters"),
    ],
)
async def test_bad_bodies_name_their_field(path: str, body: Any, param: str, tmp_path: Path) -> None:
    """In TEI's form, or OpenAI's on infinity's route."""
    stub = EmbeddingStub("tei")
    async with asking(tmp_path / "data", stub) as asker:
        named = {**body, "model": "BAAI/bge-m3"}
        reply = await asker.post(path, named)
        told = reply.document["error"] if path == "/classify" else reply.document
        assert (reply.status, told["param"]) == (400, param)


async def test_info_is_what_teis_clients_read_first(tmp_path: Path) -> None:
    """Of the one model of texts: its kind, its name there, our digest of it. The vectors of tokens are no other."""
    for stub, kind in (
        (RerankStub(), "reranker"),
        (RerankStub("tei", task="classify"), "classifier"),
        (RerankStub("tei", task="embed"), "embedding"),
        (RerankStub("tei", task="sparse"), "embedding"),
    ):
        async with asking(tmp_path / f"{stub.kind}-{stub.task}", stub) as asker:
            info = await asker.front.get("/info")
            assert (list(info["model_type"]), info["model_id"]) == ([kind], ID)
            name = (await asker.front.get("/v2/models"))["models"][0]
            assert info["model_sha"] == (await asker.front.get(f"/v2/models/{name}"))["parameters"]["digest"]
