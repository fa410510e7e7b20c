"""Builds a proxy process, room by room from the bottom up: stores, prediction, jobs, operators, HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog

from foreseen.errors import FarError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import secret_check, tag_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.row_records import HotRowsHead
from foreseen.paths import children_file
from foreseen.proxy.admin.admin import Operators
from foreseen.proxy.admin.canary_route import add_canary
from foreseen.proxy.admin.candidate_rows import add_candidate_rows
from foreseen.proxy.admin.handover_routes import add_handover_routes
from foreseen.proxy.admin.heartbeat import Heartbeat
from foreseen.proxy.admin.hot_rows import add_hot_rows
from foreseen.proxy.admin.purge import Purger, admin_application
from foreseen.proxy.admin.purge_targets import Targets
from foreseen.proxy.admin.quota_sync import TenantAccounts
from foreseen.proxy.backend.discovery import Upstream
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.far_tier import TierLimits
from foreseen.proxy.cache.generations import Generations
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.purge_mark import PurgeMark
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.canary.canary import canary_of
from foreseen.proxy.canary.candidate import candidate_of
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.known_heads import KnownHeads
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.from_settings import (
    assert_parser,
    bounds_of,
    far_of,
    freshness_of,
    keyring_of,
    limits_of,
    served_model,
    tls_of,
)
from foreseen.proxy.handlers import Handlers
from foreseen.proxy.jobs.batch import Batches
from foreseen.proxy.jobs.openai_batches import OpenAIBatches
from foreseen.proxy.jobs.predictions import Predictions
from foreseen.proxy.jobs.ticket_options import TicketOptionsReader
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.counting import AccessLog, RequestCounter
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.sampling.row_sampler import HitSamplers
from foreseen.proxy.predict.sampling.sampled_pipeline import pipeline_of
from foreseen.proxy.predict.sampling.samplers import auditor_of, hot_inputs_of, shadow_of
from foreseen.proxy.predict.serve import Server
from foreseen.proxy.status_handlers import StatusHandlers
from foreseen.queue.queue import connect_queue
from foreseen.queue.records import Records
from foreseen.queue.targets import Allowed
from foreseen.settings import ProxySettings
from foreseen.stores.quota_store import connect_quota_store
from foreseen.stores.redis_urls import access_of
from foreseen.stores.state import connect_state
from foreseen.tasks import end
from foreseen.telemetry.callers import CallerCounts
from foreseen.telemetry.child_states import ChildState, read_children
from foreseen.telemetry.exposition import use_slot
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.telemetry.traces import traces_of
from foreseen.types import Key
from foreseen.web.bodies import BODIES, Bodies
from foreseen.web.heavy import Heavy
from foreseen.web.limits import Gate

log = structlog.get_logger()

DRAIN_SECONDS = 10.0
STATE_SECONDS = 2.0
KNOWN_POLL_SECONDS = 0.02


class Proxy:
    """One proxy process: its models, its pipeline, its application."""

    def __init__(
        self, settings: ProxySettings, upstream: Upstream | None = None, service: str = "foreseen-proxy"
    ) -> None:
        """`upstream` has found its models already. Rooms are built from the bottom up. `service` is what traces call
        this process."""
        assert_parser()
        root = read_secret(settings.secret_file or settings.data / "secret")
        self.settings = settings
        use_slot(settings.slot)
        self.metrics = ProxyMetrics(on=settings.metrics)
        self.traces = traces_of(service, self.metrics)
        self.upstream = upstream
        self.trials = IsolationLock() if upstream is None else upstream.trials
        self.served = {} if upstream is None else upstream.served
        self.served |= {served.manifest.name: served for served in self._own_models()}
        self.tls, self.keyring = tls_of(settings), keyring_of(settings, upstream)
        self.heavy = Heavy()
        self.callers = CallerCounts(settings.top_callers) if settings.top_callers and settings.metrics else None
        tiers = self._build_stores(root)
        self._build_predict(tiers, root)
        self._build_jobs(root)
        operators = self._build_admin(tiers)
        self._build_http(tiers, operators)

    def _build_stores(self, root: bytes) -> Tiers:
        """near, far, and the state store's clients."""
        settings = self.settings
        self.far = far_of(settings, secret_check(root))
        self.trials.among(self.far, root, self.metrics)
        given = None if settings.state == "none" else settings.state
        access, replicas = access_of(settings), settings.state_replicas
        self.state = None if given is None else connect_state(given, access, replicas)
        self.quota_store = None if given is None else connect_quota_store(given, access)
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
        self.accounts = TenantAccounts(self.keyring, self.quota_store, self._children, self.metrics)
        bounds = settings.waiting_rows, settings.miss_rows
        self.auditor = auditor_of(settings, self.metrics)
        self.candidate = candidate_of(settings, self.served, freshness_of(settings))
        self.shadow = shadow_of(settings, self.candidate, self.metrics)
        samplers = [one for one in (self.auditor, self.shadow) if one is not None]
        self.hot = hot_inputs_of(settings, tiers.near, self.metrics)
        observers = [one for one in (self.auditor, self.shadow, self.hot) if one is not None]
        self.hit_samplers = HitSamplers(samplers)
        more = *bounds, leases, self.accounts.misses
        self.pipeline = pipeline_of(observers, tiers, self.served, self.metrics, *more)
        self.generations = Generations(self.state, self._forget, PurgeMark(self.far, root))
        self.answers = AnswerCache(settings.reply_cache_bytes, tiers.near, self.served, self.generations)
        access_log = AccessLog(settings.access_log_hits, models=self.served)
        self.server = Server(
            self.pipeline,
            Observer(self.pipeline, self.metrics),
            self.metrics,
            self.answers,
            RequestCounter(self.metrics, self.served, access_log, self.callers, self.accounts.usage),
            observed=frozenset(self.served if "all" in settings.observe else settings.observe),
            server_timing=settings.server_timing,
            purges=self.generations,
            heavy=self.heavy,
        )
        self.canary = canary_of(settings, self.candidate, self.server, self.served, self.far)

    async def _forget(self, keys: Mapping[Key, float] | None) -> None:
        """Purged keys: in all pipelines."""
        if self.hot is not None:
            self.hot.forget(keys)
        await self.pipeline.forget(keys)
        if self.canary is not None:
            await self.canary.pipeline.forget(keys)

    def _build_jobs(self, root: bytes) -> None:
        """Tickets, where there is a state store."""
        settings = self.settings
        self.webhooks = Allowed(settings.webhook_allow, settings.webhook_ports, settings.webhook_networks)
        self.records = Records(root)
        self.jobs: Jobs | None = None
        if self.queue is not None and not settings.upstream_pass_authorization:  # a job has nobody's credential
            own = (self.queue, self.records, self.pipeline, self.served, self.generations, self.metrics, self.heavy)
            self.jobs = Jobs(*own)

    def _build_admin(self, tiers: Tiers) -> Operators:
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
        given = settings.admin_token_file
        operators = Operators(given or settings.data / "admin-token", settings.data, required=given is not None)
        self.operators = operators.keys
        self.targets = Targets(self.state, self.served, settings.data, self.keyring)
        self.purger = Purger(self.state, tiers)
        self.admin = admin_application(self.purger, self.targets, operators, settings.body_seconds)
        add_handover_routes(self.admin, operators, self.metrics, self.served, settings.body_seconds)
        add_hot_rows(self.admin, operators, self.hot, self.server, self._hot_rows_head, settings.body_seconds)
        share = None if self.canary is None else self.canary.share
        add_canary(self.admin, operators, share, settings.body_seconds)
        add_candidate_rows(self.admin, operators, self.server, self.canary, settings.body_seconds)
        return operators

    def _build_http(self, tiers: Tiers, operators: Operators) -> None:
        """The responder, the known heads and the public application."""
        upstream = self.upstream
        self.bodies = Bodies()
        build = Responder if self.canary is None else self.canary.responder
        self.responder = build(
            served=self.served,
            server=self.server,
            cache=self.answers,
            clock=tiers.clock,
            keyring=self.keyring,
            refusal=(lambda _: None) if upstream is None else upstream.refusal,
            traces=self.traces,
        )
        self.hit_samplers.attach(self.responder)
        self.heads = KnownHeads(self.settings.body_bytes, self.keyring)
        status = self.status = StatusHandlers(
            served=self.served,
            responder=self.responder,
            exposition=self.heartbeat.exposition,
            stalled=lambda: self.heartbeat.stalled,
            lost=self._lost,
            missing=lambda: None if upstream is None else upstream.missing,
            check_metrics=None if self.settings.metrics_open else lambda request: operators.check(request, "metrics"),
        )
        self.application = Handlers(
            server=self.server,
            responder=self.responder,
            settings=self.settings,
            operators=operators,
            status=status,
            predictions=self._predictions(),
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
        """Watch the models; at the end wait for the flights and close every connection."""
        await self._look_at_far()
        parts = [one.watch() for one in self.served.values()] if self.upstream is None else [self.upstream.follow()]
        parts += [self.heartbeat.beat(), self.generations.follow(), self.targets.follow(), self.keyring.follow()]
        parts += [self.operators.follow(), self.accounts.follow()]
        parts += [part.follow() for part in (self.far, self.tls) if part is not None]
        watchers = [asyncio.create_task(part) for part in (*parts, *self._parts_of_changes())]
        try:
            async with asyncio.timeout(STATE_SECONDS):
                await self.generations.ready.wait()
        except TimeoutError:
            log.warning("state: not reachable at start; bypassing the cache until it is")
        try:
            yield
        finally:
            await end(*watchers)
            await self.pipeline.close(DRAIN_SECONDS)
            if self.canary is not None:
                await self.canary.pipeline.close(DRAIN_SECONDS)
            self.metrics.flush()  # what the last flights counted
            if self.jobs is not None:
                await self.jobs.close()
            await self.accounts.close()
            await self.targets.note()
            await self.generations.leave()
            for served in self.served.values():
                await served.process.close()
            if self.candidate is not None:
                await self.candidate.close()
            if self.far is not None:
                await self.far.close()
            if self.traces is not None:
                await self.traces.close()
            self.server.close()

    def _parts_of_changes(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What a change of a model has running: docs/changing-models.md."""
        if self.auditor is not None:
            yield self.auditor.audit(self.server, self.purger, self.served)
        if self.hot is not None:
            yield self.hot.follow(lambda: self.generations.last, self.server.in_generation)
        if self.candidate is not None:
            yield self.candidate.follow()
        if self.canary is not None:
            yield self.canary.share.follow()
        if self.shadow is not None:
            yield self.shadow.shadow(self.server)

    def connect(self, manager: Any, **options: Any) -> FastConnection:
        """A connection that answers what it recognises itself."""
        return FastConnection(manager, self.responder, self.heads, self.bodies, **options)

    async def known(self) -> None:
        """Wait until every model has answered and the purges have been read."""
        while not all(served.ready for served in self.served.values()):  # noqa: ASYNC110 - they are looked at, too
            await asyncio.sleep(KNOWN_POLL_SECONDS)
        await self.generations.ready.wait()

    def _children(self) -> list[ChildState]:
        """The supervisor's children, where there is a supervisor: it passes the listening socket."""
        return [] if self.settings.fd is None else read_children(children_file(self.settings.data))

    def _hot_rows_head(self) -> HotRowsHead:
        workers = sum(child.name.startswith("proxy:") for child in self._children())
        return HotRowsHead(self.generations.worker, max(1, workers))

    def _lost(self) -> list[str]:
        """What does not work at the moment, although predictions are answered."""
        lost = []
        if self.far is not None and (self.far.foreign or self.far.open):
            lost.append("far (Redis): misses of near go to the models")
        if not self.generations.reachable:
            lost.append("state store: no job is taken, no result can be fetched, no purge is acknowledged")
        if not self.generations.ready.is_set():
            lost.append("state store: never reached, so nothing is answered from the cache")
        return lost

    def _own_models(self) -> list[ServedModel]:
        return [served_model(named, self.settings, self.trials) for named in self.settings.own_models]

    def _versions(self) -> dict[str, str]:
        return {name: served.manifest.version for name, served in self.served.items()}

    async def _look_at_far(self) -> None:
        if self.far is None:
            return
        try:
            await self.far.look()
        except FarError as error:
            log.warning("far: not reachable at start; continuing without it", kind=error.kind)
