"""text-embeddings-inference's `/embed`, `/embed_all`, `/embed_sparse` and `/similarity` as dialects. Pure.

A text that is asked by `/embed` or `/similarity` has the entry that `/v1/embeddings`, V2 and V1 have of it. Length 1
(`normalize`), declared Matryoshka sizes and the cosine are made when a reply is rendered. Vectors of every token, and
sparse ones, have no common shape: a whole entry for each text, JSON where another server answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreseen.errors import BadRequest
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.manifest.openai_section import EmbeddingTensors, embedding_tensors
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.openai_embeddings import EmbeddingRequest, shortened
from foreseen.protocol.tensors import array_of_raw
from foreseen.protocol.texts.text_bodies import TextsRequest
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.openai_embeddings import decode_texts, vectors_of
from foreseen.proxy.predict.dialects.pairs import (
    check_named,
    own_parameters,
    passes_on,
    plain_direction,
    scoring_of,
    whole,
)
from foreseen.proxy.predict.dialects.render import RenderedBody, joined_rows
from foreseen.types import Array, OutputOptions, Prediction

TOKENS, SPARSE = "tokens", "sparse"
"""Outputs of a server's models: BYTES `[rows]`, the JSON of a text's vectors."""
_TEXT_SHAPES = (("rows",), ("rows", 1))
_FLOATS = ("FP32", "FP16")


def embeds(manifest: Manifest) -> bool:
    """Whether a model gives a text one vector."""
    return _embedding(manifest) is not None


def embeds_tokens(manifest: Manifest) -> bool:
    """Whether a model gives every token of a text a vector."""
    return _tokens(manifest) is not None


def embeds_sparsely(manifest: Manifest) -> bool:
    """Whether a model gives a text a sparse vector."""
    return _sparse(manifest) is not None


def _embedding(manifest: Manifest) -> EmbeddingTensors | None:
    seen = manifest.seen
    if scoring_of(manifest) is not None or any(one.name == SPARSE for one in seen.outputs):
        return None
    return embedding_tensors(manifest.openai, seen.inputs, seen.outputs)


def _tokens(manifest: Manifest) -> EmbeddingTensors | None:
    inputs, outputs = manifest.seen.inputs, manifest.seen.outputs
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].datatype != "BYTES" or inputs[0].shape not in _TEXT_SHAPES:
        return None
    output = outputs[0]
    stored = (output.name, output.datatype, len(output.shape)) == (TOKENS, "BYTES", 1)
    made = output.datatype in _FLOATS and len(output.shape) == 3 and not output.labels
    return EmbeddingTensors(inputs[0].name, output.name) if stored or made else None


def _sparse(manifest: Manifest) -> EmbeddingTensors | None:
    inputs, outputs = manifest.seen.inputs, manifest.seen.outputs
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].datatype != "BYTES" or inputs[0].shape not in _TEXT_SHAPES:
        return None
    output = outputs[0]
    stored = (output.datatype, len(output.shape)) == ("BYTES", 1)
    made = output.datatype in _FLOATS and len(output.shape) == 2
    return EmbeddingTensors(inputs[0].name, output.name) if output.name == SPARSE and (stored or made) else None


def decode_embed(asked: TextsRequest, manifest: Manifest, protocol: Any) -> DecodedRequest:
    """A body that was read. Raises BadRequest, whose `param` names the field."""
    check_named(asked.model, manifest)
    tensors = {"embed-all": _tokens, "embed-sparse": _sparse}.get(protocol, _embedding)(manifest)
    if tensors is None:
        raise BadRequest(f"model: {manifest.name!r} makes no vectors of this kind", param="model")
    parameters, normalize = asked.parameters, asked.normalize
    parameters = plain_direction(parameters) if passes_on(manifest) else own_parameters(parameters, manifest)
    if manifest.upstream_api == "tei" and protocol == "embed":  # the server does it itself
        parameters, normalize = {**parameters, **({} if normalize else {"normalize": False})}, False
    prompts = {} if asked.prompt is None else {"prompt_name": asked.prompt}
    name = asked.model or manifest.name
    request = EmbeddingRequest(name, asked.texts, None, "float", asked.dimensions, prompts, dict(parameters))
    return decode_texts(request, manifest, tensors, OutputOptions(protocol), normalize=normalize)


def render_embed(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """`[[…], …]`: a vector for each text."""
    assert options.embedding is not None
    vectors, dimensions = vectors_of(manifest, predictions, options), options.embedding.dimensions
    if dimensions is not None or options.embedding.normalize:
        vectors = shortened(vectors, dimensions or vectors.shape[1])
    return whole(np.ascontiguousarray(vectors, "<f4"))


def render_similarity(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """`[…]`: the cosine of the first text's vector and each other's."""
    vectors = vectors_of(manifest, predictions, options).astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    lengths = norms[1:] * norms[0]
    cosines = np.divide(vectors[1:] @ vectors[0], lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    return whole(np.clip(cosines, -1.0, 1.0).astype(np.float32))


def render_whole_entries(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """`[…]`: what stands in each text's entry, of `/embed_all` and `/embed_sparse`."""
    assert options.outputs is not None
    spec = next(one for one in manifest.seen.outputs if one.name == options.outputs[0].name)
    if spec.datatype == "BYTES":
        raw, shape = joined_rows(manifest, predictions, spec)
        texts = array_of_raw(raw, DATATYPES["BYTES"], shape, spec.name).ravel().tolist()
        return RenderedBody(b"[" + b",".join(texts) + b"]", b"", None)
    rows = _rows(manifest, predictions, spec.name, spec.datatype)
    if options.protocol == "embed-all":
        return whole([list(np.ascontiguousarray(row, "<f4")) for row in rows])
    return whole([_nonzero(row) for row in rows])


def _rows(manifest: Manifest, predictions: Sequence[Prediction], name: str, datatype: str) -> list[Array]:
    """The output of every row, in its own shape."""
    rows: list[Array] = []
    for one in predictions:
        place = next(at for at, head in enumerate(one.outputs) if head.name == name)
        array = array_of_raw(one.data[place], DATATYPES[datatype], one.outputs[place].shape, name)
        rows += list(array) if manifest.rows == "together" else [array]
    return rows


def _nonzero(row: Array) -> list[dict[str, Any]]:
    values = row.astype(np.float32)
    return [{"index": int(at), "value": values[at]} for at in np.flatnonzero(values)]
