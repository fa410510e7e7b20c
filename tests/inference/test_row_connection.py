"""Rows that the proxy asks for one by one get from the model process what any other request for them gets."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web

from foreseen.inference.batching.queued import BatchOrder
from foreseen.inference.handlers import ModelRoutes
from foreseen.inference.row_connection import RowConnection
from foreseen.inference.row_requests import MAX_FORMS, RowAsked, RowRequests
from foreseen.inference.served import LoadedModel
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.wire import parse_request
from foreseen.proxy.backend.row_templates import RowTemplates
from foreseen.settings import InferenceSettings
from foreseen.types import RequestOptions, Row
from foreseen.web.runner import AppRunner
from tests import inference_fixture as tiny
from tests.inference.test_app import until


class Process:
    """A model process on this event loop, and how many requests were read without aiohttp."""

    def __init__(self, runner: AppRunner, served: LoadedModel, routes: ModelRoutes) -> None:
        self.runner, self.served, self.routes, self.recognised = runner, served, routes, 0
        self.lines: list[Line] = []
        read = routes._rows.read

        def counted(data: bytes, now: float) -> RowAsked | None:
            found = read(data, now)
            self.recognised += found is not None
            return found

        routes._rows.read = counted  # type: ignore[method-assign]

    async def connect(self) -> Line:
        (host, port), *_ = self.runner.addresses
        self.lines.append(Line(*await asyncio.open_connection(host, port)))
        return self.lines[-1]

    def counts(self) -> list[str]:
        """What is counted, but for durations."""
        lines = self.served.metrics.exposition().decode().splitlines()
        return [line for line in lines if line[0] != "#" and not re.search("seconds|_created", line)]


class Line:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(request)
        return await self.reply()

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers["Content-Length"]))
        return int(first.split()[1]), headers, body


@asynccontextmanager
async def listening(settings: InferenceSettings) -> AsyncIterator[Process]:
    served = LoadedModel(settings)
    routes = ModelRoutes(served, settings)
    runner = AppRunner(
        routes.application(), lambda manager, **options: RowConnection(manager, routes, **options),
        handler_cancellation=True,
    )  # fmt: skip
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await served.open()
    process = Process(runner, served, routes)
    try:
        yield process
    finally:
        for line in process.lines:
            line.writer.close()
        await runner.cleanup()
        await served.close()


@pytest.fixture
async def words(tmp_path: Path) -> AsyncIterator[Process]:
    async with listening(tiny.publish(tmp_path, tiny.WORDS, tiny.words())) as process:
        yield process


def body_of(manifest: Manifest, row: Row, number: int, timeout: int = 9_000_000, **more: Any) -> tuple[bytes, int]:
    options = RequestOptions(1e9, **more)
    own = {"priority": 1 if options.lane == "online" else 2}
    own |= {"caller": options.caller, "weight": options.weight} if options.caller else {}
    template = RowTemplates(manifest.model).of(row, options, own)
    assert template is not None
    return template.request(row, b"ab-%x" % number, timeout)


def request(name: str, body: bytes, length: int, more: str = "") -> bytes:
    """As the proxy's `model_client.py` writes it; with `more` headers it is any request."""
    return (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: model\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {length}\r\n{more}\r\n"
    ).encode() + body


def ids(*tokens: int) -> Row:
    return Row((np.array(tokens, np.int64),))


def without_seconds(status: int, headers: dict[str, str], body: bytes) -> tuple[int, list[str], object, bytes]:
    """A reply without what is different of any two."""
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    document = orjson.loads(body[:length])
    document.get("parameters", {}).pop("seconds", None)
    return status, [name for name in headers if name != "Retry-After"], document, body[length:]


async def test_a_recognised_row_gets_what_any_other_request_gets(words: Process) -> None:
    """Of each length the first is read in full; later ones by their form: the same headers, JSON and data, and counted
    alike."""
    manifest, line, other = words.served.manifest, await words.connect(), await words.connect()
    for number in range(40):
        row = ids(*range(number, number + 1 + number % 5))
        body, length = body_of(manifest, row, number, 1_000_000 + number)
        one = await line.ask(request("words", body, length))
        two = await other.ask(request("words", body, length, "X-Other: 1\r\n"))
        assert one[0] == 200, one
        assert without_seconds(*one) == without_seconds(*two)
    assert words.recognised == 35
    counts = words.counts()
    assert 'foreseen_model_requests_total{code="200",model="words"} 80.0' in counts
    assert words.routes._stats.document(manifest, 0)["model_stats"][0]["inference_count"] == 80


async def test_a_changed_request_is_answered_alike(words: Process) -> None:
    """Bytes of JSON and data replaced, among them of the mask, the timeout and the id: the same status and reply."""
    manifest, dice = words.served.manifest, random.Random(5)
    line, other = await words.connect(), await words.connect()
    for number in range(4):
        body, length = body_of(manifest, ids(*range(1 + number)), number)
        await line.ask(request("words", body, length))
    statuses = set()
    for number in range(1500):
        whole, length = body_of(manifest, ids(*range(number % 4 + 1)), number, 10 ** dice.randint(6, 9))
        body = bytearray(whole)
        for _ in range(dice.randint(0, 2)):
            body[dice.randrange(len(body))] = dice.choice(b'0123456789.eE+-"{}[],: abdt\x00\x01\xff')
        asked = bytes(body)
        one = await line.ask(request("words", asked, length))
        two = await other.ask(request("words", asked, length, "X-Other: 1\r\n"))
        if 504 not in (one[0], two[0]):  # a timeout passes by the clock
            assert without_seconds(*one) == without_seconds(*two), asked
        statuses.add(one[0])
    assert {200, 400} <= statuses
    assert words.recognised > 500


async def test_a_mask_with_a_hole_or_of_zeros_is_refused(words: Process) -> None:
    """Also by a form whose row had one of ones."""
    manifest, line = words.served.manifest, await words.connect()
    body, length = body_of(manifest, ids(1, 2, 3), 1)
    assert (await line.ask(request("words", body, length)))[0] == 200
    for mask in ([1, 0, 1], [0, 0, 0], [2, 1, 1]):
        changed = body[:-24] + np.array(mask, np.int64).tobytes()
        assert (await line.ask(request("words", changed, length)))[0] == 400
    trimmed = body[:-24] + np.array([1, 1, 0], np.int64).tobytes()
    status, _, reply = await line.ask(request("words", trimmed, length))
    assert (status, b'"shape":[1,2]' in reply or b'"shape":[1,3]' in reply) == (200, True)
    assert words.recognised == 0


async def test_requests_in_pieces_pipelined_and_by_turns_with_aiohttp(words: Process) -> None:
    """One connection: a recognised one, a GET, one in two pieces, two in one piece, one while another is under way."""
    manifest, line = words.served.manifest, await words.connect()
    asked = [request("words", *body_of(manifest, ids(1, 2, n), n)) for n in range(8)]
    first = await line.ask(asked[0])
    assert (await line.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: model\r\n\r\n"))[0] == 200
    replies = [first, await line.ask(asked[1])]
    line.writer.write(asked[2][:300])
    await line.writer.drain()
    await asyncio.sleep(0.01)
    replies.append(await line.ask(asked[2][300:]))
    before = words.recognised
    line.writer.write(asked[3])
    await until(lambda: words.recognised > before)
    line.writer.write(asked[4])
    line.writer.write(asked[5])
    replies += [await line.reply() for _ in range(3)]
    line.writer.write(asked[6] + asked[7])
    replies += [await line.reply(), await line.reply()]
    said = [re.search(rb'"id":"ab-(\w+)"', body) for _, _, body in replies]
    assert [one and int(one[1]) for one in said] == [*range(8)]


Asking = Callable[..., bytes]
"""A recognised request of this number."""


@asynccontextmanager
async def busy(tmp_path: Path, **more: object) -> AsyncIterator[tuple[Process, Asking]]:
    """A process that knows the form of its requests, and whose one instance is held up by a run that only the watchdog
    ends."""
    settings = tiny.publish(tmp_path, tiny.COUNTED, tiny.counted(), run_seconds=0.4, **more)
    async with listening(settings) as process:
        manifest, line = process.served.manifest, await process.connect()

        def asking(number: int, value: int = 5, **more: Any) -> bytes:
            return request("counted", *body_of(manifest, Row((np.array([value], np.int64),)), number, **more))

        assert (await line.ask(asking(1)))[0] == 200
        line.writer.write(asking(2, 2**62))
        await until(lambda: process.served.batcher.running == 1)
        yield process, asking
        status, _, body = await line.reply()
        assert (status, orjson.loads(body)["code"]) == (502, "model_failed")


async def test_errors_have_status_code_and_counts(tmp_path: Path) -> None:
    """A deadline that passes in the queue is 504, a full queue 503 with Retry-After; the connection goes on."""
    async with busy(tmp_path, queue_rows=1) as (process, asking):
        line, waiting = await process.connect(), await process.connect()
        status, _, body = await line.ask(asking(3, timeout=10_000))
        assert (status, orjson.loads(body)["code"]) == (504, "deadline_exceeded")
        waiting.writer.write(asking(4))
        await until(lambda: process.served.batcher.waiting == 1)
        status, headers, body = await line.ask(asking(5))
        assert (status, orjson.loads(body)["code"], headers["Retry-After"]) == (503, "overloaded", "1")
        assert (await waiting.reply())[0] == 200
        assert (await line.ask(asking(6)))[0] == 200
    assert process.recognised == 5
    counts = process.counts()
    for status, count in ((200, 3.0), (502, 1.0), (503, 1.0), (504, 1.0)):
        assert f'foreseen_model_requests_total{{code="{status}",model="counted"}} {count}' in counts


async def test_a_proxy_that_hangs_up_gives_its_place_back(tmp_path: Path) -> None:
    """What nobody waits for any more never runs."""
    async with busy(tmp_path) as (process, asking):
        leaving = await process.connect()
        leaving.writer.write(asking(3))
        await until(lambda: process.served.batcher.waiting == 1)
        leaving.writer.close()
        await until(lambda: process.served.batcher.waiting == 0)
    assert process.served.runs == 2


async def test_lanes_and_callers_are_those_of_the_request(tmp_path: Path) -> None:
    """Background rows wait for online rows that came later, also by their forms."""
    async with busy(tmp_path, max_rows=1) as (process, asking):
        lines = [await process.connect() for _ in range(3)]
        order: list[str] = []

        async def ask(line: Line, lane: str) -> None:
            assert (await line.ask(asking(9, lane=lane)))[0] == 200
            order.append(lane)

        tasks = [asyncio.ensure_future(ask(lines[0], "background"))]
        await until(lambda: process.served.batcher.waiting == 1)
        tasks += [asyncio.ensure_future(ask(line, "online")) for line in lines[1:]]
        await asyncio.gather(*tasks)
        assert order == ["online", "online", "background"]
        orders = [form.order for form in process.routes._rows._forms.values()]
        assert [one.lane for one in orders] == ["online", "background"]


async def test_a_process_that_drains_says_so(tmp_path: Path) -> None:
    """The request under way is answered with `Connection: close`, also where cleanup has begun."""
    async with busy(tmp_path) as (process, asking):
        line = await process.connect()
        line.writer.write(asking(3))
        await until(lambda: process.served.batcher.waiting == 1)
        process.runner.announce_close()
        status, headers, _ = await line.reply()
        assert (status, headers["Connection"]) == (200, "close")
        assert await line.reader.read() == b""
        again = await process.connect()
        status, headers, _ = await again.ask(asking(4))
        assert (status, headers["Connection"]) == (200, "close")


async def test_cleanup_waits_for_a_row_under_way(tmp_path: Path) -> None:
    """`shutdown` of a connection ends when its row is answered."""
    async with busy(tmp_path) as (process, asking):
        line = await process.connect()
        line.writer.write(asking(3))
        await until(lambda: process.served.batcher.waiting == 1)
        connections = [one for one in process.runner.server.connections if one._pending is not None]  # type: ignore[union-attr, attr-defined]
        assert not any(one.between_requests for one in connections)  # type: ignore[attr-defined]
        ending = asyncio.gather(*(one.shutdown(5) for one in connections[1:]))
        assert (await line.reply())[0] == 200
        await ending


def test_forms_are_bounded_and_need_a_request_of_one_plain_row(tmp_path: Path) -> None:
    """What was asked otherwise is not kept."""
    settings = tiny.publish(tmp_path, tiny.WORDS, tiny.words())
    manifest = LoadedModel(settings).manifest
    requests, order = RowRequests(manifest), BatchOrder(1.0)
    for number in range(1, MAX_FORMS + 2):
        body, length = body_of(manifest, ids(*range(number)), 1)
        requests.learn(body, length, parse_request(body, length), order)
    assert len(requests._forms) == 1
    requests._forms.clear()
    body, length = body_of(manifest, ids(1, 2), 1)
    for changed in (
        body.replace(b'"binary_data_output":true', b'"binary_data_output":null'),
        body.replace(b'"binary_data_output":true', b'"binary_data_outpux":true'),
        body.replace(b"{", b" {", 1),
        body.replace(b'"id":"ab-1"', b'"id":"ab:1"'),
        body.replace(b'"id":"ab-1"', b'"ie":"ab-1"'),
    ):
        at = length + len(changed) - len(body)
        requests.learn(changed, at, parse_request(changed, at), order)
        assert not requests._forms, changed
    requests.learn(body, length, parse_request(body, length), order)
    assert len(requests._forms) == 1
