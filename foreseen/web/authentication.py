"""The tenant of a request that aiohttp has read, and the routes that need none."""

from __future__ import annotations

from aiohttp import web

from foreseen.errors import Unauthorized
from foreseen.tenants.audit import audit_refusal
from foreseen.tenants.keyring import Keyring
from foreseen.tenants.tenant import Tenant
from foreseen.web.caller import caller_of
from foreseen.web.http import route_of

KEYRING = web.AppKey("foreseen.keyring", Keyring)
OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""Routes that need no key: whether the process lives and is ready."""
OPEN_ENDINGS = ("/ready",)
"""The same of one model."""
_TENANT = web.RequestKey("foreseen.tenant", Tenant)


def tenant_of(request: web.Request) -> Tenant:
    """The tenant of a request; found once. Raises Unauthorized."""
    known = request.get(_TENANT)
    if known is None:
        subject = getattr(request.protocol, "subject", None)
        try:
            known = request[_TENANT] = request.app[KEYRING].authenticate(request.headers, subject)
        except Unauthorized as error:
            audit_refusal("request", caller_of(request).address, str(error), route=route_of(request))
            raise
    return known


def is_open(route: str) -> bool:
    """Whether a route, by its template, needs no key."""
    return route in OPEN or route.endswith(OPEN_ENDINGS)
