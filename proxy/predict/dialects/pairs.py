"""The rerank, score and ranking APIs as dialects: a body → one row for each (query, document), scores → a reply. Pure.

A pair that is asked here has the entry that V2 and V1 have of it. `top_n`, `return_documents`, the alias and `user` are
applied when the reply is rendered; so is the activation function of our own models and of V2 servers'. A server that
takes these fields itself applies its own: `raw_scores` goes on to it, and is part of the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from msgspec import structs

from foreseen.errors import BadRequest
from foreseen.modelspec.manifest import ClientInput, Manifest
from foreseen.modelspec.manifest.scoring_section import ScoringTensors, scoring_tensors
from foreseen.modelspec.parameters import counting
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.members import RequestMembers, canonical, reply_usage
from foreseen.protocol.tensors import array_of_raw
from foreseen.protocol.texts import score_replies
from foreseen.protocol.texts.pair_bodies import PairsRequest
from foreseen.protocol.wire import InputTensor
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody, joined_rows
from foreseen.types import Array, OutputOptions, Prediction, ScoreOptions, WantedOutput

NUMPY = orjson.OPT_SERIALIZE_NUMPY
_TRUNCATION = ("truncate", "truncation_direction")


def scoring_of(manifest: Manifest) -> ScoringTensors | None:
    """The texts and scores of a model, None where it scores no texts."""
    return scoring_tensors(manifest.scoring, manifest.seen.inputs, manifest.seen.outputs)


def scores_pairs(manifest: Manifest) -> bool:
    """Whether a model gives a pair of texts one score."""
    found = scoring_of(manifest)
    return found is not None and found.scores_pairs


def decode_pairs(asked: PairsRequest, manifest: Manifest, protocol: Any) -> DecodedRequest:
    """A body that was read. Raises BadRequest, whose `param` names the field."""
    check_named(asked.model, manifest)
    tensors = scoring_of(manifest)
    if tensors is None or tensors.second is None or not tensors.scores_pairs:
        raise BadRequest(f"model: {manifest.name!r} does not give a pair of texts one score", param="model")
    parameters, most = dict(asked.parameters), asked.most_tokens
    if most is not None and not _tokenizes_pairs(manifest):
        parameters["max_tokens_per_doc"], most = most, None
    options, known = score_options(
        manifest,
        parameters,
        raw=asked.raw,
        form=asked.form,
        model=asked.model or manifest.name,
        top_n=asked.top_n,
        returned=asked.returned,
    )
    inputs = (
        text_tensor(manifest, tensors.first, asked.queries),
        text_tensor(manifest, tensors.second, asked.documents),
    )
    output_options = OutputOptions(protocol, None, (WantedOutput(tensors.output),), scores=options)
    return DecodedRequest(inputs, output_options, known, most_second_tokens=most)


def score_options(
    manifest: Manifest, parameters: Mapping[str, Any], *, raw: bool, **options: Any
) -> tuple[ScoreOptions, bytes]:
    """How scores are rendered, and the parameters that are part of the key."""
    if not passes_on(manifest):
        plain = manifest.scoring.activation == "none"
        return ScoreOptions(raw=raw or plain, **options), counting(own_parameters(parameters, manifest), manifest)
    sent = {**plain_direction(parameters), **({"raw_scores": True} if raw else {})}
    return ScoreOptions(raw=True, **options), canonical(RequestMembers(sent))


def own_parameters(parameters: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Without TEI's fields on truncation: our preparation cuts texts on the right, always. Raises BadRequest."""
    if manifest.upstream is None and str(parameters.get("truncation_direction", "right")).lower() != "right":
        raise BadRequest(
            'truncation_direction: texts are cut on the right ("Right") only', param="truncation_direction"
        )
    return {name: value for name, value in parameters.items() if name not in _TRUNCATION}


def plain_direction(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without `truncation_direction` where it says what holds without it."""
    right = str(parameters.get("truncation_direction")).lower() == "right"
    return {name: value for name, value in parameters.items() if not (right and name == "truncation_direction")}


def passes_on(manifest: Manifest) -> bool:
    """Whether the model is on a server that takes the fields of these APIs itself."""
    return manifest.upstream is not None and manifest.upstream_api != "v2"


def check_named(model: str | None, manifest: Manifest) -> None:
    """Raises BadRequest where a body names another model than the one that was found by it."""
    if model is not None and model != manifest.name and model not in manifest.openai.aliases:
        raise BadRequest("model: is given in an object within the body, too", param="model")


def text_tensor(manifest: Manifest, name: str, texts: Sequence[str]) -> InputTensor:
    """Texts as a client input."""
    spec: ClientInput = next(one for one in manifest.seen.inputs if one.name == name)
    column = np.empty(len(texts), object)
    encoded: dict[str, bytes] = {}  # a query stands in every row: once is enough
    column[:] = [encoded.setdefault(text, text.encode()) for text in texts]
    return InputTensor(name, "BYTES", column.reshape([len(texts), *[1] * (len(spec.shape) - 1)]))


def _tokenizes_pairs(manifest: Manifest) -> bool:
    return any(one.tokenizer is not None and one.tokenizer.pair is not None for one in manifest.seen.inputs)


def render_pairs(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """The body of a reply, whatever its id."""
    asked = with_usage(options.scores, predictions)
    scores = number_list(rendered_scores(manifest, predictions, options)[:, 0])
    match asked.form:
        case "tei-rerank":
            return whole(score_replies.ranks(scores, asked))
        case "ranking":
            return whole(score_replies.rankings(scores))
        case "score":
            return identified("list", score_replies.score_members(scores, asked))
        case _:
            version, plain = "2" if options.protocol == "rerank-v2" else "1", options.protocol == "rerank"
            return identified("rerank", score_replies.rerank_members(scores, asked, version, plain=plain))


def rendered_scores(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> Array:
    """`[rows, labels]`: the activation function's values, or what the model answered."""
    assert options.scores is not None
    assert options.outputs is not None
    spec = next(one for one in manifest.seen.outputs if one.name == options.outputs[0].name)
    raw, shape = joined_rows(manifest, predictions, spec)
    values = array_of_raw(raw, DATATYPES[spec.datatype], shape, spec.name).reshape(shape[0], -1)
    if options.scores.raw:
        return values if spec.datatype in ("FP32", "FP64") else values.astype(np.float32)
    return score_replies.activated(values)


def number_list(values: Array) -> list[Any]:
    """Numbers that are written with no more digits than their datatype has."""
    return values.tolist() if values.dtype == np.float64 else list(values)


def with_usage(asked: ScoreOptions | None, predictions: Sequence[Prediction]) -> ScoreOptions:
    """With the tokens that the server has counted, where they are not counted here."""
    assert asked is not None
    if asked.tokens is not None:
        return asked
    return structs.replace(asked, tokens=sum(reply_usage(prediction) for prediction in predictions))


def identified(kind: str, members: Mapping[str, Any]) -> RenderedBody:
    """An object whose id is put behind its first member."""
    rest = orjson.dumps(members, option=NUMPY)
    return RenderedBody(orjson.dumps({"object": kind})[:-1], b"," + rest[1:], None)


def whole(document: Any) -> RenderedBody:
    return RenderedBody(orjson.dumps(document, option=NUMPY), b"", None)
