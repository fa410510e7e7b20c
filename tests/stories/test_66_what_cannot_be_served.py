"""A server behind `--upstream` that is of no use: what is said of it, and that the proxy stays and tries again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from foreseen.proxy.backend.discovery import Upstream
from tests.foreign import Foreign, fronted, listening
from tests.ports import free_port
from tests.questions import fingerprint, numbers

MODEL = {
    "name": "fp",
    "inputs": [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}],
    "outputs": [{"name": "digest", "datatype": "INT64", "shape": [-1, 4]}],
}


def answering(
    routes: dict[str, Any], otherwise: tuple[int, str] = (404, "<html>nothing here</html>")
) -> web.Application:
    """A server that answers documents by "METHOD /path", a status where it is a number, and one page to all else."""

    async def answer(request: web.Request) -> web.Response:
        route = routes.get(f"{request.method} {request.path}")
        if isinstance(route, int):
            return web.json_response({"error": "no"}, status=route)
        if route is not None:
            return web.json_response(route)
        return web.Response(status=404, text="<html>nothing here</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


@contextlib.asynccontextmanager
async def looked(app: web.Application, *names: str) -> AsyncIterator[Upstream]:
    async with listening(app) as url:
        upstream = Upstream(url, names, lambda told: pytest.fail(f"{told} is served"))
        await upstream.look()
        yield upstream
        await upstream.close()


INDEX = "POST /v2/repository/index"
MODELS = "GET /v2/models"
SERVERS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a web page": ({}, "not-v2", "GET /v2 answered 404 text/html", "no V2 server"),
    "a web server that knows no POST": ({INDEX: 501}, "not-v2", "GET /v2 answered 404 text/html", "no V2 server"),
    "a server that wants a key": ({"GET /v2": 401}, "credentials", "GET /v2 answered 401", "--upstream-key-file"),
    "a V2 server without a list": ({"GET /v2": {"name": "x"}}, "lists-nothing", f"{INDEX} answered 404", "--model"),
    "an empty list": ({MODELS: {"models": []}}, "lists-nothing", f"{MODELS} answered 200", "load a model"),
    "an empty index": ({INDEX: []}, "lists-nothing", f"{INDEX} answered 200", "load a model"),
    "models that are not loaded": ({INDEX: [{"name": "fp", "state": "UNAVAILABLE"}]}, "lists-nothing", INDEX, "load"),
    "a server that is starting": ({MODELS: 503}, "unreachable", f"{MODELS} answered 503", "log"),
    "a list of something else": ({MODELS: {"models": 3}, INDEX: {}}, "not-v2", "GET /v2 answered", "V2"),
}


@pytest.mark.parametrize("what", SERVERS)
async def test_what_is_wrong_with_a_server_is_said(what: str) -> None:
    """What was asked, what came back, and what to do, in the reason and by a closed word for the metric."""
    routes, problem, said, fix = SERVERS[what]
    async with looked(answering(routes)) as upstream:
        assert upstream.problem is not None
        assert upstream.problem.problem == problem
        assert said in upstream.problem.said
        assert fix in upstream.problem.fix
        assert upstream.missing == str(upstream.problem)
        assert dict(upstream.problems()) == {problem: 1}


METADATA: dict[str, tuple[Any, str, str]] = {
    "no metadata": (404, "no-metadata", "GET /v2/models/fp answered 404"),
    "neither inputs nor outputs": ({"name": "fp", "inputs": [], "outputs": []}, "no-metadata", "name no inputs"),
    "no outputs": ({**MODEL, "outputs": None}, "no-metadata", "name no outputs"),
    "a list": ([1], "no-metadata", "GET /v2/models/fp answered 200"),
    "inputs that are none": ({**MODEL, "inputs": ["x"]}, "unusable", "inputs cannot be read"),
    "a datatype of its own": ({**MODEL, "inputs": [{**MODEL["inputs"][0], "datatype": "FP4"}]}, "unusable", "'FP4'"),  # type: ignore[dict-item]
    "a shape of its own": ({**MODEL, "inputs": [{**MODEL["inputs"][0], "shape": "?"}]}, "unusable", "the shape ?"),  # type: ignore[dict-item]
    "an error of its own": (500, "unreachable", "GET /v2/models/fp answered 500"),
}


@pytest.mark.parametrize("what", METADATA)
async def test_what_is_wrong_with_a_model_is_said(what: str) -> None:
    """The same of one model: its metadata are missing, or say what nobody can serve."""
    metadata, problem, said = METADATA[what]
    async with looked(answering({"GET /v2/models/fp": metadata}), "fp") as upstream:
        why = upstream.refused["fp"]
        assert (why.problem, said in why.said) == (problem, True)
        assert upstream.missing == str(why)


async def test_no_server_and_one_that_speaks_no_http_are_told_apart() -> None:
    """A refused connection, and bytes of another protocol, as of a gRPC port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        upstream = Upstream(f"http://127.0.0.1:{port}", (), lambda told: pytest.fail("nothing to serve"))
        await upstream.look()
        assert upstream.problem is not None
        assert (upstream.problem.problem, "gRPC" in upstream.problem.fix) == ("not-v2", True)
        await upstream.close()
    upstream = Upstream(f"http://user:hidden@127.0.0.1:{free_port()}", (), lambda told: pytest.fail("nothing to serve"))
    await upstream.look()
    assert upstream.problem is not None
    assert (upstream.problem.problem, "hidden" in str(upstream.problem)) == ("unreachable", False)
    await upstream.close()


async def test_one_model_without_metadata_takes_no_other_with_it(tmp_path: Path) -> None:
    """The others are served; of it is said, by its own routes, why not; a metric counts it."""
    foreign = Foreign()
    app = foreign.application()
    foreign.listed = ["bare", "fp"]
    foreign.without = {"bare"}
    async with listening(app) as url, fronted(url, tmp_path / "data", upstream_probe=False) as front:
        assert (await front.infer(numbers(1)))[2] == [fingerprint(numbers(1))]
        status, _, told = await front.infer(numbers(1), model="bare")
        assert (status, told["code"]) == (503, "model_unavailable")
        assert "GET /v2/models/bare answered 404" in told["error"]
        assert (await front.infer(numbers(1), model="unheard"))[0] == 404
        assert (await front.status("/v2/health/ready"))[0] == 200
        front.proxy.heartbeat.take()
        text = front.proxy.metrics.exposition().decode()
        assert 'foreseen_upstream_problems{problem="no-metadata"} 1.0' in text
        assert 'foreseen_upstream_problems{problem="not-v2"} 0.0' in text
        foreign.without = set()
        await front.until_described(lambda told: "inputs" in told, "bare")
        front.proxy.heartbeat.take()
        assert 'problem="no-metadata"} 0.0' in front.proxy.metrics.exposition().decode()


async def test_a_model_that_was_named_and_is_missing_keeps_the_proxy_from_being_ready(tmp_path: Path) -> None:
    """The other one is served meanwhile; when it comes, all is ready without a restart."""
    foreign = Foreign()
    foreign.without = {"later"}
    async with listening(foreign.application()) as url:
        given: dict[str, Any] = {"model": ("fp", "later"), "upstream_probe": False}
        async with fronted(url, tmp_path / "data", **given) as front:
            status, told = await front.status("/v2/health/ready")
            assert (status, told["ready"], told["live"]) == (503, False, True)
            assert "GET /v2/models/later answered 404" in told["error"]
            assert (await front.infer(numbers(1)))[0] == 200
            foreign.without = set()
            async with asyncio.timeout(20):
                while status != 200:
                    status, _ = await front.status("/v2/health/ready")
            assert (await front.infer(numbers(1), model="later"))[0] == 200


async def test_a_manifest_serves_a_model_without_metadata(tmp_path: Path) -> None:
    """The worked example of docs/upstream.md: a runtime whose metadata say nothing, or are not there at all."""
    documented = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()
    text = documented.split("```toml\n")[1].split("```")[0]
    for number, metadata in enumerate(({"name": "sentiment", "inputs": [], "outputs": []}, None)):
        foreign = Foreign()
        foreign.without = {"sentiment"} if metadata is None else set()
        foreign.metadata = metadata or foreign.metadata
        app = foreign.application()
        async with listening(app) as url:
            models = tmp_path / f"models{number}"
            (models / "sentiment").mkdir(parents=True)
            (models / "sentiment" / "model.toml").write_text(text.replace("http://mlserver:8080", url))
            for upstream in (url, None):
                given: dict[str, Any] = {"model": ("sentiment",), "models": models, "upstream_probe": False}
                async with fronted(upstream, tmp_path / "data", **given) as front:
                    told = await front.until(lambda told: "digest" in told, "sentiment")
                    assert told["digest_from"] == "declared"
                    assert (await front.get("/v2/models/sentiment"))["inputs"][0]["datatype"] == "BYTES"


async def _asked(url: str) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None

    return await asyncio.to_thread(ask)


async def _until(url: str, wanted: int) -> Any:
    async with asyncio.timeout(40):
        while True:
            status, document = await _asked(url)
            if status == wanted:
                return document


def _up(data: Path, port: int, upstream: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "foreseen.cli", "up", f"--data={data}", f"--port={port}", f"--upstream={upstream}"]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file)


async def test_a_system_in_front_of_no_server_stays_and_serves_it_when_it_comes(tmp_path: Path) -> None:
    """`foreseen up`: the log says why within seconds, no process ends, `ready` is said when the server is there."""
    port, own, log = free_port(), free_port(), tmp_path / "log"
    up = _up(tmp_path / "data", own, f"http://127.0.0.1:{port}", log)
    assert up.stdout is not None
    runner = web.AppRunner(Foreign().application())
    try:
        told = await _until(f"http://127.0.0.1:{own}/v2/health/ready", 503)
        assert "GET /v2/models found no connection" in told["error"]
        async with asyncio.timeout(40):
            while b"not ready; starting without" not in await asyncio.to_thread(log.read_bytes):
                assert up.poll() is None
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await _until(f"http://127.0.0.1:{own}/v2/health/ready", 200)
        lines = iter(up.stdout.readline, b"")
        assert await asyncio.to_thread(lambda: next(line for line in lines if line.startswith(b"ready ")))
        said = await asyncio.to_thread(log.read_text)
        assert "upstream not usable" in said
        assert "child ended" not in said
    finally:
        up.terminate()
        await asyncio.to_thread(up.wait, 40)
        up.stdout.close()
        await runner.cleanup()
