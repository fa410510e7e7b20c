"""One limit of a tenant over several proxies: what is let in over a minute, and while the state store is away.

    python -m tests.quotas --seconds 60 --workers 4 --proxies 2

Each proxy is a `foreseen up` of its own; they share the state store, where their workers reconcile the quota once a
second. A client asks all of them for known rows, faster than the limit. Ends with status 1 where more or less than the
limit by 5 % was let in over the time, where more than twice the limit was once the store was killed (SIGKILL), where
nothing was, or where another tenant was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from foreseen.keys.secret import make_secret
from tests.live import Live, fresh, given
from tests.models_fixture import built_data
from tests.questions import ask_fingerprint, numbers
from tests.state_server import state_server

PATH = "/v2/models/fingerprint/infer"
ROWS_PER_SECOND = 100.0
ROWS = 2
"""Of one request."""
ASKED = 2.5
"""Times the limit that is asked for."""
CONNECTIONS = 16
"""Of each proxy, so that each worker has some."""
SETTLE_SECONDS = 10.0
"""Until every worker has a share: what was left of a quiet second before is used up."""
SPREAD = 0.05


@dataclass
class Measured:
    """Rows in one second, as a share of the limit, and requests of another tenant that were refused."""

    reconciled: float
    away: float
    refused: int

    @property
    def holds(self) -> bool:
        return abs(self.reconciled - 1) <= SPREAD and 0 < self.away <= 2 and not self.refused


@contextlib.contextmanager
def proxies(folder: Path, state: str, count: int, workers: int) -> Iterator[list[Live]]:
    """So many systems on one state store."""
    secret, keys = folder / "secret", folder / "keys.toml"
    make_secret(secret)
    tables = (("limited", f"rows_per_second = {ROWS_PER_SECOND}"), ("free", ""))
    keys.write_text("".join(f'[tenant.{name}]\nkeys = ["sha256:{_hash(name)}"]\n{limit}\n' for name, limit in tables))
    flags = (f"--state={state}", f"--secret-file={secret}", f"--keys-file={keys}", f"--workers={workers}")
    with contextlib.ExitStack() as systems:
        running = []
        for number in range(count):
            given(built_data("fingerprint"), folder / f"data-{number}")
            more = ("--model=fingerprint", "--job-workers=0", "--log-level=error")
            running.append(systems.enter_context(fresh(folder / f"data-{number}", *flags, *more)))
        yield running


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def load(live: list[Live], seconds: float) -> tuple[int, int]:
    """Rows that were let in, and refusals of another tenant, while both ask on connections that stay open."""
    began, let_in, refused = time.monotonic(), 0, 0
    pause = ROWS * CONNECTIONS * len(live) / (ROWS_PER_SECOND * ASKED)
    connector = aiohttp.TCPConnector(limit=0)

    async def ask(one: Live, number: int) -> None:
        nonlocal let_in, refused
        await asyncio.sleep(pause * number / CONNECTIONS)
        body = ask_fingerprint(*(numbers(990_000 + row) for row in range(ROWS)))
        while time.monotonic() - began < seconds:
            for key in ("limited", "free") if number == 0 else ("limited",):
                async with session.post(f"{one.url}{PATH}", json=body, headers={"api-key": key}) as reply:
                    await reply.read()
                    assert reply.status in (200, 429), reply.status
                    let_in += ROWS * (key == "limited" and reply.status == 200)
                    refused += key == "free" and reply.status == 429
            await asyncio.sleep(pause)

    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for one in live:
            for number in range(CONNECTIONS):
                group.create_task(ask(one, number))
    return let_in, refused


async def measured(folder: Path, seconds: float, away_seconds: float, workers: int, count: int) -> Measured:
    """On fresh systems."""
    with state_server(folder) as (url, store), proxies(folder, url, count, workers) as live:
        await load(live, SETTLE_SECONDS)
        let_in, refused = await load(live, seconds)
        store.send_signal(signal.SIGKILL)
        store.wait()
        without, more = await load(live, away_seconds)
    limit = ROWS_PER_SECOND
    return Measured(let_in / seconds / limit, without / away_seconds / limit, refused + more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--away-seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--proxies", type=int, default=2)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fsn", dir="/tmp") as name:
        more = settings.seconds, settings.away_seconds, settings.workers, settings.proxies
        found = asyncio.run(measured(Path(name), *more))
    print(f"let in, of the limit over {settings.seconds:g} s  {found.reconciled:.1%}")
    print(f"the same while the store is away   {found.away:.1%}")
    print(f"refusals of another tenant         {found.refused}")
    sys.exit(0 if found.holds else 1)


if __name__ == "__main__":
    main()
