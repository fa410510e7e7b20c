"""OpenAI's files and batches, for its clients: `/v1/files` holds JSON Lines, `/v1/batches` makes a batch of them.

A batch here is one of `/v2/predictions:batch`, so its lines may name any predict route. A file is kept in the state
store for as long as a job may wait; ids cannot be guessed. What OpenAI's objects have and has no meaning here is null.
"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct

from foreseen.errors import BadRequest, BodyTimeout, NotFound, TooLarge, UnknownPrediction
from foreseen.proxy.jobs.batch import Batches
from foreseen.proxy.jobs.ticket_options import sharer_of
from foreseen.proxy.jobs.ticket_types import TicketOptions, TicketStatus
from foreseen.proxy.jobs.tickets import Jobs
from foreseen.queue.queue import Queue
from foreseen.queue.queue_types import JobState
from foreseen.queue.records import Batch
from foreseen.types import Owner
from foreseen.web.authentication import tenant_of
from foreseen.web.http import SERVER, expect, json_reply, read_body

MAX_FILES_BYTES = 256 * 2**20
"""Of all files that are kept, of which one caller has its share; the state store's memory is theirs."""
_OUTPUT = "file-out_"
_STATUS: dict[JobState, str] = {
    "queued": "in_progress",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}
_ENDS = ("completed", "failed", "cancelled", "expired")
_ENDPOINTS = ("/v1/embeddings", "/v1/rerank", "/v1/score")


class StoredFile(Struct, frozen=True):
    """What is said of a file, and its bytes."""

    name: str
    purpose: str
    created_at: int
    content: bytes


class StoredBatch(Struct, frozen=True):
    """What a batch was created with."""

    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None = None


class _Create(Struct, frozen=True):
    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None


class OpenAIBatches:
    """The routes of files and batches, on one proxy process."""

    def __init__(self, jobs: Jobs, queue: Queue, batches: Batches, *, file_bytes: int, body_seconds: float) -> None:
        self._jobs = jobs
        self._queue = queue
        self._batches = batches
        self._file_bytes = file_bytes
        self._body_seconds = body_seconds

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        for kind in (aiohttp.BadContentDispositionHeader, aiohttp.BadContentDispositionParam):
            warnings.simplefilter("ignore", kind)  # they hold the caller's bytes, and would be logged for each upload
        for prefix in ("/v1", "/openai/v1"):
            add = app.router.add_route
            add("POST", f"{prefix}/files", self.create_file, expect_handler=expect)
            add("GET", f"{prefix}/files/{{id}}", self.file)
            add("GET", f"{prefix}/files/{{id}}/content", self.file_content)
            add("DELETE", f"{prefix}/files/{{id}}", self.delete_file)
            add("POST", f"{prefix}/batches", self.create_batch, expect_handler=expect)
            add("GET", f"{prefix}/batches/{{id}}", self.batch)
            add("POST", f"{prefix}/batches/{{id}}/cancel", self.cancel_batch)

    async def create_file(self, request: web.Request) -> web.Response:
        """OpenAI: upload the JSON Lines of a batch (`purpose` is `batch`)."""
        try:
            async with asyncio.timeout(self._body_seconds):
                form = await request.post()
        except TimeoutError:
            raise BodyTimeout(f"the body did not arrive within {self._body_seconds:g} seconds") from None
        except (ValueError, HttpProcessingError):  # the latter: a part whose head is none
            raise BadRequest("body: is not a form (multipart/form-data)") from None
        given, purpose = form.get("file"), form.get("purpose")
        if purpose != "batch":
            raise BadRequest('purpose: must be "batch"', param="purpose")
        if not isinstance(given, web.FileField):
            raise BadRequest("file: is missing", param="file")
        content = given.file.read()
        if len(content) > self._file_bytes:
            raise TooLarge(f"file: has more than {self._file_bytes} bytes", param="file")
        name = "file-" + secrets.token_hex(16)
        now = await self._queue.now()
        stored = StoredFile(given.filename[:256], purpose, int(now), content)
        owner = tenant_of(request).owner
        caller = self._jobs.extras(TicketOptions(caller=sharer_of(request)), b"", owner).caller
        place = self._jobs.stored.place_of(owner, name)
        await self._queue.blobs.keep(place, msgspec.msgpack.encode(stored), MAX_FILES_BYTES, caller)
        return json_reply(_file_document(name, stored.name, len(content), stored.created_at, "batch"))

    async def file(self, request: web.Request) -> web.Response:
        """OpenAI: description of a file."""
        name = request.match_info["id"]
        if name.startswith(_OUTPUT):
            seen = await self._look(name.removeprefix(_OUTPUT), tenant_of(request).owner)
            return json_reply(_file_document(name, "output.jsonl", 0, int(seen.created_at), "batch_output"))
        stored = await self._stored(name, tenant_of(request).owner)
        return json_reply(_file_document(name, stored.name, len(stored.content), stored.created_at, stored.purpose))

    async def file_content(self, request: web.Request) -> web.StreamResponse:
        """OpenAI: the bytes of a file; of a batch's output file its results, a line each."""
        name, owner = request.match_info["id"], tenant_of(request).owner
        if not name.startswith(_OUTPUT):
            stored = await self._stored(name, owner)
            return web.Response(body=stored.content, headers={"Server": SERVER, "Content-Type": "application/jsonl"})
        fetched = await self._jobs.fetch(_known(name.removeprefix(_OUTPUT)), owner, 0.0)
        if not isinstance(fetched, Batch):
            raise NotFound("there is no such file", param="id")
        return await self._batches.result(request, fetched)

    async def delete_file(self, request: web.Request) -> web.Response:
        """OpenAI: delete a file."""
        name, owner = request.match_info["id"], tenant_of(request).owner
        await self._stored(name, owner)
        await self._queue.blobs.forget(self._jobs.stored.place_of(owner, name))
        return json_reply({"id": name, "object": "file", "deleted": True})

    async def create_batch(self, request: web.Request) -> web.Response:
        """OpenAI: make a batch of a file's lines. `Idempotency-Key` and `Foreseen-Webhook` are understood."""
        body = await read_body(request, self._body_seconds)
        try:
            asked = msgspec.json.decode(body, type=_Create)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"body: {error}") from None
        if asked.endpoint not in _ENDPOINTS:
            raise BadRequest(f"endpoint: must be one of {', '.join(_ENDPOINTS)}", param="endpoint")
        owner = tenant_of(request).owner
        stored = await self._stored(asked.input_file_id, owner)
        ticket = await self._batches.submitted(request, body, stored.content)
        about = StoredBatch(asked.input_file_id, asked.endpoint, asked.metadata)
        await self._queue.blobs.keep(f"batch-{ticket.id}", msgspec.msgpack.encode(about), MAX_FILES_BYTES)
        return await self._reply(ticket.id, owner)

    async def batch(self, request: web.Request) -> web.Response:
        """OpenAI: state of a batch."""
        return await self._reply(_ticket(request), tenant_of(request).owner)

    async def cancel_batch(self, request: web.Request) -> web.Response:
        """OpenAI: cancel the lines of a batch that have not run."""
        ticket, owner = _ticket(request), tenant_of(request).owner
        seen = await self._jobs.cancel(ticket, owner)
        if seen.state == "cancelled":
            await self._batches.cancel(ticket, owner)
        return await self._reply(ticket, owner)

    async def _reply(self, ticket: str, owner: Owner) -> web.Response:
        seen = await self._look(ticket, owner)
        raw = await self._queue.blobs.read(f"batch-{ticket}")
        about = StoredBatch("", _ENDPOINTS[0]) if raw is None else msgspec.msgpack.decode(raw, type=StoredBatch)
        return json_reply(_batch_document(ticket, seen, about))

    async def _look(self, ticket: str, owner: Owner) -> TicketStatus:
        return await self._jobs.look(_known(ticket), owner)

    async def _stored(self, name: str, owner: Owner) -> StoredFile:
        place = self._jobs.stored.place_of(owner, name)
        raw = await self._queue.blobs.read(place) if name.startswith("file-") and len(name) < 64 else None
        if raw is None:
            raise NotFound("there is no such file, or it has expired", param="id")
        return msgspec.msgpack.decode(raw, type=StoredFile)


def _ticket(request: web.Request) -> str:
    return _known(request.match_info["id"].removeprefix("batch_"))


def _known(ticket: str) -> str:
    if not ticket or len(ticket) > 128:
        raise UnknownPrediction("there is no such batch", param="id")
    return ticket


def _file_document(name: str, filename: str, size: int, created_at: int, purpose: str) -> dict[str, Any]:
    return {
        "id": name, "object": "file", "bytes": size, "created_at": created_at, "filename": filename,
        "purpose": purpose, "status": "processed", "expires_at": None, "status_details": None,
    }  # fmt: skip


def _batch_document(ticket: str, seen: TicketStatus, about: StoredBatch) -> dict[str, Any]:
    """A batch as OpenAI's clients read it."""
    status, ended = _STATUS[seen.state], None if seen.ended_at is None else int(seen.ended_at)
    times = {
        f"{name}_at": ended if status == name else None for name in ("completed", "failed", "cancelled", "expired")
    }
    return {
        "id": f"batch_{ticket}",
        "object": "batch",
        "endpoint": about.endpoint,
        "errors": None,
        "input_file_id": about.input_file_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": f"{_OUTPUT}{ticket}" if seen.ended else None,
        "error_file_id": None,
        "created_at": int(seen.created_at),
        "in_progress_at": int(seen.created_at),
        "finalizing_at": ended,
        "cancelling_at": None,
        "expires_at": None,
        **times,
        "request_counts": {
            "total": seen.rows,
            "completed": seen.done - seen.unsuccessful,
            "failed": seen.unsuccessful,
        },
        "metadata": about.metadata,
    }
