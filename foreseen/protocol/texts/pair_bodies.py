"""Bodies that ask for scores of (query, document) pairs: rerank, score, ranking. Pure.

Sources: Cohere's API reference (v1 and v2) and what its SDK 7.3 sends; Jina's; vLLM's `/rerank` and `/score`;
infinity's `/rerank`; text-embeddings-inference's `/rerank` (router/src/http/types.rs), recognised by its field `texts`;
NVIDIA NIM's `/v1/ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from foreseen.errors import BadInput, BadRequest, TooLarge
from foreseen.protocol.strict_json import load_json

MAX_DOCUMENTS = 10_000
"""Documents of one request; Cohere's own limit."""
MAX_PAIR_BYTES = 32 * 2**20
"""Text of all pairs of one request in UTF-8, the query counted with every document."""
MAX_NUMBER = 2**31 - 1

Form = Literal["rerank", "tei-rerank", "score", "ranking"]
_RENDERED = frozenset(
    (
        "model", "query", "documents", "texts", "top_n", "return_documents", "return_text", "raw_scores",
        "use_activation", "rank_fields", "user", "max_tokens_per_doc",
    )
)  # fmt: skip
"""Fields of rerank bodies that are read here; every other one is a request parameter."""
_FIRSTS, _SECONDS = ("queries", "text_1", "data_1"), ("documents", "items", "text_2", "data_2")
_SCORED = frozenset((*_FIRSTS, *_SECONDS, "model", "raw_scores", "use_activation", "user"))
_RANKED = frozenset(("model", "query", "passages", "user"))


class PairsRequest(Struct, frozen=True):
    """What a body asks: a score for each pair of `queries[i]` and `documents[i]`."""

    form: Form
    model: str | None
    """None where the body names none."""
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    raw: bool
    """Scores without the activation function: logits."""
    parameters: dict[str, Any]
    """Every other field."""
    top_n: int | None = None
    returned: tuple[Any, ...] | None = None
    """The documents as they were sent, where the reply is to repeat them."""
    most_tokens: int | None = None
    """Tokens of a document; what is longer is cut."""


def read_rerank(body: bytes) -> PairsRequest:
    """A rerank body. Raises BadRequest, BadInput or TooLarge, whose `param` names the field."""
    document = body_object(body, "query and documents")
    query = text_of(document.get("query"), "query")
    own = document.get("documents") is None and document.get("texts") is not None
    field = "texts" if own else "documents"
    given = listed(document.get(field), field, MAX_DOCUMENTS)
    fields = _rank_fields(document.get("rank_fields"))
    texts = tuple(_document(one, f"{field}[{at}]", fields) for at, one in enumerate(given))
    check_pairs(query, texts, field)
    wanted = flag_of(document, "return_text" if own else "return_documents")
    return PairsRequest(
        "tei-rerank" if own else "rerank",
        model_name(document),
        (query,) * len(texts),
        texts,
        raw_of(document),
        {name: value for name, value in document.items() if name not in _RENDERED and value is not None},
        None if own else number_of(document, "top_n"),
        tuple(given) if wanted else None,
        number_of(document, "max_tokens_per_doc"),
    )


def read_score(body: bytes) -> PairsRequest:
    """A score body: one text against many, or as many against as many. Raises as `read_rerank` does."""
    document = body_object(body, "queries and documents")
    first, second = _named(document, _FIRSTS), _named(document, _SECONDS)
    queries, documents = _texts(document[first], first), _texts(document[second], second)
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        said = f"{second}: has {len(documents)} texts for {len(queries)}; give one in {first}, or as many"
        raise BadInput(said, param=second)
    size = sum(len(one.encode()) for one in (*queries, *documents))
    if size > MAX_PAIR_BYTES:
        raise TooLarge(f"{second}: the pairs have more than {MAX_PAIR_BYTES} bytes of text", param=second)
    rest = {name: value for name, value in document.items() if name not in _SCORED and value is not None}
    return PairsRequest("score", model_name(document), queries, documents, raw_of(document), rest)


def read_ranking(body: bytes) -> PairsRequest:
    """A body of NIM's `/v1/ranking`, whose reply holds logits. Raises as `read_rerank` does."""
    document = body_object(body, "query and passages")
    query = _passage(document.get("query"), "query")
    given = listed(document.get("passages"), "passages", MAX_DOCUMENTS)
    texts = tuple(_passage(one, f"passages[{at}]") for at, one in enumerate(given))
    check_pairs(query, texts, "passages")
    rest = {name: value for name, value in document.items() if name not in _RANKED and value is not None}
    return PairsRequest("ranking", model_name(document), (query,) * len(texts), texts, True, rest)


# What these bodies, and those of `text_bodies.py`, have in common.


def body_object(body: bytes, what: str) -> dict[str, Any]:
    """The body's JSON object. Raises BadRequest."""
    document = load_json(body)
    if not isinstance(document, dict):
        raise BadRequest(f"body: must be an object with {what}")
    return document


def model_name(document: dict[str, Any]) -> str | None:
    """The model that a body names, None where it names none. Raises BadRequest."""
    model = document.get("model")
    if model is not None and (type(model) is not str or not model):
        raise BadRequest("model: must be the name of a model", param="model")
    return model


def text_of(value: Any, field: str) -> str:
    if type(value) is not str:
        raise BadInput(f"{field}: must be a string", param=field)
    return value


def listed(value: Any, field: str, most: int) -> list[Any]:
    """A list that is not empty. Raises BadInput."""
    if type(value) is not list or not value:
        raise BadInput(f"{field}: must be a list of at least one text", param=field)
    if len(value) > most:
        raise BadInput(f"{field}: has {len(value)} items, at most {most} are allowed", param=field)
    return value


def flag_of(document: dict[str, Any], field: str, default: bool = False) -> bool:
    value = document.get(field)
    if value is not None and type(value) is not bool:
        raise BadRequest(f"{field}: must be true or false", param=field)
    return default if value is None else value


def number_of(document: dict[str, Any], field: str) -> int | None:
    value = document.get(field)
    if value is not None and (type(value) is not int or not 0 < value <= MAX_NUMBER):
        raise BadRequest(f"{field}: must be a number above 0", param=field)
    return value


def raw_of(document: dict[str, Any]) -> bool:
    """Whether scores are asked for without the activation function: TEI's and infinity's word, and vLLM's."""
    return flag_of(document, "raw_scores") or not flag_of(document, "use_activation", default=True)


def check_pairs(query: str, texts: Sequence[str], field: str) -> None:
    """Raises TooLarge where the pairs are more text than one request may have."""
    size = len(query.encode()) * len(texts) + sum(len(text.encode()) for text in texts)
    if size > MAX_PAIR_BYTES:
        raise TooLarge(f"{field}: with the query they are more than {MAX_PAIR_BYTES} bytes of text", param=field)


def _rank_fields(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("text",)
    if type(value) is not list or not value or any(type(one) is not str for one in value):
        raise BadRequest("rank_fields: must be a list of names", param="rank_fields")
    return tuple(value)


def _document(value: Any, field: str, names: Sequence[str]) -> str:
    """A document's text: a string, or of an object the fields that are ranked, a line each where there are several."""
    if type(value) is str:
        return value
    if type(value) is not dict:
        raise BadInput(f"{field}: must be a string or an object with text", param=field)
    found = [(name, value[name]) for name in names if value.get(name) is not None]
    if not found:
        raise BadInput(f"{field}.{names[0]}: is missing", param=f"{field}.{names[0]}")
    for name, text in found:
        if type(text) is not str:
            raise BadInput(f"{field}.{name}: must be a string", param=f"{field}.{name}")
    return found[0][1] if len(names) == 1 else "\n".join(f"{name}: {text}" for name, text in found)


def _passage(value: Any, field: str) -> str:
    if type(value) is not dict:
        raise BadInput(f"{field}: must be an object with text", param=field)
    return text_of(value.get("text"), f"{field}.text")


def _named(document: dict[str, Any], names: Sequence[str]) -> str:
    """The one of several names for a field that a body uses. Raises BadInput."""
    found = [name for name in names if document.get(name) is not None]
    if len(found) != 1:
        raise BadInput(f"{names[0]}: give one of {', '.join(names)}", param=found[1] if found else names[0])
    return found[0]


def _texts(value: Any, field: str) -> tuple[str, ...]:
    if type(value) is str:
        return (value,)
    given = listed(value, field, MAX_DOCUMENTS)
    return tuple(_document(one, f"{field}[{at}]", ("text",)) for at, one in enumerate(given))
