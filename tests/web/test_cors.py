"""CORS: a page whose origin is allowed may call and read; others learn nothing, and without the setting nobody does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foreseen.errors import SetupError
from foreseen.web.cors import Cors
from tests.live import Live, started
from tests.questions import ask_fingerprint, numbers

FINGERPRINT = "/v2/models/fingerprint/infer"
PAGE, OTHER = "https://app.example", "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, x-request-id"}


@pytest.fixture(scope="module")
def open_to_a_page(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One origin is allowed."""
    folder = tmp_path_factory.mktemp("cors") / "data"
    with started(built, folder, f"--cors-origin={PAGE}", "--job-workers=0", models=("fingerprint",)) as system:
        yield system


def test_a_preflight_of_the_page_is_answered(open_to_a_page: Live) -> None:
    """Its origin, the methods, the headers that it asked for."""
    status, headers, body = open_to_a_page.ask("OPTIONS", FINGERPRINT, None, {"Origin": PAGE, **PREFLIGHT})
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "content-type, x-request-id"
    assert headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in headers


def test_every_answer_to_the_page_can_be_read(open_to_a_page: Live) -> None:
    """A miss, hits however often the same bytes come, an error, a route that does not exist."""
    for _ in range(5):
        status, headers, _ = open_to_a_page.post(FINGERPRINT, ask_fingerprint(numbers(7)), {"Origin": PAGE})
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert "Cache-Status" in headers["access-control-expose-headers"]
    for path, wanted in ((FINGERPRINT, 400), ("/v2/models/nobody/infer", 404), ("/nowhere", 404)):
        status, headers, _ = open_to_a_page.post(path, b"{}", {"Origin": PAGE})
        assert (status, headers["access-control-allow-origin"]) == (wanted, PAGE)


def test_another_page_learns_nothing(open_to_a_page: Live) -> None:
    """Its preflight is no route, and its answers carry no permission, not even from the cache; nor do metrics."""
    status, headers, _ = open_to_a_page.ask("OPTIONS", FINGERPRINT, None, {"Origin": OTHER, **PREFLIGHT})
    assert (status, "access-control-allow-origin" in headers) == (405, False)
    for origin in (PAGE, OTHER, PAGE, OTHER):
        headers = open_to_a_page.post(FINGERPRINT, ask_fingerprint(numbers(8)), {"Origin": origin})[1]
        assert headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)
        assert headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in open_to_a_page.ask("GET", "/metrics", None, {"Origin": PAGE})[1]


def test_without_the_setting_nobody_is_allowed(live: Live) -> None:
    """As before: no header of CORS on any answer."""
    status, headers, _ = live.ask("OPTIONS", FINGERPRINT, None, {"Origin": PAGE, **PREFLIGHT})
    assert (status, "vary" in headers) == (405, False)
    headers = live.post(FINGERPRINT, ask_fingerprint(numbers(9)), {"Origin": PAGE})[1]
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/path", "null", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """With the way it is written."""
    with pytest.raises(SetupError, match="--cors-origin"):
        Cors((origin,))
    Cors(("*", "https://a.example:8443", "http://[::1]:3000"))
