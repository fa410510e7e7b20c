"""Unmodified clients and servers of rerank APIs; the clients' code is that of docs/rerank.md."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreseen.models.build.build import build
from foreseen.models.folder.add import add
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import load
from tests.integrations.conftest import ROOT, environment
from tests.integrations.test_openai import server
from tests.live import Live, fresh
from tests.ports import free_port
from tests.random_cross_encoder import random_cross_encoder

PAGE = (ROOT / "docs" / "rerank.md").read_text()
RECIPES = dict(re.findall(r"^### (.+?)\n.*?^```python[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
PRINTED = {
    "cohere": "3 True\nTrue\nunknown_model\n",
    "langchain-cohere": "2\n",
    "Haystack: Cohere": "2\n",
    "Haystack: text-embeddings-inference": "2\n",
    "tei-client": "reranker 2 True\n",
}
QUERY = "which of these animals can swim?"
DOCUMENTS = [
    "Whales swim.",
    "A horse on land",
    "",
    "Many fish live in the sea, and all of them swim. " * 9,
    "x",
    "whales",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of random weights."""
    return random_cross_encoder(tmp_path_factory.mktemp("folder") / "ranker")


@pytest.fixture(scope="module")
def ranking(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`foreseen up` with what `models add` has made of it."""
    home = tmp_path_factory.mktemp("ranking")
    path = add(str(folder), "ranker", home / "mine", home / "data", SilentProgress())
    build(load(path), home / "data", say=SilentProgress())
    with fresh(home / "data", f"--models={home / 'mine'}", "--model=ranker") as system:
        yield system


@pytest.mark.parametrize("name", PRINTED)
def test_recipes_print_what_they_should(name: str, ranking: Live, tmp_path: Path) -> None:
    """Each client as its users write it."""
    run = environment("cohere" if name.startswith("langchain") else "openai", tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPES[name].replace("http://127.0.0.1:8000", ranking.url))
    assert run("python", tmp_path / "recipe.py", HAYSTACK_TELEMETRY_ENABLED="0").stdout == PRINTED[name]


def scores(url: str, model: str, documents: list[str], **fields: Any) -> Any:
    body = json.dumps({"model": model, "query": QUERY, "documents": documents, **fields}).encode()
    request = urllib.request.Request(f"{url}/rerank", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found = {one["index"]: one["relevance_score"] for one in json.loads(reply.read())["results"]}
    return np.array([found[at] for at in range(len(documents))])


def probed(front: Live, model: str) -> Any:
    """A model's parameters once its probe has ended, which takes longer than the start on a loaded machine."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        told = json.loads(front.get(f"/v2/models/{model}")[2])["parameters"]
        if told["rows_why"] != "not probed":
            return told
        time.sleep(0.2)
    raise AssertionError("the probe has not ended")


def test_a_cross_encoder_scores_as_infinity_scores_it(folder: Path, ranking: Live, tmp_path: Path) -> None:
    """One folder, served by us and by infinity on torch: scores and logits agree within 1e-4, and differ from each
    other by far more. In front of infinity every pair is computed once, and its scores are kept as they are."""
    port = free_port()
    words = [
        "infinity_emb", "v2", "--model-id", str(folder), "--served-model-name", "random/ranker", "--device", "cpu",
        "--engine", "torch", "--no-bettertransformer", "--no-model-warmup", "--port", str(port),
    ]  # fmt: skip
    with server("infinity", words, port, "/models") as address:
        for fields in ({}, {"raw_scores": True}):
            ours, theirs = (
                scores(ranking.url, "ranker", DOCUMENTS, **fields),
                scores(address, "random/ranker", DOCUMENTS, **fields),
            )
            assert np.abs(ours - theirs).max() < 1e-4
            assert np.ptp(ours) > 0.1
        with fresh(tmp_path / "data", f"--upstream={address}") as front:
            told = probed(front, "random--ranker")
            assert (told["rows"], told["cached"]) == ("each", True), told
            before = front.metric("foreseen_rows_total", result="model")
            for documents in (DOCUMENTS[:4], DOCUMENTS, DOCUMENTS[::-1]):
                kept = scores(front.url, "random/ranker", documents)
                assert np.abs(kept - scores(address, "random/ranker", documents)).max() < 1e-5
            assert front.metric("foreseen_rows_total", result="model") - before == len(DOCUMENTS)
