"""Payloads of webhooks: the event of a ticket that has ended, with the body of a poll and without input or output."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import structlog

from foreseen.errors import EntryError, PredictionGone, UnknownPrediction
from foreseen.proxy.jobs.predictions import document
from foreseen.proxy.jobs.ticket_types import TicketStatus
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.proxy.jobs.webhook.webhooks import Delivery
from foreseen.queue.outbox import Claimed
from foreseen.queue.records import Hook, Records
from foreseen.types import Owner

log = structlog.get_logger()


class WebhookPayloads:
    """Writes the events of webhooks."""

    def __init__(self, jobs: Jobs, records: Records) -> None:
        self._jobs = jobs
        self._records = records

    async def write(self, claimed: Claimed) -> Delivery | None:
        """The event of a ticket; None where it has expired by now, where it is open again because an operator had it
        tried once more (its next end is sent), and where the stored record does not verify.

        Raises QueueUnavailable.
        """
        try:
            hook = self._records.open(Hook, claimed.hook)
            if hook.nonce != claimed.nonce:
                raise EntryError("identity")
        except EntryError as error:
            log.error("state store: a webhook record does not verify", reason=error.reason)
            return None
        ticket = self._records.ticket_id(claimed.job, claimed.nonce, hook.owner)
        try:
            status = await self._jobs.look(ticket, hook.owner)
        except (PredictionGone, UnknownPrediction):
            return None
        return event(hook.owner, hook.url, status) if status.ended else None


def event(owner: Owner, url: str, status: TicketStatus) -> Delivery:
    """The event of a ticket's end. The same end gives the same bytes under the same webhook-id, however often it is
    sent; a second end, after an operator's retry, is another event."""
    ended_at = status.ended_at or status.created_at
    at = datetime.fromtimestamp(ended_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = orjson.dumps({"type": f"prediction.{status.state}", "timestamp": at, "data": document(status)})
    return Delivery(f"msg_{status.id}_{int(ended_at * 1000)}", owner, url, body)
