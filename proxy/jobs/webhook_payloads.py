"""A ticket that has ended → the event that tells it: what a poll would have shown, and no input or output."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import structlog

from foreseen.errors import EntryError, PredictionGone, UnknownPrediction
from foreseen.proxy.jobs.predictions import document
from foreseen.proxy.jobs.ticket_types import TicketStatus
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.proxy.jobs.webhooks import Delivery
from foreseen.queue.outbox import Claimed
from foreseen.queue.records import Hook, Records

log = structlog.get_logger()


class WebhookPayloads:
    """Writes the events of webhooks."""

    def __init__(self, jobs: Jobs, records: Records) -> None:
        self._jobs = jobs
        self._records = records

    async def write(self, claimed: Claimed) -> Delivery | None:
        """The event of a ticket; None where it has expired by now, where it is open again because an operator had it
        tried once more (its next end is told), and where what lies in the store is not what was put there.

        Raises QueueUnavailable.
        """
        try:
            hook = self._records.open(Hook, claimed.hook)
            if hook.nonce != claimed.nonce:
                raise EntryError("identity")
        except EntryError as error:
            log.error("a webhook in the state store is not what was put there", reason=error.reason)
            return None
        ticket = self._records.ticket_id(claimed.job, claimed.nonce, hook.scope)
        try:
            told = await self._jobs.look(ticket, hook.scope)
        except (PredictionGone, UnknownPrediction):
            return None
        return event(hook.url, told) if told.ended else None


def event(url: str, told: TicketStatus) -> Delivery:
    """The event of a ticket's end. The same end gives the same bytes under the same webhook-id, however often it is
    sent; a second end, after an operator's retry, is another event."""
    ended_at = told.ended_at or told.created_at
    at = datetime.fromtimestamp(ended_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = orjson.dumps({"type": f"prediction.{told.state}", "timestamp": at, "data": document(told)})
    return Delivery(f"msg_{told.id}_{int(ended_at * 1000)}", url, body)
