"""OpenAI's embeddings API ↔ texts, token ids and options; and its replies and errors. Pure.

Sources: OpenAI's API reference of `POST /v1/embeddings`; what the clients send was captured from `openai` (Python 3.57,
npm 6.49), `langchain-openai`, LlamaIndex, `litellm` and `haystack-ai`. base64 is the bare little-endian float32 in the
standard alphabet, as SGLang, Ollama, vLLM and LitServe send it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from msgspec import Struct

from foreseen.errors import BadInput, BadRequest, ForeseenError, ModelFailed, TooLarge
from foreseen.protocol.strict_json import load_json
from foreseen.types import Array

MAX_ITEMS = 2048
"""Items of one request; OpenAI's own limit."""
MAX_TEXT_BYTES = 8 * 2**20
"""Text of one request, in UTF-8."""
MAX_ID = 2**31 - 1
PROMPT_FIELDS = ("input_type", "prompt_name")
"""Fields that choose a prompt: NVIDIA NIM's and TEI's."""

Encoding = Literal["float", "base64"]
_KNOWN = frozenset(("input", "model", "encoding_format", "dimensions", "user"))
_ENCODINGS: tuple[Encoding, ...] = ("float", "base64")
_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
_REPEATED_BY_CLIENTS = frozenset((408, 409, 429))
_NO_REPEAT = frozenset(("not_cached", "model_failed", "not_finished", "model_changed", "internal", "unsupported"))
"""Codes of errors that the SDK would repeat and that the same request would get again."""


class EmbeddingRequest(Struct, frozen=True):
    """What a body asks. Either `texts` or `ids` is given, with one item a row."""

    model: str
    texts: tuple[str, ...] | None
    ids: tuple[tuple[int, ...], ...] | None
    encoding: Encoding
    dimensions: int | None
    prompts: dict[str, str]
    """The fields of `PROMPT_FIELDS` that are given, with their values."""
    parameters: dict[str, Any]
    """Every other field."""


def read_request(body: bytes) -> EmbeddingRequest:
    """A `/v1/embeddings` body. Raises BadRequest, BadInput or TooLarge, whose `param` names the field."""
    document = load_json(body)
    if not isinstance(document, dict):
        raise BadRequest("body: must be an object with input and model")
    texts, ids = _input(document)
    return EmbeddingRequest(
        model_of(document),
        texts,
        ids,
        _encoding(document.get("encoding_format")),
        _dimensions(document.get("dimensions")),
        {name: _prompt(name, document[name]) for name in PROMPT_FIELDS if document.get(name) is not None},
        {name: value for name, value in document.items() if name not in _KNOWN and name not in PROMPT_FIELDS},
    )


def model_of(document: dict[str, Any]) -> str:
    """The model that a body names. Raises BadRequest."""
    model = document.get("model")
    if type(model) is not str or not model:
        raise BadRequest("model: must be the name of a model", param="model")
    return model


def _input(document: dict[str, Any]) -> tuple[tuple[str, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """The texts, or the lists of token ids."""
    given = document.get("input")
    if type(given) is str:
        return _texts([given]), None
    if type(given) is not list:
        raise BadInput("input: must be a string, a list of strings, or token ids", param="input")
    if not given:
        raise BadInput("input: must hold at least one item", param="input")
    if type(given[0]) is int:
        return None, (_ids(given, "input"),)
    if len(given) > MAX_ITEMS:
        raise BadInput(f"input: has {len(given)} items, at most {MAX_ITEMS} are allowed", param="input")
    if type(given[0]) is list:
        return None, tuple(_ids(item, f"input[{at}]") for at, item in enumerate(given))
    return _texts(given), None


def _texts(items: list[Any]) -> tuple[str, ...]:
    size = 0
    for at, item in enumerate(items):
        if type(item) is not str:
            raise BadInput(f"input[{at}]: must be a string, as the items before it are", param=f"input[{at}]")
        size += len(item)
    if size > MAX_TEXT_BYTES or sum(len(item.encode()) for item in items) > MAX_TEXT_BYTES:
        raise TooLarge(f"input: has more than {MAX_TEXT_BYTES} bytes of text", param="input")
    return tuple(items)


def _ids(items: Any, field: str) -> tuple[int, ...]:
    if type(items) is not list or not items:
        raise BadInput(f"{field}: must be a list of token ids that is not empty", param=field)
    if len(items) * 2 > MAX_TEXT_BYTES:
        raise TooLarge(f"{field}: has too many token ids", param=field)
    for at, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= MAX_ID:
            raise BadInput(f"{field}[{at}]: must be a token id, as the items before it are", param=f"{field}[{at}]")
    return tuple(items)


def _encoding(value: Any) -> Encoding:
    if value is None:
        return "float"
    if type(value) is not str or value not in _ENCODINGS:
        raise BadRequest('encoding_format: must be "float" or "base64"', param="encoding_format")
    return "base64" if value == "base64" else "float"


def _dimensions(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 < value <= MAX_ID):
        raise BadRequest("dimensions: must be a number above 0", param="dimensions")
    return value


def _prompt(name: str, value: Any) -> str:
    if type(value) is not str:
        raise BadRequest(f"{name}: must be the name of a prompt", param=name)
    return value


def render_reply(
    vectors: Array, *, model: str, encoding: Encoding, dimensions: int | None = None, tokens: int = 0
) -> bytes:
    """The body of a reply to `[rows, d]` vectors. With `dimensions` they are cut to so many numbers and divided by
    their L2 norm, as models with Matryoshka representations need it. There is no member that differs between a miss
    and a hit."""
    made = np.ascontiguousarray(vectors, "<f4")
    if dimensions is not None:
        made = shortened(made, dimensions)
    rows: list[Any] = [base64.b64encode(row).decode() for row in made] if encoding == "base64" else list(made)
    return rendered_rows(rows, model, tokens)


def rendered_rows(rows: Sequence[Any], model: str, tokens: Any) -> bytes:
    """The body of a reply to embeddings, each a string or an array."""
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def shortened(vectors: Array, dimensions: int) -> Array:
    """The first numbers of every vector, divided by their L2 norm. A vector of zeros stays one."""
    cut = vectors[:, :dimensions].astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", cut, cut))[:, None]
    made: Array = np.divide(cut, norms, out=cut, where=norms > 0).astype("<f4")
    return made


class EmbeddingReply(Struct, frozen=True):
    """Another server's reply: float32 `[rows, d]` in the order of what was asked."""

    vectors: Array
    tokens: int | None
    base64: bool


def read_reply(body: bytes, count: int | None = None) -> EmbeddingReply:
    """A reply to `count` texts. Raises ModelFailed where it is none that could be right: another count (None leaves
    that to the caller), an `index` that is no permutation, vectors of different lengths, a number that is not finite,
    an error under status 200."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN and Infinity are no JSON, either
        raise ModelFailed("the reply is not JSON") from None
    if not isinstance(document, dict) or document.get("error") or not isinstance(document.get("data"), list):
        raise ModelFailed("the reply holds an error, or no data, under status 200")
    data = document["data"]
    if len(data) != (len(data) if count is None else count):
        raise ModelFailed(f"the reply has {len(data)} embeddings of {count} texts")
    rows = [_row(one) for one in data]
    order = [_index(one, at) for at, one in enumerate(data)]
    if sorted(order) != list(range(len(data))):
        raise ModelFailed("the reply's indexes are not each text's, once")
    vectors = checked_vectors([row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])])
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    valid = type(tokens) is int and 0 <= tokens <= MAX_ID
    return EmbeddingReply(vectors, tokens if valid else None, all(type(one.get("embedding")) is str for one in data))


def _row(one: Any) -> Array:
    value = one.get("embedding") if isinstance(one, dict) else None
    if type(value) is str:
        try:
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        except ValueError:
            raise ModelFailed("an embedding of the reply is not base64 of float32") from None
    return vector_of(value)


def _index(one: dict[str, Any], at: int) -> int:
    index = one.get("index", at)
    if type(index) is not int:
        raise ModelFailed("an index of the reply is not a number")
    return index


def vector_of(value: Any) -> Array:
    """A list of numbers as float32. Raises ModelFailed."""
    if type(value) is not list or not set(map(type, value)) <= {int, float}:
        raise ModelFailed("an embedding of the reply is not a list of numbers")
    with np.errstate(over="ignore"):
        try:
            return np.array(value, "<f8").astype("<f4")
        except OverflowError:
            raise ModelFailed("an embedding of the reply holds a number that is no float32") from None


def checked_vectors(rows: Sequence[Array]) -> Array:
    """Vectors as one array `[rows, d]`. Raises ModelFailed where they differ in length, or a number is not finite."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise ModelFailed("the embeddings of the reply are empty or differ in length")
    made: Array = np.stack(rows)
    if not np.isfinite(made).all():
        raise ModelFailed("an embedding of the reply holds NaN or infinity")
    return made


def split_tokens(total: int, texts: Sequence[bytes]) -> list[int]:
    """The tokens of a group as so many for each text, by its length; their sum is the group's."""
    weights = np.cumsum([len(text) + 1 for text in texts])
    ends = (weights * total + int(weights[-1]) // 2) // int(weights[-1])
    return [int(end) - int(start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def error_document(error: ForeseenError) -> dict[str, Any]:
    """An error in OpenAI's form, with our stable code."""
    known = _TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": known, "param": error.param, "code": error.code}}


def error_headers(error: ForeseenError) -> dict[str, str]:
    """`x-should-retry: false` where OpenAI's SDK would repeat what cannot help."""
    repeats = error.status in _REPEATED_BY_CLIENTS or error.status >= 500
    return {"x-should-retry": "false"} if repeats and error.code in _NO_REPEAT and error.retry_after is None else {}
