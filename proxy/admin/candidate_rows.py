"""The operators' route behind `models handover --to URL`: answers rows by the model in force and by its candidate.

Both answers go the way of every answer, in the background lane: what the candidate computes is kept in its own key
space, so that it is there when the candidate is promoted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from foreseen.errors import BadRequest, ForeseenError, ModelUnavailable
from foreseen.modelspec.row_records import RowRecord, TwoAnswers, row_of
from foreseen.proxy.admin.admin import Operators
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.canary.canary import Canary
from foreseen.proxy.predict.serve import Server
from foreseen.types import Key, Prediction, Question, RequestOptions
from foreseen.web.http import read_body

ANSWER_SECONDS = 60.0
MOST_ROWS, MOST_BYTES = 1024, 64 * 2**20
"""Of one request."""


class CandidateRows(msgspec.Struct, frozen=True):
    """What is asked: rows of a model, and the address of the candidate that is to answer them."""

    model: str
    candidate: str
    rows: list[RowRecord]


def add_candidate_rows(
    app: web.Application, operators: Operators, live: Server, canary: Canary | None, body_seconds: float
) -> None:
    """Add the route to the operators' listener. `canary` is None where there is none."""

    async def candidate_rows(request: web.Request) -> web.Response:
        """Rows of a `model`, answered by it and by its `candidate`, over the unix socket only; MessagePack, both ways.
        What the candidate computes is kept in its key space."""
        actor = operators.check(request, "candidate-rows")
        if request.remote:
            raise BadRequest("inputs come to a proxy by its unix socket only, not by --admin-port")
        try:
            asked = msgspec.msgpack.decode(await read_body(request, body_seconds, MOST_BYTES), type=CandidateRows)
        except msgspec.DecodeError as error:
            raise BadRequest(f"body: {error}") from None
        if len(asked.rows) > MOST_ROWS:
            raise BadRequest(f"rows: at most {MOST_ROWS}")
        if canary is None or canary.share.model != asked.model or canary.address != asked.candidate:
            raise BadRequest(
                f"{asked.candidate} is not the candidate of {asked.model[:64]!r} here; start the proxy with "
                f"--candidate {asked.model[:64]}={asked.candidate} --canary 0%"
            )
        sides: list[tuple[Server, ServedModel]] = []
        for server in (live, canary.server):
            served = server.pipeline.models.get(asked.model)
            if not isinstance(served, ServedModel) or not served.ready or (sides and served is sides[0][1]):
                raise ModelUnavailable(f"{'the candidate' if sides else 'the model in force'} is not ready")
            sides.append((server, served))
        answers = await asyncio.gather(*(_answers(*side, asked.rows) for side in sides))
        actor.did("candidate-rows", model=asked.model, rows=len(asked.rows))
        pairs = [TwoAnswers(old[0], old[1], new[1]) for old, new in zip(*answers, strict=True)]
        return web.Response(body=msgspec.msgpack.encode(pairs), content_type="application/octet-stream")

    app.router.add_post("/admin/candidate-rows", candidate_rows)


async def _answers(
    server: Server, served: ServedModel, rows: Sequence[RowRecord]
) -> list[tuple[Key, Prediction | None]]:
    """The key and the answer of each row, None where it got none. Asked for at once, so that they share requests."""
    return await asyncio.gather(*(_answer(server, served, row) for row in rows))


async def _answer(server: Server, served: ServedModel, record: RowRecord) -> tuple[Key, Prediction | None]:
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    scope = record.scope
    space, options = server.space(served, scope), RequestOptions(deadline, "background")
    question = Question(space, [row_of(record)], options, record.parameters)
    (key,) = server.pipeline.keys(question)
    try:
        (answer,) = await server.pipeline.answer(question, [key])
    except ForeseenError:
        return key, None
    return key, answer.prediction
