"""The values that a request passes through the proxy: frozen, slotted, without behaviour.

They are `msgspec.Struct`s rather than dataclasses because rows and predictions are made by the thousand: a frozen
Struct is made in about 0.1 µs, a frozen dataclass in about 1 µs (measured on CPython 3.11).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NewType, overload

from msgspec import Struct
from numpy.typing import NDArray

Array = NDArray[Any]

Key = NewType("Key", bytes)
"""The identity of one row: 32 bytes, keyed BLAKE3 over its canonical frame. Only `key.py` makes one."""

Form = NewType("Form", int)
"""Which output of a row is written, and how. Only `dialects/fragments.py` makes one."""

Scope = NewType("Scope", str)
"""The part of a key space that is a tenant's, or several tenants'. Only `foreseen/tenants/tenant.py` makes one."""

Owner = NewType("Owner", str)
"""The tenant that tickets, files and idempotency keys are of. Made where scopes are."""

Step = Literal["near", "far", "model", "keep"]
Steps = frozenset[Step]
Lane = Literal["online", "background"]
LANES: tuple[Lane, ...] = ("online", "background")
"""The first before the second."""
Source = Literal["near", "far", "stale", "model", "collapsed", "bypass"]
StaleReason = Literal["stale-while-revalidate", "stale-if-error", "max-stale"]

ALL_STEPS: Steps = frozenset(("near", "far", "model", "keep"))


SECONDS_PER_ROW = 1.0
"""Among the waiting requests of one caller each row counts as so much later: narrow requests come first."""


class Space(Struct, frozen=True, cache_hash=True):
    """A key space. Another tenant, model, model version or purge is another Space, hence other keys."""

    scope: Scope
    model: str
    digest: str
    generation: int = 0


class Row(Struct, frozen=True, gc=False):
    """What the model sees of one row: one array per keyed input of the model signature, in its order.

    Arrays are C-contiguous, little-endian, without the batch axis and without padding; BYTES are object arrays of
    `bytes`. Where the manifest says `rows = "together"` the arrays keep their batch axis and the row is the request.
    """

    tensors: tuple[Array, ...]
    given: tuple[int, ...] | None = None
    """The places of the keyed inputs that `tensors` are of, where optional ones were left out; None: of all."""


class Columns(Sequence[Row]):
    """Rows of one shape that stand in one array per keyed input, with their batch axis. A row is made when it is asked
    for: where near has all of a batch, none is."""

    __slots__ = ("arrays",)

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = tuple(arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Columns: ...
    def __getitem__(self, at: int | slice) -> Row | Columns:
        if isinstance(at, slice):
            return Columns([array[at] for array in self.arrays])
        return Row(tuple(array[at, ...] for array in self.arrays))

    def __iter__(self) -> Iterator[Row]:
        arrays = self.arrays
        if len(arrays) == 1:
            only = arrays[0]
            return (Row((only[at, ...],)) for at in range(len(only)))
        return (Row(tuple(array[at, ...] for array in arrays)) for at in range(len(self)))


class MaxAge(Struct, frozen=True, cache_hash=True):
    """How old an answer may be for a request, in seconds and in RFC 9111's words; None where it does not say."""

    max_age: float | None = None
    max_stale: float | None = None
    """Infinite where any staleness will do."""
    min_fresh: float | None = None
    stale_if_error: float | None = None


ANY_AGE = MaxAge()
"""Takes what the model's policy allows."""


class RequestOptions(Struct, frozen=True):
    """The options of a request. `deadline` is on the event loop's clock, in seconds."""

    deadline: float
    lane: Lane = "online"
    steps: Steps = ALL_STEPS
    traceparent: str | None = None
    age_limits: MaxAge = ANY_AGE
    caller: str = ""
    """Whose rows these are where turns are shared out; empty: of no caller in particular."""
    weight: int = 1
    """The caller's weight: it has so many times the rows of a caller of weight 1."""
    scope: Scope | None = None
    """The scope of rows that a model is asked for: it has the credential that is passed on, where one is."""


class Question(Struct, frozen=True):
    """What is asked: rows of one space, with the request parameters that change the answer as canonical JSON."""

    space: Space
    rows: Sequence[Row]
    options: RequestOptions
    parameters: bytes = b""


class WantedOutput(Struct, frozen=True):
    """One requested output. `binary` is None where the request did not say; `classification` asks for the n best."""

    name: str
    binary: bool | None = None
    classification: int | None = None


class EmbeddingOptions(Struct, frozen=True):
    """What OpenAI's embeddings API asks of a reply besides. `model` is the name that was asked for; `tokens` the token
    ids of all rows, None where the server behind counts them; `dimensions` a declared Matryoshka size."""

    model: str
    encoding: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    tokens: int | None = None
    normalize: bool = False
    """Divide every embedding by its L2 norm."""


class ScoreOptions(Struct, frozen=True):
    """What the rerank, score and classification APIs ask of a reply besides. `tokens` as in `EmbeddingOptions`."""

    form: Literal["rerank", "tei-rerank", "score", "ranking", "predict", "predict-one", "classify"]
    model: str
    raw: bool = False
    """Without the activation function."""
    top_n: int | None = None
    returned: tuple[Any, ...] | None = None
    """The documents as they were sent, where the reply repeats them."""
    tokens: int | None = None


class OutputOptions(Struct, frozen=True):
    """How an answer is rendered. Nothing in it is part of a key."""

    protocol: Literal[
        "v2", "v1", "v1-columns", "openai", "grpc", "rerank-v1", "rerank-v2", "rerank", "score", "ranking", "predict",
        "classify", "embed", "embed-all", "embed-sparse", "similarity",
    ] = "v2"  # fmt: skip
    id: str | None = None
    outputs: tuple[WantedOutput, ...] | None = None
    binary: bool = False
    embedding: EmbeddingOptions | None = None
    """Of the protocols `openai`, `embed`, `embed-all`, `embed-sparse` and `similarity`."""
    scores: ScoreOptions | None = None
    """Of the protocols that score and label texts."""


class Output(Struct, frozen=True, gc=False):
    """The head of one output of one row: shape is the row's own, without the batch axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Prediction(Struct, frozen=True, gc=False):
    """What the model answered to one row.

    `data[i]` holds the bytes of `outputs[i]`: little-endian, row-major; BYTES elements carry a 4-byte length each.
    `made_at` and `expires_at` are Unix seconds: from computation to the end of freshness
    (`proxy/cache/freshness.py` says what may be done with it then); `seconds` is the compute time that this row
    cost.
    """

    outputs: tuple[Output, ...]
    data: tuple[bytes, ...]
    digest: str
    made_at: float
    expires_at: float
    seconds: float


class TierSeconds(Struct, frozen=True):
    """How long the flight of an answer spent in each tier, in seconds; None where it did not call."""

    far: float | None = None
    model: float | None = None


class Explanation(Struct, frozen=True):
    """Where one row's entry is, or why it would be a miss: cold, expired, new-digest, purged, verify-failed,
    far-down, bypassed. `frame` is what its key is made of."""

    key: Key
    frame: bytes
    where: Literal["near", "far", "nowhere"]
    reason: str | None = None
    prediction: Prediction | None = None


class Answer(Struct, frozen=True, gc=False):
    """One row's prediction and its facts (source, age, seconds) for headers, counters and logs."""

    prediction: Prediction
    source: Source
    stored: bool = False
    trip: TierSeconds | None = None
    why: StaleReason | None = None
    """Why a `stale` answer was given all the same."""


class Miss(Struct, frozen=True, gc=False):
    """Why a tier has no answer to a row; `stale_fallback` is a stale answer that is better than an error."""

    reason: str
    stale_fallback: Answer | None = None


class FarState(Struct, frozen=True):
    """The state that Redis reports, `uptime` in seconds. `memory_limit` 0: none."""

    memory: int
    memory_limit: int
    keys: int
    evicted: int
    expired: int
    policy: str
    version: str
    append_only: bool
    uptime: int = 0
    replicas: int = 0
    writable: bool = True
    """Whether its last write to disk succeeded."""


class WarmRunStatus(Struct, frozen=True):
    """What batch runs that write past the proxies do: runs under way by model, their rows by model and state (done,
    left), and rows of all runs that there were by model and result."""

    runs: dict[str, int] = {}
    states: dict[tuple[str, str], int] = {}
    rows: dict[tuple[str, str], int] = {}


class QueueStatus(Struct, frozen=True):
    """The status of the job queue in the state store: counts since it began (`state:*`: now), the age of its oldest job
    in seconds, dead letters, webhooks not delivered yet, live workers; and the status of batch runs.
    """

    counts: dict[str, int]
    oldest_seconds: float
    dead: int
    webhooks: int = 0
    workers: int = 0
    warming: WarmRunStatus = WarmRunStatus()


AWAY = QueueStatus({}, 0.0, 0)
"""The status of a queue that did not answer. Compared by identity: a new queue has the same values."""


DOWN = FarState(0, 0, 0, 0, 0, "", "", append_only=False)
"""The state of a far tier that did not answer."""
