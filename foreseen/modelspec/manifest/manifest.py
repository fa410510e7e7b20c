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
    """The model's name in requests: letters, digits, `.`, `_` and `-`. The folder must have the same name."""
    model: ModelSignature
    """Inputs and outputs of the ONNX graph or the upstream."""
    title: str = ""
    """A descriptive title."""
    version: str = "1"
    """The version that clients see and may put into the path. It must be an integer, because Triton's clients parse it
    as one."""
    cacheable: bool = True
    """Set false for models that sample, keep state or are random: every request is forwarded to the model."""
    rows: Literal["each", "together"] = "each"
    """`each`: one entry per row. `together`: rows depend on each other, one entry per request."""
    exact: bool = False
    """Declared bit-exact: the build asserts that batch-mates and padding change no bit."""
    upstream: str | None = None
    """`http://host:port` of a V2 server that serves this model. Nothing is built or started."""
    digest: str | None = None
    """A version string that you choose, if the upstream's metadata do not reveal changes. Change it whenever the model
    changes."""
    portable: bool = False
    """Leave provider, processor family, runtime version and session options out of the model digest."""
    precisions: tuple[Precision, ...] = ("fp32",)
    """Candidates in order of preference."""
    source: Source | None = None
    """Where the weights come from; left out of models with an upstream."""
    client: ClientSignature | None = None
    """Inputs and outputs of clients, if they differ from `[model]`."""
    gates: Gates = Gates()
    """Requirements for a candidate precision."""
    batching: Batching = Batching()
    """How rows run together."""
    freshness: Freshness = Freshness()
    """How long entries are fresh."""
    outputs: Literal["all", "requested"] = "all"
    """`requested`: the upstream returns only outputs that a request names; the names are then part of the key."""
    ignored_parameters: tuple[str, ...] = ()
    """Request parameters that do not change the answer, in addition to the reserved ones."""
    openai: OpenAISection = OpenAISection()
    """Use of the model through OpenAI's embeddings API."""
    scoring: ScoringSection = ScoringSection()
    """Use of the model through rerank, score and classification APIs."""
    upstream_api: Literal["auto", "v2", "openai", "tei"] = "v2"
    """Protocol of the server at `upstream`."""
    example: dict[str, list[Any]] = {}
    """Client input → data of one small request, for the readiness check and the documentation."""
    samples: Samples = Samples()
    """Generated rows that the graph accepts."""

    @property
    def seen(self) -> ClientSignature:
        """What clients see: `[client]`, or the model's own signature where that is left out."""
        if self.client is not None and self.client.outputs:
            return self.client
        outputs = tuple(ClientOutput(o.name, o.datatype, o.shape) for o in self.model.outputs)
        if self.client is not None:
            return ClientSignature(self.client.inputs, outputs)
        inputs = tuple(ClientInput(i.name, i.datatype, i.shape, optional=i.optional) for i in self.model.keyed)
        return ClientSignature(inputs, outputs)
