"""The clients that people have, unmodified, each in an environment of its own, against the running system."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import http_sf
import numpy as np

from tests.fences import fences
from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint
from tests.raw import MINILM, post
from tests.stories.test_10_first_question import FINGERPRINT

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
TEXTS = ["a text that Triton's client asks", "another, with ümlauts and 電線", "a third one"]


def triton(live: Live, scenario: str) -> dict[str, Any]:
    """The facts that one scenario of `tests/clients/triton.py` prints; its warnings are errors, too."""
    assert PYTHON.exists(), "no tritonclient: run `make .venv-tritonclient/installed`"
    command = [PYTHON, "-W", "error", ROOT / "tests" / "clients" / "triton.py", f"127.0.0.1:{live.port}", scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def test_the_client_really_needs_an_environment_of_its_own() -> None:
    """tritonclient allows no ml_dtypes newer than 0.5.4 and would take ours back; when that ends, so may this."""
    pins = (ROOT / "tests" / "clients" / "tritonclient.txt").read_text()
    (metadata,) = PYTHON.parent.parent.glob("lib/python3*/site-packages/tritonclient-*.dist-info/METADATA")
    assert "Requires-Dist: ml-dtypes<=0.5.4" in metadata.read_text()
    pinned = dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)$", pins, re.MULTILINE))
    assert (pinned["tritonclient"], pinned["ml_dtypes"]) == ("2.73.0", "0.5.4")
    assert metadata.parent.name == f"tritonclient-{pinned['tritonclient']}.dist-info"


def test_tritonclient_reads_everything_about_a_model(live: Live) -> None:
    """Health, metadata, config, statistics and repository, with versions, headers and a query on every call."""
    facts = triton(live, "about")
    assert (facts["live"], facts["ready"], facts["model_ready"]) == (True, True, [True, True, False, False])
    assert facts["server"]["name"] == "foreseen"
    assert facts["metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert facts["config"]["max_batch_size"] > 0
    assert [one["name"] for one in facts["statistics"]["model_stats"]] == ["fingerprint"]
    assert [one["name"] for one in facts["all_statistics"]["model_stats"]] == ["minilm", "fingerprint"]
    assert [one["state"] for one in facts["repository"]] == ["READY", "READY"]


def test_the_same_texts_in_every_encoding_are_one_entry_each(live: Live) -> None:
    """JSON or binary, in or out, plain, gzip or deflate: 36 ways to ask, and the model computes each text once."""
    before = live.model_metric("minilm", "foreseen_model_rows_total")
    facts = triton(live, "texts")
    assert (facts["ways"], facts["equal"], facts["ids"]) == (36, True, True)
    assert (facts["dtype"], facts["shape"]) == ("float32", [3, 384])
    assert live.model_metric("minilm", "foreseen_model_rows_total") == before + len(TEXTS)
    reply = post(live, MINILM, ask_minilm(TEXTS[0]))
    assert reply.hit
    assert np.array_equal(np.float32(reply.outputs["embedding"]["data"]), np.float32(facts["embedding"]))


def test_the_asyncio_client_never_gets_what_it_cannot_read(live: Live) -> None:
    """It offers br (brotli is there) and decodes gzip and deflate only; whatever it asks after the first is a hit."""
    facts = triton(live, "aio")
    assert facts["equal"] is True
    assert len(facts["replies"]) == 12
    for reply in facts["replies"]:
        assert "br" in reply["offered"].split(", ")
        assert reply["coding"] in (None, "gzip", "deflate")
        ((member, told),) = http_sf.parse(reply["cache_status"].encode(), tltype="list")
        assert (str(member), told["hit"], str(told["detail"])) == ("foreseen", True, "near")
    assert facts["unknown"] == ["404", "Request for unknown model: 'nobody' is not found"]
    assert facts["ready"] == [True, True, True]
    assert (facts["metadata"], facts["config"], facts["statistics"]) == ("minilm", "minilm", "minilm")
    assert facts["repository"] == 2


def test_tritonclient_gets_the_right_numbers(live: Live) -> None:
    """64 rows, selected outputs, mixed encodings, classes, no rows, a sequence and greenlets, all by the oracle."""
    facts = triton(live, "fingerprints")
    right = [fingerprint(row) for row in facts["rows"]]
    assert facts["digest"] == right
    assert facts["seal"] == [[1]] * 64
    assert (facts["mixed"], facts["mixed_equal"], facts["mixed_seal"]) == (["seal", "digest"], True, True)
    assert facts["absent"] is True
    best = [sorted(range(4), key=lambda at, row=row: -row[at])[:3] for row in right[:2]]
    classes = [[f"{right[i][at]}:{at}" for at in order] for i, order in enumerate(best)]
    assert (facts["classes"], facts["classes_json"]) == (classes, classes)
    assert facts["none"] == [[0, 4], [0, 4]]
    assert facts["sequence"] == right[0]
    assert facts["greenlets"] == right[:20]


def test_many_at_once_through_one_asyncio_client(live: Live) -> None:
    """200 different rows at once are all right, and 200 times the same cold row is computed once."""
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    facts = triton(live, "many")
    assert facts["digests"] == [fingerprint(row) for row in facts["rows"]]
    assert facts["equal"] == 1
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") == before + 201


def test_what_tritonclient_raises_says_what_was_wrong(live: Live) -> None:
    """The status and the words of our error are those of the client's exception; the client is good afterwards."""
    facts = triton(live, "errors")
    assert facts.pop("after") == [[1]]
    assert {name: status for name, (status, _) in facts.items()} == {
        "unknown model": "404",
        "unknown version": "404",
        "unknown metadata": "404",
        "unknown output": "400",
        "wrong shape": "400",
        "wrong datatype": "400",
        "wrong input": "400",
        "shared memory": "400",
        "register": "404",
        "load": "404",
        "timeout": "504",
    }
    assert facts["unknown model"][1] == "Request for unknown model: 'nobody' is not found"
    assert facts["wrong shape"][1] == "inputs.x.shape: is [1, 15], must be [-1, 16]"
    assert facts["timeout"][1] == "the answer did not come before the deadline"


async def test_tritonclient_never_sees_a_202(live: Live) -> None:
    """Others prefer tickets for the very rows that it asks, before it, with it and after it: it gets 200 and the right
    numbers for each, and raises nothing; tickets were really given meanwhile."""
    rows = [np.random.default_rng(seed).integers(-(2**62), 2**62, 16, np.int64).tolist() for seed in range(5000, 5120)]
    before = live.metric("foreseen_requests_total", code="202")
    asking = asyncio.create_task(asyncio.to_thread(triton, live, "beside"))
    async with aiohttp.ClientSession() as client:

        async def others(order: list[list[int]]) -> set[int]:
            told = set()
            while not asking.done():
                for row in order:
                    body, headers = ask_fingerprint(row), {"Prefer": "respond-async", "Cache-Control": "no-cache"}
                    async with client.post(live.url + FINGERPRINT, json=body, headers=headers) as reply:
                        told.add(reply.status)
                    if asking.done():
                        break
                    await asyncio.sleep(0)
            return told

        told = await asyncio.gather(others(rows), others(rows[::-1]))
    facts = await asking
    assert facts == {"digests": [fingerprint(row) for row in rows], "raised": []}
    assert told == [{202}, {202}]
    assert live.metric("foreseen_requests_total", code="202") > before + 2


def test_the_recipe_of_the_docs(live: Live) -> None:
    """docs/clients.md, as it stands."""
    (recipe,) = [fence.text for fence in fences(ROOT / "docs" / "clients.md") if "tritonclient" in fence.text]
    program = recipe.replace("127.0.0.1:8000", live.url.removeprefix("http://"))
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "(2, 384)\n"), done.stderr
