"""How an embedding server is reached: https with an own authority, a proxy that the environment names."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from tests.certificates import authority, signed
from tests.embedding_servers import EmbeddingStub, embedding_proxy, vector
from tests.foreign import Foreign, fronted
from tests.proxy.backend.test_embedding_upstream import infer
from tests.questions import fingerprint, numbers

HOST = "embeddings.test"
"""No name server knows it."""


@contextlib.asynccontextmanager
async def tls_listening(app: web.Application, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The port of a server with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    assert site._server is not None
    try:
        yield site._server.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()


class ForwardProxy:
    """An HTTP proxy as companies have one: it alone knows where `HOST` is. `asked` are its request lines."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, rest = head.split(b" ", 2)
        self.asked.append(f"{method.decode()} {target.decode()}")
        to, onward = await asyncio.open_connection("127.0.0.1", self._port)
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
        else:  # one exchange a connection, so that each has its request line here
            path = target.removeprefix(f"http://{HOST}".encode())
            onward.write(method + b" " + path + b" " + rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, onward), _copy(to, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_https_with_an_own_authority(tmp_path: Path) -> None:
    """`--upstream-ca-file` names whom to trust; without it the same server is not believed and gets no text."""
    ca = authority(tmp_path / "tls")
    stub = EmbeddingStub()
    async with tls_listening(stub.application(), signed(tmp_path / "tls", "server", ca)) as port:
        address = f"https://127.0.0.1:{port}"
        async with embedding_proxy(tmp_path / "a", address, upstream_ca_file=ca[0]) as (_, url):
            assert (await infer(url, "a"))[1] == [vector("a")]
        asked = len(stub.requests)
        async with embedding_proxy(tmp_path / "b", address) as (front, url):
            assert front.proxy.upstream is not None
            assert "--upstream-ca-file" in str(front.proxy.upstream.missing)
            assert (await infer(url, "b"))[0] in (404, 503)
        assert len(stub.requests) == asked


async def test_a_v2_server_is_reached_the_same_way(tmp_path: Path) -> None:
    """Over https with an own authority and a key: its listing, its metadata and its predictions."""
    ca, key = authority(tmp_path / "tls"), tmp_path / "key"
    key.write_text("sk-own\n")
    foreign, refused = Foreign(), []

    @web.middleware
    async def keyed(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer sk-own":
            refused.append(request.path)
            return web.json_response({"error": "no key"}, status=401)
        return cast(web.StreamResponse, await handler(request))

    app = foreign.application()
    app.middlewares.append(keyed)
    async with tls_listening(app, signed(tmp_path / "tls", "server", ca)) as port:
        address, made = f"https://127.0.0.1:{port}", tmp_path / "data"
        async with fronted(address, made, upstream_ca_file=ca[0], upstream_key_file=key) as front:
            assert (await front.infer(numbers(1)))[2] == [fingerprint(numbers(1))]
        assert refused == []
        async with fronted(address, tmp_path / "b", upstream_ca_file=ca[0]) as front:
            assert front.proxy.upstream is not None
            assert "--upstream-key-file" in str(front.proxy.upstream.missing)


async def test_a_proxy_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY forwards what is asked of a plain server; NO_PROXY names those that are asked directly."""
    stub = EmbeddingStub()
    async with _at_a_port(stub) as port:
        between = ForwardProxy(port)
        async with between.listening() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy)
            monkeypatch.setenv("http_proxy", proxy)
            async with embedding_proxy(tmp_path / "a", f"http://{HOST}", upstream_api="openai") as (_, url):
                assert (await infer(url, "a"))[1] == [vector("a")]
            assert f"POST http://{HOST}/v1/embeddings" in between.asked
            asked = len(between.asked)
            monkeypatch.setenv("NO_PROXY", HOST)
            monkeypatch.setenv("no_proxy", HOST)
            async with embedding_proxy(tmp_path / "b", f"http://{HOST}", upstream_api="openai") as (front, _):
                assert front.proxy.upstream is not None
                assert front.proxy.upstream.missing is not None
            assert len(between.asked) == asked


async def test_https_through_a_proxy_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY is asked for a tunnel, and sees nothing of what goes through it."""
    ca = authority(tmp_path / "tls")
    stub = EmbeddingStub()
    certificate = signed(tmp_path / "tls", "server", ca, names=f"DNS:{HOST}")
    async with tls_listening(stub.application(), certificate) as port:
        between = ForwardProxy(port)
        async with between.listening() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            monkeypatch.setenv("https_proxy", proxy)
            started = embedding_proxy(
                tmp_path / "data", f"https://{HOST}", upstream_api="openai", upstream_ca_file=ca[0]
            )
            async with started as (_, url):
                assert (await infer(url, "a"))[1] == [vector("a")]
            assert set(between.asked) == {f"CONNECT {HOST}:443"}


@contextlib.asynccontextmanager
async def _at_a_port(stub: EmbeddingStub) -> AsyncIterator[int]:
    runner = web.AppRunner(stub.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield site._server.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()
