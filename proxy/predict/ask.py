"""What a request's head asks of the predict routes; both ways of answering take it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from foreseen.proxy.cache.freshness import NO_CONTROL, Control
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant
from foreseen.types import Lane
from foreseen.web.caller import Caller
from foreseen.web.limits import network_of

Protocol = Literal[
    "v2", "v1", "openai", "grpc", "rerank-v1", "rerank-v2", "rerank", "score", "ranking", "predict", "classify",
    "embed", "embed-all", "embed-sparse", "similarity",
]  # fmt: skip


class RequestHead(Struct, frozen=True):
    """A head that was understood. What it leaves open, the body and the clock decide."""

    model: str
    """Empty until the body is there, where that names the model."""
    version: str | None
    protocol: Protocol
    tenant: Tenant
    """Who asks. Never left out: it decides in which key space."""
    header_length: int | None = None
    """`Inference-Header-Content-Length`, None where it is absent."""
    seconds: float = 30.0
    """How long the request has, from its first byte to its answer."""
    control: Control = NO_CONTROL
    traceparent: str | None = None
    caller: Caller | None = None
    """The sender; None in heads that are kept for later requests."""
    lane: Lane | None = None
    """The lane of its rows; None: what the body says, which is online but for V2's lowest priorities."""
    implied: bool = False
    """Whether neither head nor body names the model: it is the only one of its kind, for now."""


def charged_to(head: RequestHead) -> str:
    """Whose turns and shares a request takes: its tenant's, or without tenants its client's address."""
    if head.tenant.owner != PUBLIC_TENANT.owner:
        return head.tenant.name
    return "" if head.caller is None else network_of(head.caller.address)
