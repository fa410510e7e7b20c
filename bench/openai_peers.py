"""/v1/embeddings beside LiteLLM's proxy with its cache on, and the server asked directly: `make bench-openai`.

One embedding server without a model (`embedding_server.py`) stands behind both. Hits: one body with `Authorization`,
repeated by wrk. Misses: texts that were never asked, one after the other; what a gateway adds to the server's own time
is the median of the rounds' differences. Goals: 20 times LiteLLM's hits; at most 2 ms more than the server per miss.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.embedding_server import MODEL
from bench.interleaved import LOAD_CORE, OUT, ROOT, awake, listens, need, pinned, ratio, report, take_turns, wrk
from bench.load import in_turn, post
from bench.pinned_system import parts, until
from tests.ports import free_port

LITELLM = ROOT / ".venv-litellm"
KEY = "sk-bench"
HIT_GOAL, MISS_GOAL_MS = 20.0, 2.0
CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{ model: openai/{model}, api_base: "{upstream}/v1", api_key: any }}
general_settings: {{ master_key: {key} }}
litellm_settings:
  cache: true
  cache_params: {{ type: local, supported_call_types: ["embedding", "aembedding"] }}
"""


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """The server, on the load's core: it works while the client waits."""
    port = free_port()
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "bench.embedding_server", str(port)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(lambda: listens(port), "the embedding server")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def litellm(address: str, folder: Path) -> Iterator[str]:
    """LiteLLM's proxy with one worker and its in-memory cache."""
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(CONFIG.format(model=MODEL, upstream=address, key=KEY))
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with pinned(
        command, ready=lambda: listens(port), env={**os.environ, **quiet}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):  # fmt: skip
        yield f"http://127.0.0.1:{port}"


def body_of(text: str) -> bytes:
    return json.dumps({"model": MODEL, "input": [text], "encoding_format": "float"}).encode()


def request_of(text: str) -> bytes:
    return post("/v1/embeddings", body_of(text), headers=f"Authorization: Bearer {KEY}\r\n")


def answer(url: str, text: str) -> bytes:
    asked = urllib.request.Request(
        url + "/v1/embeddings",
        body_of(text),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return np.array(json.loads(reply.read())["data"][0]["embedding"], np.float32).tobytes()


def added_ms(urls: dict[str, str], rounds: int, count: int) -> dict[str, float]:
    """Milliseconds that each adds to the median of a lone miss."""
    texts = (f"text number {number} that was never asked" for number in itertools.count())
    medians: dict[str, list[float]] = {name: [] for name in urls}
    for turn in range(rounds + 1):
        for name, url in urls.items():
            took = in_turn(url, [request_of(next(texts)) for _ in range(count)])
            if turn:  # the first is for warming up
                medians[name].append(took.quantile(0.5))
    direct = medians.pop("server")
    return {
        name: 1e3 * statistics.median(one - other for one, other in zip(seconds, direct, strict=True))
        for name, seconds in medians.items()
    }


def main() -> None:
    """Status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn of hits")
    parser.add_argument("--misses", type=int, default=200, help="of a turn")
    parser.add_argument("--report-only", action="store_true", help="status 0 also where a goal is missed")
    settings = parser.parse_args()
    need("wrk", "wrk")
    if not (LITELLM / "bin" / "litellm").exists():
        sys.exit("bench: LiteLLM is missing; make bench-openai installs it")
    with (
        upstream() as address,
        parts() as system,
        tempfile.TemporaryDirectory(prefix="fsn") as temporary,
        litellm(address, Path(temporary)) as other,
    ):
        system.far("0")
        ours = system.proxy("0", [MODEL], f"--upstream={address}")
        text = "the same text for every hit"
        if not answer(ours, text) == answer(other, text) == answer(address, text):
            sys.exit("bench: the answers differ")
        script = Path(temporary) / "hit.lua"
        quoted = json.dumps(body_of(text).decode())
        script.write_text(
            f'wrk.method = "POST"\nwrk.path = "/v1/embeddings"\nwrk.body = {quoted}\n'
            f'wrk.headers["Content-Type"] = "application/json"\nwrk.headers["Authorization"] = "Bearer {KEY}"\n'
        )
        urls = {"server": address, "LiteLLM": other, "Foreseen": ours}
        turns = {
            name: lambda url=url: wrk(url, script, connections=16, seconds=settings.seconds)
            for name, url in urls.items()
            if name != "server"
        }
        figures = take_turns(turns, settings.rounds)
        added = added_ms(urls, settings.rounds, settings.misses)
    report("hits of /v1/embeddings", figures, "LiteLLM", added_ms=added)
    hits = ratio(figures[1], figures[0])
    for name, value in added.items():
        print(f"a lone miss through {name}: {value:+.2f} ms to the server's own time")
    is_met = hits >= HIT_GOAL and added["Foreseen"] <= MISS_GOAL_MS
    print(
        f"{'met' if is_met else 'MISSED'}: hits {hits:.0f} times LiteLLM's (goal {HIT_GOAL:.0f}), "
        f"a miss {added['Foreseen']:+.2f} ms (goal {MISS_GOAL_MS:.0f} ms at most); {OUT}"
    )
    sys.exit(0 if is_met or settings.report_only else 1)


if __name__ == "__main__":
    with awake():
        main()
