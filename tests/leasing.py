"""One cold row, asked by everybody at once of several proxies on one Redis, while whoever computes it is killed.

    python -m tests.leasing --requests 10000 --workers 4 --proxies 2

Each proxy is a `foreseen up` of its own; they share a Redis, the root secret and a model behind `--upstream`, which
holds its answer back until it is told. The worker that has asked it is killed with SIGKILL, and when another one has
asked, the answer comes. Ends with status 1 where the model computed more than two rows, where a request failed that was
not on a connection of the killed worker, or where two answers differ.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from aiohttp import web

from foreseen.keys.secret import make_secret
from tests.foreign import Foreign, listening
from tests.live import Live, fresh
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stores.test_far import valkey_server

PATH = "/v2/models/fp/infer"
ROW = numbers(77)
PATIENCE_SECONDS = 60.0


class Slow(Foreign):
    """A model that holds its answers back. `askers` are the local ports of those who have asked for one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.askers: list[int] = []
        self.seconds: list[float] = []

    async def _infer(self, request: web.Request) -> web.Response:
        if "Inference-Header-Content-Length" not in request.headers:  # else a try whether it takes binary tensors
            assert request.transport is not None
            self.askers.append(request.transport.get_extra_info("peername")[1])
            self.seconds.append(time.monotonic())
            await self.gate.wait()
        return await super()._infer(request)


@dataclass
class Seen:
    """What became of all requests."""

    model_rows: int = 0
    answers: Counter[bytes] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    """By Cache-Status."""
    lost: int = 0
    """Requests on connections of the killed worker."""
    failed: Counter[str] = field(default_factory=Counter)
    """All others that got no answer."""
    takeover_seconds: float | None = None
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether every answer is the same and the oracle's."""
        (answer,) = self.answers if len(self.answers) == 1 else (b"",)
        return bool(answer) and orjson.loads(answer)["outputs"][0]["data"] == fingerprint(ROW)


@contextlib.contextmanager
def proxies(folder: Path, upstream: str, redis: Path, count: int, workers: int) -> Iterator[list[Live]]:
    """So many systems in front of one model."""
    secret = folder / "secret"
    make_secret(secret)
    flags = (
        f"--upstream={upstream}", "--no-upstream-probe", f"--redis=unix://{redis}", "--state=none",
        f"--secret-file={secret}", f"--workers={workers}",
    )  # fmt: skip
    with contextlib.ExitStack() as systems:
        yield [systems.enter_context(fresh(folder / f"data-{number}", *flags)) for number in range(count)]


async def stampede(live: list[Live], model: Slow, requests: int, *, kill: bool) -> Seen:
    """All requests at once, the leader killed when it has asked the model, the answer when another one has."""
    seen, began, sent = Seen(), time.monotonic(), asyncio.Semaphore(0)
    doomed: set[int] = set()
    ports = [live[number % len(live)].port for number in range(requests)]
    asking = [asyncio.create_task(_ask(port, seen, sent, doomed)) for port in ports]
    for _ in asking:
        await sent.acquire()
    await _until(lambda: len(model.askers) >= 1)
    if kill:
        (leader,) = [pid for one in live for pid in one.workers() if _holds(pid, model.askers[0], peer=False)]
        doomed |= _clients_of(leader)
        os.kill(leader, signal.SIGKILL)
        await _until(lambda: len(model.askers) >= 2)
        seen.takeover_seconds = model.seconds[1] - model.seconds[0]
    model.gate.set()
    await asyncio.gather(*asking)
    seen.seconds = time.monotonic() - began
    seen.model_rows = len(model.askers)  # each asks for one row
    return seen


async def _ask(port: int, seen: Seen, sent: asyncio.Semaphore, doomed: set[int]) -> None:
    body = orjson.dumps(ask_fingerprint(ROW))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    own = writer.get_extra_info("sockname")[1]
    try:
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        sent.release()
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        answer = await reader.readexactly(int(length[1]))
        if head.startswith("HTTP/1.1 200 "):
            seen.answers[answer] += 1
            status = re.search(r"cache-status: (.*?)\r\n", head, re.IGNORECASE)
            seen.results[re.sub(r"ttl=\d+", "ttl", status[1]) if status else "none"] += 1
        else:
            seen.failed[head[:12] + answer[:80].decode()] += 1
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        if own in doomed:
            seen.lost += 1
        else:
            seen.failed[type(error).__name__] += 1
    finally:
        writer.transport.abort()


def _connections() -> list[tuple[int, int, str]]:
    """Local port, remote port and inode of every TCP connection of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [(int(line[1].split(":")[1], 16), int(line[2].split(":")[1], 16), line[9]) for line in lines]


def _inodes(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def _holds(pid: int, port: int, *, peer: bool) -> bool:
    """Whether a process has a connection with this port at its own end, or at the other."""
    own = _inodes(pid)
    return any((remote if peer else local) == port and inode in own for local, remote, inode in _connections())


def _clients_of(pid: int) -> set[int]:
    """The ports of those who are connected to a process."""
    own = _inodes(pid)
    return {remote for _, remote, inode in _connections() if inode in own}


async def _until(done: object) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not get there"
        await asyncio.sleep(0.005)


async def run(folder: Path, requests: int, workers: int, count: int, *, kill: bool = True) -> tuple[Seen, float]:
    """A stampede on fresh systems, and how many rows they say were taken over."""
    model = Slow()
    async with listening(model.application()) as upstream:
        with contextlib.ExitStack() as running:
            redis, _ = running.enter_context(valkey_server(folder))
            starting = proxies(folder, upstream, redis, count, workers)
            live = await asyncio.to_thread(running.enter_context, starting)
            try:
                seen = await stampede(live, model, requests, kill=kill)
                rows = [
                    await asyncio.to_thread(one.metric, "foreseen_lease_rows_total", outcome="taken-over")
                    for one in live
                ]
            finally:
                await asyncio.to_thread(running.close)
    return seen, sum(rows)


def told(seen: Seen) -> str:
    """What was seen, for people."""
    takeover = "" if seen.takeover_seconds is None else f", the second {seen.takeover_seconds:.1f} s after the first"
    right = "all alike and right" if seen.right else "WRONG"
    lines = [
        f"model rows     {seen.model_rows}{takeover}",
        f"answered       {seen.answers.total()} in {seen.seconds:.1f} s, {right}",
        f"by result      {dict(seen.results)}",
        f"lost           {seen.lost}, on connections of the killed worker",
        f"failed         {seen.failed.total()} {dict(seen.failed) or ''}",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--proxies", type=int, default=2)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="foreseen-leasing-"))
    try:
        seen, _ = asyncio.run(run(folder, given.requests, given.workers, given.proxies))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(told(seen))
    return int(seen.model_rows > 2 or bool(seen.failed) or not seen.right)


if __name__ == "__main__":
    sys.exit(main())
