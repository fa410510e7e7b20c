"""Routes of one model for operators, on the public listener: `explain` and `import`, each for one tenant.

An operator names the tenant in `Foreseen-Tenant`; without it the rows are those of the scope `public`. With its own key
a tenant may explain its own rows, and import nothing.
"""

from __future__ import annotations

from aiohttp import web

from foreseen.errors import BadRequest
from foreseen.logs import Sparing
from foreseen.proxy.admin.admin import Operators, explained
from foreseen.proxy.admin.explain_rows import explain_request
from foreseen.proxy.admin.import_rows import import_request
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.ask import Protocol, RequestHead
from foreseen.proxy.predict.serve import Server
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant
from foreseen.web.authentication import tenant_of
from foreseen.web.caller import caller_of
from foreseen.web.http import header_length, json_reply, read_body, traceparent

TENANT = "Foreseen-Tenant"
"""Names the tenant whose entries an operator asks for."""
ENDINGS = ("/explain", ":explain", "/import")


class OperatorRoutes:
    """The operators' routes of models, of one proxy process."""

    def __init__(
        self,
        server: Server,
        responder: Responder,
        operators: Operators,
        *,
        body_seconds: float,
        deadline_seconds: float,
    ) -> None:
        self._server = server
        self._responder = responder
        self._operators = operators
        self._sparing = Sparing()
        self._keyring = responder.keyring
        self._body_seconds = body_seconds
        self._deadline_seconds = deadline_seconds

    def add_v2(self, app: web.Application, model: str) -> None:
        """Add the routes under a model's path."""
        app.router.add_post(f"{model}/explain", self.explain)
        app.router.add_post(f"{model}/import", self.import_rows)

    def add_v1(self, app: web.Application, model: str) -> None:
        """The same for V1."""
        app.router.add_post(f"{model}:explain", self.v1_explain)

    async def explain(self, request: web.Request) -> web.Response:
        """Where the rows of an `/infer` body are, or why they would miss. For operators; a tenant sees its own rows."""
        return await self._explain(request, "v2")

    async def v1_explain(self, request: web.Request) -> web.Response:
        """The same for a `:predict` body."""
        return await self._explain(request, "v1")

    async def import_rows(self, request: web.Request) -> web.Response:
        """Operators only: store what a batch run has computed, as `foreseen warm --url --outputs` sends it."""
        actor = self._operators.check(request, "import")
        tenant = self._named(request)
        served = self._find(request, tenant)
        body = await read_body(request, self._body_seconds)
        rows, had = await import_request(self._server, served, tenant.scope, header_length(request), body)
        skipped = self._sparing.skipped(f"{actor.name} {tenant.name}")  # a batch run sends thousands
        if skipped is not None:
            facts = {"model": served.manifest.name, "tenant": tenant.name, "rows": rows, "had": len(had)}
            actor.did("import", **facts, **skipped)
        return json_reply({"model": served.manifest.name, "rows": rows, "had": had})

    async def _explain(self, request: web.Request, protocol: Protocol) -> web.Response:
        tenant = self._explaining(request)
        served = self._find(request, tenant)
        body = await read_body(request, self._body_seconds)
        head = RequestHead(
            served.manifest.name,
            request.match_info.get("version"),
            protocol,
            tenant,
            header_length(request) if protocol == "v2" else None,
            self._deadline_seconds,
            traceparent=traceparent(request),
            caller=caller_of(request),
        )
        rows = await explain_request(self._server, served, head, body)
        return json_reply(explained(rows, served.space(tenant.scope)))

    def _explaining(self, request: web.Request) -> Tenant:
        """The tenant whose rows are explained: the caller itself, or the one that an operator names."""
        if not self._keyring.is_open and not self._operators.knows(request):
            tenant = tenant_of(request)
            self._server.pipeline.tenants.admit(tenant, 1, 0)  # a question like any other
            return tenant
        actor = self._operators.check(request, "explain")
        tenant = self._named(request)
        actor.did("explain", model=request.match_info["model"][:64], tenant=tenant.name)
        return tenant

    def _named(self, request: web.Request) -> Tenant:
        """The tenant that an operator names. Raises BadRequest."""
        names = request.headers.getall(TENANT, ())
        if not names:
            return PUBLIC_TENANT
        found = self._keyring.named(names[0]) if len(names) == 1 else None
        if found is None:
            raise BadRequest(f"{TENANT}: must name one tenant of the keys file")
        return found

    def _find(self, request: web.Request, tenant: Tenant) -> ServedModel:
        return self._responder.find(request.match_info["model"], request.match_info.get("version"), tenant)
