"""`models/<name>/model.toml` → Manifest: what a model is, how it is built, and what may change before it is asked.

A manifest has two signatures under one name. `[client]` is what clients see (text in, embedding out); `[model]` is what
the model process takes (token ids and a mask). Where they are the same, `[client]` is left out. Dimensions are positive
integers or names; a name stands for a size that differs between requests (shown as -1), and the first dimension of
every input and output is `"rows"`. Outputs that use the name of an input's dimension are cut to the row's own size.
Where the manifest says `rows = "together"`, inputs and outputs may have any shape (a scalar, a state whose second axis
is the batch): the graph gets every request as it was sent.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.hints import Samples, problem
from foreseen.modelspec.openai_section import OpenAISection, openai_problem
from foreseen.modelspec.policy import Batching, Freshness, Gates
from foreseen.modelspec.source import Source, placed
from foreseen.protocol.datatypes import DATATYPES

Dim = int | str
Precision = Literal["fp32", "fp16", "int8-rowwise", "int8-dynamic", "matmul-nbits"]
BATCH: str = "rows"
_NAME_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Tokenizer(Struct, frozen=True, forbid_unknown_fields=True):
    """Text → token ids by the model's own tokenizer, cut to `max_tokens`, without padding."""

    ids: str
    """The model input that takes the ids."""
    max_tokens: int
    file: str = "tokenizer.json"
    pair: str | None = None
    """The client input that holds the second text: both become one row, `[CLS] text [SEP] second [SEP]` by the
    tokenizer's own template, and only the second is cut to `max_tokens`."""
    types: str | None = None
    """The model input that takes a pair's token types: 0 for the first text, 1 for the second."""
    prompt: str | None = None
    """Put before every text, ahead of the tokenizer; of a pair before the first."""


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    """Encoded image bytes (JPEG, PNG, BMP, WebP) → pixels: decoded, resized, laid out, scaled."""

    to: str
    """The model input that takes the pixels."""
    width: int
    height: int
    resize: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    crop_from: int | None = None
    """Resize to this square first, then cut the centre out of it; None resizes straight to width × height."""
    layout: Literal["NHWC", "NCHW"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0
    """Each channel value 0…255 is multiplied by this, …"""
    mean: tuple[float, ...] = ()
    """… then the mean of its channel is taken off …"""
    std: tuple[float, ...] = ()
    """… and the rest divided by this."""
    exif: bool = False
    """Turn the picture as its EXIF orientation says, as viewers show it."""
    max_pixels: int = 40_000_000
    """A picture that says it is larger is refused with 413 before it is decoded."""


class ClientInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One input that clients send, and the declared normalization that turns it into what the model sees.

    Steps run in this order: ignore, cast, ignore_columns, clip, decimals or step, zero (numbers); unicode, case, space
    (text); then tokenizer or image. What is keyed is exactly what is sent to the model.
    """

    name: str
    datatype: str
    shape: tuple[Dim, ...]
    nonfinite: bool = False
    """Allow NaN and infinities. Every NaN becomes the one quiet pattern, for the key and for the model."""
    ignore: bool = False
    """Accept the input and drop it: the model never sees it. It may be left out."""
    optional: bool = False
    """The input may be left out, of models behind an upstream; which were given is part of the key."""
    cast: bool = False
    """Accept other numeric datatypes where every value fits (integers exactly, floats finitely)."""
    zero: bool = False
    """-0.0 becomes 0.0."""
    decimals: int | None = None
    """Round to so many decimals."""
    step: float | None = None
    """Round to multiples of this."""
    clip: tuple[float, float] | None = None
    ignore_columns: tuple[int, ...] = ()
    """Columns of the last axis that become 0 before the key and before the model."""
    unicode: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None
    case: Literal["lower", "upper", "fold"] | None = None
    space: Literal["strip", "collapse"] | None = None
    tokenizer: Tokenizer | None = None
    image: Image | None = None
    trim: str | None = None
    """This input is padded, and the client input of this name is its mask: rows end where the mask ends."""


class ClientOutput(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[Dim, ...]
    labels: tuple[str, ...] = ()
    """Names of the last axis, for the classification extension."""


class ModelInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One input of the ONNX graph. An input with a `role` is derived from `of` and never part of a key."""

    name: str
    datatype: str
    shape: tuple[Dim, ...]
    role: Literal["mask", "zeros"] | None = None
    of: str | None = None
    pad: int = 0
    """What padding along named dimensions is filled with."""
    optional: bool = False


class ModelOutput(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[Dim, ...]


class ClientSignature(Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[ClientInput, ...]
    outputs: tuple[ClientOutput, ...]


class ModelSignature(Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]

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


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A model, as its `model.toml` describes it."""

    name: str
    model: ModelSignature
    title: str = ""
    version: str = "1"
    """What clients see and may put into the path: an integer, since Triton's clients parse it as one."""
    cacheable: bool = True
    """False for models that sample, keep state or are random: every request goes straight through."""
    rows: Literal["each", "together"] = "each"
    """`each`: one entry per row. `together`: rows depend on each other, one entry per request."""
    exact: bool = False
    """Declared bit-exact: the build asserts that batch-mates and padding change no bit."""
    upstream: str | None = None
    """`http://host:port` of a V2 server that has this model already: nothing is built or started, it is asked there."""
    digest: str | None = None
    """A string of yours that stands for the upstream's version, where its metadata cannot say: change it with it."""
    portable: bool = False
    """Leave provider, processor family, runtime version and session options out of the model digest."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Candidates in order of preference."""
    source: Source | None = None
    client: ClientSignature | None = None
    gates: Gates = Gates()
    batching: Batching = Batching()
    freshness: Freshness = Freshness()
    outputs: Literal["all", "requested"] = "all"
    """`requested`: the upstream answers only with outputs that a request names; which were is part of the key then."""
    ignored_parameters: tuple[str, ...] = ()
    """Request parameters that do not change the answer, beside the reserved ones."""
    openai: OpenAISection = OpenAISection()
    upstream_api: Literal["auto", "v2", "openai", "tei"] = "v2"
    """What the server at `upstream` speaks."""
    example: dict[str, list[Any]] = {}
    """Client input → data of one small request, for the readiness check and the docs."""
    samples: Samples = Samples()

    @property
    def seen(self) -> ClientSignature:
        """What clients see: `[client]`, or the model's own signature where that is left out."""
        if self.client is not None:
            return self.client
        inputs = tuple(ClientInput(i.name, i.datatype, i.shape, optional=i.optional) for i in self.model.keyed)
        outputs = tuple(ClientOutput(o.name, o.datatype, o.shape) for o in self.model.outputs)
        return ClientSignature(inputs, outputs)


def wire_shape(shape: tuple[Dim, ...]) -> list[int]:
    """A shape as metadata shows it: -1 for every named dimension."""
    return [-1 if isinstance(dim, str) else dim for dim in shape]


def load(path: Path) -> Manifest:
    """Read one manifest. Raises SetupError with the file, the field and what is wrong."""
    try:
        manifest = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Manifest)
    except FileNotFoundError:
        raise SetupError(f"{path}: there is no such model manifest") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SetupError(f"{path}: {error}") from None
    found = _problem(manifest)
    if found is not None:
        raise SetupError(f"{path}: {found}")
    source = placed(manifest.source, path.parent.absolute())
    return msgspec.structs.replace(manifest, client=manifest.seen, source=source)  # both are read often


def find(name: str, folders: tuple[Path, ...]) -> Manifest:
    """The manifest called `name`, from the first of the folders that has one."""
    if not is_name(name):
        raise SetupError(f"model name {name!r}: letters, digits, '.', '_' and '-' only")
    for folder in folders:
        path = folder / name / "model.toml"
        if path.is_file():
            manifest = load(path)
            if manifest.name != name:
                raise SetupError(f"{path}: name is {manifest.name!r}, the folder says {name!r}")
            return manifest
    known = ", ".join(names(folders)) or "none"
    raise SetupError(f"no model called {name!r}; known models: {known}")


def is_name(name: str) -> bool:
    """Whether a model may be called so: its name stands in paths."""
    return bool(name) and set(name) <= _NAME_SAFE and not name.startswith(".")


def names(folders: tuple[Path, ...]) -> list[str]:
    """The models that the folders hold a manifest of."""
    return sorted({path.parent.name for folder in folders for path in folder.glob("*/model.toml")})


def _problem(manifest: Manifest) -> str | None:
    if not set(manifest.name) <= _NAME_SAFE or not manifest.name:
        return f"name: {manifest.name!r} may hold letters, digits, '.', '_' and '-' only"
    if not manifest.version.isdigit():
        return f"version: {manifest.version!r} is not an integer"
    tensors: list[tuple[str, ClientInput | ClientOutput | ModelInput | ModelOutput]] = []
    for part, signature in (("client", manifest.client), ("model", manifest.model)):
        if signature is None:
            continue
        for kind, listed in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            if not listed:
                return f"{part}.{kind}: at least one is needed"
            if len({t.name for t in listed}) != len(listed):
                return f"{part}.{kind}: two have the same name"
            tensors += [(f"{part}.{kind}.{t.name}", t) for t in listed]
    for where, tensor in tensors:
        if tensor.datatype not in DATATYPES:
            return f"{where}.datatype: {tensor.datatype!r} is not one of {', '.join(DATATYPES)}"
        if any(isinstance(dim, int) and dim < 0 for dim in tensor.shape):
            return f"{where}.shape: name a dimension whose size differs, do not write a negative number"
        if tensor.shape[:1] != (BATCH,) and manifest.rows == "each":
            return f'{where}.shape: the first dimension is {BATCH!r}, unless the manifest says rows = "together"'
    checks = (_upstream_problem, _pair_problem, _model_problem, _client_problem, _openai_problem)
    return next((found for check in checks if (found := check(manifest)) is not None), problem(manifest.samples))


def _openai_problem(manifest: Manifest) -> str | None:
    return openai_problem(manifest.openai, manifest.seen.inputs, manifest.seen.outputs)


def _upstream_problem(manifest: Manifest) -> str | None:
    if manifest.upstream is not None and not manifest.upstream.startswith(("http://", "https://")):
        return f"upstream: {manifest.upstream!r} is not http://host:port"
    if manifest.digest is not None and manifest.upstream is None:
        return "digest: is for models with an upstream; of built ones it is computed"
    return None


def _model_problem(manifest: Manifest) -> str | None:
    keyed = {i.name for i in manifest.model.keyed}
    for i in manifest.model.inputs:
        if i.role is not None and i.of not in keyed:
            return f"model.inputs.{i.name}.of: a derived input names the input it derives from"
    fed = _fed(manifest)
    if fed != keyed:
        return f"client.inputs: the model's inputs {sorted(keyed)} are fed by {sorted(fed)}"
    for output in manifest.seen.outputs:
        twin = next((o for o in manifest.model.outputs if o.name == output.name), None)
        if twin is None or twin.datatype != output.datatype:
            return f"client.outputs.{output.name}: the model has no such output of that datatype"
    return None


def _fed(manifest: Manifest) -> set[str]:
    """The model inputs that client inputs end up in."""
    fed = set()
    masks = {i.trim for i in manifest.seen.inputs} | seconds(manifest.seen)
    for i in manifest.seen.inputs:
        if i.tokenizer is not None:
            fed |= {name for name in (i.tokenizer.ids, i.tokenizer.types) if name is not None}
        elif i.image is not None:
            fed.add(i.image.to)
        elif not i.ignore and i.name not in masks:
            fed.add(i.name)
    return fed


def seconds(seen: ClientSignature) -> set[str]:
    """The client inputs that are the second text of a pair: they feed no model input of their own."""
    return {i.tokenizer.pair for i in seen.inputs if i.tokenizer is not None and i.tokenizer.pair is not None}


def _pair_problem(manifest: Manifest) -> str | None:
    listed = {i.name: i for i in manifest.seen.inputs}
    for i in manifest.seen.inputs:
        if i.tokenizer is None:
            continue
        where, second = f"client.inputs.{i.name}.tokenizer", listed.get(i.tokenizer.pair or "")
        if i.tokenizer.pair is None:
            if i.tokenizer.types is not None:
                return f"{where}.types: is for pairs; name the second text in pair"
        elif second is None or second is i:
            return f"{where}.pair: no other client input is called {i.tokenizer.pair!r}"
        elif second.datatype != "BYTES" or second.shape != (BATCH,) or second.tokenizer or second.image:
            return f"{where}.pair: {second.name!r} must be BYTES [{BATCH!r}] without a tokenizer or image of its own"
    return None


def _client_problem(manifest: Manifest) -> str | None:
    if not manifest.model.has_rows and any(i.tokenizer or i.image or i.trim for i in manifest.seen.inputs):
        return f"client.inputs: tokenizer, image and trim need {BATCH!r} as the first dimension of every model tensor"
    listed = {i.name: i for i in manifest.seen.inputs}
    for i in manifest.seen.inputs:
        where = f"client.inputs.{i.name}"
        kind = DATATYPES[i.datatype].kind
        numeric = i.cast or i.zero or i.ignore_columns or i.decimals is not None or i.step is not None or i.clip
        if numeric and kind == "s":
            return f"{where}: cast, zero, decimals, step, clip and ignore_columns are for numbers, not BYTES"
        if (i.unicode or i.case or i.space or i.tokenizer or i.image) and kind != "s":
            return f"{where}: unicode, case, space, tokenizer and image are for BYTES"
        if i.decimals is not None and i.step is not None:
            return f"{where}: decimals and step are two ways to say one thing; keep one"
        if i.step is not None and not i.step > 0:
            return f"{where}.step: must be above 0"
        if i.clip is not None and not i.clip[0] <= i.clip[1]:
            return f"{where}.clip: the lower end comes first"
        if i.tokenizer and i.image:
            return f"{where}: tokenizer and image cannot both apply"
        if (i.tokenizer or i.image) and i.shape != (BATCH,):
            return f"{where}.shape: a tokenizer or image input is [{BATCH!r}]"
        if i.trim is not None and i.trim not in listed:
            return f"{where}.trim: no client input is called {i.trim!r}"
    return None
