"""Parses the headers of ticket requests: `Prefer`, `Idempotency-Key`, `Foreseen-Webhook`.

`Prefer` is RFC 7240: `respond-async` asks for a ticket where the answer is not cached, `wait=N` waits so many seconds
for a prediction to end; all else in it is ignored. `Idempotency-Key` follows the IETF's draft of that name: a quoted
string, or, as most clients have it, a bare one.
"""

from __future__ import annotations

import re

from aiohttp import web
from msgspec import structs

from foreseen.errors import BadRequest, WebhookRefused
from foreseen.proxy.jobs.ticket_types import TicketOptions
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.queue.targets import Allowed
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.web.authentication import tenant_of
from foreseen.web.caller import caller_of
from foreseen.web.http import traceparent

WEBHOOK = "Foreseen-Webhook"
"""Header of a request that prefers a ticket: the URL of the webhook that is sent at its end."""
ONCE = "Idempotency-Key"
MAX_KEY = 255
LONGEST_WAIT_SECONDS = 60.0
_MEMBER = re.compile(
    r"[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;,\"]*)))?"
    r"(?:\"(?:[^\"\\]|\\.)*\"|[^\",])*(?:,|$)"
)
"""One preference with its value, and its parameters, which are skipped; a comma within quotes separates nothing."""
_WAIT = re.compile(r"[0-9]{1,6}")
_KEY = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"|([\x21\x23-\x7e]+)')


class Prefer:
    """The preferences of a request's `Prefer` that the proxy supports: `respond-async` and `wait`."""

    def __init__(self, request: web.Request | str) -> None:
        """Of a request's header, or of its value."""
        text = request if isinstance(request, str) else ", ".join(request.headers.getall("Prefer", ()))
        self.wait: float | None = None
        asked = _preferences(text)
        self.respond_async = asked.get("respond-async") == ""
        if _WAIT.fullmatch(asked.get("wait", "")):
            self.wait = min(float(asked["wait"]), LONGEST_WAIT_SECONDS)

    @property
    def applied(self) -> dict[str, str]:
        """`Preference-Applied` of a wait."""
        return {} if self.wait is None else {"Preference-Applied": f"wait={self.wait:g}"}


def _preferences(text: str) -> dict[str, str]:
    """Preferences by name, each as it was given first (RFC 7240 section 2). Text behind a syntax error is not
    read, so that a client does not get a 202 without having asked for one."""
    found: dict[str, str] = {}
    at = 0
    while (match := _MEMBER.match(text, at)) is not None and match.end() > at:
        found.setdefault(match[1].lower(), match[2] if match[2] is not None else match[3] or "")
        at = match.end()
    return found


class TicketOptionsReader:
    """Reads a request's ticket options from its headers."""

    def __init__(self, jobs: Jobs, webhooks: Allowed) -> None:
        self._jobs = jobs
        self._webhooks = webhooks

    def of(self, request: web.Request, body: bytes) -> TicketOptions:
        """Raises BadRequest, WebhookRefused."""
        lengths = ",".join(request.headers.getall("Inference-Header-Content-Length", ()))
        parts = (request.path.encode(), lengths.encode(errors="surrogateescape"), body)
        tenant = tenant_of(request)
        options = self._jobs.options(tenant.owner, self._webhook(request), _key(request), *parts)
        return structs.replace(options, caller=sharer_of(request), traceparent=traceparent(request))

    def _webhook(self, request: web.Request) -> str | None:
        """The webhook URL of a request, None if it has none. Raises WebhookRefused."""
        urls = request.headers.getall(WEBHOOK, ())
        if not urls:
            return None
        if not self._webhooks:
            raise WebhookRefused(f"{WEBHOOK}: webhooks are off here; poll the prediction, or read its events")
        if len(urls) > 1:
            raise WebhookRefused(f"{WEBHOOK}: is given {len(urls)} times")
        return self._webhooks.target(urls[0]).url


def sharer_of(request: web.Request) -> str:
    """What is held to a share of the queue: the request's tenant, or without tenants its address."""
    tenant = tenant_of(request)
    return caller_of(request).address if tenant.owner == PUBLIC_TENANT.owner else tenant.name


def _key(request: web.Request) -> str | None:
    keys = request.headers.getall(ONCE, ())
    if not keys:
        return None
    match = _KEY.fullmatch(keys[0].strip()) if len(keys) == 1 else None
    if match is None or len(key := re.sub(r"\\(.)", r"\1", match[1]) if match[1] else match[2]) > MAX_KEY:
        raise BadRequest(f"{ONCE}: must be one string of at most {MAX_KEY} characters")
    return key


def accepted(ticket: str) -> dict[str, str]:
    """Headers of a 202."""
    return {"Location": f"/v2/predictions/{ticket}", "Preference-Applied": "respond-async", "Retry-After": "1"}
