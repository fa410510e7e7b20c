"""The base class of all codecs: what an HTTP dialect has to define."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from foreseen.errors import ForeseenError, UnknownModel
from foreseen.modelspec.manifest import Manifest
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.body_templates import TemplateDialect
from foreseen.proxy.predict.dialects.decode import DecodedRequest
from foreseen.proxy.predict.dialects.render import RenderedBody
from foreseen.types import OutputOptions, Prediction
from foreseen.web.http import error_body


class Codec(ABC):
    """One dialect. It must decode and render; the rest has defaults."""

    is_http: ClassVar[bool] = True
    """Whether a reply goes out as the bytes of an HTTP response."""
    template: ClassVar[TemplateDialect | None] = None
    """How its bodies are cut where only their data differs. Without it each body is decoded as a whole."""

    @abstractmethod
    def decode(self, head: RequestHead, body: bytes, manifest: Manifest) -> DecodedRequest:
        """What a body asks. Raises BadRequest or BadInput naming the field."""

    @abstractmethod
    def render(self, manifest: Manifest, predictions: Sequence[Prediction], options: OutputOptions, /) -> RenderedBody:
        """The body of a reply, whatever the request's id. Raises BadRequest."""

    def find_id(self, body: bytes, header_length: int | None, /) -> tuple[int, bytes | None]:
        """The place and bytes of the request's id in a body, in a dialect whose replies repeat it and where it means
        nothing else. The bytes are None if there is none, or not where it is expected."""
        return 0, None

    def is_request_id(self, text: bytes, start: int, found: bytes, header_length: int | None, /) -> bool:
        """Whether what `find_id` found, and equals the decoded id, is that id; `text` is the body without it."""
        return True

    def model_in(self, head: RequestHead, body: bytes) -> tuple[str | None, str | None]:
        """The model's name and version in a body whose head names none. No name: the only model that the dialect
        `answers`. Raises BadRequest, UnknownModel."""
        raise UnknownModel(head.model)

    def answers(self, manifest: Manifest) -> bool:
        """Whether a model is of the kind that a body without a name asks."""
        return False

    def error_body(self, error: ForeseenError) -> tuple[dict[str, str], bytes]:
        """Headers and body of an error's reply."""
        return error_body(error)
