"""Builds from the settings: models, the far tier, limits, freshness, bounds of the job queue."""

from __future__ import annotations

from aiohttp import http_parser

from foreseen.errors import SetupError
from foreseen.modelspec.artifact import refuse_optional
from foreseen.modelspec.manifest import find
from foreseen.modelspec.manifest.policy import Freshness
from foreseen.paths import model_socket, redis_socket
from foreseen.proxy.backend.discovery import Upstream, in_front_of, upstream_of
from foreseen.proxy.backend.model import ModelProcess
from foreseen.proxy.backend.poison.isolation import IsolationLock
from foreseen.proxy.backend.served import ServedModel, id_key_of
from foreseen.proxy.backend.upstream_metadata import declared_metadata
from foreseen.proxy.cache.freshness import policy_of
from foreseen.queue.queue_types import MAX_JOBS, Bounds
from foreseen.settings import ProxySettings
from foreseen.stores.cluster import far_at
from foreseen.stores.owned import OwnedEntries
from foreseen.stores.redis_urls import access_of
from foreseen.tenants.keyring import Keyring, internal_credential
from foreseen.web.limits import ListenerLimits
from foreseen.web.listen import files_for
from foreseen.web.tls import TlsFiles, tls_files


def keyring_of(settings: ProxySettings, upstream: Upstream | None) -> Keyring:
    """The tenants. Raises SetupError where the keys file is not as it must be."""
    internal = internal_credential(settings.internal_fd)
    passed = None if upstream is None else upstream.passed
    if settings.upstream_pass_authorization and passed is None:
        raise SetupError("--upstream-pass-authorization: needs --upstream")
    return Keyring(settings.keys_file, internal, certified=settings.tls_client_ca is not None, passed=passed)


def tls_of(settings: ProxySettings) -> TlsFiles | None:
    """The listener's certificate, where there is one. Raises SetupError."""
    return tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def far_of(settings: ProxySettings, check: bytes) -> OwnedEntries | None:
    if settings.redis == "none":
        return None
    url = settings.redis or f"unix://{redis_socket(settings.data)}"
    budget_seconds = settings.far_budget_ms / 1000
    entries = far_at(url, budget_seconds, access=access_of(settings))
    return OwnedEntries(entries, check)


def limits_of(settings: ProxySettings) -> ListenerLimits:
    """Of the public listener. Every connection is an open file."""
    return ListenerLimits(
        connections=files_for(settings.connections),
        requests=settings.connection_requests,
        head_seconds=settings.head_seconds,
        write_seconds=settings.write_seconds,
        rate=settings.rate,
        burst=settings.rate_burst,
        forwarded_hops=settings.forwarded_hops,
    )


def freshness_of(settings: ProxySettings) -> Freshness:
    """What manifests that say nothing get."""
    return Freshness(
        settings.soft_ttl_seconds,
        settings.ttl_seconds,
        settings.stale_while_revalidate_seconds,
        settings.stale_if_error_seconds,
    )


def bounds_of(settings: ProxySettings) -> Bounds:
    """How much the queue holds, and for how long."""
    if not 0.0 < settings.queue_share <= 1.0:
        raise SetupError(f"--queue-share {settings.queue_share:g}: give a number above 0, and 1 at most")
    seconds = settings.job_seconds, settings.result_seconds
    return Bounds(MAX_JOBS, settings.queue_bytes, *seconds, share=settings.queue_share)


def assert_parser() -> None:
    """aiohttp's pure-Python parser has a CVE family of its own, and `python -O` takes its assertions out."""
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise SetupError("aiohttp runs without its C parser; reinstall aiohttp from a wheel")
    if not __debug__:
        raise SetupError("do not run with python -O: libraries' security checks are assertions")


def served_model(named: str, settings: ProxySettings, trials: IsolationLock) -> ServedModel:
    """A model of this machine, or one whose manifest names its upstream; `named` is `name` or `name=address`."""
    name, _, address = named.partition("=")
    manifest = find(name, settings.model_folders)
    defaults = freshness_of(settings)
    if manifest.upstream is not None and not address:
        if manifest.upstream_api != "v2":
            said = f"its upstream_api is {manifest.upstream_api!r}, which is found out from the server"
            raise SetupError(f"model {name}: {said}; give --upstream {manifest.upstream}, too")
        reported = declared_metadata(manifest)
        return in_front_of((manifest.upstream,), reported, settings, defaults, manifest, trials)
    refuse_optional(manifest)
    process = ModelProcess(
        manifest,
        address or f"unix:{model_socket(settings.data, name)}",
        quarantine_seconds=settings.quarantine_seconds,
        trials=trials,
    )
    return ServedModel(manifest, process, settings.data, policy_of(manifest.freshness, defaults), id_key_of(settings))


async def upstream_for(settings: ProxySettings) -> Upstream | None:
    """The upstream of the settings, its models found; None where there is none. Raises SetupError."""
    return await upstream_of(settings, freshness_of(settings))
