"""The operators' route behind `models handover --hottest`: the inputs that this worker serves most often."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from foreseen.errors import BadRequest
from foreseen.modelspec.row_records import HotRowsHead, encode
from foreseen.protocol.strict_json import load_json
from foreseen.proxy.admin.admin import Operators
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.sampling.hot_inputs import HotInputs
from foreseen.proxy.predict.serve import Server
from foreseen.types import Row, Space
from foreseen.web.http import read_body

MOST_ROWS = 10**9


def add_hot_rows(
    app: web.Application,
    operators: Operators,
    hot: HotInputs | None,
    server: Server,
    head: Callable[[], HotRowsHead],
    body_seconds: float,
) -> None:
    """Add it to the operators' listener. `hot` is None where no inputs are kept; `head` says which worker this is."""

    async def hot_rows(request: web.Request) -> web.StreamResponse:
        """The rows of a `model` that this worker serves most, `most` of them, over the unix socket only: they are
        clients' inputs. MessagePack in parts, each behind its length in 4 bytes."""
        actor = operators.check(request, "hot-rows")
        document = load_json(await read_body(request, body_seconds))
        model, most = (document.get("model"), document.get("most")) if isinstance(document, dict) else (None, None)
        served = server.pipeline.models.get(model) if isinstance(model, str) else None
        if not isinstance(served, ServedModel) or type(most) is not int or not 0 < most <= MOST_ROWS:
            raise BadRequest("body: expected a model, and how many rows at most")
        if request.remote:
            raise BadRequest("inputs leave a proxy by its unix socket only, not by --admin-port")
        if hot is None:
            raise BadRequest("this proxy keeps no inputs; start it with --keep-hot-inputs 67108864")
        reply = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await reply.prepare(request)
        await reply.write(encode(head()))
        rows = 0

        def in_force(space: Space, row: Row) -> bool:
            return server.in_force(served, space) and served.takes(row)

        async for piece in hot.hottest(str(model), most, in_force):
            await reply.write(encode(piece))
            rows += len(piece)
        actor.did("hot-rows", model=model, rows=rows)
        return reply

    app.router.add_post("/admin/hot-rows", hot_rows)
