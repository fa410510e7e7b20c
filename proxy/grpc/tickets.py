"""`prefer: respond-async` of a call → a ticket in place of the answer. Its result is fetched over HTTP, as V2."""

from __future__ import annotations

import time

from foreseen.errors import BadRequest
from foreseen.protocol import grpc_messages as messages
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.grpc.call import CallMetadata
from foreseen.proxy.jobs.ticket_options import Prefer, accepted
from foreseen.proxy.jobs.ticket_types import TicketOptions
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply, lines_of
from foreseen.tenants.tenant import PUBLIC_TENANT

HTTP_ONLY = ("foreseen-webhook", "idempotency-key")
"""Metadata that would be lost with a ticket that is asked for here."""


class GrpcTickets:
    """Issues tickets for calls of one proxy process."""

    def __init__(self, jobs: Jobs, responder: Responder) -> None:
        self._jobs = jobs
        self._responder = responder

    async def submit(self, head: RequestHead, body: bytes, call: CallMetadata) -> Reply | None:
        """The reply that is a ticket; None where none is asked for, or the request is better answered at once. Raises
        what is wrong with the question, QueueFull, QueueUnavailable."""
        prefer, started = Prefer(call.values.get("prefer", "")), time.perf_counter()
        if not prefer.respond_async:
            return None
        for name in HTTP_ONLY:
            if name in call.values:
                raise BadRequest(f"{name}: is taken over HTTP only")
        served = self._responder.find(head.model, head.version, head.tenant)
        options = TicketOptions(caller=_sharer(head))
        ticket = await self._jobs.submit(served, head, body, options)
        if ticket is None:
            return None
        self._responder.accepted(head, ticket.rows, started)
        if prefer.wait and (await self._jobs.until(ticket.id, head.tenant.owner, prefer.wait)).state == "succeeded":
            return None  # it is in the cache now
        content = messages.ticket_response(served.manifest.name, served.manifest.version, ticket.id, ticket.state)
        return Reply(202, lines_of(accepted(ticket.id).items()), content)


def _sharer(head: RequestHead) -> str | None:
    """What is held to a share of the queue, as over HTTP: the tenant, or without tenants the address."""
    if head.tenant.owner != PUBLIC_TENANT.owner:
        return head.tenant.name
    return None if head.caller is None else head.caller.address
