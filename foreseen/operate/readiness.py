"""Readiness at the start: every model has answered its example through the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import aiohttp
import structlog

from foreseen.errors import SetupError
from foreseen.modelspec.made_up import example_request
from foreseen.modelspec.manifest import Manifest
from foreseen.operate.supervisor import Child
from foreseen.tenants.keyring import API_KEYS
from foreseen.web.http import BINARY, HEADER_LENGTH

log = structlog.get_logger()

READY_SECONDS = 120.0
UPSTREAM_SECONDS = 5.0
"""How long a start waits for the models of an upstream once the proxy answers."""
POLL_SECONDS = 0.1
READY_POLL_SECONDS = 1.0
"""Between two checks whether an upstream's models have become ready."""
REFUSALS = 3
"""After so many consecutive exits with an error before the first readiness, a child is given up."""


class Readiness:
    """Asks the proxy for real predictions. `children` gives the child processes whose names begin so."""

    def __init__(
        self,
        manifests: Sequence[Manifest],
        children: Callable[..., Iterable[Child]],
        credential: str = "",
        *,
        has_upstream: bool,
    ) -> None:
        """`manifests` are the models that run on this machine; the proxies know the `credential`."""
        self._headers = {API_KEYS[0]: credential} if credential else {}
        self._manifests = manifests
        self._children = children
        self._has_upstream = has_upstream

    async def until_predicting(self, url: str) -> bool:
        """Ask every model its example, through the proxy, until each has answered; whether all are ready. The models of
        an upstream have no example; the start waits for them a few seconds only, since they may become ready later.

        Where the manifest gives no example, one is made up, and any answer of the model will do: a refusal or a failure
        shows that it was asked.
        """
        late = asyncio.get_running_loop().call_later(READY_SECONDS, _say_late)
        try:
            async with _client(self._headers) as client:
                for manifest in self._manifests:
                    model = f"{url}/v2/models/{manifest.name}"
                    await self._until_ok(lambda model=model: client.get(f"{model}/ready"))  # type: ignore[misc]
                    body, length = example_request(manifest)
                    post = functools.partial(client.post, f"{model}/infer", data=body, headers=_binary(length))
                    await self._until_ok(post, _Answered(manifest))
                if not self._has_upstream:
                    await self._until_ok(lambda: client.get(f"{url}/v2/health/ready"))
                    return True
                return await self._upstream_ready(client, url)
        finally:
            late.cancel()

    async def _upstream_ready(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Whether the proxy is ready within a few seconds; otherwise the reason is logged."""
        await self._until_ok(lambda: client.get(f"{url}/v2/health/live"))
        try:
            async with asyncio.timeout(UPSTREAM_SECONDS):
                await self._until_ok(lambda: client.get(f"{url}/v2/health/ready"))
        except TimeoutError:
            async with client.get(f"{url}/v2/health/ready") as reply:
                log.error("not ready; starting without", url=url, why=(await reply.json()).get("error"))
            return False
        return True

    async def say_ready(self, url: str) -> None:
        """Wait until the system is ready, however long that takes."""
        async with _client({}) as client:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with client.get(f"{url}/v2/health/ready") as reply:
                        if reply.status == 200:
                            print(f"ready {url}", flush=True)
                            return
                await asyncio.sleep(READY_POLL_SECONDS)

    async def _until_ok(
        self,
        ask: Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]],
        is_answer: Callable[[int, bytes], bool] = lambda status, _: status == 200,
    ) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with ask() as reply:
                    if is_answer(reply.status, await reply.read()):
                        return
            failed = next((one for one in self._children("proxy:", "model:") if one.refusals >= REFUSALS), None)
            if failed is not None:
                raise SetupError(f"{failed.name} does not start; see its error above")
            await asyncio.sleep(POLL_SECONDS)


def _client(headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """A client of our own listener: whose certificate it has there does not matter."""
    return aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=False))


def _say_late() -> None:
    log.error("no prediction has succeeded yet; still waiting, see the log above", seconds=READY_SECONDS)


class _Answered:
    """Whether a reply shows that a model answers. Raises SetupError where it refuses the operator's own example."""

    def __init__(self, manifest: Manifest) -> None:
        self._name = manifest.name
        self._given = all(spec.name in manifest.example for spec in manifest.seen.inputs)

    def __call__(self, status: int, body: bytes) -> bool:
        if status == 200 or not self._given:
            return status in (200, 400, 422, 502)
        if status in (400, 422):
            why = body.decode(errors="replace")[:300]
            raise SetupError(f"model {self._name!r} refuses the [example] of its manifest: {why}")
        return False


def _binary(length: int) -> dict[str, str]:
    return {HEADER_LENGTH: str(length), "Content-Type": BINARY}
