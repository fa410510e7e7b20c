"""Bodies of text-embeddings-inference's other routes, and of infinity's `/classify`. Pure.

`/predict`, `/embed`, `/embed_all`, `/embed_sparse`, `/similarity` as in router/src/http/types.rs. `["a", "b"]` as
`inputs` of `/predict` is one pair of texts; two texts are `[["a"], ["b"]]`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from foreseen.errors import BadInput, BadRequest, ForeseenError, TooLarge
from foreseen.protocol.texts.pair_bodies import (
    MAX_DOCUMENTS,
    MAX_PAIR_BYTES,
    body_object,
    flag_of,
    listed,
    model_name,
    number_of,
    raw_of,
    text_of,
)

_CLASSIFIED = frozenset(("model", "inputs", "input", "raw_scores", "use_activation", "user"))
_EMBEDDED = frozenset(("model", "inputs", "prompt_name", "normalize", "dimensions", "user"))


class LabelsRequest(Struct, frozen=True):
    """What a `/predict` or `/classify` body asks: the labels of texts, or of pairs where `seconds` are given."""

    model: str | None
    texts: tuple[str, ...]
    seconds: tuple[str, ...] | None
    single: bool
    """Whether `inputs` was one item, whose labels then stand alone in the reply."""
    raw: bool
    parameters: dict[str, Any]


class TextsRequest(Struct, frozen=True):
    """What an `/embed…` or `/similarity` body asks of texts."""

    model: str | None
    texts: tuple[str, ...]
    normalize: bool
    dimensions: int | None
    prompt: str | None
    parameters: dict[str, Any]


def read_predict(body: bytes) -> LabelsRequest:
    """A `/predict` body. Raises BadRequest, BadInput or TooLarge, whose `param` names the field."""
    document = body_object(body, "inputs")
    given = document.get("inputs")
    single = type(given) is str or (type(given) is list and bool(given) and type(given[0]) is str)
    items = [given] if single else listed(given, "inputs", MAX_DOCUMENTS)
    pairs = [_item(one, "inputs" if single else f"inputs[{at}]") for at, one in enumerate(items)]
    for at, pair in enumerate(pairs):
        if len(pair) != len(pairs[0]):
            said = f"inputs[{at}]: texts and pairs of texts cannot be asked in one request; send two"
            raise BadInput(said, param=f"inputs[{at}]")
    texts = tuple(pair[0] for pair in pairs)
    seconds = tuple(pair[1] for pair in pairs) if len(pairs[0]) == 2 else None
    _check_size((*texts, *(seconds or ())), "inputs")
    return LabelsRequest(model_name(document), texts, seconds, single, raw_of(document), _rest(document, _CLASSIFIED))


def read_classify(body: bytes) -> LabelsRequest:
    """A body of infinity's `/classify`. Raises as `read_predict` does."""
    document = body_object(body, "model and input")
    texts = _texts(document.get("input"), "input")
    return LabelsRequest(model_name(document), texts, None, False, raw_of(document), _rest(document, _CLASSIFIED))


def read_embed(body: bytes) -> TextsRequest:
    """A body of `/embed`, `/embed_all` or `/embed_sparse`. Raises as `read_predict` does."""
    document = body_object(body, "inputs")
    texts = _texts(document.get("inputs"), "inputs")
    return TextsRequest(
        model_name(document),
        texts,
        flag_of(document, "normalize", default=True),
        number_of(document, "dimensions"),
        _prompt(document),
        _rest(document, _EMBEDDED),
    )


def read_similarity(body: bytes) -> TextsRequest:
    """A `/similarity` body: the first text is compared with the others. Raises as `read_predict` does."""
    document = body_object(body, "inputs")
    inputs, parameters = document.get("inputs"), document.get("parameters")
    if type(inputs) is not dict:
        raise BadInput("inputs: must be an object with source_sentence and sentences", param="inputs")
    if parameters is not None and type(parameters) is not dict:
        raise BadRequest("parameters: must be an object", param="parameters")
    source = text_of(inputs.get("source_sentence"), "inputs.source_sentence")
    texts = (source, *_texts(inputs.get("sentences"), "inputs.sentences"))
    return TextsRequest(
        model_name(document), texts, False, None, _prompt(parameters or {}), _rest(parameters or {}, _EMBEDDED)
    )


def tei_error(error: ForeseenError) -> dict[str, Any]:
    """An error in text-embeddings-inference's form, with our stable code and the field."""
    if error.status < 500 and error.status != 429:
        kind = "Validation"
    else:
        kind = {429: "Overloaded", 503: "Overloaded" if error.code == "overloaded" else "Unhealthy"}.get(
            error.status, "Backend"
        )
    return {"error": str(error), "error_type": kind, "code": error.code, "param": error.param}


def _item(value: Any, field: str) -> tuple[str, ...]:
    """A text, or a pair."""
    if type(value) is str:
        return (value,)
    if type(value) is not list or len(value) not in (1, 2):
        raise BadInput(f"{field}: must be a string, or a list of one or two", param=field)
    return tuple(text_of(one, field) for one in value)


def _texts(value: Any, field: str) -> tuple[str, ...]:
    if type(value) is str:
        texts: tuple[str, ...] = (value,)
    else:
        texts = tuple(text_of(one, f"{field}[{at}]") for at, one in enumerate(listed(value, field, MAX_DOCUMENTS)))
    _check_size(texts, field)
    return texts


def _check_size(texts: tuple[str, ...], field: str) -> None:
    if sum(len(text.encode()) for text in texts) > MAX_PAIR_BYTES:
        raise TooLarge(f"{field}: has more than {MAX_PAIR_BYTES} bytes of text", param=field)


def _prompt(document: dict[str, Any]) -> str | None:
    prompt = document.get("prompt_name")
    if prompt is not None and type(prompt) is not str:
        raise BadRequest("prompt_name: must be the name of a prompt", param="prompt_name")
    return prompt


def _rest(document: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in known and value is not None}
