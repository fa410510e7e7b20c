"""`models handover NAME --to URL`: from one upstream server to another, which the proxy has as its candidate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from tests.foreign import Foreign, listening
from tests.live import Live, fresh
from tests.questions import ask_fingerprint, fingerprint, numbers

pytestmark = [pytest.mark.processes, pytest.mark.long]

SEEDS = range(975_000, 975_200)
WRONG = 975_100
"""The row that the candidate answers otherwise: one in 200."""


class TwoServers(NamedTuple):
    """`foreseen up` in front of one server, with another as its candidate."""

    live: Live
    old: Foreign
    new: Foreign
    candidate: str

    async def ask(self, seed: int) -> tuple[list[int], bool]:
        """A row's answer, and whether it was a hit. Every request may reach another worker."""
        url = f"{self.live.url}/v2/models/fp/infer"
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, json=ask_fingerprint(numbers(seed))) as reply,
        ):
            assert reply.status == 200, await reply.text()
            document = json.loads(await reply.read())
            return document["outputs"][0]["data"], ";hit" in reply.headers["Cache-Status"]

    async def handover(self, *flags: str, to: str | None = None) -> tuple[int, str]:
        command = ["models", "handover", "fp", f"--to={to or self.candidate}", "--hottest=1000", "--yes", *flags]
        return await self.foreseen(*command)

    async def foreseen(self, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-P", "-m", "foreseen.cli", *words, f"--data={self.live.data}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    async def until_probed(self) -> None:
        """Until every worker knows that rows are independent: a row is another one from then on."""
        async with asyncio.timeout(60), aiohttp.ClientSession() as client:
            agreed = 0
            while agreed < 40 or self.live.metric("foreseen_workers") < 2:
                await asyncio.sleep(0.05)  # the second worker may accept no connection yet
                async with client.get(f"{self.live.url}/v2/models/fp", headers={"Connection": "close"}) as reply:
                    document = json.loads(await reply.read())
                agreed = agreed + 1 if document.get("parameters", {}).get("rows") == "each" else 0

    async def until_all_are_answered(self, answer: list[int]) -> None:
        """Until every worker answers the row `WRONG` like this: within a second of the switch."""
        async with asyncio.timeout(30):
            agreed = 0
            while agreed < 20:
                agreed = agreed + 1 if (await self.ask(WRONG))[0] == answer else 0


@contextlib.asynccontextmanager
async def two_servers(folder: Path, *flags: str) -> AsyncIterator[TwoServers]:
    old, new = Foreign(), Foreign()
    new.answer = lambda rows: [[1, 2, 3, 4] if row == numbers(WRONG) else fingerprint(row) for row in rows]
    async with (
        listening(old.application()) as url,
        listening(new.application()) as other,
        contextlib.AsyncExitStack() as stack,
    ):
        data = folder / "data"
        data.mkdir()
        log = stack.enter_context((folder / "log").open("w"))
        given = (f"--upstream={url}", f"--candidate=fp={other}", "--candidate-digest=2", "--canary=0%", *flags)
        up = fresh(data, *given, "--workers=2", "--job-workers=0", "--log-format=json", stderr=log)
        live = await asyncio.to_thread(up.__enter__)  # the servers answer in this loop
        stack.push_async_callback(asyncio.to_thread, up.__exit__, None, None, None)
        two = TwoServers(live, old, new, other)
        await two.until_probed()
        yield two


async def test_the_hottest_rows_are_there_when_the_other_server_answers(tmp_path: Path) -> None:
    """Refused where too much changes, and then nothing has; else all callers are answered by the other server, out of
    far, with not one more row computed there. Aborted, the first one's entries are still warm."""
    async with two_servers(tmp_path, "--keep-hot-inputs=1048576") as two:
        right = fingerprint(numbers(WRONG))
        for seed in SEEDS:
            assert (await two.ask(seed))[0] == fingerprint(numbers(seed))
        status, said = await two.handover("--max-changed=0.1%", "--json")
        while "the candidate is not ready" in said:  # it is probed, too
            status, said = await two.handover("--max-changed=0.1%", "--json")
        assert status == 1, said
        assert "{" in said, said
        document = json.loads(said[said.index("{") :].splitlines()[0])
        assert (document["rows"], document["changed"]["count"]) == (len(SEEDS), 1), said
        assert two.live.metric("foreseen_handover_rows_total", model="fp", outcome="changed") == 1
        assert (await two.ask(WRONG)) == (right, True)
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        audited = [one["rows"] for one in lines if one.get("action") == "candidate-rows"]
        assert sum(audited) == len(SEEDS)
        computed = len([row for batch in two.new.batches for row in batch])
        status, said = await two.handover("--max-changed=1%")
        assert status == 0, said
        assert "foreseen canary --abort" in said
        await two.until_all_are_answered([1, 2, 3, 4])
        answers = [await two.ask(seed) for seed in SEEDS]
        misses = [seed for seed, (_, hit) in zip(SEEDS, answers, strict=True) if not hit]
        assert misses == [], (misses, [two.new.rows_like(numbers(seed)) for seed in misses])
        assert [two.new.rows_like(numbers(seed)) for seed in SEEDS] == [1] * len(SEEDS)
        assert len([row for batch in two.new.batches for row in batch]) == computed
        assert (await two.foreseen("canary", "--abort"))[0] == 0
        await two.until_all_are_answered(right)
        assert all([(await two.ask(seed))[1] for seed in SEEDS])
        assert [two.old.rows_like(numbers(seed)) for seed in SEEDS] == [1] * len(SEEDS)


async def test_what_is_no_candidate_of_the_proxy_is_refused(tmp_path: Path) -> None:
    """Another address, a candidate that is not ready, rows of a file, no rows kept: nothing changes, and the error says
    what to do."""
    async with two_servers(tmp_path, "--keep-hot-inputs=1048576") as two:
        status, said = await two.handover()
        assert status != 0
        assert "kept no rows" in said
        await two.ask(1)
        status, said = await two.handover(to="http://127.0.0.1:9")
        assert status != 0
        assert "start the proxy with --candidate fp=http://127.0.0.1:9 --canary 0%" in said
        status, said = await two.handover("--file=x.jsonl")
        assert status != 0
        assert "--hottest 100000, not --file" in said
        two.new.ready = False
        async with asyncio.timeout(60):
            while "the candidate is not ready" not in (await two.handover())[1]:
                two.new.ready = False
        assert (await two.ask(1))[0] == fingerprint(numbers(1))
