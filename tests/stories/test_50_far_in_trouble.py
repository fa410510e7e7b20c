"""Redis stopped, killed, emptied: it costs time, never an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time

import aiohttp
from redis import Redis

from foreseen.paths import redis_socket
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, status_of
from tests.stories.test_40_many_at_once import ask, session
from tests.stories.test_60_start_and_stop import alive

FAR_BUDGET_SECONDS = 0.05


async def load(live: Live, client: aiohttp.ClientSession, seeds: range) -> list[float]:
    """Eight clients ask these; every answer is 200 and right. The seconds that each took."""
    queue = iter(seeds)
    took: list[float] = []

    async def one() -> None:
        for seed in queue:
            started = time.perf_counter()
            status, body = await ask(client, live.url + FINGERPRINT, ask_fingerprint(numbers(seed)))
            took.append(time.perf_counter() - started)
            assert (status, json.loads(body)["outputs"][0]["data"]) == (200, fingerprint(numbers(seed)))

    await asyncio.gather(*(one() for _ in range(8)))
    return took


async def test_a_stopped_valkey_costs_time_and_never_an_answer(own: Live) -> None:
    """SIGSTOP under load: no 5xx, right answers; SIGCONT: hits return."""
    async with session() as client:
        await load(own, client, range(100))
        own.signal("far", signal.SIGSTOP)
        took = await load(own, client, range(1000, 1400))
        assert own.metric("foreseen_far_errors_total", kind="timeout") >= 1
        assert own.metric("foreseen_far_breaker_open") == 1
        assert own.metric("foreseen_rows_total", result="error") == 0
        own.signal("far", signal.SIGCONT)
        own.until("foreseen_far_breaker_open", lambda value: value == 0)
        await load(own, client, range(2000, 2010))
    # Only the few requests that met the stop before the breaker opened waited at all.
    slow = [seconds for seconds in took if seconds > FAR_BUDGET_SECONDS]
    assert len(slow) <= len(took) * 0.1
    own.signal("proxy", signal.SIGKILL)
    headers: dict[str, str] = {}
    while "cache-status" not in headers:
        try:
            headers = own.post(FINGERPRINT, ask_fingerprint(numbers(2005)))[1]
        except OSError:
            continue
    assert str(status_of(headers)["detail"]) == "far"


def test_a_foreign_redis_never_keeps_a_worker_from_starting(own: Live) -> None:
    """Another check value, and a worker that starts: it answers past far, and says so; once the value is gone, far is
    asked again by itself."""

    def asked(seed: int) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the next worker has not started yet
                status, headers, body = own.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
                assert (status, json.loads(body)["outputs"][0]["data"]) == (200, fingerprint(numbers(seed)))
                return str(status_of(headers).get("detail"))
        raise AssertionError("nobody answers")

    def end_worker() -> None:
        pid = own.children()["proxy"]
        os.kill(pid, signal.SIGKILL)
        while alive(pid):
            os.sched_yield()

    asked(1)
    with Redis(unix_socket_path=str(redis_socket(own.data))) as cache:
        before = cache.dbsize()
        cache.set("fsn1.secret", b"another deployment")
        end_worker()
        assert asked(1) == "None"  # a miss
        own.until("foreseen_far_foreign", lambda value: value == 1)
        assert own.metric("foreseen_far_errors_total", kind="foreign") >= 1
        assert cache.dbsize() == before
        cache.delete("fsn1.secret")
        own.until("foreseen_far_foreign", lambda value: value == 0)
        end_worker()
        assert asked(1) == "far"


async def test_a_killed_valkey_is_restarted_and_filled_again(own: Live) -> None:
    """kill -9: answers go on at once; the supervisor brings an empty one, and new entries reach it."""
    async with session() as client:
        await load(own, client, range(50))
        own.signal("far", signal.SIGKILL)
        await load(own, client, range(3000, 3100))
        own.until("foreseen_far_breaker_open", lambda value: value == 0)
        before = own.metric("foreseen_far_duration_seconds_count", op="put")
        await load(own, client, range(4000, 4010))
        own.until("foreseen_far_duration_seconds_count", lambda value: value > before, op="put")
    assert own.metric("foreseen_requests_total", code="200") >= 160
    assert own.metric("foreseen_requests_total", code="500") == 0
