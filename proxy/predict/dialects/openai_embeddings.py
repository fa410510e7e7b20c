"""The dialect of OpenAI's embeddings API: bodies become the rows of `/infer`, predictions become `data`. Pure.

A text has the same entry here as in V2 and V1. What is applied when the reply is rendered is not in
the key: the encoding, the alias, `user`, a declared Matryoshka size. A prompt is put before the text, so the rows carry
it. Every other field is a request parameter, and part of the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import structs

from foreseen.errors import BadInput, BadRequest
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.manifest.openai_section import EmbeddingTensors, embedding_tensors
from foreseen.modelspec.parameters import counting
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import RequestMembers, canonical, reply_usage
from foreseen.protocol.openai_embeddings import EmbeddingRequest, model_of, read_request, render_reply, rendered_rows
from foreseen.protocol.strict_json import load_json
from foreseen.protocol.tensors import array_of_raw
from foreseen.protocol.wire import InputTensor
from foreseen.proxy.predict.dialects import fragments
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.fragments import form
from foreseen.proxy.predict.dialects.render import joined_rows
from foreseen.proxy.predict.dialects.reply_skeletons import MARKED, ReplySkeleton, rows_skeleton
from foreseen.types import Array, EmbeddingOptions, Output, OutputOptions, Prediction, WantedOutput

_MEMBER = re.compile(rb'"model"[ \t\r\n]*:')
_NAME = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*"([ !#-\[\]-~]{1,256})"')
NO_IDS = (
    "input: token ids are not taken, since those of another tokenizer would be embedded as other words; send text. "
    "langchain-openai: OpenAIEmbeddings(check_embedding_ctx_length=False)"
)


def named_model(body: bytes) -> str:
    """The model that a body names, without reading all of it where the name stands there once and plainly. (A quote
    within a string has a backslash before it, so what matches is a member's name; `decode_openai` holds the whole
    document against it.) Raises BadRequest."""
    found = _NAME.search(body)
    if found is not None and len(_MEMBER.findall(body)) == 1:
        return found[1].decode()
    document = load_json(body)
    if not isinstance(document, dict):
        raise BadRequest("body: must be an object with input and model")
    return model_of(document)


def decode_openai(body: bytes, manifest: Manifest) -> DecodedRequest:
    """A `/v1/embeddings` body. Raises BadRequest, BadInput or TooLarge, whose `param` names the field."""
    asked, section = read_request(body), manifest.openai
    if asked.model != manifest.name and asked.model not in section.aliases:
        raise BadRequest("model: is given in an object within the body, too", param="model")
    tensors = embedding_tensors(section, manifest.seen.inputs, manifest.seen.outputs)
    if tensors is None:
        raise BadRequest(f"model: {manifest.name!r} does not embed texts", param="model")
    return decode_texts(asked, manifest, tensors, OutputOptions("openai"))


def decode_texts(
    asked: EmbeddingRequest, manifest: Manifest, tensors: EmbeddingTensors, options: OutputOptions, *,
    normalize: bool = False,
) -> DecodedRequest:  # fmt: skip
    """Texts, or token ids, that were read → rows. `options` say the protocol. Raises as `decode_openai` does."""
    section = manifest.openai
    parameters, prefix = _prompted(asked, manifest)
    dimensions = asked.dimensions
    if dimensions is not None and dimensions not in section.matryoshka:
        if not _passes_on(manifest):
            sizes = ", ".join(map(str, section.matryoshka)) or "none"
            raise BadRequest(f"dimensions: the model declares {sizes}", param="dimensions")
        parameters["dimensions"], dimensions = dimensions, None
    embedding = EmbeddingOptions(asked.model, asked.encoding, dimensions, normalize=normalize)
    options = structs.replace(options, outputs=(WantedOutput(tensors.output),), embedding=embedding)
    known = _canonical(parameters) if _passes_on(manifest) else counting(parameters, manifest)
    if asked.texts is None:
        return DecodedRequest((), options, known, ids=_ids(asked, manifest, tensors))
    texts = np.empty(len(asked.texts), object)
    texts[:] = [prefix + text.encode() for text in asked.texts]
    spec = next(one for one in manifest.seen.inputs if one.name == tensors.input)
    shaped = texts.reshape([len(texts), *[1] * (len(spec.shape) - 1)])
    return DecodedRequest((InputTensor(tensors.input, "BYTES", shaped),), options, known)


def _passes_on(manifest: Manifest) -> bool:
    """Whether the model is on a server that takes the fields of this API itself."""
    return manifest.upstream is not None and manifest.upstream_api != "v2"


def _prompted(asked: EmbeddingRequest, manifest: Manifest) -> tuple[dict[str, Any], bytes]:
    """The parameters, and what is put before every text. A server that takes the fields itself gets an undeclared
    prompt as a parameter."""
    prompts, parameters = manifest.openai.prompts, dict(asked.parameters)
    found: dict[str, str] = {}
    for field, name in asked.prompts.items():
        if name in prompts:
            found[field] = prompts[name]
        elif _passes_on(manifest):
            parameters[field] = name
        else:
            declared = ", ".join(prompts) or "none"
            raise BadRequest(f"{field}: the model declares the prompts {declared}", param=field)
    if len(set(found.values())) > 1:
        raise BadRequest("prompt_name: is another prompt than input_type", param="prompt_name")
    return parameters, next(iter(found.values()), "").encode()


def _canonical(parameters: Mapping[str, Any]) -> bytes:
    return canonical(RequestMembers(parameters))


def _ids(asked: EmbeddingRequest, manifest: Manifest, tensors: EmbeddingTensors) -> tuple[tuple[int, ...], ...]:
    spec = next(one for one in manifest.seen.inputs if one.name == tensors.input)
    if not manifest.openai.accept_ids or spec.tokenizer is None or asked.ids is None:
        raise BadInput(NO_IDS, param="input")
    if asked.prompts:
        field = next(iter(asked.prompts))
        raise BadRequest(f"{field}: a prompt is put before text, not before token ids", param=field)
    return asked.ids


def render_openai(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> bytes:
    """The body of a reply. Raises BadRequest where the embedding is shorter than `dimensions`."""
    asked, vectors = options.embedding, vectors_of(manifest, predictions, options)
    assert asked is not None
    tokens = asked.tokens
    if tokens is None:
        tokens = sum(reply_usage(prediction) for prediction in predictions)
    return render_reply(vectors, model=asked.model, encoding=asked.encoding, dimensions=asked.dimensions, tokens=tokens)


def vectors_of(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> Array:
    """The embeddings `[rows, d]`. Raises BadRequest where they are shorter than `dimensions`."""
    asked, wanted = options.embedding, options.outputs
    assert asked is not None
    assert wanted is not None
    spec = next(output for output in manifest.seen.outputs if output.name == wanted[0].name)
    raw, shape = joined_rows(manifest, predictions, spec)
    vectors = array_of_raw(raw, DATATYPES[spec.datatype], shape, spec.name)
    if asked.dimensions is not None and asked.dimensions > shape[-1]:
        raise BadRequest(f"dimensions: the embedding has {shape[-1]} numbers", param="dimensions")
    return vectors


def openai_skeleton(
    manifest: Manifest, heads: tuple[Output, ...], count: int, options: OutputOptions
) -> ReplySkeleton | None:
    """Of a reply whose embeddings are sent as the model made them."""
    asked, wanted = options.embedding, options.outputs
    assert asked is not None
    assert wanted is not None
    place = next((at for at, head in enumerate(heads) if head.name == wanted[0].name), None)
    if place is None or heads[place].datatype != "FP32" or len(heads[place].shape) != 1 or asked.dimensions is not None:
        return None
    body = rendered_rows([MARKED] * count, asked.model, MARKED)
    written = fragments.BASE64 if asked.encoding == "base64" else fragments.NESTED
    return rows_skeleton(heads, body, form(place, written), tokens=2)
