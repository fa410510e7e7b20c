"""`foreseen jobs`: the state of the queue; retry or drop a dead letter."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from foreseen.errors import QueueUnavailable, SetupError
from foreseen.paths import state_socket
from foreseen.queue.queue import Queue, connect_queue
from foreseen.queue.queue_types import OPEN_STATES, Bounds
from foreseen.settings import JobsSettings
from foreseen.stores.redis_urls import access_of, shown

ANY = Bounds(0, 0, 0.0, 0.0)
"""This command submits nothing, so bounds do not matter."""


def answer(settings: JobsSettings) -> str:
    """What `foreseen jobs` prints. Raises SetupError where the queue does not answer or there is no such letter."""
    url = settings.state or f"unix://{state_socket(settings.data)}"
    try:
        return asyncio.run(_answer(settings, url))
    except QueueUnavailable as error:
        raise SetupError(f"{shown(url)}: {error}; is the state store running?") from None


async def _answer(settings: JobsSettings, url: str) -> str:
    queue = connect_queue(url, ANY, access_of(settings))
    try:
        for verb, job in (("retry", settings.retry), ("drop", settings.drop)):
            if job is not None:
                return await _act(queue, verb, job, json=settings.json)
        summary = await _summary(queue)
    finally:
        await queue.close()
    return orjson.dumps(summary).decode() if settings.json else _table(summary)


async def _act(queue: Queue, verb: str, job: str, *, json: bool) -> str:
    try:
        name = bytes.fromhex(job)
    except ValueError:
        raise SetupError(f"{job}: a job's name is hexadecimal, as `foreseen jobs` shows it") from None
    if not await (queue.retry(name) if verb == "retry" else queue.drop(name)):
        raise SetupError(f"{job}: there is no such dead letter")
    done = "queued again" if verb == "retry" else "dropped"
    return orjson.dumps({"job": job, "done": done}).decode() if json else f"{job}: {done}"


async def _summary(queue: Queue) -> dict[str, Any]:
    standing, letters = await queue.standing(), await queue.dead_letters()
    counts = standing.counts
    states, ended = (
        {name.removeprefix(kind): value for name, value in sorted(counts.items()) if name.startswith(kind)}
        for kind in ("state:", "ended:")
    )
    return {
        "waiting": sum(states.get(state, 0) for state in OPEN_STATES),
        "oldest_seconds": round(standing.oldest_seconds, 3),
        "states": states,
        "ended": ended,
        "submitted": counts.get("submitted", 0),
        "redelivered": counts.get("redelivered", 0),
        "bytes": counts.get("bytes", 0),
        "dead": [{"job": job.hex(), **orjson.loads(letter)} for job, letter in letters.items()],
    }


def _table(summary: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count) or "none"
    lines = [
        f"jobs      {states}",
        f"oldest    {summary['oldest_seconds']:.1f} s",
        f"memory    {summary['bytes'] / 2**20:.1f} MiB of jobs and results",
        f"dead      {len(summary['dead'])}",
    ]
    for letter in summary["dead"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter["at"]))
        lines.append(f"  {letter['job']}  {when}  {letter['model']}  {letter['code']}: {letter['error']}")
    return "\n".join(lines)
