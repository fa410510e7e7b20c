"""The responder: known and unknown bodies, requests that wait for flights, deadlines, purges, moved digests."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

import pytest

from foreseen.errors import DigestMoved
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.proxy.backend.served import ServedModel, WorkerStats
from foreseen.proxy.cache.freshness import control_of
from foreseen.proxy.cache.generations import Generations
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.counting import AccessLog, RequestCounter
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.response_bytes import Reply, reply_head
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.types import ALL_STEPS, Space, Steps
from tests.doubles import DIGEST, DictFar, ScriptedModel, pipeline
from tests.proxy.predict.test_decode_render import manifest

ASK = RequestHead("m", None, "v2", PUBLIC_TENANT, seconds=20)


class Plain:
    """What is needed of a served model."""

    bypass_reason = "not-cacheable"
    steps: Steps = ALL_STEPS
    names = ("x", "y")

    def __init__(self, model: ScriptedModel) -> None:
        self.manifest: Manifest = manifest([("x", "INT64", ["rows", 2])], [("y", "INT64", ["rows", 1])])
        self.model = model
        self.stats = WorkerStats()
        self.own = Preparer(self.manifest, {})
        self.framer = model.framer

    @property
    def facts(self) -> Space:
        return self.space()

    def space(self, scope: str = "public") -> Space:
        return Space(scope, "m", self.model.digest)

    def preparer(self) -> Preparer:
        return self.own

    async def refresh(self) -> None:
        """The model says its digest."""


class System:
    """A responder over a scripted model and a far tier in a dict."""

    def __init__(self, *, near_bytes: int = 0, far: DictFar | None = None) -> None:
        self.model = ScriptedModel()
        self.far = far or DictFar()
        self.pipeline: Pipeline = pipeline(self.model, self.far, near_bytes=near_bytes)
        self.metrics: ProxyMetrics = self.pipeline._metrics
        self.served = Plain(self.model)
        served = {"m": cast(ServedModel, self.served)}
        purges = Generations(None, self.pipeline.forget)
        self.cache = AnswerCache(10**6, self.pipeline.tiers.near, served, purges)
        self.server = Server(
            self.pipeline,
            Observer(self.pipeline, self.metrics, 0.0),
            self.metrics,
            self.cache,
            RequestCounter(self.metrics, served, AccessLog(0.0)),
            purges=purges,
        )
        self.responder = Responder(served=served, server=self.server, cache=self.cache, clock=self.pipeline.tiers.clock)

    def ask(self, body: bytes, ask: RequestHead = ASK) -> asyncio.Future[str]:
        """Begin a request; the whole reply as text, when it comes."""
        replied: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def reached(reply: bytes | Reply) -> None:
            assert not replied.done(), "answered twice"
            replied.set_result(text_of(reply))

        reply = self.responder.begin(ask, body, reached)
        if not isinstance(reply, PendingRequest):
            reached(reply)
        return replied

    async def known(self, body: bytes) -> None:
        """A body that has been answered before, and is stored in far."""
        for _ in range(3):
            await self.ask(body)
        await self.pipeline.tiers.close(5)

    def counted(self, metric: str, **labels: str) -> float:
        self.metrics.flush()
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0


def text_of(reply: bytes | Reply) -> str:
    if isinstance(reply, bytes):
        return reply.decode()
    return (reply_head(reply.status, reply.lines, len(reply.body)) + reply.body).decode()


def body(*rows: tuple[int, int], own: str | None = None, **more: Any) -> bytes:
    flat = ",".join(str(number) for row in rows for number in row)
    head = "" if own is None else f'"id":"{own}",'
    tail = "".join(f',"{name}":{text}' for name, text in more.items())
    return (
        f'{{{head}"inputs":[{{"name":"x","shape":[{len(rows)},2],"datatype":"INT64","data":[{flat}]}}]{tail}}}'.encode()
    )


def status(reply: str) -> str:
    found = re.search("Cache-Status: (.*)", reply)
    return found[1].strip() if found else ""


async def test_requests_of_one_known_body_share_a_look_up() -> None:
    """A hundred at once under ids of their own: one MGET, a hundred replies, each with its id, each counted."""
    system = System()
    await system.known(body((4, 2), own="first"))
    looked, hits = len(system.far.gets), system.counted("foreseen_rows_total", model="m", result="far")
    told = await asyncio.gather(*(system.ask(body((4, 2), own=f"n{n}")) for n in range(100)))
    assert len(system.far.gets) == looked + 1
    assert all(f'"id":"n{n}"' in reply and '"data":[42]' in reply for n, reply in enumerate(told))
    assert {status(reply).split(";ttl")[0] for reply in told} == {"foreseen;hit"}
    assert {status(reply).split("detail=")[1] for reply in told} == {"far"}
    assert system.counted("foreseen_rows_total", model="m", result="far") == hits + 100
    assert system.model.rows == 1


async def test_requests_that_join_one_that_turns_out_a_miss_are_collapsed() -> None:
    """The entry is gone from far: one model call, the first is a miss, the others are collapsed, all with their ids."""
    system = System()
    await system.known(body((4, 2), own="first"))
    system.far.values.clear()
    told = await asyncio.gather(*(system.ask(body((4, 2), own=f"n{n}")) for n in range(5)))
    assert [status(reply) for reply in told] == [
        "foreseen;fwd=miss;stored",
        *["foreseen;fwd=miss;stored;collapsed"] * 4,
    ]
    assert all(f'"id":"n{n}"' in reply for n, reply in enumerate(told))
    assert system.model.rows == 2


async def test_every_request_has_its_own_deadline() -> None:
    """The first gives up first; one that joined it later waits on and gets the answer; none gets two."""
    system = System()
    await system.known(body((4, 2)))
    system.far.values.clear()
    system.model.gate.clear()
    first = system.ask(body((4, 2)), RequestHead("m", None, "v2", PUBLIC_TENANT, seconds=0.02))
    second = system.ask(body((4, 2)))
    assert (await first).startswith("HTTP/1.1 504 ")
    assert not second.done()
    system.model.gate.set()
    assert '"data":[42]' in await second
    assert not len(system.responder.deadlines)
    assert system.counted("foreseen_rows_total", model="m", result="error") == 1


async def test_a_bodys_own_timeout_is_kept_and_such_requests_share_nothing() -> None:
    """`timeout` of a body counts from each request's own beginning."""
    system = System()
    asked = body((4, 2), parameters='{"timeout":20000}')
    await system.known(asked)
    system.far.values.clear()
    system.model.gate.clear()
    told = [system.ask(asked) for _ in range(3)]
    assert all(reply.startswith("HTTP/1.1 504 ") for reply in await asyncio.gather(*told))
    system.model.gate.set()
    await system.pipeline.close(5)


async def test_a_request_from_before_a_purge_is_not_joined() -> None:
    """Purged while it is being looked up: it gets its answer, one that comes after asks anew."""
    system = System()
    await system.known(body((4, 2)))
    system.far.values.clear()
    system.model.gate.clear()
    before = system.ask(body((4, 2)))
    await asyncio.wait_for(system.model.entered.wait(), 5)
    await system.pipeline.forget(dict.fromkeys(system.pipeline.flights._in_flight, time.time()))
    after = system.ask(body((4, 2)))
    system.model.gate.set()
    await asyncio.gather(before, after)
    assert system.model.calls == [1, 1, 1]


async def test_another_digest_takes_nothing_of_the_old_one() -> None:
    """The model comes back as another: known rows are keyed in its space, and asked anew."""
    system = System(near_bytes=100_000)
    await system.known(body((4, 2)))
    assert status(await system.ask(body((4, 2)))).endswith("detail=near")
    system.model.digest = "d2"
    assert status(await system.ask(body((4, 2)))) == "foreseen;fwd=miss;stored"
    system.model.digest = DIGEST
    assert status(await system.ask(body((4, 2)))).endswith("detail=near")


async def test_a_digest_that_moves_while_it_is_asked_is_asked_again() -> None:
    """The flight ends with the new digest; the request starts anew and is answered by the new model."""
    system = System()
    await system.known(body((4, 2)))
    system.far.values.clear()
    moved = [DigestMoved("d2")]
    answer = system.model.predict

    async def once(*asked: Any) -> Any:
        if moved:
            system.model.digest = "d2"
            raise moved.pop()
        return await answer(*asked)

    system.model.predict = once  # type: ignore[method-assign]
    told = await asyncio.gather(*(system.ask(body((4, 2), own=f"n{n}")) for n in range(3)))
    assert all('"data":[42]' in reply for reply in told)


async def test_another_preparation_is_asked_anew() -> None:
    """Rows are good for the preparation that made them."""
    system = System()
    await system.known(body((4, 2)))
    entry = next(iter(system.cache.memory.bodies.values()))
    system.served.own = Preparer(system.served.manifest, {})
    assert '"data":[42]' in await system.ask(body((4, 2)))
    assert next(iter(system.cache.memory.bodies.values())) is not entry


@pytest.mark.parametrize("near_bytes", [0, 100_000])
async def test_known_and_unknown_bodies_are_answered_alike(near_bytes: int) -> None:
    """Single rows, batches and rows that repeat within one, again and again: the same numbers every time."""
    system = System(near_bytes=near_bytes)
    asked = [body((n, 1)) for n in range(5)] + [body(*((n, 1) for n in range(5))), body((1, 1), (2, 1), (1, 1))]
    wanted = [[10 * n + 1] for n in range(5)] + [[10 * n + 1 for n in range(5)], [11, 21, 11]]
    for _ in range(6):
        for one, numbers in zip(asked, wanted, strict=True):
            assert f'"data":[{",".join(map(str, numbers))}]' in await system.ask(one)
    assert system.model.rows == 5


async def test_the_timer_of_deadlines_goes_with_the_last_request() -> None:
    """One timer for all; none is left where no request waits."""
    system = System()
    await system.known(body((4, 2)))
    assert not len(system.responder.deadlines)
    system.responder.deadlines.sweep()
    assert system.responder.deadlines._timer is None


def read_by_aiohttp(system: System, asked: bytes) -> asyncio.Task[Reply]:
    deadline = asyncio.get_running_loop().time() + 20
    return asyncio.create_task(system.responder.answer(ASK, asked, time.perf_counter(), deadline))


async def test_a_request_that_aiohttp_reads_and_a_fast_one_wait_for_one_flight() -> None:
    """Of a known body, in either order: one look-up, one model row, each has its reply."""
    for first_by_aiohttp in (True, False):
        system = System()
        await system.known(body((4, 2)))
        system.far.values.clear()
        system.model.gate.clear()
        looked = len(system.far.gets)
        if first_by_aiohttp:
            slow = read_by_aiohttp(system, body((4, 2)))
            await asyncio.wait_for(system.model.entered.wait(), 5)
        fast = system.ask(body((4, 2)))
        if not first_by_aiohttp:
            slow = read_by_aiohttp(system, body((4, 2)))
        await asyncio.sleep(0)
        system.model.gate.set()
        assert '"data":[42]' in await asyncio.wait_for(fast, 5)
        assert b'"data":[42]' in (await asyncio.wait_for(slow, 5)).body
        assert len(system.far.gets) == looked + 1
        assert system.model.rows == 2


async def test_a_cached_reply_goes_to_requests_that_aiohttp_reads_too() -> None:
    """The same status, headers and body as the fast path, each with its id, and counted alike."""
    system = System(near_bytes=100_000)
    await system.known(body((4, 2), own="first"))
    fast = await system.ask(body((4, 2), own="mine"))
    reply = await read_by_aiohttp(system, body((4, 2), own="mine"))
    assert text_of(reply) == fast
    assert "Server-Timing: shortcut\r\n" in fast
    assert '"id":"mine"' in fast
    assert system.counted("foreseen_requests_total", model="m", protocol="v2", code="200") == 5
    no_cache = RequestHead("m", None, "v2", PUBLIC_TENANT, seconds=20, control=control_of("no-cache"))
    deadline = asyncio.get_running_loop().time() + 20
    asked = await system.responder.answer(no_cache, body((4, 2), own="mine"), time.perf_counter(), deadline)
    assert status(text_of(asked)) == "foreseen;fwd=request"


@pytest.mark.parametrize("own", ["ü", "a b", 'a\\"b', "x" * 129, ""])
async def test_an_id_that_cannot_be_cut_out_is_in_every_reply(own: str) -> None:
    """Computed, from near, and from the answer cache, which keeps such a body id and all."""
    system = System(near_bytes=100_000)
    replies = [await system.ask(body((4, 2), own=own)) for _ in range(5)]
    assert "Server-Timing: shortcut\r\n" in replies[-1]
    assert len({reply.split("\r\n\r\n")[1] for reply in replies}) == 1
    assert (f'"id":"{own}"' in replies[0]) == bool(own)


async def test_a_moved_preparation_does_not_mix_up_ids() -> None:
    """Known bodies whose digest and preparation move while they wait: prepared anew, each answered with its own id."""
    system = System()
    await system.known(body((4, 2), own="first"))
    system.far.values.clear()
    moved, answer = [DigestMoved("d2")], system.model.predict

    async def once(*asked: Any) -> Any:
        if moved:
            system.model.digest, system.served.own = "d2", Preparer(system.served.manifest, {})
            raise moved.pop()
        return await answer(*asked)

    system.model.predict = once  # type: ignore[method-assign]
    replies = await asyncio.gather(*(system.ask(body((4, 2), own=f"n{n}")) for n in range(3)))
    assert [f'"id":"n{n}"' in reply and '"data":[42]' in reply for n, reply in enumerate(replies)] == [True] * 3


async def test_a_background_request_is_never_answered_as_an_online_hit() -> None:
    """Its rows are counted apart each time; what is answered from the answer cache counts as online."""
    system = System(near_bytes=100_000)
    asked = body((4, 2), parameters='{"priority":2}')
    replies = [await system.ask(asked) for _ in range(5)]
    assert all("Server-Timing: shortcut\r\n" not in reply for reply in replies)
    assert system.counted("foreseen_background_rows_total", model="m", result="near") == 4


async def test_another_version_of_a_known_body_is_refused() -> None:
    """A cached reply is for a model and version that are served."""
    system = System(near_bytes=100_000)
    await system.known(body((4, 2)))
    assert (await system.ask(body((4, 2)), RequestHead("m", "9", "v2", PUBLIC_TENANT))).startswith("HTTP/1.1 404 ")
    assert (await system.ask(body((4, 2)), RequestHead("m", "1", "v2", PUBLIC_TENANT))).startswith("HTTP/1.1 200 ")
