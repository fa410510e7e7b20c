"""The dialects whose bodies are texts and may name their model: rerank, score, ranking, and TEI's own routes.

text-embeddings-inference serves one model, so its bodies name none: such a body is for the only model of its kind here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from foreseen.errors import ForeseenError
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.openai_embeddings import error_document, error_headers
from foreseen.protocol.texts import pair_bodies, text_bodies
from foreseen.protocol.texts.text_bodies import tei_error
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import labels, pairs, texts
from foreseen.proxy.predict.dialects.codec import Codec
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.types import OutputOptions, Prediction

Decode = Callable[[Any, Manifest, Any], DecodedRequest]
Render = Callable[[Manifest, Sequence[Prediction], OutputOptions], RenderedBody]
_MEMBER = re.compile(rb'"model"[ \t\r\n]*:')
_NAME = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*"([ !#-\[\]-~]{1,256})"')


class TextCodec(Codec):
    """One of these dialects. `answers` says of a model whether it is of the dialect's kind; `tei_errors`, whether
    errors have text-embeddings-inference's form."""

    def __init__(
        self,
        protocol: str,
        read: Callable[[bytes], Any],
        how: tuple[Decode, Render],
        answers: Callable[[Manifest], bool],
        *,
        tei_errors: bool = False,
    ) -> None:
        self.protocol = protocol
        self._read = read
        self._decode, self._render = how
        self._answers = answers
        self._tei_errors = tei_errors

    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        return self._decode(self._read(body), manifest, self.protocol)

    def render(self, manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
        return self._render(manifest, predictions, options)

    def model_in(self, head: RequestHead, body: bytes) -> tuple[str | None, str | None]:
        return optional_model(body), None

    def answers(self, manifest: Manifest) -> bool:
        return self._answers(manifest)

    def error_body(self, error: ForeseenError) -> tuple[dict[str, str], bytes]:
        headers, _ = super().error_body(error)
        if error.param is None and str(error).startswith("inputs."):  # what preparation says of a tensor
            error.param = str(error)[7:].partition(":")[0]
        if self._tei_errors:
            return headers, orjson.dumps(tei_error(error))
        document = {"message": str(error), **error_document(error)}
        return {**headers, **error_headers(error)}, orjson.dumps(document)


_PAIRS = (pairs.decode_pairs, pairs.render_pairs)
_LABELS = (labels.decode_labels, labels.render_labels)
_EMBED = (texts.decode_embed, texts.render_embed)
_SIMILARITY = (texts.decode_embed, texts.render_similarity)
_WHOLE = (texts.decode_embed, texts.render_whole_entries)


IDENTIFIED = frozenset(("rerank", "score", "classify"))
"""Forms of replies that have an id of their own."""
_ALL = (
    TextCodec("rerank-v1", pair_bodies.read_rerank, _PAIRS, pairs.scores_pairs),
    TextCodec("rerank-v2", pair_bodies.read_rerank, _PAIRS, pairs.scores_pairs),
    TextCodec("rerank", pair_bodies.read_rerank, _PAIRS, pairs.scores_pairs, tei_errors=True),
    TextCodec("score", pair_bodies.read_score, _PAIRS, pairs.scores_pairs),
    TextCodec("ranking", pair_bodies.read_ranking, _PAIRS, pairs.scores_pairs),
    TextCodec("predict", text_bodies.read_predict, _LABELS, labels.scores_texts, tei_errors=True),
    TextCodec("classify", text_bodies.read_classify, _LABELS, labels.labels_texts),
    TextCodec("embed", text_bodies.read_embed, _EMBED, texts.embeds, tei_errors=True),
    TextCodec("embed-all", text_bodies.read_embed, _WHOLE, texts.embeds_tokens, tei_errors=True),
    TextCodec("embed-sparse", text_bodies.read_embed, _WHOLE, texts.embeds_sparsely, tei_errors=True),
    TextCodec("similarity", text_bodies.read_similarity, _SIMILARITY, texts.embeds, tei_errors=True),
)
TEXT_CODECS: Mapping[str, TextCodec] = {codec.protocol: codec for codec in _ALL}
"""By the protocol of a request's head."""

ROUTES: Mapping[str, str] = {
    "/v1/rerank": "rerank-v1",
    "/openai/v1/rerank": "rerank-v1",
    "/v2/rerank": "rerank-v2",
    "/rerank": "rerank",
    "/v1/score": "score",
    "/score": "score",
    "/v1/ranking": "ranking",
    "/predict": "predict",
    "/classify": "classify",
    "/embed": "embed",
    "/embed_all": "embed-all",
    "/embed_sparse": "embed-sparse",
    "/similarity": "similarity",
}
"""Path → protocol. `TextRoutes` has a handler by each protocol's name."""
ERROR_FORMS: Mapping[str, str] = {**ROUTES, "/info": "embed"}
"""Path → the protocol whose errors it has."""


def optional_model(body: bytes) -> str | None:
    """The model that a body names; None where it names none. Not all of it is read where there is one object only: what
    matches is then that object's own member. (A quote within a string has a backslash before it; `decode` holds the
    whole document against what was found.) Raises BadRequest."""
    if body.count(b"{") == 1:
        found = _NAME.search(body)
        members = len(_MEMBER.findall(body))
        if not members:
            return None
        if members == 1 and found is not None:
            return found[1].decode()
    return pair_bodies.model_name(pair_bodies.body_object(body, "model"))
