"""Serves the models of an upstream server: finds them at start and follows their changes.

A new model there is served here. A model whose rows prove independent is keyed by the row from then on. A changed
signature makes another model under the same name. Each change puts a new `ServedModel` in force, so a request that is
under way ends under the manifest that it was decoded by.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from msgspec import structs

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import UPSTREAM_SCHEMES, Manifest, find, names
from foreseen.modelspec.manifest.policy import Freshness
from foreseen.proxy.backend.grpc.late_process import grpc_process
from foreseen.proxy.backend.passed import passed_of
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.replicas.replicated import ReplicatedProcess
from foreseen.proxy.backend.served import WATCH_SECONDS, WATCH_SECONDS_AT_START, ServedModel, id_key_of
from foreseen.proxy.backend.text_servers.processes import PROCESSES
from foreseen.proxy.backend.text_servers.recognise import GRPC, server_at
from foreseen.proxy.backend.text_servers.text_server import TextServer, named, served_name
from foreseen.proxy.backend.upstream import UpstreamProcess
from foreseen.proxy.backend.upstream_access import UpstreamAccess
from foreseen.proxy.backend.upstream_metadata import UpstreamMetadata, declared_metadata, metadata_of, optional_inputs
from foreseen.proxy.backend.v2_server import Problem, Unusable, V2Server
from foreseen.proxy.cache.freshness import policy_of
from foreseen.settings import ProxySettings
from foreseen.stores.redis_urls import shown
from foreseen.tenants.passed import PassedCredentials

log = structlog.get_logger()

FIND_SECONDS = 3.0
"""How long a process waits at its start for an upstream that is starting as well."""
LOOK_SECONDS = 5.0
"""Between two looks for new models."""
REMIND_SECONDS = 60.0
"""Between two lines in the log about a problem that stays."""
SIDE_BY_SIDE = 8
"""Models whose metadata are read concurrently, so that a server that hangs on one delays the others little."""

Serve = Callable[[UpstreamMetadata, V2Server], ServedModel]


class Upstream:
    """The models of one server. `names` are those to serve, none for all that it lists; `serve` makes one of ours, and
    `declared` knows what an operator's manifest says of one."""

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        serve: Serve,
        trials: IsolationLock | None = None,
        declared: Callable[[str], Manifest | None] = lambda _: None,
        recognised: Callable[[], Awaitable[V2Server]] | None = None,
        passed: PassedCredentials | None = None,
    ) -> None:
        self.passed = passed
        self.served: dict[str, ServedModel] = {}
        self.trials = trials or IsolationLock()
        self.refused: dict[str, Unusable] = {}
        """Models that cannot be served, by name, and why."""
        self.problem: Unusable | None = None
        """Why the server as a whole is of no use."""
        self._address = shown(address)
        self._server: V2Server | None = V2Server(address) if recognised is None else None
        self._recognised = recognised
        self._listed = False
        self._names = tuple(served_name(name) if "/" in name else name for name in names)
        self._serve = serve
        self._declared = declared
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._logged: dict[str, tuple[str, float]] = {}

    async def find(self) -> None:
        """Serve the models that the server has now; wait a few seconds for missing ones, then `follow` does."""
        until = asyncio.get_running_loop().time() + FIND_SECONDS
        while True:
            await self.look()
            if self.missing is None or asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(WATCH_SECONDS_AT_START)

    async def follow(self) -> None:
        """Keep `served` up to date with the server, until cancelled."""
        try:
            while True:
                for name in self.served:
                    if name not in self._followers:
                        self._followers[name] = asyncio.create_task(self._follow(name))
                await asyncio.sleep(LOOK_SECONDS if self.missing is None else WATCH_SECONDS)
                await self.look()
        finally:
            for task in self._followers.values():
                task.cancel()
            await self.close()

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()

    @property
    def missing(self) -> str | None:
        """Why models are not served that should be: those that were named, or any at all. None where they are."""
        wanted = [name for name in self._names if name not in self.served]
        if self.served and not wanted:
            return None
        if self.problem is not None:
            return str(self.problem)
        whys = [str(self.refused[name]) for name in wanted or self.refused if name in self.refused]
        return "; ".join(whys[:3]) or "the upstream has not been asked yet"

    def refusal(self, name: str) -> Unusable | None:
        """Why a model cannot be served: for itself, or since the server was never of use. None where nothing says that
        there is such a model."""
        if name in self.refused or self._listed or (self._names and name not in self._names):
            return self.refused.get(name)
        return self.problem

    def problems(self) -> Counter[str]:
        """How many models, or servers, cannot be served, by problem."""
        found = Counter(one.problem for one in self.refused.values())
        if self.problem is not None:
            found[self.problem.problem] += 1
        return Counter[str](found)

    async def look(self) -> None:
        """Serve what is not served yet; note, and log, what cannot be."""
        try:
            await self._look()
            self.problem = None
            self._logged.pop("", None)
        except Unusable as error:
            self.problem = error
            self._say("", error)

    async def _look(self) -> None:
        """Serve what is not served yet. Raises Unusable where the server lists no model."""
        if self._server is None or (self._recognised is not None and self.problems()["unreachable"]):
            assert self._recognised is not None
            before, self._server = self._server, await self._recognised()
            if before is not None:
                await before.close()
        names = self._names or await self._server.listed()
        new = [name for name in names if name not in self.served]
        for gone in self.refused.keys() - set(new):
            del self.refused[gone]
        places = asyncio.Semaphore(SIDE_BY_SIDE)

        async def add(name: str) -> None:
            async with places:
                await self._add(name)

        await asyncio.gather(*(add(name) for name in new))
        self._listed = True

    async def _add(self, name: str) -> None:
        try:
            assert self._server is not None
            one = self._serve(await self._reported(name), self._server)
        except SetupError as error:
            why = error if isinstance(error, Unusable) else Unusable("unusable", str(error), "see docs/upstream.md")
            self.refused[name] = why
            self._say(name, why)
            return
        await one.refresh()  # ready as soon as it is there
        process = one.process
        if isinstance(process, UpstreamProcess) and process.rows != one.manifest.rows:  # its probe has ended already
            one = one.keyed(structs.replace(one.manifest, rows=process.rows))
            await one.refresh()
        self.served[name] = one
        self.refused.pop(name, None)
        self._logged.pop(name, None)

    def _say(self, name: str, why: Unusable) -> None:
        """One line for a problem when it begins, and once a minute while it stays."""
        text, now = str(why), asyncio.get_running_loop().time()
        before, at = self._logged.get(name, ("", 0.0))
        if before == text and now - at < REMIND_SECONDS:
            return
        self._logged[name] = text, now
        whose = {"model": name} if name else {}
        log.warning(
            "upstream model not served" if name else "upstream not usable",
            upstream=self._address,
            problem=why.problem,
            why=why.said,
            fix=why.fix,
            **whose,
        )

    async def _follow(self, name: str) -> None:
        """One model: its version, whether its rows may be keyed one by one, its signature."""
        for turn in itertools.count():
            one = self.served[name]
            await one.refresh()
            process = one.process
            assert isinstance(process, UpstreamProcess)
            if process.declared is None:
                try:
                    await self._renew(name, one, process)
                except SetupError as error:  # a manifest that came meanwhile, say
                    self._say(name, Unusable("unusable", str(error), "see docs/upstream.md"))
            if turn == 0 and one.facts is not None and one.facts.identity == "unobservable":
                log.warning(
                    "upstream: a change of this model would be unobservable; declare --upstream-digest", model=name
                )
            await asyncio.sleep(WATCH_SECONDS if one.ready and process.settled else WATCH_SECONDS_AT_START)

    async def _renew(self, name: str, one: ServedModel, process: UpstreamProcess) -> None:
        if process.reported.manifest.model != one.manifest.model:
            assert self._server is not None
            new = self._serve(process.reported, self._server)
            log.warning("upstream model has another signature", model=name)
        elif (process.rows, process.outputs) != (one.manifest.rows, one.manifest.outputs):
            new = one.keyed(structs.replace(one.manifest, rows=process.rows, outputs=process.outputs))
            log.info("upstream rows", model=name, rows=process.rows, outputs=process.outputs, why=process.why)
        else:
            return
        await new.refresh()
        new.stats = one.stats
        self.served[name] = new
        if new.process is not process:
            await process.close()

    async def _reported(self, name: str) -> UpstreamMetadata:
        """What is known of a model: an operator's manifest, or else its metadata. Raises SetupError."""
        declared = self._declared(name)
        assert self._server is not None
        if declared is not None:
            reported = declared_metadata(declared)
            if isinstance(self._server, TextServer):
                reported = structs.replace(reported, manifest=named(declared, await self._server.metadata(name)))
            return reported
        metadata = await self._server.metadata(name)
        optional = optional_inputs(metadata, await self._server.config(name))
        try:
            reported = metadata_of(name, metadata, optional)
            if isinstance(self._server, TextServer):
                reported = structs.replace(reported, manifest=named(reported.manifest, metadata))
            return reported
        except SetupError as error:
            kind: Problem = "unusable" if metadata.get("inputs") and metadata.get("outputs") else "no-metadata"
            said = f"GET /v2/models/{name} answered 200, but: {error}"
            raise Unusable(kind, said, "write a model.toml for it (docs/upstream.md)") from None


async def upstream_of(settings: ProxySettings, defaults: Freshness) -> Upstream | None:
    """The upstream of the settings, with the models that it has now; None where there is none. Raises SetupError for
    settings that make no sense."""
    if not settings.upstream:
        return None
    upstream = upstream_at(settings, defaults)
    await upstream.find()
    return upstream


def upstream_at(settings: ProxySettings, defaults: Freshness) -> Upstream:
    """The same before it has been asked for its models. Raises SetupError."""
    address, folders = settings.upstream[0], (settings.models,) if settings.models else ()
    for one in settings.upstream:
        if not one.startswith(UPSTREAM_SCHEMES):
            raise SetupError(f"--upstream {one}: is neither http://host:port nor grpc://host:port")
        if one.startswith(GRPC) != address.startswith(GRPC):
            raise SetupError(f"--upstream {one}: replicas speak one protocol, and {address} another")
    if address.startswith(GRPC) and (settings.upstream_key_file or settings.upstream_ca_file):
        raise SetupError(f"--upstream {address}: --upstream-key-file and --upstream-ca-file are for servers over HTTP")
    trials, access = IsolationLock(), UpstreamAccess(settings.upstream_key_file, settings.upstream_ca_file)
    passed = passed_of(settings)  # raises for contradictions
    access.headers()  # a key file that cannot be read is a mistake in the settings

    def declared(name: str) -> Manifest | None:
        """The manifests in the box are not of this server's models."""
        return find(name, folders) if name in names(folders) else None

    def serve(reported: UpstreamMetadata, server: V2Server) -> ServedModel:
        manifest = declared(reported.manifest.name)
        return in_front_of(settings.upstream, reported, settings, defaults, manifest, trials, server, passed)

    addresses = itertools.cycle(settings.upstream)

    async def recognised() -> V2Server:
        """At the next of the replicas, until one can be reached."""
        kind = None if settings.upstream_kind == "auto" else settings.upstream_kind
        return await server_at(next(addresses), settings.upstream_api, access, kind, settings.model)

    return Upstream(address, settings.model, serve, trials, declared, recognised, passed)


def in_front_of(
    addresses: Sequence[str],
    reported: UpstreamMetadata,
    settings: ProxySettings,
    defaults: Freshness,
    manifest: Manifest | None,
    trials: IsolationLock | None = None,
    server: V2Server | None = None,
    passed: PassedCredentials | None = None,
) -> ServedModel:
    """A model of another server; `manifest` is what the operator declares of it."""
    options: dict[str, Any] = {
        "manifest": manifest,
        "digest": (manifest.digest if manifest is not None else None) or settings.upstream_digest,
        "tolerance": settings.upstream_tolerance,
        "probe": settings.upstream_probe,
        "quarantine_seconds": settings.quarantine_seconds,
        "trials": trials,
        "access": UpstreamAccess(settings.upstream_key_file, settings.upstream_ca_file),
    }
    process: UpstreamProcess
    own = structs.replace(manifest or reported.manifest, upstream=addresses[0])
    if isinstance(server, TextServer):
        servers = [server.sibling(address) for address in addresses]
        process = PROCESSES[server.models[reported.manifest.name].task](reported, servers, **options)
        own = structs.replace(own, upstream_api=reported.manifest.upstream_api, openai=reported.manifest.openai)
    elif addresses[0].startswith(GRPC):
        process = grpc_process(reported, addresses, options)
    elif len(addresses) > 1:
        process = ReplicatedProcess(reported, addresses, **options)
    else:
        process = UpstreamProcess(reported, addresses[0], **options)
    process.passed = passed
    return ServedModel(own, process, settings.data, policy_of(own.freshness, defaults), id_key_of(settings))
