"""A model is changed under load by `models handover`: what clients notice, beside a cold switch and a rollback.

    python -m tests.handover --model minilm --seconds 60

Clients ask single rows by a Zipf trace. Ends with status 1 where a request failed, an answer was neither the old nor
the new model's, an old answer came to a request that began after the new model was in force everywhere, or the hit
ratio of the window after the switch or the rollback is below 0.95 of the window before. p99 of hits is shown beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import aiohttp
import numpy as np
from msgspec import Struct

from foreseen.models.build.build import build_candidate
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.artifact import Record, keep_record, read_record, write_record
from foreseen.modelspec.manifest import find
from tests.live import Live, fresh, given
from tests.models_fixture import PACKAGED, built_data
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.rolling import seal_in

ROWS, EXPONENT = 4_000, 1.1
HOTTEST = 3_000
LEAST_RATIO = 0.95
KEPT_BYTES = 64 * 2**20
ALL_SECONDS = 120.0
CLIENTS, PAUSE_SECONDS = 4, 0.004


class Asked(Struct, frozen=True):
    """One request: when it began, its row, how long it took, whether it was a hit, and its answer's checksum."""

    began: float
    row: int
    seconds: float
    hit: bool
    answer: int


class Figures(Struct, frozen=True):
    """What clients saw in a window."""

    requests: int
    hits: float
    p99_ms: float
    """Of hits."""


class Trace(Struct, frozen=True):
    """How the rows of a model are asked for and written into a file."""

    model: str
    ask: Callable[[int], dict[str, Any]]
    line: Callable[[int], dict[str, Any]]


def trace_of(model: str) -> Trace:
    if model == "fingerprint":
        return Trace(model, lambda row: ask_fingerprint(numbers(row)), lambda row: {"x": numbers(row)})
    text: Callable[[int], str] = lambda row: f"The row number {row} of a trace says little more than that."  # noqa: E731
    return Trace(model, lambda row: ask_minilm(text(row)), lambda row: {"text": text(row)})


class ZipfLoad:
    """Clients that ask until they are stopped."""

    def __init__(self, url: str, trace: Trace, seed: int = 1) -> None:
        self.asked: list[Asked] = []
        self.failures: list[str] = []
        self._url, self._trace = url, trace
        shares = np.arange(1, ROWS + 1, dtype=np.float64) ** -EXPONENT
        self._steps = np.cumsum(shares / shares.sum())
        self._dice = np.random.default_rng(seed)
        self._stopping = False

    async def run(self) -> None:
        async with aiohttp.ClientSession(self._url) as client:
            await asyncio.gather(*(self._ask_on(client) for _ in range(CLIENTS)))

    def stop(self) -> None:
        self._stopping = True

    async def _ask_on(self, client: aiohttp.ClientSession) -> None:
        while not self._stopping:
            row = min(int(np.searchsorted(self._steps, self._dice.random())), ROWS - 1)
            began = time.monotonic()
            try:
                async with client.post(f"/v2/models/{self._trace.model}/infer", json=self._trace.ask(row)) as reply:
                    body, status = await reply.read(), reply.headers.get("Cache-Status", "")
                if reply.status == 200:
                    seconds = time.monotonic() - began
                    self.asked.append(Asked(began, row, seconds, ";hit" in status, answer_of(body)))
                else:
                    self.failures.append(f"status {reply.status}: {body[:100]!r}")
            except aiohttp.ClientError as error:
                self.failures.append(type(error).__name__)
            await asyncio.sleep(PAUSE_SECONDS)

    def window(self, since: float, until: float) -> Figures:
        asked = [one for one in self.asked if since <= one.began < until]
        hits = [one.seconds for one in asked if one.hit]
        p99 = float(np.quantile(hits, 0.99)) * 1e3 if hits else 0.0
        return Figures(len(asked), len(hits) / max(1, len(asked)), p99)


def answer_of(body: bytes) -> int:
    return crc32(json.dumps([one["data"] for one in json.loads(body)["outputs"]]).encode())


class Outcome(Struct):
    """What was seen of a handover, a rollback and a cold switch."""

    before: Figures
    after: Figures
    rolled_back: Figures
    cold: Figures
    handover_seconds: float
    rollback_seconds: float
    requests: int
    failures: list[str]
    strange: int
    """Answers that are neither the old nor the new model's."""
    late: int
    """Answers of the model that was no longer in force anywhere when the request began."""

    @property
    def ratio(self) -> float:
        return self.after.hits / max(self.before.hits, 1e-9)

    @property
    def rollback_ratio(self) -> float:
        return self.rolled_back.hits / max(self.before.hits, 1e-9)

    @property
    def passed(self) -> bool:
        kept = min(self.ratio, self.rollback_ratio) >= LEAST_RATIO
        return kept and not (self.failures or self.strange or self.late)

    def lines(self) -> Iterator[str]:
        names = ("before", "after the handover", "after the rollback", "after a cold switch")
        for name, one in zip(names, (self.before, self.after, self.rolled_back, self.cold), strict=True):
            relative = one.hits / max(self.before.hits, 1e-9)
            latency = f"p99 of hits {one.p99_ms:6.2f} ms ({one.p99_ms / max(self.before.p99_ms, 1e-9):.2f})"
            yield f"{name:20} {one.requests:7,} requests, hits {one.hits:.4f} ({relative:.3f} of before), {latency}"
        yield f"handover {self.handover_seconds:.1f} s, rollback {self.rollback_seconds:.1f} s"
        kinds = sorted(set(self.failures))
        yield f"requests {self.requests:,}, failed {len(self.failures)} {kinds or ''}"
        yield f"answers of neither model {self.strange}, of the wrong digest {self.late}"
        yield "passed" if self.passed else f"FAILED: wanted hits at {LEAST_RATIO} of before, 0 failed, 0 wrong"


class ChangedSystem:
    """A running system with an artifact in force and a candidate beside it."""

    def __init__(self, live: Live, trace: Trace, flags: Sequence[str], candidate: Record) -> None:
        self.live, self.trace, self.candidate = live, trace, candidate
        self._flags = [f"--data={live.data}", *flags]
        self.first = read_record(live.data, trace.model)
        self.file = live.data / "hottest.jsonl"
        self.file.write_text("".join(json.dumps(trace.line(row)) + "\n" for row in range(HOTTEST)))

    async def foreseen(self, *arguments: str) -> tuple[int, str]:
        """A command, as somebody in another terminal runs it: status and stdout."""
        command = [sys.executable, "-P", "-m", "foreseen.cli", *arguments, *self._flags]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=600)
        return done.returncode, done.stdout + done.stderr

    async def handover(self, *flags: str, max_changed: str = "100%", rows: str | None = None) -> tuple[int, str]:
        """`rows` says which, by default those of the file."""
        to = self.candidate.artifact.digest
        budget = (f"--max-changed={max_changed}", "--no-stand-back", "--yes")
        which = rows or f"--file={self.file}"
        return await self.foreseen("models", "handover", self.trace.model, f"--to={to}", which, *budget, *flags)

    async def rollback(self) -> tuple[int, str]:
        return await self.foreseen("models", "handover", self.trace.model, "--rollback")

    async def digests(self) -> set[str]:
        """The model digests that twenty connections, so all workers, say."""
        path = f"/v2/models/{self.trace.model}"
        said = await asyncio.to_thread(lambda: [self.live.get(path)[2] for _ in range(20)])
        return {str(json.loads(one)["parameters"]["digest"]) for one in said}

    async def until_changed(self, before: set[str]) -> float:
        """When all workers say another digest."""
        end = time.monotonic() + ALL_SECONDS
        while len(now := await self.digests()) != 1 or now == before:
            assert time.monotonic() < end, "the new model is not in force"
            await asyncio.sleep(0.05)
        return time.monotonic()

    async def answers(self, rows: Sequence[int]) -> dict[int, int]:
        """The checksums of the model in force."""
        path, found = f"/v2/models/{self.trace.model}/infer", {}
        async with aiohttp.ClientSession(self.live.url) as client:

            async def ask(row: int) -> None:
                async with client.post(path, json=self.trace.ask(row)) as reply:
                    body = await reply.read()
                    assert reply.status == 200, body
                    found[row] = answer_of(body)

            for at in range(0, len(rows), CLIENTS):
                await asyncio.gather(*(ask(row) for row in rows[at : at + CLIENTS]))
        return found


async def measured(system: ChangedSystem, seconds: float, settle: float, rows: str | None = None) -> Outcome:
    """Load for all of: a window, a handover and a window, a rollback and a window, a cold switch and a window. `rows`
    says which are handed over, by default those of the file."""
    load = ZipfLoad(system.live.url, system.trace)
    asking = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(settle)
        old = await system.digests()
        before = time.monotonic()
        await asyncio.sleep(seconds)
        started = time.monotonic()
        status, said = await system.handover(rows=rows)
        assert status == 0, said
        handed = await system.until_changed(old)
        await asyncio.sleep(seconds)
        new = await system.digests()
        rows = sorted({one.row for one in load.asked})
        fresh_answers = await system.answers(rows)
        rolling = time.monotonic()
        status, said = await system.rollback()
        assert status == 0, said
        back = await system.until_changed(new)
        await asyncio.sleep(seconds)
        known = await system.answers(rows)
        purged = time.monotonic()
        status, said = await system.foreseen("purge", f"--digest={next(iter(new))}")
        assert status == 0, said
        write_record(system.live.data, system.candidate)
        cold = await system.until_changed(old)
        await asyncio.sleep(seconds)
    finally:
        load.stop()
        await asking
    spans = [(handed, rolling, fresh_answers), (before, started, known), (back, purged, known)]
    return Outcome(
        before=load.window(before, started),
        after=load.window(handed, handed + seconds),
        rolled_back=load.window(back, back + seconds),
        cold=load.window(cold, cold + seconds),
        handover_seconds=handed - started,
        rollback_seconds=back - rolling,
        requests=len(load.asked),
        failures=load.failures,
        strange=sum(
            one.row in known and one.answer not in (known[one.row], fresh_answers[one.row]) for one in load.asked
        ),
        late=sum(
            since <= one.began < until and one.row in right and one.answer != right[one.row]
            for one in load.asked
            for since, until, right in spans
        ),
    )


@contextlib.contextmanager
def changed_system(
    folder: Path, model: str, workers: int = 2, *more_flags: str, stderr: IO[str] | None = None
) -> Iterator[ChangedSystem]:  # fmt: skip
    """A system whose model has a candidate: another seal of fingerprint, or int8-rowwise beside minilm's fp32."""
    data, models = folder / "data", folder / "models"
    flags = [f"--workers={workers}", "--drain-seconds=2", *more_flags]
    given(built_data(model), data)
    if model == "fingerprint":
        first = read_record(data, model)
        seal_in(models, 2)
        candidate = build_candidate(find(model, (models,)), data, SilentProgress())
        seal_in(models, 1)
        more = [f"--models={models}"]
        write_record(data, first)
    else:
        candidate, more = read_record(data, model), []
        keep_record(data, candidate)
        write_record(data, build_candidate(find(model, PACKAGED), data, SilentProgress(), "fp32"))
    with fresh(data, f"--model={model}", *flags, *more, stderr=stderr) as live:
        yield ChangedSystem(live, trace_of(model), more, candidate)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("minilm", "fingerprint"), default="minilm")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--settle", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hottest", type=int, help="Hand over what the proxies serve most, instead of a file.")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="foreseen-handover-"))
    try:
        keep = () if wanted.hottest is None else (f"--keep-hot-inputs={KEPT_BYTES}",)
        rows = None if wanted.hottest is None else f"--hottest={wanted.hottest}"
        with changed_system(folder, wanted.model, wanted.workers, *keep) as system:
            outcome = asyncio.run(measured(system, wanted.seconds, wanted.settle, rows))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(outcome.lines()))
    return int(not outcome.passed)


if __name__ == "__main__":
    sys.exit(main())
