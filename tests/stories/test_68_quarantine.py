"""A row that ends the model's process: its neighbours get their answers, and it is refused before it does more harm."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web

from foreseen.keys.key import Framer
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.poison.quarantine import MAX_SUSPECTS, Quarantine
from foreseen.telemetry.metrics import ProxyMetrics
from tests.doubles import ROOT, SIGNATURE, BrokenFar, Clock, DictFar, row
from tests.foreign import Foreign, Front, fronted, listening
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

POISON = 666


class CrashingModel(Foreign):
    """Dies of a row that begins with 666: every connection ends, as those of a process that is gone.

    `away` is for how many looks it stays away.
    """

    def __init__(self, away: int = 2) -> None:
        super().__init__()
        self.deaths = 0
        self.absent = away
        self._gone = 0
        self._connections: list[web.Request] = []

    def application(self) -> web.Application:
        app = super().application()
        app.middlewares.append(self._process)
        return app

    @web.middleware
    async def _process(self, request: web.Request, handler: object) -> web.StreamResponse:
        """Everything that is asked of a dead process is a broken connection; a look brings it nearer to its return."""
        assert request.transport is not None
        if self._gone:
            self._gone -= request.path.endswith("/ready")
            request.transport.abort()
            return web.Response()
        self._connections.append(request)
        try:
            return await handler(request)  # type: ignore[operator, no-any-return]
        except ZeroDivisionError:
            self.end()
            return web.Response()
        finally:
            self._connections = [other for other in self._connections if other is not request]

    def end(self) -> None:
        self.deaths += 1
        self._gone = self.absent
        for other in self._connections:
            if other.transport is not None:
                other.transport.abort()

    def dying(self, rows: list[list[int]]) -> list[list[int]]:
        if any(row[0] == POISON for row in rows):
            raise ZeroDivisionError
        return [fingerprint(row) for row in rows]


def dying_once() -> Callable[[list[list[int]]], list[list[int]]]:
    """Somebody kills it while it is at the first rows; it answers all others."""
    deaths = iter([True])

    def answer(rows: list[list[int]]) -> list[list[int]]:
        if next(deaths, False):
            raise ZeroDivisionError
        return [fingerprint(row) for row in rows]

    return answer


@contextlib.asynccontextmanager
async def crashing_model(data: Path, **more: float) -> AsyncIterator[tuple[CrashingModel, Front]]:
    """A proxy in front of a model that dies of 666, its rows known to be independent."""
    foreign = CrashingModel()
    foreign.answer = foreign.dying
    async with listening(foreign.application()) as url, fronted(url, data, **more) as front:
        await front.until(lambda told: told.get("rows") == "each")
        yield foreign, front


async def refused(front: Front) -> float:
    return front.proxy.metrics.registry.get_sample_value("foreseen_quarantined_rows_total", {"model": "fp"}) or 0.0


async def test_a_row_that_ends_the_process_twice_is_refused_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    """One poisonous row among innocents of other requests: they get theirs, it gets 422, and then it is not asked."""
    poison = [POISON, *numbers(1)[1:]]
    async with crashing_model(tmp_path / "data") as (foreign, front):
        asked = [front.infer(numbers(seed)) for seed in range(5)]
        (status, _, told), *others = await asyncio.gather(front.infer(poison), *asked)
        assert (status, told["code"]) == (422, "input_rejected_by_model")
        assert str(POISON) not in told["error"]
        assert [digests for _, _, digests in others] == [[fingerprint(numbers(seed))] for seed in range(5)]
        deaths = foreign.deaths
        assert deaths <= 4  # in company, perhaps once more by the repetition, and twice alone
        assert (await front.infer(poison))[0] == 422
        status, _, _ = await front.infer(numbers(1), poison)
        assert status == 422
        assert await front.infer(numbers(99)) == (200, "foreseen;fwd=miss;stored", [fingerprint(numbers(99))])
        assert foreign.deaths == deaths
        front.proxy.metrics.flush()
        assert await refused(front) == 3


async def test_a_request_of_many_rows_keeps_what_its_innocents_got(tmp_path: Path) -> None:
    """The batch as a whole is refused; each of its other rows is in the cache by then."""
    poison = [POISON, *numbers(1)[1:]]
    rows = [numbers(seed) for seed in range(200, 208)]
    async with crashing_model(tmp_path / "data") as (foreign, front):
        assert (await front.infer(*rows[:4], poison, *rows[4:]))[0] == 422
        asked = len(foreign.batches)
        assert (await front.infer(*rows))[1].startswith("foreseen;hit")
        assert len(foreign.batches) == asked


async def test_a_quarantine_ends(tmp_path: Path) -> None:
    """After its time the row is tried again, and answered by a model that has been mended."""
    poison = [POISON, *numbers(1)[1:]]
    async with crashing_model(tmp_path / "data", quarantine_seconds=1000.0) as (foreign, front):
        clock = Clock()
        front.proxy.served["fp"].process.quarantine._clock = clock
        assert (await front.infer(poison))[0] == 422
        foreign.answer = lambda rows: [fingerprint(row) for row in rows]
        assert (await front.infer(poison))[0] == 422
        clock.now += 1001
        assert (await front.infer(poison))[2] == [fingerprint(poison)]


async def test_another_version_of_the_model_starts_with_a_clean_slate(tmp_path: Path) -> None:
    """It need not share the fault."""
    poison = [POISON, *numbers(1)[1:]]
    async with crashing_model(tmp_path / "data") as (foreign, front):
        assert (await front.infer(poison))[0] == 422
        before = (await front.get("/v2/models/fp"))["parameters"]["digest"]
        foreign.answer = lambda rows: [fingerprint(row) for row in rows]
        foreign.metadata["versions"] = ["2"]
        await front.until(lambda told: told["digest"] != before)
        assert (await front.infer(poison))[2] == [fingerprint(poison)]


async def test_a_process_that_is_killed_by_somebody_costs_those_aboard_nothing(tmp_path: Path) -> None:
    """Its rows are asked again when it is back, within the deadline, and nobody is suspected."""
    async with crashing_model(tmp_path / "data") as (foreign, front):
        foreign.answer = dying_once()
        answers = await asyncio.gather(*(front.infer(numbers(seed)) for seed in range(20)))
        assert [digests for _, _, digests in answers] == [[fingerprint(numbers(seed))] for seed in range(20)]
        assert len(front.proxy.served["fp"].process.quarantine) == 0


class Slow(CrashingModel):
    """A slow model: requests that are under way when a poison row comes fail with it."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = 0

    async def _infer(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if POISON in asked["inputs"][0]["data"]:
            for _ in range(40):  # it may be that somebody is just on his way
                if self.under_way:
                    break
                await asyncio.sleep(0.005)
            return await super()._infer(request)
        self.under_way += 1
        try:
            await asyncio.sleep(0.2)
            return await super()._infer(request)
        finally:
            self.under_way -= 1


async def test_two_proxies_do_not_try_at_one_time(tmp_path: Path) -> None:
    """One has the poison, the other an innocent row of a slow model: the poison is found, the innocent answered. With
    a turn for each process alone the two meet again and again, and the innocent is refused."""
    foreign, far = Slow(), DictFar()
    foreign.answer = foreign.dying
    async with (
        listening(foreign.application()) as url,
        fronted(url, tmp_path / "one") as one,
        fronted(url, tmp_path / "two") as two,
    ):
        for front in (one, two):
            await front.until(lambda told: told.get("rows") == "each")
            front.proxy.trials.among(far, ROOT, front.proxy.metrics)
        for seed in range(3):
            poison, innocent = [POISON, *numbers(seed)[1:]], numbers(seed)
            (status, _, _), (other, _, digests) = await asyncio.gather(one.infer(poison), two.infer(innocent))
            assert (status, other, digests) == (422, 200, [fingerprint(innocent)])
        assert far.leases == {}


async def test_who_gets_the_turn_of_one_that_ended_the_process_is_not_suspected(tmp_path: Path) -> None:
    """It was there when he began to wait, and is not when his turn comes: he waits for its return, and nobody says that
    he has ended it."""
    far, elsewhere = DictFar(), IsolationLock()
    elsewhere.among(far, ROOT, ProxyMetrics())
    async with crashing_model(tmp_path / "data") as (foreign, front):
        front.proxy.trials.among(far, ROOT, front.proxy.metrics)
        foreign.answer = dying_once()
        quarantine = front.proxy.served["fp"].process.quarantine
        suspected: list[int] = []
        quarantine.crashed = lambda row, parameters: suspected.append(1)  # type: ignore[method-assign, assignment]
        async with elsewhere.turn("fp"):
            asked = asyncio.create_task(front.infer(numbers(1)))
            await far.asked_twice.wait()
            foreign.end()
        assert (await asked)[2] == [fingerprint(numbers(1))]
        assert (foreign.deaths, suspected) == (2, [])


async def test_a_turn_is_waited_for_and_a_redis_in_trouble_is_not(tmp_path: Path) -> None:
    """Of two processes one waits until the other is done; without Redis, or with one that fails, nobody waits."""
    far, metrics, told = DictFar(), ProxyMetrics(), []
    one, two, apart, broken = IsolationLock(), IsolationLock(), IsolationLock(), IsolationLock()
    one.among(far, ROOT, metrics)
    two.among(far, ROOT, metrics)
    broken.among(BrokenFar(), ROOT, metrics)

    async def tried(name: str, trials: IsolationLock, model: str = "m") -> None:
        async with trials.turn(model):
            told.append(name)

    async with one.turn("m"):
        waiting = asyncio.create_task(tried("two", two))
        await far.asked_twice.wait()
        await asyncio.gather(tried("apart", apart), tried("broken", broken), tried("another model", two, "n"))
        assert "two" not in told
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tried("late", two)
    await waiting
    assert set(told) == {"apart", "broken", "another model", "two"}
    assert far.leases == {}
    assert metrics.registry.get_sample_value("foreseen_far_errors_total", {"kind": "connect"}) == 2


def test_a_question_aboard_a_killed_process_is_answered_when_it_is_back(own: Live) -> None:
    """A real one: stopped while it has the request, then killed; the supervisor restarts it."""
    own.signal("model:fingerprint", signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(own.post, FINGERPRINT, ask_fingerprint(numbers(7)))
        own.until("foreseen_flight_rows", lambda rows: rows == 1)
        own.signal("model:fingerprint", signal.SIGKILL)
        status, _, body = asked.result(60)
    assert status == 200, body
    assert str(fingerprint(numbers(7))[0]).encode() in body


async def test_who_is_tried_is_alone_aboard() -> None:
    """Others wait until the trial is over, and it waits until they have left."""
    quarantine, told = Quarantine(Framer(SIGNATURE), 10), []

    async def other(name: str, gate: asyncio.Event) -> None:
        async with quarantine.among_others():
            told.append(f"{name} in")
            await gate.wait()
            told.append(f"{name} out")

    async def tried() -> None:
        async with quarantine.alone(contextlib.nullcontext()):
            told.append("tried")

    gate, opened = asyncio.Event(), asyncio.Event()
    opened.set()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(other("a", gate))
        await asyncio.sleep(0)
        tasks.create_task(tried())
        await asyncio.sleep(0)
        tasks.create_task(other("b", opened))
        await asyncio.sleep(0)
        gate.set()
    assert told == ["a in", "a out", "tried", "b in", "b out"]


def test_suspects_are_bounded_in_number_and_time() -> None:
    """The oldest go first; what is over is forgotten; neither rows nor anything that tells of them is kept."""
    clock = Clock()
    quarantine = Quarantine(Framer(SIGNATURE), 10, clock)
    for number in range(MAX_SUSPECTS + 5):
        quarantine.crashed(row(number), b"")
    assert len(quarantine) == MAX_SUSPECTS
    assert [quarantine.crashes(row(number), b"") for number in (4, 5, MAX_SUSPECTS + 4)] == [0, 1, 1]
    assert quarantine.crashes(row(5), b'{"k": 2}') == 0
    quarantine.crashed(row(5), b"")
    refusal = quarantine.refusal(row(5), b"")
    assert refusal is not None
    assert (refusal.status, refusal.retry_after) == (422, 10)
    clock.now += 11
    assert quarantine.refusal(row(5), b"") is None
