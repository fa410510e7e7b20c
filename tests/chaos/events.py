"""What chaos does: one method for each kind of fault, which does it, holds it, and heals it.

A system of two workers, one model process and a state store, all by `foreseen up`; the far tier is a Valkey of ours
behind a fault proxy. Each method returns when its fault is over; `recovered` says when the system is as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from foreseen.paths import admin_socket
from foreseen.stores import valkey
from foreseen.stores.commands import PREFIX
from tests.chaos.load import Load
from tests.faults import FaultProxy, Faults
from tests.live import Live

LOOK_SECONDS = 0.02
HELD_SECONDS = (0.3, 1.2)
KILL_AGAIN_SECONDS = 61.0
"""A child that ends twice a minute is a crash loop to its supervisor, which slows it on purpose."""


class Kind(NamedTuple):
    """A fault: what is hit, how, and how to see that the system is as before."""

    name: str
    do: Callable[[float], Awaitable[None]]
    recovered: Callable[[], Awaitable[bool]]
    victim: str
    """far, network, state, model, worker. Kills of one victim keep a distance."""
    kills: bool = False


class Chaos:
    """The faults of one running system."""

    def __init__(self, live: Live, load: Load, proxy: FaultProxy, far: Path, seed: int) -> None:
        self.live, self.load, self.proxy = live, load, proxy
        self._far = far
        self._random = random.Random(seed)
        self._server = start_far(far)
        self._workers = len(live.workers())

    def kinds(self) -> list[Kind]:
        """All of them."""
        far = [self.far_killed, self.far_stopped, self.far_paused, self.far_emptied, self.far_full, self.far_read_only]
        far += [self.far_values_damaged, self.far_values_swapped]
        network = [self.network_late, self.network_narrow, self.network_cut, self.network_reset, self.network_down]
        network += [self.network_black, self.network_swaps, self.network_shifts, self.network_flips]
        return [
            *(Kind(one.__name__, one, self.far_serves, "far") for one in far),
            *(Kind(one.__name__, one, self.far_serves, "network") for one in network),
            Kind("state_killed", self.state_killed, self.state_serves, "state", kills=True),
            Kind("state_stopped", self.state_stopped, self.state_serves, "state"),
            Kind("model_killed", self.model_killed, self.model_serves, "model", kills=True),
            Kind("model_stopped", self.model_stopped, self.model_serves, "model"),
            Kind("worker_killed", self.worker_killed, self.workers_serve, "worker", kills=True),
            Kind("worker_stopped", self.worker_stopped, self.workers_serve, "worker"),
        ]

    def close(self) -> None:
        self._server.kill()
        self._server.wait()

    # far

    async def far_killed(self, seconds: float) -> None:
        self._server.kill()
        self._server.wait()
        await asyncio.sleep(seconds / 2)
        self._server = await asyncio.to_thread(start_far, self._far)

    async def far_stopped(self, seconds: float) -> None:
        self._server.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._server.send_signal(signal.SIGCONT)

    async def far_paused(self, seconds: float) -> None:
        self._tell("CLIENT", "PAUSE", int(1000 * seconds), "ALL")
        await asyncio.sleep(seconds)

    async def far_emptied(self, seconds: float) -> None:
        self._tell("FLUSHALL")

    async def far_full(self, seconds: float) -> None:
        self._tell("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self._tell("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(seconds)
        self._tell("CONFIG", "SET", "maxmemory", str(64 * 2**20))
        self._tell("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")

    async def far_read_only(self, seconds: float) -> None:
        self._tell("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(seconds)
        self._tell("REPLICAOF", "NO", "ONE")

    async def far_values_damaged(self, seconds: float) -> None:
        """A bit of every second value is flipped."""
        with self._redis() as redis:
            for number, key in enumerate(redis.scan_iter(PREFIX + b"*", 1000)):
                value = redis.get(key)
                if number % 2 and value:
                    at = self._random.randrange(len(value))
                    redis.setrange(key, at, bytes([value[at] ^ 1 << self._random.randrange(8)]))
        await asyncio.sleep(seconds)

    async def far_values_swapped(self, seconds: float) -> None:
        """Each value lies under another's key."""
        with self._redis() as redis:
            keys = list(redis.scan_iter(PREFIX + b"*", 1000))
            values = redis.mget(keys) if keys else []
            for key, value in zip(keys, values[1:] + values[:1], strict=True):
                if value:
                    redis.set(key, value, px=60_000)
        await asyncio.sleep(seconds)

    # the network between proxy and far

    async def network_late(self, seconds: float) -> None:
        await self._while(Faults(latency=0.02, jitter=0.05), seconds)

    async def network_narrow(self, seconds: float) -> None:
        await self._while(Faults(bytes_per_second=20_000, slice_bytes=500), seconds)

    async def network_cut(self, seconds: float) -> None:
        await self._while(Faults(cut_after=self._random.randrange(1, 5000)), seconds)

    async def network_reset(self, seconds: float) -> None:
        for _ in range(5):
            self.proxy.reset()
            await asyncio.sleep(seconds / 5)

    async def network_down(self, seconds: float) -> None:
        self.proxy.down()
        await asyncio.sleep(seconds)
        self.proxy.up()

    async def network_black(self, seconds: float) -> None:
        await self._while(Faults(black_hole=True), seconds)

    async def network_swaps(self, seconds: float) -> None:
        self.proxy.swap(20)
        await self._while(Faults(), seconds)

    async def network_shifts(self, seconds: float) -> None:
        self.proxy.shift(20)
        await self._while(Faults(), seconds)

    async def network_flips(self, seconds: float) -> None:
        await self._while(Faults(flip=0.002), seconds)

    async def _while(self, faults: Faults, seconds: float) -> None:
        self.proxy.faults = faults
        await asyncio.sleep(seconds)
        self.proxy.heal()

    # processes

    async def state_killed(self, seconds: float) -> None:
        self.live.signal("state", signal.SIGKILL)

    async def state_stopped(self, seconds: float) -> None:
        await self._stopped(self.live.children()["state"], seconds)

    async def model_killed(self, seconds: float) -> None:
        self.live.signal("model:fingerprint", signal.SIGKILL)

    async def model_stopped(self, seconds: float) -> None:
        await self._stopped(self.live.children()["model:fingerprint"], seconds)

    async def worker_killed(self, seconds: float) -> None:
        os.kill(self._random.choice(self.live.workers()), signal.SIGKILL)

    async def worker_stopped(self, seconds: float) -> None:
        await self._stopped(self._random.choice(self.live.workers()), seconds)

    async def _stopped(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    # recovered?

    async def far_serves(self) -> bool:
        """Every worker's breaker is closed."""
        return await asyncio.to_thread(self._metric, "foreseen_far_breaker_open") == 0

    async def state_serves(self) -> bool:
        """A purge is confirmed by as many workers as ever."""
        return await asyncio.to_thread(self._purges)

    async def model_serves(self) -> bool:
        """A row that nobody has asked is answered."""
        return (await self.load.new_row()).outcome == "ok"

    async def workers_serve(self) -> bool:
        """Twenty new connections, so all workers that there are, answer."""
        return all([(await self.load.new_row()).outcome == "ok" for _ in range(20)])

    async def whole(self) -> bool:
        """There are as many workers as ever, and each confirms a purge."""
        return len(self.live.workers()) == self._workers and await self.state_serves()

    def _metric(self, name: str) -> float:
        try:
            return self.live.metric(name)
        except OSError:
            return -1.0

    def _purges(self) -> bool:
        token = (self.live.data / "admin-token").read_text().strip()
        connection = http.client.HTTPConnection("admin")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(1)
        try:
            connection.sock.connect(str(admin_socket(self.live.data)))
            body = json.dumps({"model": "nobody", "timeout_seconds": 0.5, "even_if_unknown": True})
            connection.request("POST", "/admin/purge", body, {"Authorization": f"Bearer {token}"})
            reply = connection.getresponse()
            return reply.status == 200 and json.loads(reply.read())["workers"] >= self._workers
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _redis(self) -> Redis:
        return Redis(unix_socket_path=str(self._far), protocol=2, socket_timeout=10)

    def _tell(self, *words: object) -> None:
        with self._redis() as redis, contextlib.suppress(RedisError):
            redis.execute_command(*words)


def start_far(path: Path) -> subprocess.Popen[bytes]:
    """Valkey in the cache role, once it answers."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen(valkey.command(path, 64 * 2**20), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        try:
            with Redis(unix_socket_path=str(path), protocol=2) as redis:
                redis.ping()
            return process
        except (RedisError, OSError):
            assert time.monotonic() < deadline
            time.sleep(0.01)
