"""Reads tickets and jobs from the state store; a record that does not verify is never an answer."""

from __future__ import annotations

from typing import TypeVar

import structlog
from msgspec import Struct

from foreseen.errors import EntryError, PredictionGone, UnknownPrediction
from foreseen.keys.entry import FAR_OVERHEAD_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import tensor_outputs
from foreseen.queue.equal_rows import placed
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import JobView as Stored
from foreseen.queue.records import Head, Records, Result, Ticket, answers_of
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.types import Answer, Owner

R = TypeVar("R", bound=Struct)

log = structlog.get_logger()


class TicketRecords:
    """Reads the store's records of jobs and tickets, and counts those that do not verify."""

    def __init__(self, queue: Queue, records: Records, metrics: ProxyMetrics) -> None:
        self._queue = queue
        self._records = records
        self._metrics = metrics

    def read_id(self, ticket: str, owner: Owner) -> tuple[bytes, bytes]:
        """A ticket's job and nonce. Raises UnknownPrediction."""
        known = self._records.read_ticket_id(ticket, owner)
        if known is None:
            raise UnknownPrediction("there is no such prediction")
        return known

    def place_of(self, owner: Owner, name: str) -> str:
        """Where a tenant's file lies in the store: no name leads to another tenant's."""
        return name if owner == PUBLIC_TENANT.owner else f"{name}-{self._records.once(owner, name).hex()}"

    async def see(self, job: bytes, nonce: bytes, *, record: bool = False) -> Stored:
        seen = await self._queue.see(job, nonce, record=record)
        if seen is None:
            raise PredictionGone("the prediction has expired")
        return seen

    def is_same(self, job: bytes, head: bytes, same: bytes) -> bool:
        """Whether the job that the store found for these rows has them: the record could have been tampered with."""
        try:
            return self._records.open_of(Head, job, head).same == same
        except EntryError as error:
            self._metrics.verify_failed.labels(error.reason).inc()
            return False

    def open(self, kind: type[R], job: bytes, value: bytes | None) -> R:
        """A record of a job. Raises PredictionGone if it does not verify."""
        try:
            return self._records.open_of(kind, job, value or b"")
        except EntryError as error:
            raise self.tampered(error) from None

    def open_ticket(self, head: Head, nonce: bytes, owner: Owner, value: bytes) -> Ticket:
        """A ticket, verified to belong to this job, nonce and owner. Raises PredictionGone."""
        try:
            ticket = self._records.open(Ticket, value)
        except EntryError as error:
            raise self.tampered(error) from None
        if (ticket.nonce, ticket.owner) != (nonce, owner) or not ticket.is_of(head):
            raise self.tampered(EntryError("identity"))
        return ticket

    def answers(self, result: Result) -> list[Answer]:
        try:
            return placed(answers_of(result), result.places)
        except EntryError as error:
            raise self.tampered(error) from None

    def tampered(self, error: EntryError) -> PredictionGone:
        self._metrics.verify_failed.labels(error.reason).inc()
        log.error("state store: a record does not verify", reason=error.reason)
        return PredictionGone("the prediction's record in the state store does not verify")


def check_renderable(manifest: Manifest, answers: list[Answer]) -> None:
    """Raises PredictionGone if the model has another signature by now."""
    wanted = [output.name for output in manifest.model.outputs]
    some = manifest.outputs == "requested"
    for answer in answers:
        names = [output.name for output in tensor_outputs(answer.prediction)]
        if names == wanted or (some and set(names) <= set(wanted)):
            continue
        raise PredictionGone("the model has another signature since")


def row_bytes(manifest: Manifest) -> int:
    """Expected bytes of a row's result, as far as its outputs have a fixed size."""
    size = FAR_OVERHEAD_BYTES
    for output in manifest.model.outputs:
        elements = 1
        for dim in output.shape[1:]:
            elements *= dim if isinstance(dim, int) else 1
        size += elements * max(1, DATATYPES[output.datatype].size)
    return size
