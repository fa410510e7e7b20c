"""The operators' route behind `foreseen models handover` that counts the handed-over rows."""

from __future__ import annotations

from collections.abc import Container

from aiohttp import web

from foreseen.errors import BadRequest
from foreseen.protocol.strict_json import load_json
from foreseen.proxy.admin.admin import Operators
from foreseen.telemetry.metrics import HANDOVER_OUTCOMES, ProxyMetrics
from foreseen.web.http import json_reply, read_body

MOST_ROWS = 10**9


def add_handover_routes(
    app: web.Application, operators: Operators, metrics: ProxyMetrics, models: Container[object], body_seconds: float
) -> None:
    """Add them to the operators' listener; `models` are those that may be counted."""

    async def handover_rows(request: web.Request) -> web.Response:
        """Count `rows` by outcome (equal, changed, failed) of a `model`."""
        operators.check(request, "handover-rows")
        document = load_json(await read_body(request, body_seconds))
        model, rows = (document.get("model"), document.get("rows")) if isinstance(document, dict) else (None, None)
        if (
            not isinstance(model, str)
            or model not in models
            or not isinstance(rows, dict)
            or rows.keys() - set(HANDOVER_OUTCOMES)
        ):
            raise BadRequest("body: expected a model, and rows by outcome: " + ", ".join(HANDOVER_OUTCOMES))
        if any(type(count) is not int or not 0 <= count <= MOST_ROWS for count in rows.values()):
            raise BadRequest("rows: expected numbers of rows")
        for outcome, count in rows.items():
            metrics.handed_over.labels(model, outcome).inc(count)
        return json_reply({"counted": sum(rows.values())})

    app.router.add_post("/admin/handover-rows", handover_rows)
