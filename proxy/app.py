"""Wires a proxy process together and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvloop
from aiohttp import web

from foreseen.errors import FarError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import secret_check, tag_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import refuse_optional
from foreseen.modelspec.manifest import find
from foreseen.paths import children_file, model_socket
from foreseen.proxy.admin.admin import Token
from foreseen.proxy.admin.heartbeat import Heartbeat
from foreseen.proxy.admin.purge import Purger, admin_application
from foreseen.proxy.admin.purge_targets import Targets
from foreseen.proxy.backend.discovery import Upstream, in_front_of, upstream_of
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.backend.upstream_metadata import declared_told
from foreseen.proxy.cache.freshness import policy_of
from foreseen.proxy.cache.generations import Generations
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.purge_mark import PurgeMark
from foreseen.proxy.cache.tiers import TierLimits, Tiers
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.known_heads import KnownHeads
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.from_settings import assert_parser, bounds_of, far_of, freshness_of, limits_of
from foreseen.proxy.handlers import Handlers
from foreseen.proxy.jobs.batch import Batches
from foreseen.proxy.jobs.openai_batches import OpenAIBatches
from foreseen.proxy.jobs.predictions import Predictions
from foreseen.proxy.jobs.ticket_options import TicketOptionsReader
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.counting import AccessLog, RequestCounter
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.serve import Server
from foreseen.queue.queue import connect_queue
from foreseen.queue.records import Records
from foreseen.queue.targets import Allowed
from foreseen.settings import ProxySettings
from foreseen.stores.redis_urls import access_of
from foreseen.stores.state import connect_state
from foreseen.tasks import end
from foreseen.telemetry.callers import CallerCounts
from foreseen.telemetry.child_states import ChildState, read_children
from foreseen.telemetry.exposition import use_slot
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.web.bodies import BODIES, Bodies
from foreseen.web.connection import AppRunner
from foreseen.web.drain import Shutdown, announce, drain
from foreseen.web.gc_freeze import settle
from foreseen.web.heavy import Heavy
from foreseen.web.limits import Gate
from foreseen.web.listen import BACKLOG, inherited, listen, listen_admin

log = structlog.get_logger()

DRAIN_SECONDS = 10.0
STATE_SECONDS = 2.0
KNOWN_SECONDS, KNOWN_POLL_SECONDS = 1.0, 0.02
"""How long a worker waits for its models before it accepts: what it knows nothing of it would refuse. One that takes
another's place waits until it does."""
_SWITCH_SECONDS = 0.0005
"""CPython lets a busy thread keep the interpreter for 5 ms: a scrape that is rendered in a thread, or a large body that
is parsed in one, would hold every hit up for so long."""


class Proxy:
    """One proxy process: its models, its pipeline, its application."""

    def __init__(self, settings: ProxySettings, upstream: Upstream | None = None) -> None:
        """`upstream` has found its models already. Rooms are built from the bottom up."""
        assert_parser()
        root = read_secret(settings.secret_file or settings.data / "secret")
        self.settings = settings
        use_slot(settings.slot)
        self.metrics = ProxyMetrics(on=settings.metrics)
        self.upstream = upstream
        self.trials = IsolationLock() if upstream is None else upstream.trials
        self.served = {} if upstream is None else upstream.served
        self.served |= {served.manifest.name: served for served in map(self._serve, settings.own_models)}
        self.heavy = Heavy()
        self.callers = CallerCounts(settings.top_callers) if settings.top_callers and settings.metrics else None
        tiers = self._build_stores(root)
        self._build_predict(tiers, root)
        self._build_jobs(root)
        token = self._build_admin(tiers)
        self._build_http(tiers, token)

    def _build_stores(self, root: bytes) -> Tiers:
        """near, far, and the state store's clients."""
        settings = self.settings
        self.far = far_of(settings, secret_check(root))
        self.trials.among(self.far, root, self.metrics)
        given = None if settings.state == "none" else settings.state
        access, replicas = access_of(settings), settings.state_replicas
        self.state = None if given is None else connect_state(given, access, replicas)
        self.queue = None if given is None else connect_queue(given, bounds_of(settings), access, replicas)
        return Tiers(
            root=root,
            codec=EntryCodec(tag_key(root)),
            near=Near(settings.near_bytes),
            far=self.far,
            metrics=self.metrics,
            limits=TierLimits(far_pending_bytes=settings.far_pending_bytes),
        )

    def _build_predict(self, tiers: Tiers, root: bytes) -> None:
        """The pipeline, the answer cache and the server of predict requests."""
        settings = self.settings
        leases = Leases(self.far, self.metrics, settings.lease_ms / 1000)
        self.pipeline = Pipeline(tiers, self.served, self.metrics, settings.waiting_rows, settings.miss_rows, leases)
        self.generations = Generations(self.state, self.pipeline.forget, PurgeMark(self.far, root))
        self.answers = AnswerCache(settings.reply_cache_bytes, tiers.near, self.served, self.generations)
        access_log = AccessLog(settings.access_log_hits, models=self.served)
        self.server = Server(
            self.pipeline,
            Observer(self.pipeline, self.metrics),
            self.metrics,
            self.answers,
            RequestCounter(self.metrics, self.served, access_log, self.callers),
            observed=frozenset(self.served if "all" in settings.observe else settings.observe),
            server_timing=settings.server_timing,
            purges=self.generations,
            heavy=self.heavy,
        )

    def _build_jobs(self, root: bytes) -> None:
        """Tickets, where there is a state store."""
        settings = self.settings
        self.webhooks = Allowed(settings.webhook_allow, settings.webhook_ports, settings.webhook_networks)
        self.records = Records(root)
        self.jobs: Jobs | None = None
        if self.queue is not None:
            self.jobs = Jobs(
                self.queue, self.records, self.pipeline, self.served, self.generations, self.metrics, self.heavy
            )

    def _build_admin(self, tiers: Tiers) -> Token:
        """Limits, the heartbeat and the operators' application."""
        settings, upstream = self.settings, self.upstream
        self.gate = Gate(limits_of(settings), lambda limit: self.metrics.limited.labels(limit).inc())
        self.heartbeat = Heartbeat(
            self.pipeline,
            self.served,
            self.metrics,
            breaker_open=lambda: self.far is not None and self.far.open,
            far_state=self.far.state if self.far is not None else None,
            far_foreign=lambda: self.far is not None and self.far.foreign,
            versions=self._versions if settings.triton_metrics else None,
            connections=self.gate.__len__,
            queue=self.queue.standing if self.queue is not None else None,
            callers=self.callers,
            children=self._children,
            upstream_problems=None if upstream is None else upstream.problems,
        )
        token = Token(
            settings.admin_token_file or settings.data / "admin-token", required=settings.admin_token_file is not None
        )
        self.targets = Targets(self.state, self.served, settings.data)
        self.admin = admin_application(Purger(self.state, tiers), self.targets, token, settings.body_seconds)
        return token

    def _build_http(self, tiers: Tiers, token: Token) -> None:
        """The responder, the known heads and the public application."""
        upstream = self.upstream
        self.bodies = Bodies()
        self.responder = Responder(
            served=self.served,
            server=self.server,
            cache=self.answers,
            clock=tiers.clock,
            refused={} if upstream is None else upstream.refused,
        )
        self.heads = KnownHeads(self.settings.body_bytes)
        self.application = Handlers(
            served=self.served,
            server=self.server,
            responder=self.responder,
            settings=self.settings,
            token=token,
            exposition=self.heartbeat.exposition,
            predictions=self._predictions(),
            stalled=lambda: self.heartbeat.stalled,
            lost=self._lost,
            missing=lambda: None if upstream is None else upstream.missing,
        ).application()
        self.application[BODIES] = self.bodies

    def _predictions(self) -> Predictions | None:
        """The routes of predictions, where there is a queue."""
        jobs, queue, settings = self.jobs, self.queue, self.settings
        if jobs is None or queue is None:
            return None
        ticket_options = TicketOptionsReader(jobs, self.webhooks)
        batches = Batches(
            ticket_options,
            jobs,
            queue,
            self.records,
            self.responder,
            most_lines=settings.batch_lines,
            body_seconds=settings.body_seconds,
        )
        openai = OpenAIBatches(jobs, queue, batches, file_bytes=settings.body_bytes, body_seconds=settings.body_seconds)
        return Predictions(jobs, self.responder, ticket_options, batches, openai)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the models; at the end let flights land and close every connection."""
        await self._look_atfar_of()
        if self.upstream is not None:
            watchers = [asyncio.create_task(self.upstream.follow())]
        else:
            watchers = [asyncio.create_task(served.watch()) for served in self.served.values()]
        watchers.append(asyncio.create_task(self.heartbeat.beat()))
        watchers.append(asyncio.create_task(self.generations.follow()))
        watchers.append(asyncio.create_task(self.targets.follow()))
        if self.far is not None:
            watchers.append(asyncio.create_task(self.far.follow()))
        try:
            async with asyncio.timeout(STATE_SECONDS):
                await self.generations.ready.wait()
        except TimeoutError:
            log.warning("state: not reachable at start; answering past the cache until it is")
        try:
            yield
        finally:
            await end(*watchers)
            await self.pipeline.close(DRAIN_SECONDS)
            self.metrics.flush()  # what the last flights counted
            if self.jobs is not None:
                await self.jobs.close()
            await self.targets.note()
            await self.generations.leave()
            for served in self.served.values():
                await served.process.close()
            if self.far is not None:
                await self.far.close()
            self.server.close()

    def connect(self, manager: Any, **options: Any) -> FastConnection:
        """A connection that answers what it recognises itself."""
        return FastConnection(manager, self.responder, self.heads, self.bodies, **options)

    async def known(self) -> None:
        """Until every model has been reached and it is known what was purged."""
        while not all(served.ready for served in self.served.values()):  # noqa: ASYNC110 - they are looked at, too
            await asyncio.sleep(KNOWN_POLL_SECONDS)
        await self.generations.ready.wait()

    def _children(self) -> list[ChildState]:
        """The supervisor's children, where there is a supervisor: it passes the listening socket."""
        return [] if self.settings.fd is None else read_children(children_file(self.settings.data))

    def _lost(self) -> list[str]:
        """What does not work just now, though predictions are answered."""
        lost = []
        if self.far is not None and (self.far.foreign or self.far.open):
            lost.append("far (Redis): misses of near go to the models")
        if not self.generations.reachable:
            lost.append("state store: no job is taken, no result can be fetched, no purge is acknowledged")
        if not self.generations.ready.is_set():
            lost.append("state store: never reached, so nothing is answered from the cache")
        return lost

    def _versions(self) -> dict[str, str]:
        return {name: served.manifest.version for name, served in self.served.items()}

    async def _look_atfar_of(self) -> None:
        if self.far is None:
            return
        try:
            await self.far.look()
        except FarError as error:
            log.warning("far: not reachable at start; answering without it", kind=error.kind)

    def _serve(self, named: str) -> ServedModel:
        name, _, address = named.partition("=")
        manifest = find(name, self.settings.model_folders)
        if manifest.upstream is not None and not address:
            defaults = freshness_of(self.settings)
            told = declared_told(manifest)
            return in_front_of((manifest.upstream,), told, self.settings, defaults, manifest, self.trials)
        refuse_optional(manifest)
        process = ModelProcess(
            manifest,
            address or f"unix:{model_socket(self.settings.data, name)}",
            quarantine_seconds=self.settings.quarantine_seconds,
            trials=self.trials,
        )
        return ServedModel(
            manifest, process, self.settings.data, policy_of(manifest.freshness, freshness_of(self.settings))
        )


async def upstream_for(settings: ProxySettings) -> Upstream | None:
    """The upstream of the settings, its models found; None where there is none. Raises SetupError."""
    return await upstream_of(settings, freshness_of(settings))


async def _run(settings: ProxySettings) -> None:
    ending = Shutdown()
    proxy = Proxy(settings, await upstream_for(settings))
    runner = AppRunner(
        proxy.application,
        proxy.connect,
        proxy.gate,
        handler_cancellation=False,
        keepalive_timeout=settings.keepalive_seconds,
        shutdown_timeout=DRAIN_SECONDS,
    )
    async with proxy.running():
        if settings.ready_fd is not None:
            await proxy.known()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(proxy.known(), KNOWN_SECONDS)
        await runner.setup()
        listener = listen(settings.host, settings.port) if settings.fd is None else inherited(settings.fd)
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        runner.accept_all(listener)
        operators = AppRunner(proxy.admin, keepalive_timeout=settings.keepalive_seconds)
        await operators.setup()
        try:
            admin = listen_admin(settings) if settings.admin_fd is None else inherited(settings.admin_fd)
            await web.SockSite(operators, admin).start()
        except OSError as error:  # a data directory that is read-only: all but operators' routes works
            log.warning("no listener for operators", why=error.strerror)
        settle()
        announce(settings.ready_fd)
        log.info("listening", host=settings.host, port=settings.port, models=list(proxy.served))
        try:
            await ending.begun.wait()
            proxy.answers.close()  # a cached reply says nothing of the end
            if proxy.jobs is not None:
                await proxy.jobs.news.close()
            await ending.unless_at_once(drain(runner, settings.drain_seconds, settings.deadline_seconds))
        finally:
            await operators.cleanup()
            await runner.cleanup()


def run(settings: ProxySettings) -> None:
    """Serve until SIGTERM (then drain) or SIGINT. Raises SetupError where something is not as it must be."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvloop.run(_run(settings))
