"""Rerank, score and classification against the running system: a cross-encoder and a classifier of our own."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreseen.models.build.build import build
from foreseen.models.folder.add import add
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import load
from tests.hf_folders import WORDS, cross_encoder, written
from tests.live import Live, fresh

LABELS = {"0": "bad", "1": "fair", "2": "good"}
PLAIN = [word for word in WORDS if word.isalpha()]
pairs = itertools.permutations(PLAIN, 3)


def documents(count: int) -> list[str]:
    """Texts that no other test has asked about."""
    return [" ".join(next(pairs)) for _ in range(count)]


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`foreseen up` with `ranker`, which `models add` has made of a folder, and `moods`, a classifier."""
    folder = tmp_path_factory.mktemp("rerank")
    sources = {
        "ranker": cross_encoder(folder / "one"),
        "moods": written(folder / "three", "bert", id2label=LABELS, label2id={v: int(k) for k, v in LABELS.items()}),
    }
    for name, source in sources.items():
        path = add(str(source), name, folder / "mine", folder / "data", SilentProgress())
        build(load(path), folder / "data", say=SilentProgress())
    flags = [f"--models={folder / 'mine'}", *(f"--model={name}" for name in sources)]
    with fresh(folder / "data", *flags) as system:
        yield system


def asked(live: Live, path: str, body: Any, **headers: str) -> tuple[int, str, Any]:
    status, told, reply = live.post(path, body, {"Content-Type": "application/json", **headers})
    return status, told.get("cache-status", ""), json.loads(reply)


def scores(told: Any) -> dict[int, float]:
    return {one["index"]: one["relevance_score"] for one in told["results"]}


def infer(live: Live, query: str, texts: list[str]) -> list[float]:
    """The logits, over V2."""
    tensors = [
        {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": data}
        for name, data in (("query", [query] * len(texts)), ("document", texts))
    ]
    logits: list[float] = asked(live, "/v2/models/ranker/infer", {"inputs": tensors})[2]["outputs"][0]["data"]
    return logits


def test_known_pairs_are_not_computed_again(ranking: Live) -> None:
    """50 documents, 45 known: 5 computed. Permuted: 0, the same scores. top_n 3, then 10: 0. Scores are the sigmoid of
    what V2 answers."""
    texts = documents(50)
    asked(ranking, "/v1/rerank", {"model": "ranker", "query": "man", "documents": texts[:45]})
    before = ranking.model_metric("ranker", "foreseen_model_rows_total")
    _, status, told = asked(ranking, "/v1/rerank", {"model": "ranker", "query": "man", "documents": texts})
    assert status == 'foreseen;fwd=partial;detail="45/50"'
    assert ranking.model_metric("ranker", "foreseen_model_rows_total") - before == 5
    permuted = asked(ranking, "/v2/rerank", {"model": "ranker", "query": "man", "documents": texts[::-1]})[2]
    assert scores(permuted) == {49 - at: value for at, value in scores(told).items()}
    for count in (3, 10):
        cut = asked(ranking, "/rerank", {"query": "man", "documents": texts, "top_n": count})[2]
        assert cut["results"] == told["results"][:count]
    logits = infer(ranking, "man", texts)
    assert [scores(told)[at] for at in range(50)] == pytest.approx([1 / (1 + math.exp(-one)) for one in logits])
    assert ranking.model_metric("ranker", "foreseen_model_rows_total") - before == 5


def test_a_document_is_cut_to_max_tokens_per_doc(ranking: Live) -> None:
    """What is longer has the row of what is left: the key holds the ids."""
    text = " ".join(PLAIN[:12])
    short = " ".join(PLAIN[:3])
    body = {"model": "ranker", "query": "man", "documents": [text, short], "max_tokens_per_doc": 3}
    told = asked(ranking, "/v2/rerank", body)[2]
    assert len(set(scores(told).values())) == 1
    again = asked(ranking, "/v2/rerank", {"model": "ranker", "query": "man", "documents": [short]})
    assert again[1].startswith("foreseen;hit")
    whole = asked(ranking, "/v2/rerank", {"model": "ranker", "query": "man", "documents": [text]})
    assert whole[1] == "foreseen;fwd=miss;stored"
    assert told["usage"]["total_tokens"] == 2 * (1 + 1 + 1 + 3 + 1)


def test_labels_of_texts_and_pairs(ranking: Live) -> None:
    """The softmax of a classifier's labels, the raw ones on demand; a pair for the cross-encoder; no guess which."""
    (text,) = documents(1)
    told = asked(ranking, "/predict", {"model": "moods", "inputs": text})[2]
    assert sorted(one["label"] for one in told) == ["bad", "fair", "good"]
    assert sum(one["score"] for one in told) == pytest.approx(1.0)
    assert [one["score"] for one in told] == sorted((one["score"] for one in told), reverse=True)
    raw = asked(ranking, "/predict", {"model": "moods", "inputs": [[text]], "raw_scores": True})
    assert raw[1].startswith("foreseen;hit")
    assert raw[2][0][0]["score"] - raw[2][0][1]["score"] == pytest.approx(
        math.log(told[0]["score"] / told[1]["score"]), abs=1e-5
    )
    classified = asked(ranking, "/classify", {"model": "moods", "input": [text]})
    assert (classified[1][:12], classified[2]["data"]) == ("foreseen;hit", [told])
    pair = asked(ranking, "/predict", {"model": "ranker", "inputs": ["man", text]})[2]
    one = scores(asked(ranking, "/rerank", {"query": "man", "documents": [text]})[2])
    assert pair == [{"score": one[0], "label": "LABEL_0"}]
    for body, param in (({"inputs": text}, "model"), ({"model": "ranker", "inputs": text}, "inputs")):
        status, _, error = asked(ranking, "/predict", body)
        assert (status, error["param"]) == (400, param)


def test_a_ticket_and_batch_lines_render_what_was_asked(ranking: Live) -> None:
    """A ticket's result is the reply's body, byte for byte; lines may name these routes, with a model or without."""
    texts = documents(4)
    body = {"model": "ranker", "query": "man", "documents": texts, "top_n": 2, "return_documents": True}
    status, told, _ = ranking.post("/v1/rerank", body, {"Prefer": "respond-async"})
    assert status == 202
    result = ranking.ask("GET", f"{told['location']}/result", None, {"Prefer": "wait=30"})[2]
    assert result == ranking.post("/v1/rerank", body)[2]
    lines = [
        {"custom_id": "a", "url": "/v1/rerank", "body": body},
        {"custom_id": "b", "url": "/v1/score", "body": {"queries": "man", "documents": texts}},
        {"custom_id": "c", "url": "/predict", "body": {"model": "moods", "inputs": documents(1)}},
    ]
    status, told, _ = ranking.post("/v2/predictions:batch", "\n".join(map(json.dumps, lines)).encode())
    assert status == 202
    done = ranking.ask("GET", f"{told['location']}/result", None, {"Prefer": "wait=30"})[2].splitlines()
    bodies = [json.loads(line)["response"]["body"] for line in done]
    assert bodies[0] == json.loads(result)
    assert [one["index"] for one in bodies[1]["data"]] == [0, 1, 2, 3]
    assert len(bodies[2]) == 3


def test_warm_takes_columns_of_queries_and_documents(ranking: Live, tmp_path: Path) -> None:
    """What a batch run has scored is a hit of the rerank API."""
    texts, file = documents(6), tmp_path / "pairs.csv"
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["query", "document"])
        rows.writerows([["man", text] for text in texts])
    mine = f"--models={ranking.data.parent / 'mine'}"
    words = ["warm", "--model=ranker", str(file), f"--data={ranking.data}", mine]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "foreseen.cli", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reply = asked(ranking, "/v1/rerank", {"model": "ranker", "query": "man", "documents": texts})
    assert reply[1].startswith("foreseen;hit")


def test_a_known_request_takes_the_fast_path(ranking: Live) -> None:
    """The same bytes are a replay; where the body names no model, the body is known and looked up."""
    texts = documents(3)
    for body, timing in (
        ({"model": "ranker", "query": "man", "documents": texts}, "shortcut"),
        ({"query": "man", "texts": texts}, "shortcut"),
    ):
        told = [ranking.post("/rerank", body)[1]["server-timing"] for _ in range(5)]
        assert timing in told[-1]


def test_info_is_of_one_model(ranking: Live) -> None:
    """With two models of texts there is none that `/info` could speak of; errors have TEI's form."""
    status, _, body = ranking.get("/info")
    told = json.loads(body)
    assert (status, told["error_type"]) == (400, "Validation")
    assert "moods, ranker" in told["error"]
