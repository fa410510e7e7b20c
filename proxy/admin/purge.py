"""The operators' routes for purges: purge, wait until every registered worker has confirmed, name those that have not.

They have a listener of their own: a unix socket under the data directory, or `--admin-port`. Every change is in the
audit log.
"""

from __future__ import annotations

import asyncio
from typing import Any, get_args

from aiohttp import web
from msgspec import Struct

from foreseen.errors import BadRequest, FarError, ForeseenError, NotConfirmed, StateUnavailable, UnknownTarget
from foreseen.protocol.strict_json import load_json
from foreseen.proxy.admin.admin import NO_ACTOR, Actor, Operators
from foreseen.proxy.admin.purge_targets import PurgeWord, Targets
from foreseen.proxy.cache.generations import is_gone
from foreseen.proxy.cache.tiers import Tiers
from foreseen.stores.state import Kind, State
from foreseen.types import Key
from foreseen.web.http import errors, json_reply, read_body

LOOK_SECONDS = 0.01
RETRY_SECONDS = 0.5
BODY_BYTES = 4096
MOST_SECONDS = 300.0
PURGE_WORDS: tuple[PurgeWord, ...] = get_args(PurgeWord)


class Purged(Struct, frozen=True):
    """A confirmed purge: no worker serves an older entry."""

    generation: int
    workers: int
    deleted: int | None = None
    """Entries that Redis had of the key; None where it was not asked."""


class Purger:
    """Purges, through the state store, and waits for the workers."""

    def __init__(self, state: State | None, tiers: Tiers) -> None:
        self._state = state
        self._tiers = tiers

    async def purge(self, kind: Kind, what: str, seconds: float, actor: Actor = NO_ACTOR) -> Purged:
        """Raises StateUnavailable, and NotConfirmed after so many seconds; then it is in force wherever it is known."""
        state = self._store()
        generation = await state.purge(kind, what)
        shown = what[:12] if kind in ("digest", "key") else what
        until = asyncio.get_running_loop().time() + seconds
        while True:
            workers = await self._living(state)
            missing = sorted(name for name, confirmed in workers.items() if confirmed < generation)
            if not missing or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(LOOK_SECONDS)
        facts: dict[str, object] = {"generation": generation, "workers": len(workers), "missing": missing}
        failed, deleted = f"purged, but not confirmed by {', '.join(missing)}" if missing else None, None
        if kind == "key" and not missing:
            try:
                facts["deleted"] = deleted = await self._deleted(Key(bytes.fromhex(what)))
            except FarError as error:
                facts["far"] = error.kind
                failed = (
                    f"purged in every worker, but not deleted in Redis ({error.kind}). No worker serves it; "
                    "purge it again once Redis answers"
                )
        actor.did("purge", kind=kind, what=shown, **facts)
        if failed is not None:
            raise NotConfirmed(failed)
        return Purged(generation, len(workers), deleted)

    async def _deleted(self, key: Key) -> int | None:
        """Entries of a key that Redis had, now deleted. Raises FarError. A request has milliseconds for Redis; an
        operator waits for a second try."""
        try:
            return await self._tiers.delete_far([key])
        except FarError:
            await asyncio.sleep(RETRY_SECONDS)
            return await self._tiers.delete_far([key])

    async def forget_worker(self, worker: str, actor: Actor = NO_ACTOR) -> None:
        """Deregister a worker of another machine that an operator knows to have ended. Raises UnknownTarget."""
        state = self._store()
        known = await state.workers()
        if worker not in known:
            text = f"no worker {worker[:64]!r} is registered; registered are: {', '.join(sorted(known)) or 'none'}"
            raise UnknownTarget(text)
        await state.leave(worker)
        actor.did("forget-worker", worker=worker[:64])

    async def workers(self) -> dict[str, int]:
        return await self._living(self._store())

    async def _living(self, state: State) -> dict[str, int]:
        """The last purge that each registered worker confirmed; workers that have certainly ended are deregistered."""
        workers = await state.workers()
        for worker in [name for name in workers if is_gone(name)]:
            await state.leave(worker)
            del workers[worker]
        return workers

    def _store(self) -> State:
        if self._state is None:
            raise StateUnavailable("this proxy runs without a state store; start it with --state")
        return self._state


def admin_application(purger: Purger, targets: Targets, operators: Operators, body_seconds: float) -> web.Application:
    """The operators' listener: POST /admin/purge, GET /admin/workers, POST /admin/workers/forget."""

    async def asked(request: web.Request, verb: str) -> tuple[dict[str, Any], Actor]:
        actor = operators.check(request, verb)
        document = load_json(await read_body(request, body_seconds))
        if not isinstance(document, dict):
            raise BadRequest("body: expected an object")
        return document, actor

    async def purge(request: web.Request) -> web.Response:
        """Purge one of `model`, `digest`, `tenant`, `key` and `all` (true); workers confirm within `timeout_seconds`. A
        model, digest or tenant that nothing knows is 404 unless `even_if_unknown` is true."""
        document, actor = await asked(request, "purge")
        kind, what = target_of(document)
        seconds = document.get("timeout_seconds", 5.0)
        if type(seconds) not in (int, float) or not 0 <= seconds <= MOST_SECONDS:
            raise BadRequest(f"timeout_seconds: must be a number from 0 to {MOST_SECONDS:g}")
        unknown = document.get("even_if_unknown", False)
        if type(unknown) is not bool:
            raise BadRequest("even_if_unknown: must be true or false")
        try:
            target = await targets.resolve(kind, what, even_if_unknown=unknown)
        except ForeseenError as error:
            actor.did("purge", kind=kind, what=what[:64], failed=error.code)
            raise
        done = [await purger.purge(target.kind, name, seconds, actor) for name in target.names][-1]
        reply = {"generation": done.generation, "workers": done.workers, "purged": target.said}
        return json_reply(reply if done.deleted is None else {**reply, "deleted": done.deleted})

    async def workers(request: web.Request) -> web.Response:
        """The registered workers and the last purge that each has confirmed."""
        operators.check(request, "workers")
        return json_reply({"workers": await purger.workers()})

    async def forget(request: web.Request) -> web.Response:
        """Unregister a `worker` of another machine that has ended, so that purges do not wait for it."""
        document, actor = await asked(request, "forget-worker")
        worker = document.get("worker")
        if type(worker) is not str or not worker:
            raise BadRequest("worker: name one, as GET /admin/workers does")
        await purger.forget_worker(worker, actor)
        return json_reply({"forgotten": worker})

    app = web.Application(middlewares=[errors], client_max_size=BODY_BYTES)
    app.router.add_post("/admin/purge", purge)
    app.router.add_get("/admin/workers", workers)
    app.router.add_post("/admin/workers/forget", forget)
    return app


def target_of(document: dict[str, Any]) -> tuple[PurgeWord, str]:
    """The target that a body names: exactly one of model, digest, tenant, key and all. Raises BadRequest."""
    given = [kind for kind in PURGE_WORDS if document.get(kind) not in (None, False)]
    if len(given) != 1 or document.keys() - {*PURGE_WORDS, "timeout_seconds", "even_if_unknown"}:
        raise BadRequest(
            "body: give exactly one of model, digest, tenant, key and all, and timeout_seconds if you like"
        )
    kind, what = given[0], document[given[0]]
    if kind == "all":
        if what is not True:
            raise BadRequest("all: must be true")
        return "all", ""
    if type(what) is not str or not what or len(what) > 256:
        raise BadRequest(f"{kind}: must be a text")
    if kind == "key" and (len(what) != 64 or set(what) - set("0123456789abcdef")):
        raise BadRequest("key: must be 64 hexadecimal digits, as `foreseen key` and explain show it")
    return kind, what
