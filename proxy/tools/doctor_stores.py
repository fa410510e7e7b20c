"""Checks of the two stores: the cache must evict, the state store must not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

from foreseen.errors import FarError, QueueUnavailable, SetupError, StateUnavailable
from foreseen.keys.key import secret_check
from foreseen.keys.secret import read_secret
from foreseen.paths import redis_socket, state_socket
from foreseen.proxy.cache.generations import is_gone
from foreseen.proxy.tools.finding import Finding, Grade, numbers, size
from foreseen.queue.queue import connect_queue
from foreseen.queue.queue_types import OPEN_STATES, Bounds
from foreseen.settings import DoctorSettings
from foreseen.stores import valkey
from foreseen.stores.cluster import far_at
from foreseen.stores.redis_urls import Access, access_of, several, shown
from foreseen.stores.state import connect_state
from foreseen.types import DOWN, FarState, QueueStatus

MIN_REDIS = (6, 2)
MAX_SKEW_SECONDS = 2.0
REDIS_SECONDS = 1.0
"""More patience than the proxy has: the doctor wants to know why."""


async def redis(settings: DoctorSettings) -> AsyncIterator[Finding]:
    """Whether it answers, evicts, has a limit, keeps nothing on disk, agrees on the time, and was filled by us."""
    if settings.redis == "none":
        yield Finding("ok", "redis", "none: near is the only tier")
        return
    url = settings.redis or f"unix://{redis_socket(settings.data)}"
    far = far_at(url, REDIS_SECONDS, access=access_of(settings))
    try:
        state = await far.state()
        if state == DOWN:
            if settings.redis is None and not redis_socket(settings.data).exists():
                yield Finding("note", "redis", "the embedded Valkey is not running", "foreseen up starts it")
            else:
                fix = "start it, or mend --redis; answers go on meanwhile, from near and the models"
                yield Finding("must", "redis", f"{shown(url)} does not answer", fix)
            return
        for one in judged(state):
            yield one
        skew = abs(await far.time() - time.time())
        if skew > MAX_SKEW_SECONDS:
            fix = "run NTP on both machines"
            yield Finding("note", "redis", f"its clock differs by {skew:.1f} s: Age and ttl are off by so much", fix)
        try:
            known = await far.knows(secret_check(read_secret(settings.secret_file or settings.data / "secret")))
        except SetupError:
            return  # said already
        if known is False:
            fix = "give --secret-file of the other proxies, or empty this Redis (FLUSHALL) if it has no others"
            yield Finding("must", "redis", "it was filled under another root secret: the proxy does not ask it", fix)
    except FarError as error:
        yield Finding("must", "redis", f"{shown(url)} fails: {error.kind}", "see its log and its users' rights")
    finally:
        await far.close()


def judged(state: FarState) -> Iterator[Finding]:
    """A cache's Redis, as it should be set."""
    well = True
    if numbers(state.version) < MIN_REDIS:
        well = False
        yield Finding("must", "redis", f"version {state.version} is too old", "Redis 6.2 or newer, or Valkey")
    if state.memory_limit == 0:
        well = False
        yield Finding("must", "redis", "no maxmemory: it grows until the kernel ends it", "CONFIG SET maxmemory 1gb")
    if not state.policy.startswith("allkeys-"):
        well = False
        said = f"maxmemory-policy {state.policy}: when it is full, nothing new is stored"
        if state.policy.startswith("volatile-"):
            said = (
                f"maxmemory-policy {state.policy}: works, since entries expire, but LFU over all keys keeps more hits"
            )
        grade: Grade = "note" if state.policy.startswith("volatile-") else "must"
        yield Finding(grade, "redis", said, "CONFIG SET maxmemory-policy allkeys-lfu")
    if state.append_only:
        well = False
        fix = "CONFIG SET appendonly no; a cache is not worth a disk write, and the state store must be another Redis"
        yield Finding("note", "redis", "it keeps an append-only file", fix)
    if well:
        used = f"{size(state.memory)} of {size(state.memory_limit)} used"
        yield Finding("ok", "redis", f"{state.version}, {state.policy}, {used}, {state.keys} keys")


async def state(settings: DoctorSettings) -> AsyncIterator[Finding]:
    """Whether what was purged is kept: it answers, writes an append-only file, evicts nothing, is not the cache."""
    if settings.state == "none":
        yield Finding("note", "state", "none: nothing can be purged, and no jobs are taken", "give --state")
        return
    url = settings.state or f"unix://{state_socket(settings.data)}"
    if settings.state is not None and settings.state == settings.redis:
        fix = "a Redis of its own: a cache evicts, a state must not"
        yield Finding("must", "state", "it is the cache's Redis", fix)
        return
    store = far_at(url, REDIS_SECONDS, access=access_of(settings))
    try:
        states = await store.states()
        skew = 0.0 if DOWN in states else abs(await store.time() - time.time())
    except FarError as error:
        yield Finding("must", "state", f"{shown(url)} fails: {error.kind}", "see its log and its users' rights")
        return
    finally:
        await store.close()
    if DOWN in states:
        yield silent(settings, url)
        return
    for one in dict.fromkeys(finding for server in states for finding in kept(server)):
        yield one
    if several(url) is not None:
        for one in replicated(min(server.replicas for server in states), settings.state_replicas):
            yield one
    if skew > MAX_SKEW_SECONDS:
        fix = "run NTP on both machines"
        yield Finding("note", "state", f"its clock differs by {skew:.1f} s: generations are numbered by it", fix)
    access = access_of(settings)
    async for one in confirmed(url, access):
        yield one
    async for one in consumed(url, access):
        yield one


def silent(settings: DoctorSettings, url: str) -> Finding:
    """A state store that does not answer: what that costs, and why it is so as far as its log says."""
    path = state_socket(settings.data)
    if settings.state is None and not path.exists():
        return Finding("note", "state", "the embedded state store is not running", "foreseen up starts it")
    said = f"{shown(url)} does not answer: no job is taken, no purge is acknowledged"
    if settings.state is None:
        why = valkey.last_words(path.with_suffix(".log"))
        return Finding("must", "state", f"{said}; its log: {why}", "see runbook: ForeseenChildKeepsEnding")
    return Finding("must", "state", said, "start it, or mend --state; a proxy that starts without it uses no cache")


def replicated(there: int, wanted: int) -> Iterator[Finding]:
    """Whether what the state store has acknowledged outlives a failover."""
    if there < wanted:
        said = f"{there} replicas, --state-replicas {wanted}: no job is taken and no purge acknowledged"
        yield Finding("must", "state", said, "start replicas, or lower --state-replicas")
    elif not there:
        yield Finding("note", "state", "a master has no replica: no failover is possible", "start a replica")
    elif not wanted:
        said = "replicas are written behind the answer's back: a failover may lose the last jobs"
        yield Finding("note", "state", said, "--state-replicas 1 acknowledges what one of them has")


async def consumed(url: str, access: Access) -> AsyncIterator[Finding]:
    """Whether workers take jobs from the queue."""
    queue = connect_queue(url, Bounds(0, 0, 0.0, 0.0), access)
    try:
        standing = await queue.standing()
    except QueueUnavailable:
        return  # said already
    finally:
        await queue.close()
    for one in queued(standing):
        yield one


def queued(standing: QueueStatus) -> Iterator[Finding]:
    """A queue of jobs, as it should be."""
    waiting = sum(standing.counts.get(f"state:{state}", 0) for state in OPEN_STATES)
    if not standing.workers:
        said = f"{waiting} jobs wait and no worker takes them" if waiting else "no worker takes jobs: they would wait"
        yield Finding("must" if waiting else "note", "queue", said, "foreseen worker, or foreseen up --job-workers 1")
    if standing.dead:
        said = f"{standing.dead} dead letters"
        yield Finding("note", "queue", said, "foreseen jobs lists them; --retry or --drop each")
    if standing.workers:
        oldest = f", the oldest since {standing.oldest_seconds:.0f} s" if waiting else ""
        yield Finding("ok", "queue", f"{standing.workers} workers, {waiting} jobs{oldest}")


def kept(found: FarState) -> Iterator[Finding]:
    """A state store, as it should be set."""
    well = True
    if numbers(found.version) < MIN_REDIS:
        well = False
        yield Finding("must", "state", f"version {found.version} is too old", "Redis 6.2 or newer, or Valkey")
    if not found.append_only:
        well = False
        fix = "CONFIG SET appendonly yes, and in its configuration file"
        yield Finding("must", "state", "no append-only file: a restart forgets what was purged", fix)
    if not found.writable:
        well = False
        said = "its last write to disk failed: no job is taken, no purge is acknowledged"
        yield Finding("must", "state", said, "make room on its disk; see its log")
    if found.policy != "noeviction":
        well = False
        grade: Grade = "must" if found.memory_limit else "note"
        said = f"maxmemory-policy {found.policy}: when it is full, it forgets what was purged"
        yield Finding(grade, "state", said, "CONFIG SET maxmemory-policy noeviction")
    if found.memory_limit and found.memory > 0.8 * found.memory_limit:
        well = False
        said = f"{size(found.memory)} of {size(found.memory_limit)} used; when it is full, nothing can be purged"
        yield Finding("must", "state", said, "CONFIG SET maxmemory, higher")
    if well:
        yield Finding("ok", "state", f"{found.version}, append-only file, {size(found.memory)} used")


async def confirmed(url: str, access: Access) -> AsyncIterator[Finding]:
    """Whether a purge would wait in vain for a worker of this machine that has ended, or of another that lags."""
    store = connect_state(url, access)
    try:
        last = (await store.generations()).get("last", 0)
        behind = [name for name, seen in (await store.workers()).items() if seen < last and not is_gone(name)]
    except StateUnavailable:
        return
    finally:
        await store.close()
    for name in sorted(behind):
        fix = f"look at it; if it has ended: foreseen purge --forget {name}"
        yield Finding("note", "state", f"worker {name} has not confirmed the last purge", fix)
