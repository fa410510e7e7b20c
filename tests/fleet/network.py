"""Pods as network namespaces on one bridge, services as TCP forwarders with readiness probes. Needs root and iproute2.

A pod has an address of its own, as on Kubernetes. A service opens each connection to one of its ready pods, and lets a
connection be when its pod is gone, as kube-proxy does. A lost pod's link is down: what is sent to it is never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

BRIDGE, GATEWAY, NETWORK = "fsnbr0", "10.77.0.254", "10.77.0"
PROBE_SECONDS, PROBE_FAILURES, PROBE_TIMEOUT_SECONDS = 2.0, 2, 2.0
"""As the chart's readiness probes."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """The network between the pods."""
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield
    finally:
        ip("link", "del", BRIDGE)


@dataclass
class Pod:
    """A process in a namespace."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    port: int = 0
    terminating: bool = False

    def lose(self) -> None:
        """Its host is gone: no packet comes back."""
        ip("link", "set", f"v{self.address.rpartition('.')[2]}", "down")
        self.terminating = False

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


class Pods:
    """Starts pods; all are removed in the end."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._pods: list[Pod] = []

    def start(
        self, name: str, number: int, words: Sequence[str], environment: Mapping[str, str] | None = None, port: int = 0
    ) -> Pod:
        space, link = f"fsn-{name}-{number}", f"v{number}"
        ip("netns", "add", space)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", link, "master", BRIDGE, "up")
        ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        with (self._log / f"{name}-{number}.log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", space, *words],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        pod = Pod(space, f"{NETWORK}.{number}", process, port)
        self._pods.append(pod)
        return pod

    def close(self) -> None:
        for pod in reversed(self._pods):
            pod.remove()


@dataclass
class Service:
    """Pods behind one address. `path` is asked of each to see whether it is ready."""

    port: int
    path: str
    pods: list[Pod] = field(default_factory=list)
    ready: dict[str, int] = field(default_factory=dict)
    """Failures in a row, by address, of pods that were ready."""
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    def endpoints(self) -> list[Pod]:
        return [
            pod
            for pod in self.pods
            if not pod.terminating and self.ready.get(pod.address, PROBE_FAILURES) < PROBE_FAILURES
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, GATEWAY, self.port)
        probing = asyncio.create_task(self._keep_probing())
        try:
            yield
        finally:
            probing.cancel()
            server.close()

    async def until_ready(self, pod: Pod, seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while pod not in self.endpoints():
                assert pod.process.poll() is None, f"{pod.name} ended"
                await self._probe(pod)
                await asyncio.sleep(0.05)

    async def delete(self, pod: Pod, seconds: float) -> float:
        """As `kubectl delete pod`: out of the endpoints, SIGTERM, SIGKILL after the grace period. How long it took."""
        began = asyncio.get_running_loop().time()
        pod.terminating = True
        pod.process.terminate()
        async with asyncio.timeout(seconds):
            await asyncio.to_thread(pod.process.wait)
        self.pods.remove(pod)
        return asyncio.get_running_loop().time() - began

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.gather(*(self._probe(pod) for pod in self.pods))
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self, pod: Pod) -> None:
        try:
            timeout, url = (
                aiohttp.ClientTimeout(total=PROBE_TIMEOUT_SECONDS),
                f"http://{pod.address}:{pod.port}{self.path}",
            )
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
                well = reply.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            well = False
        if well:
            self.ready[pod.address] = 0
        elif pod.address in self.ready:
            self.ready[pod.address] += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = self.endpoints()
        if not there:
            writer.close()
            return
        pod = there[next(self._turn) % len(there)]
        try:
            async with asyncio.timeout(3):
                pod_reader, pod_writer = await asyncio.open_connection(pod.address, pod.port)
        except (OSError, TimeoutError):
            writer.close()
            return
        await asyncio.gather(_pump(reader, pod_writer), _pump(pod_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
