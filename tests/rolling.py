"""Rolling restarts and new builds of a model, under load: what clients notice of it, and whose answers they got.

    python -m tests.rolling --restarts 20 --builds 5

Clients of four kinds keep their connections: an aiohttp session, `http.client`, and raw connections that send as late
as they may before the server closes them, or at random. Every answer is proved by the fingerprint oracle; `seal` tells
which build made it. Ends with status 1 where a request failed, an answer was wrong, an old build answered once the new
one was in force everywhere, or Redis holds an entry of one build under the digest of another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from foreseen.errors import EntryError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import Framer, key_of, space_key, tag_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.manifest import find
from foreseen.paths import redis_socket, state_socket
from foreseen.stores.far import Far
from foreseen.stores.redis_urls import connect
from foreseen.stores.state import connect_state, generation_of
from foreseen.tenants.tenant import PUBLIC
from foreseen.types import Row, Space
from tests.live import Live, started
from tests.models_fixture import PACKAGED, built_data
from tests.questions import ask_fingerprint, fingerprint, numbers

PATH = "/v2/models/fingerprint/infer"
DRAIN_SECONDS = 3.0
LATE_SECONDS = 1.0
"""How long before its connection would be closed a late client sends."""
ALL_SECONDS = 180.0
KILLS = 3
REPEATED = 50
"""Seeds that are asked again and again, so that hits and replays are among the requests."""


@dataclass
class Seen:
    """What all clients have seen. A request is its start, its seed, and the seal of its answer."""

    answers: list[tuple[float, int, int]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    closed: int = 0
    """Answers with `Connection: close`."""
    hits: int = 0

    def told(self, began: float, seed: int, status: int, headers: dict[str, str], body: bytes) -> int | None:
        """Count an answer; its seal, None where there is none."""
        if status != 200:
            self.failures[f"status {status}: {body[:120]!r}"] += 1
            return None
        outputs = {one["name"]: one["data"] for one in json.loads(body)["outputs"]}
        (seal,) = outputs["seal"]
        self.wrong += outputs["digest"] != fingerprint(numbers(seed))
        self.answers.append((began, seed, seal))
        self.closed += headers.get("connection", "").lower() == "close"
        self.hits += "hit" in headers["cache-status"]
        return int(seal)


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.seen = Seen()
        self._port = port
        self._fresh = itertools.count(1_000)
        self._stopping = False
        self._random = random.Random(1)

    async def run(self, pooled: int = 3, late: int = 6, plain: int = 2) -> None:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._port}") as client:
            await asyncio.gather(
                *(self._pooled(client) for _ in range(pooled)),
                *(self._raw(late=number % 2 == 0) for number in range(late)),
                *(asyncio.to_thread(self._plain) for _ in range(plain)),
            )

    def stop(self) -> None:
        self._stopping = True

    def _seed(self) -> int:
        """A seed that was asked before, or a new one."""
        return self._random.randrange(REPEATED) if self._random.random() < 0.6 else next(self._fresh)

    async def _pooled(self, client: aiohttp.ClientSession) -> None:
        while not self._stopping:
            began, seed = time.monotonic(), self._seed()
            try:
                async with client.post(PATH, json=ask_fingerprint(numbers(seed))) as reply:
                    headers = {name.lower(): value for name, value in reply.headers.items()}
                    self.seen.told(began, seed, reply.status, headers, await reply.read())
            except aiohttp.ClientError as error:
                self.seen.failures[f"pooled: {type(error).__name__}"] += 1
            await asyncio.sleep(0.005)

    async def _raw(self, *, late: bool) -> None:
        """One connection after another. What a worker answers on one of them is never older than before."""
        while not self._stopping:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            last = 0
            try:
                while not self._stopping:
                    began, seed = time.monotonic(), self._seed()
                    writer.write(_request(seed))
                    status, headers, body = await _reply(reader)
                    seal = self.seen.told(began, seed, status, headers, body)
                    if seal is not None and seal < last:
                        self.seen.failures["a worker went back to an older build"] += 1
                    last = seal or last
                    if headers.get("connection", "").lower() == "close":
                        break
                    await asyncio.sleep(DRAIN_SECONDS - LATE_SECONDS if late else self._random.uniform(0, 1))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.seen.failures[f"raw, {'late' if late else 'soon'}: {type(error).__name__}"] += 1
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    def _plain(self) -> None:
        """The standard library's client, which opens a connection anew only where it was told that the last is over."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopping:
            began, seed = time.monotonic(), self._seed()
            try:
                client.request("POST", PATH, json.dumps(ask_fingerprint(numbers(seed))))
                reply = client.getresponse()
                headers = {name.lower(): value for name, value in reply.getheaders()}
                self.seen.told(began, seed, reply.status, headers, reply.read())
            except (OSError, http.client.HTTPException) as error:
                self.seen.failures[f"plain: {type(error).__name__}"] += 1
                client.close()
            time.sleep(self._random.uniform(0, 0.3))
        client.close()


def _request(seed: int) -> bytes:
    body = json.dumps(ask_fingerprint(numbers(seed))).encode()
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))


class Rolling:
    """One system under load. `seals` are the builds by the model digest that each had."""

    def __init__(self, live: Live, models: Path, load: Load) -> None:
        self.live = live
        self.load = load
        self.in_force: list[tuple[float, int]] = []
        """When a seal was known to be all workers' own."""
        self.seals: dict[str, int] = {}
        self.restart_seconds: list[float] = []
        self.build_seconds: list[float] = []
        self.kill_seconds: list[float] = []
        self._models = models

    async def restart(self) -> None:
        """SIGHUP, until every worker is another one."""
        began, before = time.monotonic(), set(self.live.workers())
        self.live.process.send_signal(signal.SIGHUP)
        await _until(lambda: len(self.live.workers()) == len(before) and not before & set(self.live.workers()))
        self.restart_seconds.append(time.monotonic() - began)

    async def build(self, seal: int) -> None:
        """Another build of the model, as somebody in another terminal makes it, until every worker answers with it."""
        seal_in(self._models, seal)
        before = await self._digests()
        command = ["models", "build", "fingerprint", f"--data={self.live.data}", f"--models={self._models}"]
        await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "foreseen.cli", *command], check=True,
                                stdout=subprocess.DEVNULL)  # fmt: skip
        began = time.monotonic()
        while len(now := await self._digests()) != 1 or now == before:
            assert time.monotonic() - began < ALL_SECONDS, "the new build is not in force"
        self.build_seconds.append(time.monotonic() - began)
        self.in_force.append((time.monotonic(), seal))
        self.seals[now.pop()] = seal

    async def edit(self, seal: int) -> None:
        """Another manifest, by which clients' rows are prepared otherwise, and SIGHUP: that builds it, too."""
        seal_in(self._models, seal, "single = true")
        before, began = await self._digests(), time.monotonic()
        self.live.process.send_signal(signal.SIGHUP)
        while len(now := await self._digests()) != 1 or now == before:
            assert time.monotonic() - began < ALL_SECONDS, "the new manifest is not in force"
        self.in_force.append((time.monotonic(), seal))
        self.seals[now.pop()] = seal

    async def know(self, seal: int) -> None:
        """The build that it was started with."""
        (digest,) = await self._digests()
        self.seals[digest] = seal

    async def _digests(self) -> set[str]:
        """What twenty connections, so all workers, say that the model's digest is."""
        told = await asyncio.to_thread(lambda: [self.live.get("/v2/models/fingerprint")[2] for _ in range(20)])
        return {json.loads(one)["parameters"]["digest"] for one in told}

    def kill(self) -> None:
        """SIGKILL to all workers at once; how long it takes until somebody who asks then has an answer."""
        for pid in self.live.workers():
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        assert self.live.post(PATH, ask_fingerprint(numbers(1)))[0] == 200
        self.kill_seconds.append(time.monotonic() - began)

    async def misfiled(self) -> int:
        """Entries in Redis that lie under another digest than that of the build which made them; how many lie there is
        asserted to be some."""
        root = read_secret(self.live.data / "secret")
        framer, codec = Framer(find("fingerprint", PACKAGED).model), EntryCodec(tag_key(root))
        far = Far(connect(f"unix://{redis_socket(self.live.data)}", 5.0))
        found = wrong = 0
        store = connect_state(f"unix://{state_socket(self.live.data)}")
        generations = await store.begun()
        await store.close()
        try:
            seeds = sorted({seed for _, seed, _ in self.load.seen.answers})
            frames = [framer.frame(Row((np.array(numbers(seed), np.int64),))) for seed in seeds]
            for digest, seal in self.seals.items():
                generation = generation_of(generations, PUBLIC, "fingerprint", digest)
                own = space_key(root, Space(PUBLIC, "fingerprint", digest, generation))
                keys = [key_of(own, frame) for frame in frames]
                for key, value in zip(keys, await far.get(keys), strict=True):
                    if isinstance(value, bytes):
                        found += 1
                        wrong += _seal_of(codec, key, digest, value) != seal
        finally:
            await far.close()
        assert found, "Redis holds nothing"
        return wrong

    def late_answers(self) -> int:
        """Answers of an older build to requests that began after a newer one was in force everywhere."""
        return sum(
            any(since <= began and seal < newer for since, newer in self.in_force)
            for began, _, seal in self.load.seen.answers
        )


def _seal_of(codec: EntryCodec, key: Any, digest: str, value: bytes) -> int | None:
    try:
        prediction = codec.unpack(key, digest, value)
    except EntryError:
        return None
    at = [output.name for output in prediction.outputs].index("seal")
    return int.from_bytes(prediction.data[at], "little", signed=True)


async def _until(done: Any) -> None:
    end = time.monotonic() + ALL_SECONDS
    while not await asyncio.to_thread(done):
        assert time.monotonic() < end, "it did not get there"
        await asyncio.sleep(0.02)


def seal_in(models: Path, seal: int, batching: str = "") -> None:
    """A manifest of fingerprint whose build carries this seal."""
    text = (PACKAGED[0] / "fingerprint" / "model.toml").read_text()
    text = text.replace("[batching]\n", f"[batching]\n{batching}\n")
    (models / "fingerprint").mkdir(parents=True, exist_ok=True)
    (models / "fingerprint" / "model.toml").write_text(text.replace("seal = 1", f"seal = {seal}"))


async def roll(live: Live, models: Path, plan: Iterable[str]) -> Rolling:
    """Load, and on it a plan of `restart`, `build` and `edit`."""
    load = Load(live.port)
    rolling, seals = Rolling(live, models, load), itertools.count(2)
    await rolling.know(1)
    asking = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(0.5)
        for step in plan:
            match step:
                case "restart":
                    await rolling.restart()
                case "build":
                    await rolling.build(next(seals))
                case "edit":
                    await rolling.edit(next(seals))
    finally:
        load.stop()
        await asking
    return rolling


def told(rolling: Rolling, misfiled: int) -> str:
    """What was seen, for people."""
    seen, restarts, builds = rolling.load.seen, rolling.restart_seconds, rolling.build_seconds
    lines = [
        f"restarts                 {len(restarts)}, each {_spread(restarts)}",
        f"builds                   {len(builds)}, in force everywhere after {_spread(builds)}",
        f"edits of the manifest    {len(rolling.in_force) - len(builds)}",
        f"requests                 {len(seen.answers)}, of them hits {seen.hits}, last of a connection {seen.closed}",
        f"failed                   {seen.failures.total()} {dict(seen.failures) or ''}",
        f"wrong                    {seen.wrong}",
        f"of an older build, late  {rolling.late_answers()}",
        f"misfiled in Redis        {misfiled}",
        f"all workers killed       {len(rolling.kill_seconds)} times, an answer after {_spread(rolling.kill_seconds)}",
    ]
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s" if seconds else "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    plan = ["restart"] * given.restarts
    for number in range(given.builds):
        plan.insert((number + 1) * (len(plan) + 1) // (given.builds + 1), "build")
    plan.append("edit")
    folder = Path(tempfile.mkdtemp(prefix="foreseen-rolling-"))
    seal_in(folder / "models", 1)
    flags = (f"--workers={given.workers}", f"--drain-seconds={DRAIN_SECONDS}", f"--models={folder / 'models'}")
    try:
        with started(built_data("fingerprint"), folder / "data", *flags, models=("fingerprint",)) as live:
            rolling = asyncio.run(roll(live, folder / "models", plan))
            misfiled = asyncio.run(rolling.misfiled())
            for _ in range(KILLS):
                rolling.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(told(rolling, misfiled))
    seen = rolling.load.seen
    return int(bool(seen.failures or seen.wrong or rolling.late_answers() or misfiled))


if __name__ == "__main__":
    sys.exit(main())
