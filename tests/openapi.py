"""The proxy's routes → docs/openapi.json, an OpenAPI 3.1 document: `make docs`. A test fails when it lags.

Paths, methods and summaries are read from the routes that the application really has; errors from the errors that there
are. What requests and answers look like is written here, and held against answers of a running system.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiohttp import web

from foreseen import errors
from foreseen.proxy.assembly import Proxy
from foreseen.settings import ProxySettings

JSON, BINARY, TEXT, LINES = "application/json", "application/octet-stream", "text/plain", "application/jsonl"
Document = dict[str, Any]

TENSOR: Document = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "examples": ["FP32", "INT64", "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "description": "Flat or nested, row-major. Left out where binary data follows."},
    },
}
SCHEMAS: Document = {
    "Error": {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": {"type": "string"}, "code": {"enum": []}},
    },
    "Tensor": TENSOR,
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "V1Request": {
        "type": "object",
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        "properties": {"instances": {"type": "array"}, "inputs": {}},
    },
    "Prediction": {
        "type": "object",
        "required": ["id", "state"],
        "properties": {
            "id": {"type": "string"},
            "state": {"enum": ["queued", "running", "succeeded", "failed", "cancelled"]},
            "model": {"type": "string"},
            "rows": {"type": "integer"},
            "items": {"type": "integer", "description": "Of a batch, which has no model and rows."},
            "unsuccessful": {"type": "integer", "description": "Items that have ended without an answer."},
            "done": {"type": "integer", "description": "Rows that are answered, or items that have ended."},
            "created_at": {"type": "number", "description": "Unix seconds."},
            "started_at": {"type": "number"},
            "ended_at": {"type": "number"},
            "attempts": {"type": "integer", "description": "How often it was put back."},
            "error": {"type": "string"},
            "code": {"type": "string"},
            "status": {"type": "integer", "description": "What `/infer` would have answered with."},
        },
    },
    "V1Response": {"type": "object", "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}]},
}
HEADERS: Document = {
    "Cache-Status": {"description": "RFC 9211: hit, miss or bypass, and why.", "schema": {"type": "string"}},
    "Age": {"description": "Seconds since the oldest row of a hit was computed.", "schema": {"type": "integer"}},
    "Server-Timing": {"description": "Milliseconds by step.", "schema": {"type": "string"}},
}
ACCEPTED: Document = {
    "Location": {"description": "Where the prediction is; relative.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "respond-async", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
}
ASKS: dict[str, tuple[str, str]] = {"infer": ("InferRequest", "InferResponse"), "predict": ("V1Request", "V1Response")}
"""Body and answer of the routes that predict, by the verb at their end."""


def routes(app: web.Application) -> dict[tuple[str, str], str]:
    """Every (path, method) that the application has → the name of its handler. HEAD goes with GET."""
    found = {}
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            found[route.resource.canonical, route.method] = route.handler.__name__
    return found


def application() -> web.Application:
    """The proxy's own, wired as it is when it runs."""
    return _proxy().application


def operators() -> web.Application:
    """The same of the operators' listener."""
    return _proxy().admin


def _proxy() -> Proxy:
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("0" * 64)
        secret.chmod(0o600)
        return Proxy(ProxySettings(data=Path(folder), redis="none", state=f"unix://{folder}/state.sock"))


def document() -> Document:
    """The whole page. `QUERY` (RFC 10008) has no place in OpenAPI 3.1, so it stands beside POST in words."""
    app, paths = application(), dict[str, Document]()
    handlers = {route.handler.__name__: route.handler for route in app.router.routes()}
    found = routes(app)
    for (path, method), name in found.items():
        if method == "QUERY":
            continue
        said = inspect.getdoc(handlers[name]) or ""
        operation = _operation(path, name, said, query=(path, "QUERY") in found)
        paths.setdefault(path, {"parameters": _parameters(path)} if "{" in path else {})[method.lower()] = operation
    schemas = json.loads(json.dumps(SCHEMAS))
    schemas["Error"]["properties"]["code"]["enum"] = sorted({one.code for one in _all_errors()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Foreseen",
            "version": version("foreseen"),
            "summary": "A caching prediction proxy: V2, V1, OpenAI's embeddings API, rerank APIs, operators' routes.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8000"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "DATA/admin-token"}},
        },
    }


def _variant(path: str) -> str:
    """What tells the routes of one handler apart."""
    marks = {
        "_version": "version}" in path,
        "_slash": path == "/v2/",
        "_openai": path.startswith("/openai/"),
        "_plain": path == "/score",
    }
    return "".join(mark for mark, is_so in marks.items() if is_so)


def _operation(path: str, name: str, said: str, *, query: bool) -> Document:
    summary, _, more = said.partition("\n")
    operation: Document = {
        "operationId": f"{name}{_variant(path)}",
        "summary": summary.strip(),
        "responses": {"default": _answer("An error.", "Error")},
    }
    description = " ".join(more.split())
    if query:
        description = f"{description} The method QUERY does the same and is safe.".strip()
    if description:
        operation["description"] = description
    verb = re.split(r"[/:]", path)[-1]
    if verb in ASKS and "{model" in path:
        asked, answered = ASKS[verb]
        operation["requestBody"] = _body(asked, binary=verb == "infer")
        operation["responses"]["200"] = _answer("The answer.", answered, binary=verb == "infer") | {"headers": HEADERS}
        accepted = _answer(
            "With `Prefer: respond-async`: a ticket, where the cache does not know all rows.", "Prediction"
        )
        operation["responses"]["202"] = accepted | {"headers": ACCEPTED}
    elif verb == "batch":
        operation["requestBody"] = {"required": True, "content": {LINES: {}}}
        operation["responses"]["202"] = _answer("A ticket.", "Prediction") | {"headers": ACCEPTED}
    elif path == "/v2/predictions/{id}":
        operation["responses"]["200"] = _answer("How it stands.", "Prediction")
        if name == "prediction":
            operation["responses"]["200"]["content"]["text/event-stream"] = {}
    elif path == "/v2/predictions/{id}/result":
        operation["responses"]["200"] = _answer("The answer.", "InferResponse", binary=True) | {"headers": HEADERS}
        operation["responses"]["200"]["content"][LINES] = {}
    elif path.startswith("/metrics"):
        operation["responses"]["200"] = {"description": "The Prometheus text format.", "content": {TEXT: {}}}
    else:
        operation["responses"]["200"] = {"description": "As told.", "content": {JSON: {"schema": {}}}}
    if "Operators only" in said or "admin" in path or verb == "explain":
        operation["security"] = [{"admin": []}]
    return operation


def _parameters(path: str) -> list[Document]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _body(schema: str, *, binary: bool) -> Document:
    content: Document = {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if binary:
        content[BINARY] = {}
    return {"required": True, "content": content}


def _answer(said: str, schema: str, *, binary: bool = False) -> Document:
    return {"description": said, "content": _body(schema, binary=binary)["content"]}


def _all_errors(kind: type[errors.ForeseenError] = errors.ForeseenError) -> list[type[errors.ForeseenError]]:
    return [kind, *(deeper for one in kind.__subclasses__() for deeper in _all_errors(one))]


def page() -> str:
    """docs/openapi.json"""
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"
