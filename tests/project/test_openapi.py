"""docs/openapi.json: valid, current, every route in it, and true of a running system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.live import Live
from tests.openapi import application, page, routes
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

FILE = Path(__file__).parent.parent.parent / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text())
    return document


def test_it_is_current() -> None:
    """`make docs` would change nothing."""
    assert FILE.read_text() == page()


def test_it_is_valid_openapi(told: dict[str, Any]) -> None:
    """By the OpenAPI 3.1 schema."""
    validate(told)


def test_every_route_is_there_and_says_what_it_is(told: dict[str, Any]) -> None:
    """Every method of every path has a summary; none is there that the application has not."""
    methods = {
        (path, method.upper()) for path, item in told["paths"].items() for method in item if method != "parameters"
    }
    assert methods == {(path, method) for path, method in routes(application()) if method != "QUERY"}
    for path, item in told["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                assert len(operation["summary"]) > 5, (method, path)


def holds(told: dict[str, Any], schema: str, body: bytes) -> None:
    Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **told}).validate(json.loads(body))


def test_a_running_system_answers_as_it_says(told: dict[str, Any], live: Live) -> None:
    """Every GET answers 200 in the media type told; predictions and errors are of their schemas."""
    for path, item in told["paths"].items():
        if "get" not in item or "{id}" in path:
            continue
        real = path.replace("{model}", "fingerprint").replace("{version}", "1")
        status, headers, _ = live.get(real)
        assert status == 200, real
        assert headers["content-type"].split(";")[0] in item["get"]["responses"]["200"]["content"], real
    question = ask_fingerprint(numbers(8))
    holds(told, "InferRequest", json.dumps(question).encode())
    status, headers, body = live.post(FINGERPRINT, question)
    assert status == 200
    holds(told, "InferResponse", body)
    assert "cache-status" in headers
    status, headers, body = live.post(FINGERPRINT, ask_fingerprint(numbers(808_080)), {"Prefer": "respond-async"})
    assert status == 202
    holds(told, "Prediction", body)
    status, _, body = live.ask("GET", headers["location"], None, {"Prefer": "wait=20"})
    holds(told, "Prediction", body)
    holds(told, "V1Response", live.post("/v1/models/fingerprint:predict", {"instances": [numbers(8)]})[2])
    for path in (FINGERPRINT, "/v2/models/nope/infer", "/nowhere"):
        status, _, body = live.post(path, b"{}")
        assert status >= 400
        holds(told, "Error", body)
