"""Follows the purges in the state store, derives the generation of each key space, and confirms every purge.

Until a worker has read the state store once, it cannot know what was purged before it started, so it bypasses the
cache. Later, while the store does not answer, the worker continues with the generations it knows; a purge made
meanwhile is not acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from foreseen.errors import StateUnavailable
from foreseen.stores.state import KEPT_PURGES, Purge, State, generation_of
from foreseen.types import Key, Scope

AGAIN_SECONDS = 0.2
MAX_SPACES = 4096
FORMER_PURGES = 8
"""How many purges back a miss can be explained by one."""

log = structlog.get_logger()

Forget = Callable[[Mapping[Key, float] | None], Awaitable[None]]
"""Forgets keys, by when they were purged (Unix seconds), or everything; returns when nothing older can come back."""


class Mark(Protocol):
    """A second place that holds the last purge's generation; see `purge_mark.py`."""

    async def read(self) -> int | None: ...
    async def raise_to(self, generation: int) -> None: ...


class Generations:
    """This worker's knowledge of purges. Without a state store everything is generation 0."""

    def __init__(self, state: State | None, forget: Forget, mark: Mark | None = None) -> None:
        self.worker = worker_name()
        self.ready = asyncio.Event()
        """Set when the store has been read once."""
        self._state = state
        self._forget = forget
        self._mark = mark
        self._known: dict[str, int] = {}
        self.worked_out: dict[tuple[Scope, str, str], int] = {}
        """Spaces by scope, model and digest, valid until the known generations change. Read by every request; read
        only."""
        self._before: deque[dict[str, int]] = deque(maxlen=FORMER_PURGES)
        self._purged_keys: OrderedDict[Key, int] = OrderedDict()
        """And the generation of the purge."""
        self._leaving = False
        self.reachable = True
        """Whether the store answered the last call."""
        if state is None:
            self.ready.set()

    def of(self, scope: Scope, model: str, digest: str) -> int | None:
        """The generation of a scope's space of a model; None as long as it cannot be known."""
        generation = self.worked_out.get((scope, model, digest))
        if generation is None and self.ready.is_set():
            if len(self.worked_out) >= MAX_SPACES:
                self.worked_out.clear()
            generation = self.worked_out[scope, model, digest] = generation_of(self._known, scope, model, digest)
        return generation

    def formerly(self, scope: Scope, model: str, digest: str) -> list[int]:
        """The generations that this space had before, as far as this worker remembers, the newest first."""
        now = generation_of(self._known, scope, model, digest)
        before = {generation_of(known, scope, model, digest) for known in self._before} | {0}
        return sorted((generation for generation in before if generation < now), reverse=True)

    def was_purged(self, key: Key) -> bool:
        """Whether this very key was ever purged."""
        return key in self._purged_keys

    def purged_since(self, key: Key, made_at: float) -> bool:
        """Whether this very key was purged after an answer to it was made (Unix seconds)."""
        generation = self._purged_keys.get(key)
        return generation is not None and made_at <= generation / 1e6

    async def follow(self) -> None:
        """Register, catch up, then apply and confirm every new purge, until `leave`."""
        if self._state is None:
            return
        while (
            not self._leaving
        ):  # a cancellation may get lost between an answer of Redis and its timeout (CPython 3.11)
            try:
                await self._catch_up(self._state)
                if not self.reachable:
                    log.warning("state store: reachable again")
                self.reachable = True
                while not self._leaving:
                    purges = await self._state.next(self.last)
                    if purges:
                        await self._apply(purges)
                        await self._note()
                        await self._state.confirm(self.worker, self.last)
                    elif await self._is_apart(self._state):
                        break
            except StateUnavailable:
                if self.reachable and not self._leaving:
                    log.warning("state store: not reachable; purges are not seen")
                self.reachable = False
                await asyncio.sleep(AGAIN_SECONDS)

    async def leave(self) -> None:
        """Deregister: this worker answers no more requests."""
        self._leaving = True
        if self._state is not None:
            try:
                await self._state.leave(self.worker)
            except StateUnavailable:
                log.warning("state store: not reachable; this worker stays registered", worker=self.worker)
            await self._state.close()

    @property
    def last(self) -> int:
        """The generation of the last purge that this worker knows."""
        return self._known.get("last", 0)

    async def _is_apart(self, state: State) -> bool:
        """Whether the store, or the mark in the cache, has another last purge than this worker: one of them was rolled
        back, or lost it."""
        marked = await self._note()
        return marked > self.last or await state.last() != self.last

    async def _note(self) -> int:
        """Raise the mark to the generation that this worker knows. Returns the previous mark, 0 if it cannot be
        read."""
        marked = None if self._mark is None else await self._mark.read()
        if self._mark is not None and marked is not None and marked < self.last:
            await self._mark.raise_to(self.last)
        return marked or 0

    async def _catch_up(self, state: State) -> None:
        """Register, then read: a purge that is made in between waits for this worker."""
        await state.register(self.worker)
        before = await state.last()
        if before < self.last:
            keys = sorted((generation, key.hex()) for key, generation in self._purged_keys.items())
            await state.log_again([one for one in keys if one[0] > before])
        await state.raise_to(self._known)
        marked = await self._note()
        generations = await state.begun(marked)
        if marked > max(before, self.last):
            log.error("state store: acknowledged purges lost; the whole cache counts as purged")
        purges = await state.since(self.last)
        newest = purges[-1].generation if purges else self.last
        if self.ready.is_set() and (len(purges) >= KEPT_PURGES or newest < generations.get("last", 0)):
            await self._forget(None)  # the log is not whole: a key's purge may be missing
        await self._apply(purges)
        for name, value in generations.items():
            self._known[name] = max(self._known.get(name, 0), value)
        self.worked_out.clear()
        await self._note()
        self.ready.set()
        await state.confirm(self.worker, self.last)

    async def _apply(self, purges: Sequence[Purge]) -> None:
        if any(purge.kind != "key" for purge in purges):
            self._before.append(dict(self._known))
        for purge in purges:
            if purge.kind != "key":
                self._known[f"{purge.kind}:{purge.what}"] = purge.generation
                self.worked_out.clear()
        now = time.time() if self.ready.is_set() else 0.0  # a logged purge has its time in its generation
        keys = {Key(bytes.fromhex(purge.what)): purge.generation for purge in purges if purge.kind == "key"}
        self._purged_keys |= keys
        while len(self._purged_keys) > KEPT_PURGES:
            self._purged_keys.popitem(last=False)
        if any(purge.kind == "all" for purge in purges):
            await self._forget(None)
        if keys:
            await self._forget({key: max(now, generation / 1e6) for key, generation in keys.items()})
        if purges:
            self._known["last"] = max(self.last, purges[-1].generation)


def worker_name() -> str:
    """A name that identifies this worker and from which its end can be proved: HOST/PID/START/NAMESPACE."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}/{_namespace()}"


def is_gone(worker: str) -> bool:
    """Whether a worker has certainly ended. Of another machine's or container's nothing is certain."""
    _, pid, started, namespace = worker.rsplit("/", 3)
    return namespace == _namespace() and _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty if it does not run or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _namespace() -> str:
    """This boot of this machine, and which process ids count here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"
    except OSError:
        return socket.gethostname()
