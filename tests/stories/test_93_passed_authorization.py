"""Callers' own credentials in front of a server that checks them: each is a scope of its own, and passed on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from foreseen.errors import SetupError, Unauthorized
from foreseen.keys.secret import make_secret
from foreseen.proxy.backend.passed import passed_of
from foreseen.settings import ProxySettings
from foreseen.tenants.keyring import Keyring
from foreseen.tenants.passed import MAX_CREDENTIALS, PassedCredentials
from tests.embedding_servers import EmbeddingStub, embedding_proxy
from tests.foreign import listening

KEYS = ("sk-one", "sk-two")


class Guarded(EmbeddingStub):
    """A server that lists its models to all, and embeds for two keys."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str | None, tuple[str, ...]]] = []

    def _refused(self, request: web.Request, texts: list[str]) -> web.Response | None:
        given = request.headers.get("Authorization")
        self.asked.append((given, tuple(texts)))
        if given not in [f"Bearer {key}" for key in KEYS]:
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return super()._refused(request, texts)

    def keys_for(self, text: str) -> list[str | None]:
        return [given for given, texts in self.asked if text in texts]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[Guarded, str]]:
    stub = Guarded()
    async with (
        listening(stub.application()) as url,
        embedding_proxy(tmp_path, url, upstream_pass_authorization=True, upstream_probe=False) as (_, own),
    ):
        yield stub, own


async def embed(url: str, text: str, **headers: str) -> tuple[int, Any]:
    body = {"model": "BAAI/bge-m3", "input": text}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/embeddings", json=body, headers=headers) as one,
    ):
        return one.status, json.loads(await one.read())


async def test_each_credential_is_passed_on_and_has_entries_of_its_own(guarded: tuple[Guarded, str]) -> None:
    """Asked once for each, in whatever form the key came; the server checks each itself."""
    stub, url = guarded
    for _ in range(3):
        assert (await embed(url, "a text", Authorization="Bearer sk-one"))[0] == 200
        assert (await embed(url, "a text", **{"X-API-Key": "sk-one"}))[0] == 200
        assert (await embed(url, "a text", Authorization="Bearer sk-two"))[0] == 200
    assert stub.keys_for("a text") == ["Bearer sk-one", "Bearer sk-two"]


async def test_what_the_server_refuses_is_401_and_never_stored(guarded: tuple[Guarded, str]) -> None:
    """Also a text that another credential has in the cache; without a key nothing is asked."""
    stub, url = guarded
    assert (await embed(url, "known", Authorization="Bearer sk-one"))[0] == 200
    for _ in range(2):
        status, document = await embed(url, "known", Authorization="Bearer sk-wrong")
        assert (status, document["error"]["code"]) == (401, "unauthorized")
        assert "sk-wrong" not in str(document)
    assert stub.keys_for("known") == ["Bearer sk-one", "Bearer sk-wrong", "Bearer sk-wrong"]
    assert (await embed(url, "known"))[0] == 401
    assert len(stub.keys_for("known")) == 3


async def test_nothing_is_kept_for_later_and_metrics_need_an_operator(guarded: tuple[Guarded, str]) -> None:
    """A job would run without its caller's credential, so there are none."""
    _, url = guarded
    key = {"Authorization": "Bearer sk-one"}
    async with aiohttp.ClientSession(headers=key) as client:
        for path in ("/v2/predictions/x", "/v1/files/x", "/v1/batches/x"):
            async with client.get(url + path) as reply:
                assert reply.status == 404
        async with client.get(f"{url}/metrics") as reply:
            assert reply.status == 401
        async with client.get(f"{url}/v2/health/ready") as reply:
            assert reply.status == 200


def test_a_credential_is_a_scope_that_does_not_show_it() -> None:
    """The same on every proxy with this secret, another on others; of what is forgotten no request is made."""
    one, other = PassedCredentials(b"k" * 32), PassedCredentials(b"l" * 32)
    first = one.tenant("sk-secret")
    assert first == one.tenant("sk-secret")
    assert first.scope != other.tenant("sk-secret").scope != one.tenant("sk-other").scope
    assert "secret" not in first.scope + first.name + first.owner
    assert one.headers(first.scope) == {"Authorization": "Bearer sk-secret"}
    assert one.headers(None) == {}
    for number in range(MAX_CREDENTIALS):
        one.tenant(f"sk-{number}")
    with pytest.raises(Unauthorized):
        one.headers(first.scope)


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    """A key cannot be of a tenant and of the upstream; gRPC upstreams and own models get none."""
    make_secret(tmp_path / "secret")
    common: dict[str, Any] = {"data": tmp_path, "upstream_pass_authorization": True}
    assert passed_of(ProxySettings(data=tmp_path)) is None
    assert Keyring(passed=passed_of(ProxySettings(**common, upstream=("http://h:1",)))).is_open is False
    for more in ({"upstream": ("http://h:1",), "keys_file": tmp_path / "keys"}, {"upstream": ("grpc://h:1",)}):
        with pytest.raises(SetupError, match="--upstream-pass-authorization"):
            passed_of(ProxySettings(**common, **more))


@pytest.mark.processes
def test_up_refuses_both_kinds_of_keys_before_it_starts_anything(tmp_path: Path) -> None:
    """One line and a status, not children that end again and again."""
    command = [sys.executable, "-P", "-m", "foreseen.cli", "up", "--upstream=http://127.0.0.1:1", f"--data={tmp_path}"]
    command += ["--upstream-pass-authorization", f"--keys-file={tmp_path / 'keys.toml'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a request has one key" in done.stderr
    assert list(tmp_path.iterdir()) == []
