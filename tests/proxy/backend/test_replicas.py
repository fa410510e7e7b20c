"""Several addresses of one V2 server, over HTTP and gRPC: the work is shared, a failed one is left out and probed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import aiohttp.web
import pytest

from foreseen.errors import SetupError
from foreseen.keys.secret import make_secret
from foreseen.proxy.assembly import Proxy
from foreseen.proxy.backend.discovery import upstream_of
from foreseen.proxy.backend.replicas.replicated import ReplicatedProcess
from foreseen.proxy.from_settings import freshness_of
from foreseen.settings import ProxySettings
from tests.foreign import Foreign, Front, listening
from tests.grpc_upstream import GrpcForeign, grpc_listening
from tests.ports import free_port
from tests.questions import fingerprint, numbers


@contextlib.asynccontextmanager
async def behind(data: Path, *addresses: str) -> AsyncIterator[Front]:
    """A proxy without a far tier in front of replicas, once its rows are keyed one by one."""
    make_secret(data / "secret")
    settings = ProxySettings(data=data, upstream=addresses, redis="none")
    proxy = Proxy(settings, await upstream_of(settings, freshness_of(settings)))
    async with proxy.running(), listening(proxy.application) as url, aiohttp.ClientSession() as client:
        front = Front(proxy, client, url)
        await front.until(lambda said: said.get("rows") == "each")
        yield front


def process_of(front: Front) -> ReplicatedProcess:
    process = front.proxy.served["fp"].process
    assert isinstance(process, ReplicatedProcess)
    return process


async def left_out(front: Front, *wanted: str) -> None:
    """Wait until just these are left out."""
    async with asyncio.timeout(20):
        while process_of(front).left_out != list(wanted):  # noqa: ASYNC110 - it is looked at, not signalled
            await asyncio.sleep(0.01)


async def test_the_one_with_the_fewest_requests_under_way_is_asked(tmp_path: Path) -> None:
    """While one holds a request, the other gets the next; each row is computed once, by either."""
    one, two = Foreign(), Foreign()
    async with (
        listening(one.application()) as first,
        listening(two.application()) as second,
        behind(tmp_path, first, second) as front,
    ):
        held = one.hold()
        waiting = asyncio.create_task(front.infer(numbers(1)))
        await held.until(1)
        assert (await front.infer(numbers(2)))[2] == [fingerprint(numbers(2))]
        assert two.rows_like(numbers(2)) == 1
        held.released.set()
        assert (await waiting)[2] == [fingerprint(numbers(1))]
        assert [one.rows_like(numbers(at)) + two.rows_like(numbers(at)) for at in (1, 2)] == [1, 1]


async def test_one_that_is_gone_costs_no_error_and_comes_back(tmp_path: Path) -> None:
    """Its request goes to the other at once; when it listens again it is asked again."""
    one, two = Foreign(), Foreign()
    async with contextlib.AsyncExitStack() as server, listening(two.application()) as second:
        first = await server.enter_async_context(listening(one.application()))
        async with behind(tmp_path, first, second) as front:
            await server.aclose()
            for at in range(5):
                assert (await front.infer(numbers(at)))[2] == [fingerprint(numbers(at))]
            await left_out(front, first)
            port = int(first.rpartition(":")[2])
            runner = aiohttp.web.AppRunner(one.application())
            await runner.setup()
            await aiohttp.web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
            await left_out(front)
            await runner.cleanup()


async def test_one_that_is_not_ready_or_has_another_version_is_left_out(tmp_path: Path) -> None:
    """Its answers would be another model's."""
    one, two = Foreign(), Foreign()
    async with (
        listening(one.application()) as first,
        listening(two.application()) as second,
        behind(tmp_path, first, second) as front,
    ):
        two.ready = False
        await left_out(front, second)
        two.ready = True
        await left_out(front)
        two.metadata = {**two.metadata, "versions": ["2"]}
        await left_out(front, second)
        assert (await front.infer(numbers(9)))[2] == [fingerprint(numbers(9))]
        assert two.rows_like(numbers(9)) == 0


async def test_the_first_address_may_be_down_at_the_start(tmp_path: Path) -> None:
    """The models are found at the next one."""
    two = Foreign()
    gone = f"http://127.0.0.1:{free_port()}"
    async with listening(two.application()) as second, behind(tmp_path, gone, second) as front:
        assert (await front.infer(numbers(3)))[2] == [fingerprint(numbers(3))]
        assert process_of(front).left_out == [gone]


async def test_replicas_over_grpc(tmp_path: Path) -> None:
    """The same over gRPC: one is ended, and no caller sees it."""
    one, two = GrpcForeign(), GrpcForeign()
    async with contextlib.AsyncExitStack() as server, grpc_listening(two) as second:
        first = await server.enter_async_context(grpc_listening(one))
        async with behind(tmp_path, first, second) as front:
            await front.infer(*(numbers(at) for at in range(4)))
            assert [one.rows_like(numbers(at)) + two.rows_like(numbers(at)) for at in range(4)] == [1] * 4
            await server.aclose()
            for at in range(10, 14):
                assert (await front.infer(numbers(at)))[2] == [fingerprint(numbers(at))]
            await left_out(front, first)


async def test_replicas_speak_one_protocol(tmp_path: Path) -> None:
    """A mixture is a mistake in the settings."""
    addresses = ("http://127.0.0.1:1", "grpc://127.0.0.1:2")
    settings = ProxySettings(data=tmp_path, upstream=addresses, redis="none")
    with pytest.raises(SetupError, match="one protocol"):
        await upstream_of(settings, freshness_of(settings))
