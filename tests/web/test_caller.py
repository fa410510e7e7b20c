"""Who sent a request: the connection's address, or what trusted proxies say; never what a client makes up."""

from __future__ import annotations

import re

import pytest

from foreseen.web.caller import Caller, address_in, address_of, known_path
from tests.openapi import application, routes

HEAD = (
    b"POST /v2/models/m/infer?secret=1 HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1\r\n"
    b"X-Forwarded-For: 6.6.6.6, 1.2.3.4\r\n\r\n"
)


@pytest.mark.parametrize(
    ("forwarded", "hops", "address"),
    [
        ([], 0, "10.0.0.9"),
        (["1.2.3.4"], 0, "10.0.0.9"),
        (["1.2.3.4"], 1, "1.2.3.4"),
        (["6.6.6.6, 1.2.3.4"], 1, "1.2.3.4"),
        (["6.6.6.6", "1.2.3.4"], 1, "1.2.3.4"),
        (["6.6.6.6, 1.2.3.4, 10.0.0.8"], 2, "1.2.3.4"),
        (["1.2.3.4"], 2, "1.2.3.4"),
        (["[2001:db8::1]:443"], 1, "2001:db8::1"),
        (["1.2.3.4:5678"], 1, "1.2.3.4"),
        (["unknown"], 1, "10.0.0.9"),
        (["1.2.3.4, \r\n"], 1, "1.2.3.4"),
        ([" , "], 1, "10.0.0.9"),
    ],
)
def test_addresses(forwarded: list[str], hops: int, address: str) -> None:
    """So many from the end as there are trusted proxies; what is no address changes nothing."""
    assert address_of("10.0.0.9", forwarded, hops) == address
    assert address_in(HEAD, "10.0.0.9", 1) == "1.2.3.4"
    assert address_in(HEAD, "10.0.0.9", 0) == "10.0.0.9"
    assert address_in(HEAD + b"\r\nX-Forwarded-For: 9.9.9.9\r\n", "10.0.0.9", 1) == "1.2.3.4"  # of the body


def test_what_a_line_says() -> None:
    """The path without its query and without names that the client made up; the request id, plain and bounded."""
    assert Caller("1.2.3.4", HEAD).fields({"m"}) == {
        "client": "1.2.3.4",
        "path": "/v2/models/m/infer",
        "request_id": "abc-1",
    }
    head = b"GET /\xff%b HTTP/1.1\r\nx-correlation-id:\t\x7f%b\r\n\r\n" % (b"x" * 999, b"y" * 999)
    odd = Caller("10.0.0.9", head)
    told = odd.fields()
    assert told["client"] == "10.0.0.9"
    assert told["path"] == "/{…}"
    assert len(str(told["request_id"])) == 128
    assert "request_id" not in Caller("a", b"GET / HTTP/1.1\r\n\r\n").fields()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v2/models/m/infer", "/v2/models/m/infer"),
        ("/v2/models/m/versions/1/infer", "/v2/models/m/versions/1/infer"),
        ("/v2/models/secret/infer", "/v2/models/{…}/infer"),
        ("/v1/models/m:predict", "/v1/models/m:predict"),
        ("/v1/models/m:secret", "/v1/models/m:{…}"),
        ("/secret/" * 40, "/{…}" + "//{…}" * 5),
    ],
)
def test_a_path_shows_known_words(path: str, shown: str) -> None:
    """Routes, numbers and served models; everything else is the client's."""
    assert known_path(path, {"m"}) == shown


def test_every_route_is_made_of_words_that_are_shown() -> None:
    """A new route must not be `{…}` in the log."""
    for route, _ in routes(application()):
        path = re.sub(r"\{[^{}]*(?:\{[^}]*\})?[^{}]*\}", "m", route)
        assert known_path(path, {"m"}) == path
