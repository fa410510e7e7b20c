"""A client that lists the models of another V2 server; an unusable reply becomes an error with its fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import aiohttp
import orjson

from foreseen.errors import SetupError
from foreseen.proxy.backend.upstream_access import UpstreamAccess

REQUEST_SECONDS = 5.0
MAX_REPLY_BYTES = 8 * 2**20
EXCERPT_CHARACTERS = 80
ITS_OWN_FAULT = (500, 502, 503, 504)

Problem = Literal["unreachable", "credentials", "not-v2", "lists-nothing", "no-metadata", "unusable"]


class Unusable(SetupError):
    """A server or a model that cannot be served: `said` is what was asked and what came back, `fix` what to do."""

    def __init__(self, problem: Problem, said: str, fix: str) -> None:
        super().__init__(f"{said}; {fix}")
        self.problem: Problem = problem
        self.said = said
        self.fix = fix


class Exchange(NamedTuple):
    """A request and its reply."""

    asked: str
    status: int
    media_type: str
    content: bytes

    @property
    def document(self) -> Any:
        """The JSON of a reply of status 200; None for any other."""
        if self.status != 200:
            return None
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            return None

    @property
    def said(self) -> str:
        """What was asked and what came back, in a few words."""
        if "html" in self.media_type:  # a page says less than its status
            return f"{self.asked} answered {self.status} {self.media_type}"
        text = " ".join(self.content[: 4 * EXCERPT_CHARACTERS].decode(errors="replace").split())
        excerpt = "".join(character for character in text if character.isprintable())[:EXCERPT_CHARACTERS]
        what = " ".join(part for part in (str(self.status), self.media_type) if part)
        return f"{self.asked} answered {what}" + (f" {excerpt!r}" if excerpt else "")


class V2Server:
    """The server at an address, asked about its models."""

    def __init__(self, address: str, access: UpstreamAccess | None = None) -> None:
        self._address = address.rstrip("/")
        self._access = access or UpstreamAccess()
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def listed(self) -> list[str]:
        """`/v2/models` where there is one (KServe, Foreseen), else Triton's repository index (Triton, MLServer).
        Raises Unusable."""
        models = await self._ask("GET", "/v2/models")
        document = models.document
        if isinstance(document, dict) and isinstance(document.get("models"), list):
            listed, asked = document["models"], [models]
        else:
            index = await self._ask("POST", "/v2/repository/index", b"{}")
            listed, asked = index.document, [models, index]
        if not isinstance(listed, list):
            raise await self._without_list(asked)
        names = [one.get("name") if isinstance(one, dict) else one for one in listed if _is_loaded(one)]
        found = list(dict.fromkeys(name for name in names if isinstance(name, str)))
        if not found:
            fix = "load a model there; it is asked again every few seconds"
            raise Unusable("lists-nothing", f"{asked[-1].said}, which names no model that is ready", fix)
        return found

    async def speaks_v2(self) -> bool:
        """Whether it has V2's server metadata, or its models. Raises Unusable where it cannot be reached."""
        for path in ("/v2/models", "/v2"):
            if isinstance((await self._ask("GET", path)).document, dict):
                return True
        return False

    async def metadata(self, name: str) -> dict[str, Any]:
        """A model's metadata. Raises Unusable."""
        reply = await self._ask("GET", f"/v2/models/{quote(name, safe='')}")
        document = reply.document
        if isinstance(document, dict):
            return document
        if reply.status in ITS_OWN_FAULT:
            raise Unusable("unreachable", reply.said, "see the server's log")
        fix = "check its name; a model without metadata needs a model.toml (docs/upstream.md)"
        raise Unusable("no-metadata", reply.said, fix)

    async def config(self, name: str) -> Any:
        """A model's Triton configuration, None where there is none to be had."""
        try:
            return (await self._ask("GET", f"/v2/models/{quote(name, safe='')}/config")).document
        except Unusable:
            return None

    async def _without_list(self, asked: Sequence[Exchange]) -> Unusable:
        """What is wrong with a server that has answered no list of models."""
        server = await self._ask("GET", "/v2")
        said = ", ".join(one.said for one in asked)
        if any(one.status in ITS_OWN_FAULT for one in (*asked, server)):
            return Unusable("unreachable", said, "see the server's log; it is asked again every few seconds")
        if isinstance(server.document, dict):
            return Unusable("lists-nothing", said, "this server does not list its models: name them, --model NAME")
        if server.status in (401, 403):
            return Unusable("credentials", server.said, "give its credential: --upstream-key-file")
        fix = "this is no V2 server: give the HTTP address of one, without a path (docs/upstream.md)"
        return Unusable("not-v2", server.said, fix)

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Exchange:
        """One exchange. Raises Unusable where there is no reply."""
        if self._client is None:
            self._client = self._access.session(self._address, aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        headers = {**self._access.headers(), **({"Content-Type": "application/json"} if body is not None else {})}
        asked, again = f"{method} {path}", "start it, or mend --upstream; it is asked again every few seconds"
        try:
            async with self._client.request(method, self._address + path, data=body, headers=headers) as reply:
                content = bytearray()
                async for piece in reply.content.iter_any():
                    content += piece
                    if len(content) > MAX_REPLY_BYTES:
                        raise Unusable("unusable", f"{asked} answered more than {MAX_REPLY_BYTES} bytes", "mend it")
                return Exchange(asked, reply.status, reply.headers.get("Content-Type", ""), bytes(content))
        except TimeoutError:
            raise Unusable("unreachable", f"{asked} was not answered in {REQUEST_SECONDS:g} seconds", again) from None
        except aiohttp.ClientConnectorError as error:
            why = type(error.os_error).__name__
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                again = "its certificate is not trusted: name its authority, --upstream-ca-file"
            raise Unusable("unreachable", f"{asked} found no connection ({why})", again) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientResponseError, aiohttp.ClientOSError) as error:
            said = f"{asked} got no HTTP reply ({type(error).__name__})"
            raise Unusable("not-v2", said, "give its HTTP port: a gRPC port answers so; see docs/upstream.md") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unusable("unreachable", f"{asked} failed ({type(error).__name__})", again) from None


def _is_loaded(one: Any) -> bool:
    """Whether a listed model may answer. Triton lists those, too, that are unloaded or failed to load."""
    return not isinstance(one, dict) or one.get("state") in (None, "", "READY")
