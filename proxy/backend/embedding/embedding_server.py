"""A client of embedding servers that do not speak V2, and what an adapter for such an API has to provide.

The adapters (`openai_upstream.py`, `tei_upstream.py`) name routes and fields. Models are described as V2 metadata of a
model `text` [rows] → `embedding` [rows, d], so that the rest of the proxy treats it as any other model.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct, structs

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.openai_embeddings import EmbeddingReply
from foreseen.proxy.backend.v2_server import Exchange, Unusable, V2Server

TEXT, EMBEDDING = "text", "embedding"
ABSENT_SECONDS = 60.0
"""A route that a server did not have is not asked for again so soon."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class ListedModel(Struct, frozen=True):
    """One model of a server. `identity` holds what names its version, without anything that changes by itself;
    `versioned` is whether another version would show in it; `most_rows` is the server's own limit on a request."""

    id: str
    identity: Mapping[str, Any]
    versioned: bool
    most_rows: int | None = None


class Ask(Protocol):
    """One exchange with the server; None where it lacks the route."""

    async def __call__(self, method: str, path: str, body: bytes | None = None) -> Exchange | None: ...


class EmbeddingApi(Protocol):
    """One API of embedding servers."""

    name: str
    packs: bool
    """Whether a request may ask for base64."""

    @property
    def path(self) -> str:
        """Where texts are sent."""

    def again(self) -> EmbeddingApi:
        """The same for another server."""

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        """The server's models; None where it does not speak this API. Raises Unusable."""

    def request(self, model: str, texts: Sequence[str], parameters: Mapping[str, Any], *, packed: bool) -> bytes:
        """The body that asks for embeddings."""

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        """The embeddings of a reply of status 200. Raises ModelFailed."""


class UpstreamAccess:
    """How connections to an upstream are made: its credential, certificates, a proxy from the environment."""

    def __init__(self, key_file: Path | None = None, ca_file: Path | None = None) -> None:
        self._key_file = key_file
        self._ca_file = ca_file
        self._key: tuple[int, str] = (-1, "")

    def headers(self) -> dict[str, str]:
        """The credential. The file is read again when it has changed. Raises SetupError."""
        if self._key_file is None:
            return {}
        try:
            changed = self._key_file.stat().st_mtime_ns
            if changed != self._key[0]:
                self._key = changed, self._key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise SetupError(f"--upstream-key-file {self._key_file}: cannot be read") from None
        if not self._key[1].isascii() or not self._key[1].isprintable() or not self._key[1]:
            raise SetupError(f"--upstream-key-file {self._key_file}: does not hold one line of a key")
        return {"Authorization": f"Bearer {self._key[1]}"}

    def session(self, address: str, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        """A client for an address. HTTPS_PROXY and NO_PROXY are obeyed, but not for this machine itself."""
        tls: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            tls = ssl.create_default_context(cafile=str(self._ca_file))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=timeout,
            trust_env=urlsplit(address).hostname not in _LOOPBACK,
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
        )


class EmbeddingServer(V2Server):
    """The server at an address that speaks one of these APIs."""

    def __init__(self, address: str, api: EmbeddingApi, access: UpstreamAccess) -> None:
        super().__init__(address)
        self.address = address
        self.api = api
        self.access = access
        self.found = False
        """Whether it speaks this API, whatever is wrong with its models."""
        self.models: dict[str, ListedModel] = {}
        """By the name under which they are served here."""
        self._absent: dict[str, float] = {}

    def sibling(self, address: str) -> EmbeddingServer:
        """The same API at an address, with connections of its own."""
        return EmbeddingServer(address, self.api.again(), self.access)

    async def listed(self) -> list[str]:
        """The names of its models. Raises Unusable."""
        models = await self.api.models(self._ask_route)
        if models is None:
            said = f"the server answers none of the routes of the API {self.api.name!r}"
            raise Unusable("not-v2", said, "mend --upstream or --upstream-api")
        self.found = True
        if not models:
            raise Unusable("lists-nothing", "the server lists no model", "load one there")
        self.models = {served_name(model.id): model for model in models}
        return list(self.models)

    async def metadata(self, name: str) -> dict[str, Any]:
        """A model as V2 metadata. Raises Unusable."""
        await self.listed()
        model = self.models.get(served_name(name))
        if model is None:
            known = ", ".join(one.id for one in self.models.values())
            raise Unusable("no-metadata", f"the server lists no model {name!r}, but {known}", "mend --model")
        return {
            "name": served_name(name),
            "versions": ["1"] if model.versioned else [],
            "inputs": [{"name": TEXT, "datatype": "BYTES", "shape": [-1], "optional": False}],
            "outputs": [{"name": EMBEDDING, "datatype": "FP32", "shape": [-1, -1], "optional": False}],
            "identity": {"api": self.api.name, "id": model.id, **model.identity},
        }

    async def config(self, name: str) -> Any:
        return None

    def _new_client(self, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        return self.access.session(self.address, timeout)

    def _headers(self) -> dict[str, str]:
        return self.access.headers()

    async def _ask_route(self, method: str, path: str, body: bytes | None = None) -> Exchange | None:
        since = self._absent.get(path)
        if since is not None and time.monotonic() - since < ABSENT_SECONDS:
            return None
        reply = await self._ask(method, path, body)
        if reply.status in (404, 405):
            self._absent[path] = time.monotonic()
            return None
        self._absent.pop(path, None)
        if reply.status in (401, 403):
            raise Unusable("not-v2", reply.said, "give its credential: --upstream-key-file")
        if reply.status >= 500:
            raise Unusable("unreachable", reply.said, "see the server's log; it is asked again every few seconds")
        return reply


def named(manifest: Manifest, metadata: Mapping[str, Any]) -> Manifest:
    """A manifest of an embedding server's model, with the model's name there as an alias."""
    identity = metadata["identity"]
    section, own = manifest.openai, identity["id"]
    if own != manifest.name and own not in section.aliases:
        section = structs.replace(section, aliases=(*section.aliases, own))
    return structs.replace(manifest, upstream_api=identity["api"], openai=section)


def served_name(model_id: str) -> str:
    """The name under which a model is served: names stand in paths, so `BAAI/bge-m3` is `BAAI--bge-m3` there."""
    return _UNSAFE.sub("--", model_id).lstrip(".-")[:128] or "model"
