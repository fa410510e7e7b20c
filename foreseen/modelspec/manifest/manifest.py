"""A model as its `model.toml` describes it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from foreseen.modelspec.manifest.hints import Samples
from foreseen.modelspec.manifest.openai_section import OpenAISection
from foreseen.modelspec.manifest.policy import Batching, Freshness, Gates
from foreseen.modelspec.manifest.scoring_section import ScoringSection
from foreseen.modelspec.manifest.signature import ClientInput, ClientOutput, ClientSignature, ModelSignature
from foreseen.modelspec.manifest.source import Source

Precision = Literal[
    "fp32", "fp16", "int8-rowwise", "int8-dynamic", "matmul-nbits", "bf16", "int8-rowwise-s8", "matmul-nbits-4"
]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A model, as its `model.toml` describes it."""

    name: str
    """What requests call the model: letters, digits, `.`, `_` and `-`. It is the name of the folder, too."""
    model: ModelSignature
    """What the ONNX graph or the upstream takes and gives."""
    title: str = ""
    """A line for people."""
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
    """Where the weights come from; left out of models with an upstream."""
    client: ClientSignature | None = None
    """What clients send and get, where it differs from `[model]`."""
    gates: Gates = Gates()
    """What a candidate precision must reach."""
    batching: Batching = Batching()
    """How rows run together."""
    freshness: Freshness = Freshness()
    """How long entries are fresh."""
    outputs: Literal["all", "requested"] = "all"
    """`requested`: the upstream answers only with outputs that a request names; which were is part of the key then."""
    ignored_parameters: tuple[str, ...] = ()
    """Request parameters that do not change the answer, beside the reserved ones."""
    openai: OpenAISection = OpenAISection()
    """How OpenAI's embeddings API asks the model."""
    scoring: ScoringSection = ScoringSection()
    """How rerank, score and classification APIs ask the model."""
    upstream_api: Literal["auto", "v2", "openai", "tei"] = "v2"
    """What the server at `upstream` speaks."""
    example: dict[str, list[Any]] = {}
    """Client input → data of one small request, for the readiness check and the docs."""
    samples: Samples = Samples()
    """Which made-up rows the graph takes."""

    @property
    def seen(self) -> ClientSignature:
        """What clients see: `[client]`, or the model's own signature where that is left out."""
        if self.client is not None:
            return self.client
        inputs = tuple(ClientInput(i.name, i.datatype, i.shape, optional=i.optional) for i in self.model.keyed)
        outputs = tuple(ClientOutput(o.name, o.datatype, o.shape) for o in self.model.outputs)
        return ClientSignature(inputs, outputs)
