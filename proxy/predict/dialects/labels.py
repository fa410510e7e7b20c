"""TEI's `/predict` and infinity's `/classify` as dialects: texts, or pairs of them, → labels with their scores. Pure.

The labels of our own models stand in the manifest; a server's model answers with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreseen.errors import BadInput, BadRequest
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.manifest.scoring_section import LABEL, ScoringTensors
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_raw
from foreseen.protocol.texts import score_replies
from foreseen.protocol.texts.text_bodies import LabelsRequest
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.pairs import (
    check_named,
    identified,
    number_list,
    rendered_scores,
    score_options,
    scoring_of,
    text_tensor,
    whole,
    with_usage,
)
from foreseen.proxy.predict.dialects.render import RenderedBody, joined_rows
from foreseen.types import OutputOptions, Prediction, WantedOutput


def scores_texts(manifest: Manifest) -> bool:
    """Whether a model scores texts or pairs of them at all."""
    return scoring_of(manifest) is not None


def labels_texts(manifest: Manifest) -> bool:
    """Whether a model gives a text alone its labels."""
    found = scoring_of(manifest)
    return found is not None and found.labels_texts


def decode_labels(asked: LabelsRequest, manifest: Manifest, protocol: Any) -> DecodedRequest:
    """A body that was read. Raises BadRequest, whose `param` names the field."""
    check_named(asked.model, manifest)
    tensors, field = scoring_of(manifest), "input" if protocol == "classify" else "inputs"
    if tensors is None:
        raise BadRequest(f"model: {manifest.name!r} does not label texts", param="model")
    if asked.seconds is None and not tensors.labels_texts:
        raise BadInput(f"{field}: the model takes pairs of texts, [first, second] each", param=field)
    if asked.seconds is not None and tensors.second is None:
        raise BadInput(f"{field}: the model takes single texts; [a, b] is one pair", param=field)
    form = "classify" if protocol == "classify" else "predict-one" if asked.single else "predict"
    options, known = score_options(
        manifest, asked.parameters, raw=asked.raw, form=form, model=asked.model or manifest.name
    )
    inputs = [text_tensor(manifest, tensors.first, asked.texts)]
    if tensors.second is not None and asked.seconds is not None:
        inputs.append(text_tensor(manifest, tensors.second, asked.seconds))
    wanted = WantedOutput(tensors.output)
    return DecodedRequest(tuple(inputs), OutputOptions(protocol, None, (wanted,), scores=options), known)


def render_labels(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """The body of a reply, whatever its id."""
    asked = with_usage(options.scores, predictions)
    scores, tensors = rendered_scores(manifest, predictions, options), scoring_of(manifest)
    assert tensors is not None
    names = _names(manifest, predictions, tensors, scores.shape)
    rows = []
    for row, labels in zip(scores, names, strict=True):
        there = [at for at, label in enumerate(labels) if label is not None]  # rows are padded where labels differ
        rows.append(score_replies.labelled(number_list(row[there]), [str(labels[at]) for at in there]))
    if asked.form == "classify":
        return identified("classify", {"model": asked.model, "data": rows, "usage": score_replies.usage_of(asked)})
    return whole(rows[0] if asked.form == "predict-one" else rows)


def _names(
    manifest: Manifest, predictions: Sequence[Prediction], tensors: ScoringTensors, shape: Sequence[int]
) -> list[list[str | None]]:
    """The label of every score; None where there is only padding."""
    if tensors.labels is None and any(spec.name == LABEL for spec in manifest.seen.outputs):
        spec = next(one for one in manifest.seen.outputs if one.name == LABEL)
        raw, found = joined_rows(manifest, predictions, spec)
        texts = array_of_raw(raw, DATATYPES["BYTES"], found, LABEL)
        return [[label.decode(errors="replace") or None for label in row] for row in np.atleast_2d(texts).tolist()]
    spec = next(one for one in manifest.seen.outputs if one.name == tensors.output)
    known = (*spec.labels, *(f"LABEL_{at}" for at in range(len(spec.labels), shape[1])))
    return [list(known[: shape[1]])] * shape[0]
