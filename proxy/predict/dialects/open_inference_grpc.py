"""The Open Inference Protocol's gRPC messages as a dialect: `ModelInferRequest` → rows of `/infer`, predictions →
`ModelInferResponse`. Pure.

Tensors are read by the functions of V2 over HTTP, so a row asked here has the entry that V2, V1 and OpenAI have of it.
An answer is raw where the request was. Needs protobuf (extra `grpc`), not grpcio.
"""

from __future__ import annotations

from collections.abc import Sequence

from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.grpc_messages import id_field, parse_request, render_response
from foreseen.proxy.predict.dialects.decode import DecodedRequest, decoded_v2
from foreseen.proxy.predict.dialects.render import RenderedBody, tensors_of
from foreseen.types import OutputOptions, Prediction


class RenderedMessage(RenderedBody, frozen=True):
    """A reply's message: the request's id is a field that stands behind it."""

    def with_id(self, request_id: str | None) -> tuple[bytes, int | None]:
        return self.before if request_id is None else self.before + id_field(request_id), None


def decode_grpc(body: bytes, manifest: Manifest) -> DecodedRequest:
    """A `ModelInferRequest`. Raises BadRequest or BadInput naming the field."""
    request = parse_request(body, whole=manifest.upstream is not None)
    return decoded_v2(request, OutputOptions("grpc", request.id, request.outputs, request.binary), manifest)


def render_grpc(manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions) -> RenderedBody:
    """A `ModelInferResponse`. Raises BadRequest."""
    outputs, members = tensors_of(manifest, predictions, options)
    content = render_response(manifest.name, manifest.version, outputs, members, raw=options.binary)
    return RenderedMessage(content, b"", None)
