"""The HTTP routes that ask about the server and its models: health, metadata, configuration, statistics, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

from aiohttp import web

from foreseen.proxy import describe
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.fastpath.responder import Responder
from foreseen.telemetry.exposition import CONTENT_TYPE
from foreseen.tenants.tenant import PUBLIC_TENANT, Tenant
from foreseen.web.authentication import tenant_of
from foreseen.web.http import SERVER, json_reply

OPENAI = ("/v1", "/openai/v1")
"""Before the routes of OpenAI's API."""
_V1 = "/v1/models/{model:[^/:]+}"  # GET …:predict is a method that is not allowed, and no model of that name
V1_MODEL = (_V1, _V1 + "/versions/{version:[^/:]+}")


class StatusHandlers:
    """What clients and operators read about one proxy process. None of it asks a model for predictions."""

    def __init__(
        self,
        *,
        served: Mapping[str, ServedModel],
        responder: Responder,
        exposition: Callable[[], Awaitable[bytes]],
        stalled: Callable[[], bool],
        lost: Callable[[], list[str]] = list,
        missing: Callable[[], str | None] = lambda: None,
        check_metrics: Callable[[web.Request], object] | None = None,
    ) -> None:
        """`check_metrics` raises Unauthorized where the metrics are not for a caller; None: they are for every caller.
        It is asked if there is a keys file."""
        self._served = served
        self._responder = responder
        self._exposition = exposition
        self._stalled = stalled
        self._lost = lost
        self._missing = missing
        self._check_metrics = check_metrics

    def add_to(self, app: web.Application) -> None:
        add_get = app.router.add_get
        add_get("/", self.alive)
        for path in ("/v2", "/v2/"):
            add_get(path, self.server_metadata)
        add_get("/v2/health/live", self.live)
        add_get("/v2/health/ready", self.ready)
        add_get("/v2/models", self.models)
        add_get("/v2/models/stats", self.all_statistics)
        app.router.add_post("/v2/repository/index", self.repository)
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            add_get(model, self.model_metadata)
            add_get(f"{model}/ready", self.model_ready)
            add_get(f"{model}/config", self.model_config)
            add_get(f"{model}/stats", self.model_statistics)
        for prefix in OPENAI:
            add_get(f"{prefix}/models", self.v1_models)
        add_get("/openai/v1/models/{model:[^/:]+}", self.v1_model)
        for model in V1_MODEL:
            add_get(model, self.v1_model)
        add_get("/metrics", self.metrics)
        add_get("/metrics/{model}", self.model_metrics)

    async def alive(self, request: web.Request) -> web.Response:
        """Liveness: 200 while the process runs."""
        return json_reply({"status": "alive"})

    async def server_metadata(self, request: web.Request) -> web.Response:
        """V2 server metadata: name, version, extensions."""
        return json_reply({"name": "foreseen", "version": version("foreseen"), "extensions": describe.EXTENSIONS})

    async def live(self, request: web.Request) -> web.Response:
        """V2: whether the server is live."""
        return json_reply({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """V2 readiness: 200 once every configured model has been ready, from then on regardless of models (ask each
        model). Redis never decides it. 503 with `error` otherwise, also while the worker's event loop is more than a
        second late. `lost` names what is missing while a store does not answer."""
        why, lost = self.why_not_ready(), self._lost()
        state: dict[str, Any] = {"ready": why is None, "live": True}
        if why is not None:
            state["error"] = why
        return json_reply({**state, "lost": lost} if lost else state, 200 if why is None else 503)

    def why_not_ready(self) -> str | None:
        """None where the process is ready."""
        whys = [served.why for served in self._served.values() if not served.been_ready]
        late = "the event loop was more than a second late a moment ago" if self._stalled() else None
        return self._missing() or "; ".join(whys[:3]) or late

    async def models(self, request: web.Request) -> web.Response:
        """Names of the models served."""
        return json_reply({"models": [served.manifest.name for served in self._allowed(request)]})

    async def repository(self, request: web.Request) -> web.Response:
        """Triton's model repository index."""
        return json_reply([describe.repository_entry(served) for served in self._allowed(request)])

    async def model_metadata(self, request: web.Request) -> web.Response:
        """V2 model metadata: inputs and outputs as clients see them, and the model digest in force."""
        return json_reply(describe.metadata(self._find(request)))

    async def model_ready(self, request: web.Request) -> web.Response:
        """Whether a miss of this model would be answered now; if not, why. Needs no key."""
        served = self._responder.find(request.match_info["model"], request.match_info.get("version"), PUBLIC_TENANT)
        state: dict[str, Any] = {"name": served.manifest.name, "ready": served.ready}
        if served.ready:
            return json_reply(state)
        return json_reply({**state, "error": served.not_ready, "code": "model_unavailable"}, 503, {"Retry-After": "1"})

    async def model_config(self, request: web.Request) -> web.Response:
        """The model's configuration, as Triton's clients read it."""
        return json_reply(describe.config(self._find(request)))

    async def model_statistics(self, request: web.Request) -> web.Response:
        """One model's statistics, as Triton's clients read them, of one worker; for those who may read the metrics."""
        name, version, tenant = request.match_info["model"], request.match_info.get("version"), self._watcher(request)
        return json_reply({"model_stats": [describe.statistics(self._responder.find(name, version, tenant))]})

    async def all_statistics(self, request: web.Request) -> web.Response:
        """The statistics of all models; for those who may read the metrics."""
        tenant = self._watcher(request)
        mine = [served for name, served in self._served.items() if tenant.may_use(name)]
        return json_reply({"model_stats": [describe.statistics(served) for served in mine]})

    async def v1_models(self, request: web.Request) -> web.Response:
        """Names of the models served, in one document for clients of KServe's V1 and OpenAI's API."""
        return json_reply(describe.model_list(self._allowed(request)))

    async def v1_model(self, request: web.Request) -> web.Response:
        """V1 status, in one document for clients of KServe, TensorFlow Serving and OpenAI. Aliases work as well."""
        name = request.match_info["model"]
        served = self._responder.find_named(name, request.match_info.get("version"), tenant_of(request))
        return json_reply({**describe.v1_status(served), **describe.openai_model(name)})

    async def metrics(self, request: web.Request) -> web.Response:
        """The Prometheus exposition over all workers. Where there is a keys file it is for operators, unless the
        settings open it."""
        self._watch(request)
        text = await self._exposition()
        return web.Response(body=text, headers={"Server": SERVER, "Content-Type": CONTENT_TYPE})

    async def model_metrics(self, request: web.Request) -> web.Response:
        """A model process's own exposition, for a Prometheus that cannot reach its unix socket."""
        self._watch(request)
        text = await self._responder.find(request.match_info["model"], None, PUBLIC_TENANT).process.exposition()
        return web.Response(body=text, headers={"Server": SERVER, "Content-Type": CONTENT_TYPE})

    def _watch(self, request: web.Request) -> None:
        """Raises Unauthorized where the metrics are not for this caller."""
        if self._check_metrics is None:
            return
        if self._responder.keyring.is_open:
            tenant_of(request)
        else:
            self._check_metrics(request)

    def _watcher(self, request: web.Request) -> Tenant:
        """Whose models a caller may read the counts of: they count what all tenants ask, as the metrics do."""
        if self._check_metrics is None or self._responder.keyring.is_open:
            return tenant_of(request)
        self._check_metrics(request)
        return PUBLIC_TENANT

    def _find(self, request: web.Request) -> ServedModel:
        """The model that a path names, for the tenant that asks."""
        return self._responder.find(request.match_info["model"], request.match_info.get("version"), tenant_of(request))

    def _allowed(self, request: web.Request) -> list[ServedModel]:
        """The models that the tenant may use."""
        tenant = tenant_of(request)
        return [served for name, served in self._served.items() if tenant.may_use(name)]
