"""`foreseen doctor`: checks a configured, perhaps running system; each finding is one line with its fix. Read-only.

`must`: Foreseen does not work, or not as it promises, until this is fixed. `note`: it works; an operator should know.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import aiohttp
import orjson

from foreseen.errors import SetupError
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import read_record
from foreseen.modelspec.manifest import find
from foreseen.modelspec.manifest.source import changed_file
from foreseen.operate.interpreter import optimized
from foreseen.operate.scrape import Scrape, scrape
from foreseen.operate.started import flags_of, url_at, watcher_key
from foreseen.paths import model_socket
from foreseen.proxy.backend.text_servers.recognise import GRPC, grpc_server_at, server_at
from foreseen.proxy.backend.text_servers.text_server import TextServer
from foreseen.proxy.backend.upstream_access import UpstreamAccess
from foreseen.proxy.backend.v2_server import Unusable
from foreseen.proxy.tools import doctor_machine as machine
from foreseen.proxy.tools.doctor_kafka import kafka
from foreseen.proxy.tools.doctor_stores import redis, state
from foreseen.proxy.tools.finding import Finding, size
from foreseen.settings import DoctorSettings

PROBE_SECONDS = 3.0
OVERHEAD = 1.3
"""Factor of a full near's or Redis' memory over its own count: allocators, fragmentation."""


def examine(settings: DoctorSettings, given: Collection[str] = ()) -> list[Finding]:
    """All checks that this machine allows. `given` are the settings that were set explicitly."""
    return asyncio.run(_all(settings, given))


async def _all(settings: DoctorSettings, given: Collection[str]) -> list[Finding]:
    found = [*machine.versions(), *machine.interpreter(optimized()), *machine.clock(time.time()), *machine.backlog()]
    found += folders(settings, given)
    found += machine.files(resource.getrlimit(resource.RLIMIT_NOFILE)[1], settings.connections)
    found += [*secret(settings), *memory(settings, machine.memory_bytes())]
    found += machine.workers(settings.workers, os.cpu_count() or 1)
    for store in (redis, state):
        found += [one async for one in store(settings)]
    for named in settings.model or (() if settings.upstream else ("minilm",)):
        found += [one async for one in model(named, settings)]
    for address in settings.upstream:
        found += [one async for one in upstream(address, settings)]
    if settings.brokers:
        found += [one async for one in kafka(settings)]
    found += await asyncio.to_thread(lambda: list(running(settings)))
    return found


def folders(settings: DoctorSettings, given: Collection[str]) -> Iterator[Finding]:
    """A folder that was named and is not there, and what `foreseen up` was started with in the data directory."""
    if settings.models is not None and not settings.models.is_dir():
        yield Finding("must", "models", f"--models {settings.models}: there is no such folder", "mend --models")
    if not settings.data.is_dir():
        if "data" in given:
            fix = "mend --data, or start `foreseen up` with it once"
            yield Finding("must", "data", f"--data {settings.data}: there is no such folder", fix)
        else:
            fix = "nothing: `foreseen up` makes it"
            yield Finding("note", "data", f"{settings.data.resolve()}: not there yet", fix)
        return
    flags = flags_of(settings.data)
    text = f"`foreseen up` was started with {flags}" if flags else "`foreseen up` was never started in it"
    yield Finding("ok", "data", f"{settings.data.resolve()}: {text}")


def secret(settings: DoctorSettings) -> Iterator[Finding]:
    path = settings.secret_file or settings.data / "secret"
    try:
        read_secret(path)
    except SetupError as error:
        said, _, fix = str(error).partition("; ")
        if settings.redis is None and not path.exists():
            yield Finding("note", "secret", f"{path}: not there yet", "nothing: `foreseen up` makes it")
        else:
            yield Finding("must", "secret", said, fix or "give the proxy's user access")
    else:
        yield Finding("ok", "secret", f"{path}, for its owner alone")


def memory(settings: DoctorSettings, there: int | None) -> Iterator[Finding]:
    """Near of every worker and the embedded Redis, full, in what this machine or container has."""
    wanted = settings.near_bytes * settings.workers
    parts = f"near {size(settings.near_bytes)} × {settings.workers}"
    if settings.redis is None:
        wanted, parts = wanted + settings.far_bytes, f"{parts} and Valkey {size(settings.far_bytes)}"
    if there is None:
        return
    text = f"{parts} may grow to {size(int(wanted * OVERHEAD))} of {size(there)}"
    fix = "lower --near-bytes, --far-bytes or --workers"
    if wanted * OVERHEAD > there:
        yield Finding("must", "memory", f"{text}; the kernel would end a process", fix)
    elif wanted * OVERHEAD > there * 0.7:
        yield Finding("note", "memory", f"{text}, models come on top", fix)
    else:
        yield Finding("ok", "memory", text)


async def model(named: str, settings: DoctorSettings) -> AsyncIterator[Finding]:
    """Whether it is known, built, reachable, ready, and runs where it was meant to."""
    name, _, address = named.partition("=")
    what = f"model {name}"
    try:
        found = find(name, settings.model_folders)
        if found.upstream is not None and not address:
            async for one in upstream(found.upstream, settings, what):
                yield one
            return
        if not address:
            read_record(settings.data, name)
            if changed := await asyncio.to_thread(changed_file, found.source, found.name):
                said, _, fix = changed.partition("; run: ")
                yield Finding("must", what, said, fix)
    except SetupError as error:
        said, _, fix = str(error).partition("; ")
        yield Finding("must", what, said, fix.removeprefix("run: ") or "see foreseen models list")
        return
    answer = await _ask(address or f"unix:{model_socket(settings.data, name)}", name)
    if answer is None:
        if not address and not model_socket(settings.data, name).exists():
            yield Finding("note", what, "built, its process is not running", "foreseen up starts it")
        else:
            fix = "see its process's log; hits go on, misses get 503"
            yield Finding("must", what, f"{address or 'its process'} does not answer, or is not ready", fix)
        return
    provider = str(answer.get("provider", ""))
    if settings.provider != "cpu" and provider and settings.provider not in provider.lower():
        fix = "install foreseen[gpu] and its CUDA, or say --provider cpu"
        yield Finding("must", what, f"meant for {settings.provider}, runs on {provider}", fix)
    elif answer.get("row_independent") is False:
        fix = "see foreseen models report; it is asked straight through"
        yield Finding("note", what, "its rows depend on each other: nothing of it is cached", fix)
    else:
        yield Finding(
            "ok", what, f"ready, {provider or 'provider unknown'}, digest {str(answer.get('digest', '?'))[:12]}"
        )


async def upstream(address: str, settings: DoctorSettings, what: str = "upstream") -> AsyncIterator[Finding]:
    """Whether the server that the proxy stands in front of is ready: a V2 server, or one of texts that lists models."""
    if address.startswith(GRPC):
        async for one in _grpc_upstream(address, what):
            yield one
        return
    try:
        url = f"{address.rstrip('/')}/v2/health/ready"
        async with asyncio.timeout(PROBE_SECONDS), aiohttp.ClientSession() as client, client.get(url) as reply:
            status = reply.status
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        yield Finding("must", what, f"{address} does not answer", "start it, or mend --upstream; see docs/upstream.md")
        return
    if status == 200:
        yield Finding("ok", what, f"{address} is ready")
        return
    yield await _listed(address, settings, what, status)


async def _listed(address: str, settings: DoctorSettings, what: str, status: int) -> Finding:
    """Of a server that does not say over V2 that it is ready: what it lists. `status` is what it said."""
    access = UpstreamAccess(settings.upstream_key_file, settings.upstream_ca_file)
    try:
        kind = None if settings.upstream_kind == "auto" else settings.upstream_kind
        server = await server_at(address, settings.upstream_api, access, kind)
        try:
            names = await server.listed()
        finally:
            await server.close()
    except Unusable as error:
        return Finding("must", what, f"{address} is not ready: {error.said}", error.fix)
    if isinstance(server, TextServer):
        return Finding("ok", what, f"{address} is ready and lists {len(names)} models")
    return Finding("must", what, f"{address} is not ready (status {status})", "see its log")


async def _grpc_upstream(address: str, what: str) -> AsyncIterator[Finding]:
    """The same of one that speaks gRPC: whether it lists a model that is ready."""
    server = grpc_server_at(address)
    try:
        listed = await server.listed()
    except Unusable as error:
        yield Finding("must", what, f"{address} is not ready: {error.said}", error.fix)
    else:
        yield Finding("ok", what, f"{address} is ready, {len(listed)} models")
    finally:
        await server.close()


async def _ask(address: str, name: str) -> dict[str, Any] | None:
    """The `parameters` in a model process's metadata, None if it is not reachable or not ready."""
    connector = aiohttp.UnixConnector(address.removeprefix("unix:")) if address.startswith("unix:") else None
    base = "http://model" if connector else address.rstrip("/")
    try:
        async with asyncio.timeout(PROBE_SECONDS), aiohttp.ClientSession(connector=connector) as client:
            async with client.get(f"{base}/v2/models/{name}/ready") as reply:
                if reply.status != 200:
                    return None
            async with client.get(f"{base}/v2/models/{name}") as reply:
                document = orjson.loads(await reply.read())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    parameters = document.get("parameters") if isinstance(document, dict) else None
    return parameters if isinstance(parameters, dict) else {}


def running(settings: DoctorSettings) -> Iterator[Finding]:
    """Findings from the metrics of a running proxy."""
    url = settings.url or url_at(settings.host, settings.port, secure=settings.tls_cert is not None)
    try:
        now = scrape(url, watcher_key(url, settings.data))
    except SetupError as error:
        said, was_started = str(error).split(";")[0], settings.url is None and flags_of(settings.data)
        fix = "start it with `foreseen up`" if was_started else "start one, or say --url"
        yield Finding("must" if was_started else "note", "proxy", said, fix)
        return
    yield from counted(now, url)


def counted(now: Scrape, url: str) -> Iterator[Finding]:
    trouble = False
    for name in now.values("foreseen_model_ready", "model"):
        if now.one("foreseen_model_ready", model=name) == 0:
            trouble = True
            yield Finding("must", "proxy", f"it does not reach model {name}", "see runbook: ForeseenModelDown")
    if now.total("foreseen_far_breaker_open"):
        trouble = True
        yield Finding("must", "proxy", "it does not ask Redis, which failed", "see runbook: ForeseenStoreDown")
    if now.total("foreseen_far_foreign"):
        trouble = True
        said = "it does not ask Redis, which was filled under another root secret"
        yield Finding("must", "proxy", said, "see runbook: ForeseenStoreForeign")
    for name in now.values("foreseen_child_up", "child"):
        if not now.one("foreseen_child_up", child=name):
            trouble = True
            ends = now.one("foreseen_child_ends_total", child=name) or 0
            said = f"its process {name} does not run, it has ended {ends:.0f} times"
            yield Finding("must", "proxy", said, "see runbook: ForeseenChildKeepsEnding")
    wrong = now.total("foreseen_verify_failed_total")
    if wrong:
        trouble = True
        yield Finding(
            "must", "proxy", f"{wrong:.0f} far entries did not prove themselves", "see runbook: ForeseenVerifyFailed"
        )
    if not trouble:
        answered = now.total("foreseen_requests_total")
        yield Finding(
            "ok", "proxy", f"{url}, {now.total('foreseen_workers'):.0f} workers, {answered:.0f} requests so far"
        )
