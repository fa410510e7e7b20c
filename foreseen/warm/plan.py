"""A warmer's plan: what it needs to open its connections in the process that unpickles it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from msgspec import Struct

from foreseen.keys.entry import MAX_FAR_VALUE_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.queue.warm_progress import RESULTS
from foreseen.types import Array, Prediction, Scope

HIT, COMPUTED, IMPORTED, FAILED = range(4)

PARAMETERS_COLUMN = "foreseen.modelspec.parameters"
"""Canonical JSON of the request parameters that change a row's answer; only JSONL of V2 requests has it."""
REJECT_COLUMN = "foreseen.reject"
"""Why a line could not be read; null for those that could."""
LINE_COLUMN = "foreseen.line"
"""Which line of its file a row came from, where lines hold several rows."""


class Plan(Struct, frozen=True, kw_only=True):
    """One warming. It holds the path of the secret, not the secret, so it may be pickled and sent to other machines."""

    manifest: Manifest
    scope: Scope
    """Whose entries are written."""
    digest: str
    """The model digest that entries are written under."""
    data: Path = Path("data")
    secret_file: Path | None = None
    """Default: DATA/secret."""
    redis: str | None = None
    """redis://, rediss:// or unix://PATH; default: DATA's own."""
    model: str | None = None
    """unix:/path or http://host:port of the model process; default: DATA's own."""
    generation: int | None = None
    """The generation of the model's space that entries are written in. None: the one that purges have left, by the
    state store, which is asked again while the warmer works."""
    state: str | None = None
    """State store of purges, an address, or "none" where nothing is ever purged; default: DATA's own."""
    redis_ca_file: Path | None = None
    """Certificates (PEM) that verify the state store over TLS; default: the system's."""
    sentinel_user: str | None = None
    sentinel_password_file: Path | None = None
    """Credentials of the Sentinels that locate the state store."""
    mode: Literal["compute", "import"] = "compute"
    inputs: dict[str, str] = {}
    """Column → input, where they differ."""
    outputs: dict[str, str] = {}
    """Column → output, where they differ."""
    batch_ms: float = 50.0
    """How long the model is to compute on one request of ours: an online miss waits for at most one."""
    rows_per_second: float | None = None
    """Rows that the model is asked for at most."""
    ttl_seconds: float = 604800.0
    jitter: float = 0.1
    """Entries that are made together do not expire together."""
    value_bytes: int = MAX_FAR_VALUE_BYTES
    """A larger entry is not stored."""
    patience_seconds: float = 60.0
    """How long a model process or a Redis that is away, full or silent is waited for."""


class Warmed(Struct):
    """The results of one batch. `keys[i]` is empty where row i failed before it had one."""

    keys: list[bytes]
    codes: Array
    """One of `HIT`, `COMPUTED`, `IMPORTED`, `FAILED` per row."""
    reasons: dict[int, str]
    predictions: dict[bytes, Prediction]
    """By key, where the caller wanted them."""

    def counts(self) -> dict[str, int]:
        found = np.bincount(self.codes, minlength=len(RESULTS)).tolist()
        return dict(zip(RESULTS, found, strict=True))

    def table(self) -> pa.Table:
        """key, result, reason: a small table for the caller."""
        words = pa.DictionaryArray.from_arrays(pa.array(self.codes, pa.int8()), pa.array(RESULTS))
        return pa.table(
            {
                "key": pa.array([key or None for key in self.keys], pa.binary()),
                "result": words,
                "reason": pa.array([self.reasons.get(i) for i in range(len(self.keys))], pa.string()),
            }
        )
