"""Many askers at once: one computation, and those who hang up disturb nobody."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM


async def ask(client: aiohttp.ClientSession, url: str, question: object) -> tuple[int, bytes]:
    async with client.post(url, json=question) as reply:
        return reply.status, await reply.read()


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def test_two_hundred_identical_cold_requests_compute_one_row(live: Live) -> None:
    """One row computed, two hundred identical answers."""
    before = live.model_metric("minilm", "foreseen_model_rows_total")
    question = ask_minilm("two hundred ask this at the same time")
    async with session() as client:
        answers = await asyncio.gather(*(ask(client, live.url + MINILM, question) for _ in range(200)))
    assert live.model_metric("minilm", "foreseen_model_rows_total") - before == 1
    assert {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == 1


async def test_half_of_the_callers_hang_up_and_the_rest_get_their_answer(live: Live) -> None:
    """Connections are cut while the row is being computed: one row computed, a hundred right answers."""
    text = "half of us hang up " * 60
    before = live.model_metric("minilm", "foreseen_model_rows_total")
    body = json.dumps(ask_minilm(text)).encode()
    head = f"POST {MINILM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    leavers = []
    for _ in range(100):
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(head + body)
        leavers.append((reader, writer))
    async with session() as client:
        staying = [asyncio.create_task(ask(client, live.url + MINILM, ask_minilm(text))) for _ in range(100)]
        for _, writer in leavers:
            writer.transport.abort()
        answers = await asyncio.gather(*staying)
    assert {status for status, _ in answers} == {200}
    assert len({answer for _, answer in answers}) == 1
    assert live.model_metric("minilm", "foreseen_model_rows_total") - before == 1


async def test_many_different_questions_at_once_never_cross(live: Live) -> None:
    """A thousand mixed questions over many connections: every fingerprint is its own."""
    async with session() as client:

        async def one(seed: int) -> bool:
            rows = [numbers(50_000 + seed % 97), numbers(60_000 + seed)]
            status, body = await ask(client, live.url + FINGERPRINT, ask_fingerprint(*rows))
            flat = json.loads(body)["outputs"][0]["data"]
            return status == 200 and flat == [*fingerprint(rows[0]), *fingerprint(rows[1])]

        assert all(await asyncio.gather(*(one(seed) for seed in range(1000))))
