"""A call's metadata, deadline and peer → what the normal path takes: a `RequestHead`. Without grpcio.

Metadata are what headers are over HTTP: `cache-control`, `traceparent`, `x-request-id`, and `x-forwarded-for` behind
trusted proxies. The deadline is the call's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from foreseen.proxy.cache.freshness import NO_CONTROL, control_of
from foreseen.proxy.predict.ask import RequestHead
from foreseen.settings import ProxySettings
from foreseen.tenants.keyring import CREDENTIAL_HEADERS, PairHeaders
from foreseen.tenants.tenant import Tenant
from foreseen.web.caller import Caller, address_of
from foreseen.web.http import TRACEPARENT

_READ = frozenset(
    ("cache-control", "traceparent", "x-request-id", "x-correlation-id", "x-forwarded-for",
     "prefer", "foreseen-webhook", "idempotency-key")
)  # fmt: skip
"""The metadata that have a meaning here."""
_PATHS = {name: b"POST /inference.GRPCInferenceService/" + name.encode() for name in ("ModelInfer", "ModelStreamInfer")}
NO_CREDENTIALS = PairHeaders(())


class CallMetadata(NamedTuple):
    """The metadata of one call, those that are read; of one that is given twice both values, joined by commas."""

    values: Mapping[str, str]
    peer: str
    seconds: float | None
    """Until its deadline; None where it has none."""
    credentials: PairHeaders
    subject: str | None = None
    """Of the verified client certificate."""


def read_metadata(
    given: Iterable[tuple[str, Any]], peer: str, seconds: float | None, subject: str | None = None
) -> CallMetadata:
    """A call's metadata; `peer` as gRPC says it."""
    values: dict[str, str] = {}
    credentials: list[tuple[str, str]] | None = None
    for name, value in given:
        if name in _READ and type(value) is str:
            values[name] = f"{values[name]}, {value}" if name in values else value
        elif name in CREDENTIAL_HEADERS and type(value) is str:
            credentials = [*(credentials or ()), (name, value)]
    given_keys = NO_CREDENTIALS if credentials is None else PairHeaders(credentials)
    return CallMetadata(values, peer, seconds, given_keys, subject)


def is_plain(given: Iterable[tuple[str, Any]]) -> bool:
    """Whether none of a call's metadata are read, and none is a credential."""
    for name, _ in given:  # noqa: SIM110 - a generator costs as much as the look
        if name in _READ or name in CREDENTIAL_HEADERS:
            return False
    return True


def plain_caller(peer: str) -> Caller:
    """The caller of a `ModelInfer` whose metadata are plain."""
    return Caller(address_in_peer(peer), _PATHS["ModelInfer"])


def head_of(
    call: CallMetadata, settings: ProxySettings, tenant: Tenant, model: str, version: str | None, caller: Caller
) -> RequestHead:
    """What a call of `ModelInfer` or `ModelStreamInfer` asks for."""
    values = call.values
    control, trace = values.get("cache-control"), values.get("traceparent")
    if settings.ignore_client_cache_control:
        control = None
    seconds = settings.deadline_seconds
    if call.seconds is not None:
        seconds = min(call.seconds, settings.longest_deadline_seconds)
    return RequestHead(
        model,
        version,
        "grpc",
        tenant,
        seconds=seconds,
        control=NO_CONTROL if control is None else control_of(control),
        traceparent=None if trace is None else traceparent_of(call),
        caller=caller,
    )


def traceparent_of(call: CallMetadata) -> str | None:
    """The W3C trace context of a call, None where there is none or it is malformed."""
    trace = call.values.get("traceparent")
    return trace if trace is not None and TRACEPARENT.match(trace) else None


def caller_of(call: CallMetadata, method: str, hops: int) -> Caller:
    """The caller of a call, for logs and counts."""
    values, address = call.values, address_in_peer(call.peer)
    if not values:
        return Caller(address, _PATHS[method])
    forwarded = [values["x-forwarded-for"]] if hops and "x-forwarded-for" in values else []
    lines = [
        b"\r\n%b: %b" % (name.encode(), values[name].encode("latin-1", "replace"))
        for name in ("x-request-id", "x-correlation-id")
        if name in values
    ]
    return Caller(address_of(address, forwarded, hops), b"".join((_PATHS[method], *lines)))


@lru_cache(4096)
def address_in_peer(peer: str) -> str:
    """The address in a peer as gRPC says it: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`, `unix:…`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "unix"
    return unquote(rest).rpartition(":")[0].strip("[]")
