"""A reranker asked directly, through the cache by the pair, and through LiteLLM's rerank cache, on the same requests.

    python -m bench.rerank --queries 12 --rounds 6

Each query comes once a round with 50 candidates, 45 of which it had in the round before, in another order. The upstream
is a cross-encoder of seeded random weights that this project serves without a cache, asked over Jina's form. LiteLLM is
a library here, in the environment that `make test-integrations` makes. Without it that way is left out, and a line says
so.
Ends with status 1 where the cache computes more rows than there are different pairs, or a score differs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from foreseen.models.build.build import build
from foreseen.models.folder.add import add
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import load
from tests.live import Live, fresh
from tests.random_cross_encoder import random_cross_encoder

ROOT = Path(__file__).parent.parent
CANDIDATES, KNOWN = 50, 45
CALLERS = 4
WORDS = (
    "card",
    "payment",
    "money",
    "account",
    "rate",
    "arrived",
    "pending",
    "fee",
    "transfer",
    "cash",
    "bank",
    "limit",
)
LITELLM = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import litellm
from litellm.caching.caching import Cache
base, callers = sys.argv[1], int(sys.argv[2])
bodies = json.load(sys.stdin)
litellm.cache = Cache(type="local", supported_call_types=["rerank"])
def ask(body):
    started = time.perf_counter()
    reply = litellm.rerank(model="infinity/ranker", api_base=base, api_key="any", query=body["query"],
                           documents=body["documents"], caching=True)
    found = {one["index"]: one["relevance_score"] for one in reply.results}
    return time.perf_counter() - started, [found[at] for at in range(len(body["documents"]))]
started = time.perf_counter()
with ThreadPoolExecutor(callers) as pool:
    found = list(pool.map(ask, bodies))
print(json.dumps({"seconds": time.perf_counter() - started, "took": [one for one, _ in found],
                  "scores": [scores for _, scores in found]}))
"""
Body = dict[str, Any]


class Result(NamedTuple):
    """Of one way to ask: seconds of all, of each request, the scores, and the rows that the upstream computed."""

    seconds: float
    took: list[float]
    scores: list[list[float]]
    computed: int


def requests(queries: int, rounds: int) -> list[Body]:
    """The requests in the order in which they come."""
    drawn = random.Random(5)

    def text(least: int, most: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(least, most)))

    asked = [f"{text(4, 8)} {at}?" for at in range(queries)]
    numbers = itertools.count()
    sets: list[list[str]] = [[] for _ in asked]
    bodies = []
    for _ in range(rounds):
        for at, query in enumerate(asked):
            kept = drawn.sample(sets[at], min(KNOWN, len(sets[at])))
            sets[at] = kept + [f"{text(6, 12)} {next(numbers)}" for _ in range(CANDIDATES - len(kept))]
            drawn.shuffle(sets[at])
            bodies.append({"model": "ranker", "query": query, "documents": list(sets[at])})
    return bodies


@contextmanager
def upstream(home: Path) -> Iterator[Live]:
    """The cross-encoder, served without a cache."""
    folder = random_cross_encoder(home / "folder", hidden=128, layers=4, inner=512)
    path = add(str(folder), "ranker", home / "mine", home / "up", SilentProgress())
    path.write_text(path.read_text().replace('name = "ranker"', 'name = "ranker"\ncacheable = false', 1))
    build(load(path), home / "up", say=SilentProgress())
    with fresh(home / "up", f"--models={home / 'mine'}", "--model=ranker") as system:
        yield system


async def ask(url: str, bodies: list[Body]) -> tuple[float, list[float], list[list[float]]]:
    """All requests by so many callers, in order."""
    took, scores = [0.0] * len(bodies), [list[float]()] * len(bodies)
    waiting = iter(enumerate(bodies))
    async with aiohttp.ClientSession() as client:

        async def caller() -> None:
            for at, body in waiting:
                started = time.perf_counter()
                async with client.post(f"{url}/v1/rerank", json=body) as reply:
                    told = await reply.json()
                took[at] = time.perf_counter() - started
                found = {one["index"]: one["relevance_score"] for one in told["results"]}
                scores[at] = [found[place] for place in range(len(found))]

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return time.perf_counter() - started, took, scores


def by_litellm(url: str, bodies: list[Body]) -> tuple[float, list[float], list[list[float]]] | None:
    """None where it is not installed."""
    python = ROOT / ".venv-openai" / "bin" / "python"
    if not python.exists():
        return None
    done = subprocess.run(
        [str(python), "-c", LITELLM, url, str(CALLERS)],
        input=json.dumps(bodies), capture_output=True, text=True, check=False,
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told = json.loads(done.stdout.splitlines()[-1])
    return told["seconds"], told["took"], told["scores"]


def settled(computed: Callable[[], int]) -> int:
    """The counter once the probes of all processes have ended."""
    seen = -1
    while seen != computed():
        seen = computed()
        time.sleep(1)
    return seen


def measured(queries: int, rounds: int) -> dict[str, Result]:
    """Every way to ask, by its name."""
    bodies, results = requests(queries, rounds), dict[str, Result]()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with upstream(home) as model:

            def computed() -> int:
                return int(model.model_metric("ranker", "foreseen_model_rows_total"))

            before = computed()
            results["upstream, asked directly"] = Result(*asyncio.run(ask(model.url, bodies)), computed() - before)
            flags = [f"--upstream={model.url}", "--upstream-api=openai", "--upstream-kind=rerank"]
            with fresh(home / "front", *flags) as front:
                before = settled(computed)
                results["foreseen"] = Result(*asyncio.run(ask(front.url, bodies)), computed() - before)
            before, found = computed(), by_litellm(model.url, bodies)
            if found is None:
                print("LiteLLM is left out: make .venv-openai/installed")
            else:
                results["LiteLLM, rerank cache"] = Result(*found, computed() - before)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    bodies = requests(given.queries, given.rounds)
    asked, different = len(bodies) * CANDIDATES, len({(b["query"], d) for b in bodies for d in b["documents"]})
    print(f"{len(bodies)} requests of {CANDIDATES} candidates: {asked} pairs, {different} different; {CALLERS} callers")
    results = measured(given.queries, given.rounds)
    direct = results["upstream, asked directly"]
    print("| | rows computed | requests/s | of the upstream | p50 ms, first round | p50 ms, later |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, one in results.items():
        first, later = one.took[: given.queries], one.took[given.queries :]
        print(
            f"| {name} | {one.computed} | {len(bodies) / one.seconds:.1f} | {direct.seconds / one.seconds:.2f} "
            f"| {statistics.median(first) * 1000:.1f} | {statistics.median(later or first) * 1000:.1f} |"
        )
    ours = results["foreseen"]
    worst = max(
        abs(a - b)
        for one, other in zip(direct.scores, ours.scores, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    print(f"largest difference of a score: {worst:g}")
    if ours.computed > different or worst > 1e-6:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
