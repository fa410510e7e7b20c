"""Small honest stand-ins, which pass the same contract tests as the real things."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from foreseen.errors import FarError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import Framer, tag_key
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature
from foreseen.proxy.cache.far_tier import FarTier, TierLimits
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.cache.lease import Leases
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import (
    ALL_STEPS,
    ANY_AGE,
    Key,
    MaxAge,
    Output,
    Prediction,
    Question,
    RequestOptions,
    Row,
    Space,
    Steps,
)

ROOT = b"a root secret of at least 32 bytes"
DIGEST = "d1"
SIGNATURE = ModelSignature((ModelInput("x", "INT64", ("rows", 2)),), (ModelOutput("y", "INT64", ("rows", 1)),))


class ScriptedModel:
    """Answers 10·x₀ + x₁, counts, and waits at a gate where a test closes one. `digest` may change at any time."""

    def __init__(self, ttl_seconds: float = 1000.0, freshness: Policy | None = None) -> None:
        self.ours = True
        self.framer = Framer(SIGNATURE)
        self.freshness = freshness or Policy(ttl_seconds)
        self.calls: list[int] = []
        self.asked: list[RequestOptions] = []
        self.digest = DIGEST
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    @property
    def rows(self) -> int:
        return sum(self.calls)

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        self.calls.append(len(rows))
        self.asked.append(options)
        self.entered.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [predicted(10 * int(row.tensors[0][0]) + int(row.tensors[0][1]), self.digest) for row in rows]


class DictFar:
    """A far tier in a dict, with a clock of its own for expiry."""

    def __init__(self) -> None:
        self.values: dict[Key, tuple[bytes, float]] = {}
        self.leases: dict[Key, tuple[bytes, float]] = {}
        self.gets: list[int] = []
        self.stored = asyncio.Event()
        self.asked_twice = asyncio.Event()
        """Set when somebody wants a lease that is held."""

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        self.gets.append(len(keys))
        now = time.monotonic()
        found = [self.values.get(key) for key in keys]
        return [None if value is None or value[1] <= now else value[0] for value in found]

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        now = time.monotonic()
        for key, value, milliseconds in entries:
            self.values[key] = value, now + milliseconds / 1000
        self.stored.set()

    async def forget(self, keys: Sequence[Key]) -> int:
        return sum(self.values.pop(key, None) is not None for key in keys)

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        now = time.monotonic()
        won = [key not in self.leases or self.leases[key][1] <= now for key in keys]
        self.leases |= {key: (token, now + milliseconds / 1000) for key, free in zip(keys, won, strict=True) if free}
        if not all(won):
            self.asked_twice.set()
        return won

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        until = time.monotonic() + milliseconds / 1000
        self.leases |= dict.fromkeys(self._held(keys, token), (token, until))

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        for key in self._held(keys, token):
            del self.leases[key]

    def _held(self, keys: Sequence[Key], token: bytes) -> list[Key]:
        now = time.monotonic()
        held = [(key, *self.leases[key]) for key in keys if key in self.leases]
        return [key for key, holder, until in held if holder == token and until > now]


class BrokenFar:
    """A far tier that is not there."""

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        raise FarError("connect")

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        raise FarError("connect")

    async def forget(self, keys: Sequence[Key]) -> int:
        raise FarError("connect")

    async def lease(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> list[bool]:
        raise FarError("connect")

    async def extend(self, keys: Sequence[Key], token: bytes, milliseconds: int) -> None:
        raise FarError("connect")

    async def release(self, keys: Sequence[Key], token: bytes) -> None:
        raise FarError("connect")


class StuckFar:
    """A far tier whose stores never return until the gate opens; looks find nothing."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def get(self, keys: Sequence[Key]) -> list[bytes | FarError | None]:
        return [None] * len(keys)

    async def put(self, entries: Sequence[tuple[Key, bytes, int]]) -> None:
        await self.gate.wait()

    async def forget(self, keys: Sequence[Key]) -> int:
        return 0


class Limits(TierLimits, frozen=True):
    waiting_rows: int = 1000
    far_value_bytes: int = 10_000
    far_pending_bytes: int = 100_000


class Clock:
    """Unix seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def predicted(value: int, digest: str = DIGEST, *, made_at: float | None = None, ttl: float = 1000.0) -> Prediction:
    """A prediction of one INT64."""
    made_at = time.time() if made_at is None else made_at
    data = value.to_bytes(8, "little", signed=True)
    return Prediction((Output("y", "INT64", (1,)),), (data,), digest, made_at, made_at + ttl, 0.25)


def value_of(prediction: Prediction) -> int:
    return int.from_bytes(prediction.data[0], "little", signed=True)


def row(a: int, b: int = 0) -> Row:
    return Row((np.array([a, b], np.int64),))


def pipeline(
    model: ScriptedModel,
    far: FarTier | None = None,
    *,
    near_bytes: int = 100_000,
    limits: Limits | None = None,
    clock: Clock | None = None,
    root: bytes = ROOT,
    leases: Callable[[ProxyMetrics], Leases] | None = None,
) -> Pipeline:
    limits, metrics = limits or Limits(), ProxyMetrics()
    tiers = Tiers(
        root=root,
        codec=EntryCodec(tag_key(root)),
        near=Near(near_bytes),
        far=far,
        metrics=metrics,
        limits=limits,
        clock=clock,
    )
    own = None if leases is None else leases(metrics)
    return Pipeline(tiers, {"m": model, "n": model}, metrics, limits.waiting_rows, leases=own)


def question(
    *rows: Row,
    steps: Steps = ALL_STEPS,
    seconds: float = 20.0,
    digest: str = DIGEST,
    model: str = "m",
    scope: str = "public",
    parameters: bytes = b"",
    age_limits: MaxAge = ANY_AGE,
) -> Question:
    deadline = asyncio.get_running_loop().time() + seconds
    return Question(
        Space(scope, model, digest), rows, RequestOptions(deadline, "online", steps, age_limits=age_limits), parameters
    )


def numbered(count: int) -> list[Key]:
    """Keys that differ."""
    return [Key(number.to_bytes(32, "little")) for number in itertools.islice(itertools.count(1), count)]
