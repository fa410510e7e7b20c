"""Rows that wait for a model that is away: counted by model, gone once it is there, and never for long."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from foreseen.modelspec.artifact import preparation_digest
from foreseen.modelspec.manifest import find
from foreseen.proxy.backend.turns.absent_rows import WINDOW_SECONDS, AbsentRows
from tests.foreign import Foreign, Front, fronted
from tests.live import sum_of
from tests.ports import free_port
from tests.questions import numbers

METRIC = "foreseen_model_absent_rows"


def test_rows_count_for_a_minute() -> None:
    now = 100.0
    rows = AbsentRows(lambda: now)
    for _ in range(3):
        rows.add(2)
    assert len(rows) == 6
    now += WINDOW_SECONDS - 1
    rows.add(1)
    assert len(rows) == 7
    now += 1
    assert len(rows) == 1
    now += WINDOW_SECONDS
    assert len(rows) == 0
    rows.add(4)
    rows.clear()
    assert len(rows) == 0


def test_what_is_kept_is_bounded() -> None:
    now = 0.0
    rows = AbsentRows(lambda: now)
    for _ in range(10 * WINDOW_SECONDS):
        now += 1
        rows.add(1)
    assert len(rows._seconds) == WINDOW_SECONDS


async def absent_rows(front: Front) -> float:
    text = (await front.proxy.heartbeat.exposition()).decode()
    assert f'{METRIC}{{model="fingerprint"}}' in text, "there before the first request, for a trigger to read"
    return sum_of(text, METRIC, {"model": "fingerprint"})


async def test_a_model_at_zero_replicas_is_asked_for_by_the_proxies_metric(tmp_path: Path) -> None:
    """A proxy that has never seen its model: requests are told to come again, and the metric says that there are some.
    It is 0 again when the model is there."""
    port = free_port()
    async with fronted(None, tmp_path / "data", model=(f"fingerprint=http://127.0.0.1:{port}",)) as front:
        assert await absent_rows(front) == 0
        for number in range(3):
            status, _, told = await front.infer(numbers(number), model="fingerprint")
            assert (status, told["code"]) == (503, "model_unavailable")
        assert await absent_rows(front) == 3
        served, foreign = front.proxy.served["fingerprint"], Foreign()
        preparation = preparation_digest(find("fingerprint", front.proxy.settings.model_folders), ())
        foreign.metadata["parameters"] = {"digest": "d" * 64, "preparation": preparation}
        runner = web.AppRunner(foreign.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await served.refresh()
        assert served.ready, served.why
        assert await absent_rows(front) == 0
        await runner.cleanup()
        status, _, _ = await front.infer(numbers(9), numbers(8), model="fingerprint")
        assert status == 503
        assert await absent_rows(front) == 2, "rows, not requests"
