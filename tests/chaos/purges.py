"""A million answers of two workers while things are purged, checked afterwards: none is older than a purge before it.

    python -m tests.chaos.purges --operations 1000000

The model behind the proxy numbers its computations and says the number in its answer. A purge that began when so many
had been made and was acknowledged at a time leaves no answer with a number up to that to whoever asks after that time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from foreseen.keys.secret import make_secret
from foreseen.paths import admin_socket
from foreseen.proxy.backend.row_probe import PROBE_ROWS
from tests.foreign import Foreign, listening
from tests.live import Live, fresh
from tests.questions import fingerprint, numbers

KEYS = 400
CLIENTS = 6
MOST_ROWS = 100
PURGE_SECONDS = 0.05
PROCESSES, PROBES = 3, 3
"""Two proxies and a worker; each asks for its random rows alone, in a batch, and in another order."""
INFER = "/v2/models/fp/infer"


class Answered(NamedTuple):
    """One row's answer: when it was asked for, which row, and the number of the computation that made it."""

    began: float
    row: int
    number: int


class Purged(NamedTuple):
    """A purge that was acknowledged: how many computations had been made when it began; of one row, or of all."""

    before: int
    acknowledged: float
    row: int | None


@dataclass
class History:
    answers: list[Answered] = field(default_factory=list)
    purges: list[Purged] = field(default_factory=list)
    refused: int = 0
    computed: int = 0


def violations(history: History) -> list[str]:
    """Answers that are older than a purge that was over when they were asked for."""
    whole = _Floors([purge for purge in history.purges if purge.row is None])
    each = defaultdict[int, list[Purged]](list)
    for purge in history.purges:
        if purge.row is not None:
            each[purge.row].append(purge)
    floors = {row: _Floors(purges) for row, purges in each.items()}
    said = []
    for answer in history.answers:
        floor = whole.at(answer.began)
        if answer.row in floors:
            floor = max(floor, floors[answer.row].at(answer.began))
        if answer.number <= floor:
            said.append(
                f"row {answer.row}, asked at {answer.began:.4f}: computation {answer.number}, purged up to {floor}"
            )
    return said


class _Floors:
    """The highest number that purges of before a time have ended."""

    def __init__(self, purges: Sequence[Purged]) -> None:
        ordered = sorted(purges, key=lambda purge: purge.acknowledged)
        self._times = [purge.acknowledged for purge in ordered]
        self._floors, highest = list[int](), 0
        for purge in ordered:
            highest = max(highest, purge.before)
            self._floors.append(highest)

    def at(self, when: float) -> int:
        place = bisect_right(self._times, when)
        return self._floors[place - 1] if place else 0


class Counting(Foreign):
    """Once `numbered`, the last number of an answer is that of its computation."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def numbered(self) -> None:
        self.answer = self._count

    def _count(self, rows: list[list[int]]) -> list[list[int]]:
        self.batches.clear()
        self.parameters.clear()
        answers = []
        for row in rows:
            self.made += 1
            answers.append([*fingerprint(row)[:3], self.made])
        return answers


async def run(folder: Path, operations: int, seed: int = 0) -> History:
    """So many answers, and the purges meanwhile."""
    model, history, data = Counting(), History(), folder / "data"
    data.mkdir(parents=True)
    make_secret(data / "secret")
    async with listening(model.application()) as url:
        with contextlib.ExitStack() as stack:
            system = fresh(data, f"--upstream={url}", "--workers=2", "--near-bytes=200000")
            live = await asyncio.to_thread(stack.enter_context, system)
            try:
                await _until_each(live, model)
                model.numbered()
                await _all(live, model, history, operations, seed)
            finally:
                await asyncio.to_thread(stack.close)
    history.computed = model.made
    return history


async def _until_each(live: Live, model: Counting) -> None:
    """Every process has found out that rows are independent: until then it keeps requests whole, and who purges a row
    purges nothing of them. A connection shows one of the proxies, and mostly the same."""
    well = 0
    async with asyncio.timeout(60):
        while sum(map(len, model.batches)) < PROCESSES * PROBES * PROBE_ROWS:  # noqa: ASYNC110 - it signals nothing
            await asyncio.sleep(0.02)
        while well < 20:
            async with aiohttp.ClientSession() as client, client.get(f"{live.url}/v2/models/fp") as reply:
                told = json.loads(await reply.read())
            well = well + 1 if told.get("parameters", {}).get("rows") == "each" else 0


async def _all(live: Live, model: Counting, history: History, operations: int, seed: int) -> None:
    over = asyncio.Event()
    purger = asyncio.create_task(_purge(live, model, history, over, random.Random(seed)))
    try:
        askers = (_ask(live, history, operations, random.Random(f"{seed} {number}")) for number in range(CLIENTS))
        await asyncio.gather(*askers)
    finally:
        over.set()
        await purger


async def _ask(live: Live, history: History, operations: int, chance: random.Random) -> None:
    texts = [json.dumps(numbers(row))[1:-1] for row in range(KEYS)]
    expected = [fingerprint(numbers(row))[:3] for row in range(KEYS)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
        while len(history.answers) < operations:
            rows = [chance.randrange(KEYS) for _ in range(chance.randint(1, MOST_ROWS))]
            flat = ",".join(texts[row] for row in rows)
            body = f'{{"inputs":[{{"name":"x","shape":[{len(rows)},16],"datatype":"INT64","data":[{flat}]}}]}}'
            headers = {"Cache-Control": "no-cache"} if chance.random() < 0.01 else {}
            began = time.monotonic()
            async with client.post(live.url + INFER, data=body, headers=headers) as reply:
                told = json.loads(await reply.read())
            if reply.status != 200:
                history.refused += 1
                continue
            data = told["outputs"][0]["data"]
            for at, row in enumerate(rows):
                assert data[4 * at : 4 * at + 3] == expected[row]
                history.answers.append(Answered(began, row, data[4 * at + 3]))


async def _purge(live: Live, model: Counting, history: History, over: asyncio.Event, chance: random.Random) -> None:
    """Of the model, of everything, of single rows, one after the other, until it is over."""
    token = {"Authorization": "Bearer " + (live.data / "admin-token").read_text().strip()}
    operators = aiohttp.UnixConnector(str(admin_socket(live.data)))
    async with aiohttp.ClientSession(connector=operators, headers=token) as admin, aiohttp.ClientSession() as client:
        while not over.is_set():
            row = chance.randrange(KEYS) if chance.random() < 0.5 else None
            what: dict[str, Any] = {"model": "fp"} if chance.random() < 0.7 else {"all": True}
            if row is not None:
                what = {"key": await _key(client, live, token, row)}
            before = model.made
            async with admin.post("http://admin/admin/purge", json=what) as reply:
                if reply.status == 200:
                    history.purges.append(Purged(before, time.monotonic(), row))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), PURGE_SECONDS)


async def _key(client: aiohttp.ClientSession, live: Live, token: dict[str, str], row: int) -> str:
    body = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": numbers(row)}]}
    url = live.url + INFER.replace("/infer", "/explain")
    async with client.post(url, json=body, headers=token) as reply:
        return str(json.loads(await reply.read())["rows"][0]["key"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        history = asyncio.run(run(Path(folder), given.operations, given.seed))
    said = violations(history)
    of_rows = sum(purge.row is not None for purge in history.purges)
    print(
        f"{len(history.answers):,} answers in {time.monotonic() - began:.0f} s, {history.computed:,} computed, "
        f"{history.refused} requests refused; {len(history.purges)} purges, {of_rows} of them of one row; "
        f"{len(said)} answers older than a purge that was over (seed {given.seed})"
    )
    print("\n".join(said[:10]))
    return 1 if said or history.refused or not history.purges else 0


if __name__ == "__main__":
    sys.exit(main())
