"""More is asked than the model can do, or it does nothing at all: hits flow, misses are refused in time."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from foreseen.paths import redis_socket
from foreseen.stores.redis_urls import connect
from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_40_many_at_once import session

Told = tuple[int, float, str | None, bytes]
"""Status, seconds, Retry-After, body."""


async def ask(client: aiohttp.ClientSession, url: str, question: object, seconds: float) -> Told:
    started = time.perf_counter()
    async with client.post(url, json=question, headers={"Request-Timeout": str(seconds)}) as reply:
        body = await reply.read()
        return reply.status, time.perf_counter() - started, reply.headers.get("Retry-After"), body


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "soon", "1e3", "", "nan", "1,2"])
def test_a_timeout_that_is_none_is_refused(live: Live, value: str) -> None:
    """A header that decides about the answer is not guessed at."""
    status, _, body = live.post(FINGERPRINT, ask_fingerprint(numbers(1)), {"Request-Timeout": value})
    assert (status, json.loads(body)["code"]) == (400, "bad_request")
    assert "Request-Timeout" in json.loads(body)["error"]


async def test_hits_keep_flowing_while_the_model_is_stopped(built: Path, tmp_path: Path) -> None:
    """SIGSTOP under load: every hit is answered as if nothing were; every miss is 503 or 504 by its deadline, most at
    once with Retry-After; SIGCONT: misses are answered again, with nobody's help."""
    hits, limit = range(50), 0.5
    flags = ("--miss-rows=8",)
    with started(built, tmp_path / "data", *flags, models=("fingerprint",)) as live:
        url = live.url + FINGERPRINT
        async with session() as client:
            for seed in hits:
                await ask(client, url, ask_fingerprint(numbers(seed)), 30)
            live.signal("model:fingerprint", signal.SIGSTOP)
            over = asyncio.Event()

            async def hitting() -> list[Told]:
                told = []
                while not over.is_set():
                    seed = len(told) % len(hits)
                    told.append(await ask(client, url, ask_fingerprint(numbers(seed)), 30))
                    assert json.loads(told[-1][3])["outputs"][0]["data"] == fingerprint(numbers(seed))
                return told

            async def missing(seeds: Sequence[int]) -> list[Told]:
                return [await ask(client, url, ask_fingerprint(numbers(seed)), limit) for seed in seeds]

            hitters = [asyncio.create_task(hitting()) for _ in range(4)]
            missed = await asyncio.gather(*(missing(range(at, at + 10)) for at in range(1000, 2000, 10)))
            over.set()
            hit = [told for one in await asyncio.gather(*hitters) for told in one]
            refused = [told for one in missed for told in one]
            assert {status for status, *_ in hit} == {200}
            assert sorted(seconds for _, seconds, _, _ in hit)[len(hit) * 99 // 100] < limit
            assert {status for status, *_ in refused} <= {503, 504}
            assert max(seconds for _, seconds, _, _ in refused) < limit + 1.0
            assert all((retry is not None) == (status == 503) for status, _, retry, _ in refused)
            at_once = sum(seconds < limit / 2 for _, seconds, _, _ in refused)
            assert at_once > len(refused) / 2
            live.signal("model:fingerprint", signal.SIGCONT)
            status = 0
            while status != 200:
                status, _, _, body = await ask(client, url, ask_fingerprint(numbers(5000)), 5)
            assert json.loads(body)["outputs"][0]["data"] == fingerprint(numbers(5000))
            assert {told[0] for told in await missing(range(6000, 6050))} == {200}


async def test_an_emptied_redis_under_overload_fills_again_by_itself(built: Path, tmp_path: Path) -> None:
    """FLUSHALL with near off and four times as many askers as the deadline has room for: right answers or refusals by
    the deadline; back at normal load everything is answered, and from the cache."""
    texts = [f"an emptied redis is filled again, text number {n}" for n in range(400)]
    flags = ("--near-bytes=0", "--miss-rows=16")
    with started(built, tmp_path / "data", *flags, models=("minilm",)) as live:
        url = live.url + MINILM
        async with session() as client:
            known = {}
            for at in range(0, len(texts), 50):
                status, _, _, body = await ask(client, url, ask_minilm(*texts[at : at + 50]), 30)
                assert status == 200
                flat = json.loads(body)["outputs"][0]["data"]
                known |= {text: flat[384 * i : 384 * (i + 1)] for i, text in enumerate(texts[at : at + 50])}
            far = connect(f"unix://{redis_socket(live.data)}", 5)
            live.until("foreseen_far_duration_seconds_count", lambda puts: puts >= 8, op="put")
            await far.flushall()
            await far.aclose()
            queue = iter(texts * 3)

            async def one(seconds: float) -> Counter[int]:
                statuses = Counter[int]()
                for text in queue:
                    status, took, _, body = await ask(client, url, ask_minilm(text), seconds)
                    statuses[status] += 1
                    assert took < seconds + 1.0
                    assert status != 200 or json.loads(body)["outputs"][0]["data"] == known[text]
                return statuses

            burst = sum(await asyncio.gather(*(one(0.1) for _ in range(128))), Counter[int]())
            assert set(burst) <= {200, 503, 504}
            queue = iter(texts)
            calm = sum(await asyncio.gather(*(one(30) for _ in range(4))), Counter[int]())
            assert calm == {200: len(texts)}
            before = live.model_metric("minilm", "foreseen_model_rows_total")
            queue = iter(texts)
            assert (await one(30)) == {200: len(texts)}
            assert live.model_metric("minilm", "foreseen_model_rows_total") - before <= len(texts) * 0.01


async def test_a_flood_of_misses_costs_others_no_hits(built: Path, tmp_path: Path) -> None:
    """Ten times as many rows that never come again as near has room for, from ten askers: a caller of known rows gets
    right answers, nearly all of them from near."""
    known = range(580_000, 580_030)
    with started(
        built, tmp_path / "data", "--near-bytes=100000", "--reply-cache-bytes=0", models=("fingerprint",)
    ) as live:
        url = live.url + FINGERPRINT
        async with session() as client:
            for seed in [*known, *known, *known]:
                await ask(client, url, ask_fingerprint(numbers(seed)), 30)
            over = asyncio.Event()

            async def flooding(first: int) -> int:
                asked = 0
                while not over.is_set():
                    rows = [numbers(first + asked + at) for at in range(20)]
                    status, *_ = await ask(client, url, ask_fingerprint(*rows), 30)
                    assert status in (200, 503, 504)
                    asked += 20
                return asked

            attackers = [asyncio.create_task(flooding(600_000_000 + 1_000_000 * number)) for number in range(10)]
            near = 0
            for seed in list(known) * 10:
                async with client.post(url, json=ask_fingerprint(numbers(seed))) as reply:
                    assert (reply.status, (await reply.json())["outputs"][0]["data"]) == (
                        200,
                        fingerprint(numbers(seed)),
                    )
                    near += "detail=near" in reply.headers["Cache-Status"]
            over.set()
            assert sum(await asyncio.gather(*attackers)) > 10 * 300
            assert near >= 0.97 * 300
