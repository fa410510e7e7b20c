"""The operators' route of a canary: POST /admin/canary, the share of callers that the candidate answers."""

from __future__ import annotations

from aiohttp import web

from foreseen.errors import BadRequest
from foreseen.protocol.strict_json import load_json
from foreseen.proxy.admin.admin import Operators
from foreseen.proxy.canary.canary_share import CanaryShare
from foreseen.web.http import json_reply, read_body


def add_canary(app: web.Application, operators: Operators, canary: CanaryShare | None, body_seconds: float) -> None:
    """Add the route to the operators' listener."""

    async def change(request: web.Request) -> web.Response:
        """The `share` of callers that the candidate of `--canary` answers: 1 promotes it, 0 aborts."""
        actor = operators.check(request, "canary")
        document = load_json(await read_body(request, body_seconds))
        share = document.get("share") if isinstance(document, dict) else None
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise BadRequest("share: must be a number from 0 to 1")
        if canary is None:
            raise BadRequest("there is no canary here; start the proxy with --candidate and --canary")
        was = canary.share
        canary.set(float(share))
        actor.did("canary", model=canary.model, share=canary.share, was=was)
        return json_reply({"model": canary.model, "share": canary.share, "was": was})

    app.router.add_post("/admin/canary", change)
