"""A client of servers of texts that do not speak V2, and what an adapter for such an API has to provide.

The adapters (`openai_upstream.py`, `tei_upstream.py`) name routes and fields. Models are described as V2 metadata of a
model `text` [rows] → `embedding` [rows, d], or `query`, `document` → `score`, so that the rest of the proxy treats them
as any other model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, structs

from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.openai_embeddings import EmbeddingReply
from foreseen.proxy.backend.upstream_access import UpstreamAccess
from foreseen.proxy.backend.v2_server import Exchange, Unusable, V2Server
from foreseen.types import Array

Task = Literal["embed", "tokens", "sparse", "rerank", "classify"]
"""What a server does with texts: one vector each, one for every token, a sparse one, scores of pairs, labels."""
TEXT, EMBEDDING = "text", "embedding"
_TEXTS = ((TEXT, "BYTES", [-1], False),)
TENSORS: Mapping[Task, tuple[tuple[tuple[str, str, list[int], bool], ...], tuple[tuple[str, str, list[int]], ...]]] = {
    "embed": (_TEXTS, ((EMBEDDING, "FP32", [-1, -1]),)),
    "tokens": (_TEXTS, (("tokens", "BYTES", [-1]),)),
    "sparse": (_TEXTS, (("sparse", "BYTES", [-1]),)),
    "rerank": ((("query", "BYTES", [-1], False), ("document", "BYTES", [-1], False)), (("score", "FP64", [-1]),)),
    "classify": (
        (*_TEXTS, ("text_pair", "BYTES", [-1], True)),
        (("label", "BYTES", [-1, -1]), ("score", "FP64", [-1, -1])),
    ),
}
"""The tensors that a model of each task is shown with: inputs (and whether one is optional), outputs."""
ABSENT_SECONDS = 60.0
"""A route that a server did not have is not asked for again so soon."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class ListedModel(Struct, frozen=True):
    """One model of a server. `identity` holds what names its version, without anything that changes by itself;
    `versioned` is whether another version would show in it; `most_rows` is the server's own limit on a request."""

    id: str
    identity: Mapping[str, Any]
    versioned: bool
    most_rows: int | None = None
    task: Task = "embed"
    takes_pairs: bool = False
    """Whether a classifier takes pairs of texts, too."""

    @property
    def name(self) -> str:
        """Under which it is served here: of a server that makes two kinds of vectors, two models are."""
        return served_name(self.id) + (".tokens" if self.task == "tokens" else "")


class Ask(Protocol):
    """One exchange with the server; None where it lacks the route."""

    async def __call__(self, method: str, path: str, body: bytes | None = None) -> Exchange | None: ...


class TextLabels(Struct, frozen=True):
    """The labels of texts and their scores, `[rows, labels]` each."""

    labels: Array
    scores: Array
    tokens: int | None


class PairScores(Struct, frozen=True):
    """The scores of one query's documents, FP64 `[documents]`, in the order of what was asked."""

    scores: Array
    tokens: int | None


class TextEntries(Struct, frozen=True):
    """The JSON of each text's vectors."""

    entries: Sequence[bytes]
    tokens: int | None


class TextApi(Protocol):
    """One API of servers of texts."""

    name: str
    packs: bool
    """Whether a request for embeddings may ask for base64."""

    def again(self) -> TextApi:
        """The same for another server."""

    def path(self, task: Task) -> str:
        """Where texts are sent."""

    async def models(self, ask: Ask) -> Sequence[ListedModel] | None:
        """The server's models; None where it does not speak this API. Raises Unusable."""

    def request(self, model: str, texts: Sequence[str], parameters: Mapping[str, Any], *, packed: bool) -> bytes:
        """The body that asks for embeddings, or for vectors of another kind."""

    def reply(self, body: bytes, headers: Mapping[str, str]) -> EmbeddingReply:
        """The embeddings of a reply of status 200. Raises ModelFailed."""

    def entries(self, body: bytes, headers: Mapping[str, str]) -> TextEntries:
        """The vectors of another kind of such a reply. Raises ModelFailed."""

    def rerank_request(self, model: str, query: str, documents: Sequence[str], parameters: Mapping[str, Any]) -> bytes:
        """The body that asks for the scores of all documents."""

    def rerank_reply(self, body: bytes, headers: Mapping[str, str]) -> PairScores:
        """The scores of such a reply. Raises ModelFailed."""

    def classify_request(
        self, model: str, texts: Sequence[str], seconds: Sequence[str] | None, parameters: Mapping[str, Any]
    ) -> bytes:
        """The body that asks for labels of texts or pairs."""

    def classify_reply(self, body: bytes, headers: Mapping[str, str]) -> TextLabels:
        """The labels of such a reply. Raises ModelFailed."""


class TextServer(V2Server):
    """The server at an address that speaks one of these APIs."""

    def __init__(self, address: str, api: TextApi, access: UpstreamAccess) -> None:
        super().__init__(address, access)
        self.address = address
        self.api = api
        self.access = access
        self.found = False
        """Whether it speaks this API, whatever is wrong with its models."""
        self.models: dict[str, ListedModel] = {}
        """By the name under which they are served here."""
        self._absent: dict[str, float] = {}

    def sibling(self, address: str) -> TextServer:
        """The same API at an address, with connections of its own."""
        return TextServer(address, self.api.again(), self.access)

    async def listed(self) -> list[str]:
        """The names of its models. Raises Unusable."""
        models = await self.api.models(self._ask_route)
        if models is None:
            said = f"the server answers none of the routes of the API {self.api.name!r}"
            raise Unusable("not-v2", said, "mend --upstream or --upstream-api")
        self.found = True
        if not models:
            raise Unusable("lists-nothing", "the server lists no model", "load one there")
        self.models = {model.name: model for model in models}
        return list(self.models)

    async def metadata(self, name: str) -> dict[str, Any]:
        """A model as V2 metadata. Raises Unusable."""
        await self.listed()
        model = self.models.get(served_name(name))
        if model is None:
            known = ", ".join(one.id for one in self.models.values())
            raise Unusable("no-metadata", f"the server lists no model {name!r}, but {known}", "mend --model")
        inputs, outputs = TENSORS[model.task]
        identity = {"api": self.api.name, "id": model.id, **model.identity}
        if model.task != "embed":
            identity["task"] = model.task
        return {
            "name": model.name,
            "versions": ["1"] if model.versioned else [],
            "inputs": [
                {"name": tensor, "datatype": datatype, "shape": shape, "optional": optional}
                for tensor, datatype, shape, optional in inputs
                if not optional or model.takes_pairs
            ],
            "outputs": [
                {"name": tensor, "datatype": datatype, "shape": shape, "optional": False}
                for tensor, datatype, shape in outputs
            ],
            "identity": identity,
        }

    async def config(self, name: str) -> Any:
        return None

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
            raise Unusable("credentials", reply.said, "give its credential: --upstream-key-file")
        if reply.status >= 500:
            raise Unusable("unreachable", reply.said, "see the server's log; it is asked again every few seconds")
        return reply


def named(manifest: Manifest, metadata: Mapping[str, Any]) -> Manifest:
    """A manifest of such a server's model, with the model's name there as an alias."""
    identity = metadata["identity"]
    section, own = manifest.openai, identity["id"]
    if own != manifest.name and own not in section.aliases and identity.get("task") != "tokens":
        section = structs.replace(section, aliases=(*section.aliases, own))
    return structs.replace(manifest, upstream_api=identity["api"], openai=section)


def served_name(model_id: str) -> str:
    """The name under which a model is served: names stand in paths, so `BAAI/bge-m3` is `BAAI--bge-m3` there."""
    return _UNSAFE.sub("--", model_id).lstrip(".-")[:128] or "model"
