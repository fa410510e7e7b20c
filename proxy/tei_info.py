"""The one text model that is served → text-embeddings-inference's `GET /info`, which its clients read first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from foreseen.errors import BadRequest
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.texts.pair_bodies import MAX_DOCUMENTS
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.dialects.pairs import scores_pairs, scoring_of
from foreseen.proxy.predict.dialects.texts import embeds, embeds_sparsely

LONGEST = 2**31 - 1
"""Tokens of a text where only the server behind knows its limit."""


def tei_info(served: Mapping[str, ServedModel]) -> dict[str, Any]:
    """The document. Raises BadRequest where not one model fits it."""
    found = {name: kind for name, one in served.items() if (kind := _kind(one.manifest)) is not None}
    if len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        raise BadRequest(f"GET /info describes one model; models that embed, rank or classify texts here: {listed}")
    ((name, kind),) = found.items()
    one = served[name]
    manifest, facts = one.manifest, one.facts
    steps = [spec.tokenizer for spec in manifest.seen.inputs if spec.tokenizer is not None]
    return {
        "model_id": next(iter(manifest.openai.aliases), name),
        "model_sha": None if facts is None else facts.digest,
        "model_dtype": (facts.precision if facts is not None else "") or "float32",
        "model_type": kind,
        "max_concurrent_requests": LONGEST,
        "max_input_length": steps[0].max_tokens if steps else LONGEST,
        "max_batch_tokens": LONGEST,
        "max_batch_requests": None,
        "max_client_batch_size": MAX_DOCUMENTS,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": f"foreseen {version('foreseen')}",
        "sha": None,
        "docker_label": None,
    }


def _kind(manifest: Manifest) -> dict[str, Any] | None:
    """text-embeddings-inference's `model_type`; None of a model that it could not serve."""
    if embeds(manifest):
        return {"embedding": {"pooling": "mean"}}
    if embeds_sparsely(manifest):
        return {"embedding": {"pooling": "splade"}}
    tensors = scoring_of(manifest)
    if tensors is None:
        return None
    labels = next(spec.labels for spec in manifest.seen.outputs if spec.name == tensors.output)
    names = labels or tuple(f"LABEL_{at}" for at in range(tensors.labels or 0))
    said = {
        "id2label": {str(at): label for at, label in enumerate(names)},
        "label2id": {label: at for at, label in enumerate(names)},
    }
    return {"reranker" if scores_pairs(manifest) else "classifier": said}
