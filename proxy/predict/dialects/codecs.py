"""The table of HTTP dialects: how each decodes a body and renders answers. Only this module knows all of them.

A new dialect is a `Codec` in this table, a route in `handlers.py`, and nothing in between: the normal path of a request
(`pending_request.py`), the fast one (`answer_cache.py`) and the pipeline take what a codec gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from msgspec import structs

from foreseen.errors import ForeseenError, TooLarge
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol import grpc_messages, request_id
from foreseen.protocol.openai_embeddings import error_document, error_headers
from foreseen.protocol.wire import InputTensor
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import body_templates
from foreseen.proxy.predict.dialects.body_templates import TemplateDialect
from foreseen.proxy.predict.dialects.codec import Codec
from foreseen.proxy.predict.dialects.decode import DecodedRequest, decode_v1, decode_v2
from foreseen.proxy.predict.dialects.openai_embeddings import decode_openai, named_model, openai_skeleton, render_openai
from foreseen.proxy.predict.dialects.render import RenderedBody, render_v1, render_v2
from foreseen.proxy.predict.dialects.reply_skeletons import v1_skeleton, v2_skeleton
from foreseen.proxy.predict.dialects.text_codecs import IDENTIFIED, TEXT_CODECS
from foreseen.types import OutputOptions, Prediction

MAX_ROWS, MAX_MADE_ROWS = 7 * 2**16, 2**16
"""Rows of one request: of numbers, which stay in the tensor that they came in, and of what is made row by row. One
request takes at most 128 MiB: so many rows of 128 bytes, answered as JSON, take 121 (measured)."""


class V2Codec(Codec):
    """The Open Inference Protocol: `/infer`."""

    template = TemplateDialect(body_templates.v2_start, body_templates.v2_holes, v2_skeleton)
    find_id = staticmethod(request_id.find_id)
    is_request_id = staticmethod(request_id.is_request_id)
    render = staticmethod(render_v2)

    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        return decode_v2(body, head.header_length, manifest)


class V1Codec(Codec):
    """TensorFlow Serving's and KServe's V1: `:predict`, by row or by column."""

    template = TemplateDialect(body_templates.v1_start, body_templates.v1_holes, v1_skeleton)
    render = staticmethod(render_v1)

    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        return decode_v1(body, manifest)


class OpenAICodec(Codec):
    """OpenAI's embeddings API: `/v1/embeddings`. Its bodies name their model."""

    template = TemplateDialect(body_templates.openai_start, body_templates.openai_holes, openai_skeleton)

    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        return decode_openai(body, manifest)

    def render(self, manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
        return RenderedBody(render_openai(manifest, predictions, options), b"", None)

    def model_in(self, head: RequestHead, body: bytes) -> tuple[str | None, str | None]:
        return named_model(body), None

    def error_body(self, error: ForeseenError) -> tuple[dict[str, str], bytes]:
        headers, _ = super().error_body(error)
        if error.param is None and str(error).startswith("inputs."):  # what preparation says of a tensor
            error.param = "input"
        return {**headers, **error_headers(error)}, orjson.dumps(error_document(error))


class GrpcCodec(Codec):
    """The Open Inference Protocol over gRPC: a body is a `ModelInferRequest`, which names its model. What it needs is
    an extra, so it is imported when the first one comes."""

    is_http = False
    find_id = staticmethod(grpc_messages.find_id)

    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        from foreseen.proxy.predict.dialects.open_inference_grpc import decode_grpc

        return decode_grpc(body, manifest)

    def render(self, manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
        from foreseen.proxy.predict.dialects.open_inference_grpc import render_grpc

        return render_grpc(manifest, predictions, options)

    def model_in(self, head: RequestHead, body: bytes) -> tuple[str | None, str | None]:
        return grpc_messages.read_head(body)[:2]

    def error_body(self, error: ForeseenError) -> tuple[dict[str, str], bytes]:
        headers, _ = super().error_body(error)
        return {**headers, "Error-Code": error.code}, str(error).encode()


CODECS: Mapping[str, Codec] = {
    "v2": V2Codec(),
    "v1": V1Codec(),
    "openai": OpenAICodec(),
    "grpc": GrpcCodec(),
    **TEXT_CODECS,
}
"""By the protocol of a request's head."""
_OF_OPTIONS: Mapping[str, Codec] = {**CODECS, "v1-columns": CODECS["v1"]}


def decode(head: RequestHead, body: bytes, served: ServedModel) -> DecodedRequest:
    """decode: what a body asks in the dialect of its head. Raises BadRequest or BadInput naming the field, TooLarge."""
    codec = CODECS[head.protocol]
    decoded = codec.decode(head, body, served.manifest)
    assert _OF_OPTIONS[decoded.output_options.protocol] is codec, "a codec's `decode` sets `OutputOptions.protocol`"
    check_rows(served, decoded.inputs)
    scores = decoded.output_options.scores
    if scores is None or scores.form not in IDENTIFIED:
        return decoded
    texts = (text for tensor in decoded.inputs for text in tensor.array.ravel().tolist())
    reply_id = served.reply_id((head.tenant.scope.encode(), decoded.parameters, *texts))
    return structs.replace(decoded, output_options=structs.replace(decoded.output_options, id=reply_id))


def check_rows(served: ServedModel, inputs: Sequence[InputTensor]) -> None:
    """Raises TooLarge where a request has more rows than may be made of it."""
    if served.manifest.rows == "together":
        return
    most = MAX_ROWS if served.preparer().columnar else MAX_MADE_ROWS
    for tensor in inputs:
        if tensor.array.ndim and len(tensor.array) > most:
            raise TooLarge(f"inputs.{tensor.name}: has more than {most} rows; split the request")


def fetched(options: OutputOptions) -> OutputOptions:
    """How a result is rendered that is fetched later, over HTTP: of a request over gRPC as V2."""
    return structs.replace(options, protocol="v2") if options.protocol == "grpc" else options


def render(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """render: the body of a reply in the dialect that was decoded. Raises BadRequest."""
    return _OF_OPTIONS[options.protocol].render(manifest, predictions, options)
