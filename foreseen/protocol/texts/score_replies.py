"""Scores → the bodies of rerank, score, ranking and classification replies; and what other servers reply. Pure.

Results stand best first, equal scores in the order of the request. No member differs between a miss and a hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from foreseen.errors import ModelFailed
from foreseen.types import Array, ScoreOptions

UNIT_DOCUMENTS = 100
"""Documents of one of Cohere's search units."""


def activated(logits: Array) -> Array:
    """FP64 `[rows, labels]`: the sigmoid of one label, the softmax of several, as TEI and infinity apply them."""
    values = logits.astype(np.float64)
    parts: Array
    if values.shape[-1] == 1:
        small = np.exp(-np.abs(values))
        parts = np.where(values >= 0, 1.0, small)
        parts /= 1.0 + small
    else:
        parts = np.exp(values - values.max(axis=-1, keepdims=True))
        parts /= parts.sum(axis=-1, keepdims=True)
    return parts


def best_first(scores: Sequence[float]) -> list[int]:
    """The places of scores from the highest to the lowest; equal ones in their order."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))


def rerank_members(scores: list[float], asked: ScoreOptions, version: str, *, plain: bool = False) -> dict[str, Any]:
    """The members of a rerank reply after its id: Cohere's, Jina's, vLLM's and infinity's in one. `plain`: documents
    that were strings come back as strings, as infinity sends them; else as objects."""
    order = best_first(scores)[: asked.top_n]
    results = [{"index": at, "relevance_score": scores[at], **_returned(asked, at, plain=plain)} for at in order]
    units = math.ceil(len(scores) / UNIT_DOCUMENTS)
    meta = {"api_version": {"version": version}, "billed_units": {"search_units": units}}
    return {"model": asked.model, "results": results, "usage": usage_of(asked), "meta": meta}


def _returned(asked: ScoreOptions, at: int, *, plain: bool) -> dict[str, Any]:
    if asked.returned is None:
        return {}
    document = asked.returned[at]
    return {"document": {"text": document} if type(document) is str and not plain else document}


def ranks(scores: list[float], asked: ScoreOptions) -> list[dict[str, Any]]:
    """text-embeddings-inference's rerank reply."""
    texts = asked.returned
    return [
        {"index": at, "score": scores[at], **({} if texts is None else {"text": texts[at]})}
        for at in best_first(scores)
    ]


def score_members(scores: list[float], asked: ScoreOptions) -> dict[str, Any]:
    """The members of a score reply after its id: vLLM's, in the order of the request."""
    data = [{"index": at, "object": "score", "score": score} for at, score in enumerate(scores)]
    return {"model": asked.model, "data": data, "usage": usage_of(asked)}


def rankings(scores: list[float]) -> dict[str, Any]:
    """NIM's ranking reply."""
    return {"rankings": [{"index": at, "logit": scores[at]} for at in best_first(scores)]}


def labelled(scores: Sequence[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The labels of one text with their scores, the highest first."""
    return [{"score": scores[at], "label": labels[at]} for at in best_first(scores)]


def usage_of(asked: ScoreOptions) -> dict[str, int]:
    tokens = asked.tokens or 0
    return {"prompt_tokens": tokens, "total_tokens": tokens}


# What other servers reply.


def document_in(body: bytes) -> Any:
    """A reply's JSON. Raises ModelFailed."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN and Infinity are no JSON, either
        raise ModelFailed("the reply is not JSON") from None


def scores_by_index(results: Any, field: str, count: int) -> Array:
    """FP64 `[count]` of results that name their document by `index`. Raises ModelFailed where they are not one for
    each document, or a score is not a finite number."""
    if type(results) is not list or any(type(one) is not dict for one in results):
        raise ModelFailed("the reply holds no list of results")
    if sorted(one["index"] if type(one.get("index")) is int else -1 for one in results) != list(range(count)):
        raise ModelFailed(f"the reply's indexes are not each of {count} documents', once")
    scores = np.empty(count, np.float64)
    for one in results:
        scores[one["index"]] = finite(one.get(field))
    return scores


def finite(value: Any) -> float:
    """A finite number. Raises ModelFailed."""
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ModelFailed("a score of the reply is not a finite number")
    return number


def classes_of(value: Any) -> tuple[list[str], list[float]]:
    """The labels of one text, by name, and their scores. Raises ModelFailed."""
    if type(value) is not list or not value or any(type(one) is not dict for one in value):
        raise ModelFailed("the reply holds no list of labels")
    named = [(one.get("label"), finite(one.get("score"))) for one in value]
    if any(type(label) is not str for label, _ in named) or len({label for label, _ in named}) != len(named):
        raise ModelFailed("a label of the reply is no text, or stands there twice")
    named.sort()
    return [str(label) for label, _ in named], [score for _, score in named]


def tokens_of(document: Any) -> int | None:
    """The tokens that a reply has counted, None where it has not."""
    usage = document.get("usage") if isinstance(document, dict) else None
    tokens = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 <= tokens < 2**31 else None
