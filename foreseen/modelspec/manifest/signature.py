"""A manifest's two signatures: `[client]`, what clients send and get, and `[model]`, what the model process takes."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Dim = int | str
BATCH: str = "rows"


class Tokenizer(Struct, frozen=True, forbid_unknown_fields=True):
    """Text → token ids by the model's own tokenizer, cut to `max_tokens`, without padding."""

    ids: str
    """The model input that takes the ids."""
    max_tokens: int
    """Maximum token ids of a row, including special tokens."""
    file: str = "tokenizer.json"
    """The tokenizer's file in the build folder."""
    pair: str | None = None
    """The client input that holds the second text: both become one row, `[CLS] text [SEP] second [SEP]` by the
    tokenizer's own template, and only the second is cut to `max_tokens`."""
    types: str | None = None
    """The model input that takes a pair's token types: 0 for the first text, 1 for the second."""
    prompt: str | None = None
    """Text that is put before every text (of a pair: before the first), before tokenization."""


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    """Encoded image bytes (JPEG, PNG, BMP, WebP) → pixels: decoded, resized, laid out, scaled."""

    to: str
    """The model input that takes the pixels."""
    width: int
    """Size of the image that the model receives, in pixels."""
    height: int
    """Size of the image that the model receives, in pixels."""
    resize: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    """The filter of resizing."""
    crop_from: int | None = None
    """Resize to a square of this size first, then crop its centre. None: resize directly to width × height."""
    layout: Literal["NHWC", "NCHW"] = "NCHW"
    """The order of the axes."""
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    """The order of the colours; `L` is grey."""
    scale: float = 1.0
    """Each channel value 0…255 is multiplied by this, …"""
    mean: tuple[float, ...] = ()
    """… then the mean of its channel is subtracted …"""
    std: tuple[float, ...] = ()
    """… and the result is divided by this."""
    exif: bool = False
    """Rotate the image according to its EXIF orientation, as viewers do."""
    max_pixels: int = 40_000_000
    """An image whose header declares more pixels is refused with 413 before it is decoded."""


class ClientInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One input that clients send, and the declared normalization that turns it into what the model sees.

    Steps run in this order: ignore, cast, ignore_columns, clip, decimals or step, zero (numbers); unicode, case, space
    (text); then tokenizer or image. The key is made from exactly what is sent to the model.
    """

    name: str
    """Its name in requests."""
    datatype: str
    """A datatype of V2, such as `FP32`, `INT64` or `BYTES`."""
    shape: tuple[Dim, ...]
    """Sizes, or names of sizes that differ; the first is `"rows"`."""
    nonfinite: bool = False
    """Allow NaN and infinities. Every NaN becomes the same quiet bit pattern, for the key and for the model."""
    ignore: bool = False
    """Accept the input and drop it: the model never sees it. It may be left out."""
    optional: bool = False
    """Requests may omit the input (only for models behind an upstream). Which inputs were given is part of the key."""
    cast: bool = False
    """Accept other numeric datatypes if every value fits (integers exactly, floats finitely)."""
    zero: bool = False
    """-0.0 becomes 0.0."""
    decimals: int | None = None
    """Round to this many decimals."""
    step: float | None = None
    """Round to multiples of this."""
    clip: tuple[float, float] | None = None
    """Limit values to this range: [lowest, highest]."""
    ignore_columns: tuple[int, ...] = ()
    """Columns of the last axis that become 0 before the key and before the model."""
    unicode: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None
    """Normalize text to this Unicode form."""
    case: Literal["lower", "upper", "fold"] | None = None
    """Change the case of text."""
    space: Literal["strip", "collapse"] | None = None
    """Remove white-space at both ends; `collapse` also makes one space of several."""
    tokenizer: Tokenizer | None = None
    """Text becomes token ids."""
    image: Image | None = None
    """Encoded pictures become pixels."""
    trim: str | None = None
    """This input is padded, and the client input of this name is its mask: rows end where the mask ends."""


class ClientOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """One output that clients get."""

    name: str
    """Its name in answers."""
    datatype: str
    """A datatype of V2, such as `FP32`, `INT64` or `BYTES`."""
    shape: tuple[Dim, ...]
    """Sizes, or names of sizes that differ; the first is `"rows"`."""
    labels: tuple[str, ...] = ()
    """Names of the last axis, for the classification extension."""


class ModelInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One input of the ONNX graph. An input with a `role` is derived from `of` and never part of a key."""

    name: str
    """Its name in the graph."""
    datatype: str
    """A datatype of V2, such as `FP32`, `INT64` or `BYTES`."""
    shape: tuple[Dim, ...]
    """Sizes, or names of sizes that differ; the first is `"rows"`."""
    role: Literal["mask", "zeros"] | None = None
    """The input is derived: an attention mask, or zeros."""
    of: str | None = None
    """The input that a derived one is made from."""
    pad: int = 0
    """The value of padding along named dimensions."""
    optional: bool = False
    """Requests may omit the input (only for models behind an upstream)."""


class ModelOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """One output of the ONNX graph."""

    name: str
    """Its name in the graph."""
    datatype: str
    """A datatype of V2, such as `FP32`, `INT64` or `BYTES`."""
    shape: tuple[Dim, ...]
    """Sizes, or names of sizes that differ; the first is `"rows"`."""


class ClientSignature(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs of clients."""

    inputs: tuple[ClientInput, ...]
    """At least one."""
    outputs: tuple[ClientOutput, ...] = ()
    """Left out: the model's."""


class ModelSignature(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs and outputs of the ONNX graph or the upstream."""

    inputs: tuple[ModelInput, ...]
    """At least one."""
    outputs: tuple[ModelOutput, ...]
    """At least one."""

    @property
    def keyed(self) -> tuple[ModelInput, ...]:
        """The inputs that rows carry: all but the derived ones."""
        return tuple(i for i in self.inputs if i.role is None)

    @property
    def has_rows(self) -> bool:
        """Whether every input and output has rows as its first axis and no other. If not, a request cannot be cut."""
        shapes = [i.shape for i in self.inputs] + [o.shape for o in self.outputs]
        return all(shape[:1] == (BATCH,) and BATCH not in shape[1:] for shape in shapes)

    def of(self, given: tuple[int, ...] | None) -> ModelSignature:
        """What is asked of the model where only these of the keyed inputs are given, and what is derived of them."""
        if given is None:
            return self
        names = {self.keyed[at].name for at in given}
        return ModelSignature(tuple(i for i in self.inputs if (i.of or i.name) in names), self.outputs)


def wire_shape(shape: tuple[Dim, ...]) -> list[int]:
    """A shape as metadata shows it: -1 for every named dimension."""
    return [-1 if isinstance(dim, str) else dim for dim in shape]
