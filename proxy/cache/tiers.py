"""The two cache tiers, near (in-process) and far (Redis): look-up, verification and storing of entries.

Failing open is decided here and in `pipeline.py`: a far tier that is slow, full, corrupt or down costs time but never
an answer. The adapters raise; this module turns what they raise into a counted miss with a reason.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from foreseen.errors import EntryError, FarError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import Framer, SpaceKey, keys_of_frames, space_key
from foreseen.proxy.cache.clock import SteadyClock
from foreseen.proxy.cache.far_tier import FarTier, TierLimits
from foreseen.proxy.cache.freshness import Policy, fresh, kept_for
from foreseen.proxy.cache.look_result import EXPIRED, LookResult, judge
from foreseen.proxy.cache.near import Near
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import ANY_AGE, Answer, Key, MaxAge, Miss, Prediction, Row, Space, TierSeconds

MAX_SPACES = 4096
MAX_FORGOTTEN = 100_000
"""Purged keys that are remembered; before there are more, the state store purges everything instead."""
SKEW_SECONDS = 2.0
"""Clock skew allowed between machines: an entry made within this time after its purge may be from before it."""
COLD, FAR_DOWN = Miss("cold"), Miss("far-down")


_LIMITS = TierLimits()


class Forgotten(Struct, frozen=True, gc=False):
    """A purged key: when this process learned of it (event loop seconds), and when it was purged (Unix seconds)."""

    at: float
    purged_at: float


class Tiers:
    """The tiers of one proxy process, and the identities under which entries are stored."""

    def __init__(
        self, *, root: bytes, codec: EntryCodec, near: Near, far: FarTier | None, metrics: ProxyMetrics,
        limits: TierLimits = _LIMITS, clock: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self.near = near
        self.clock = SteadyClock() if clock is None else clock
        self.pending_bytes = self._evictions = 0
        self._root = root
        self._codec = codec
        self._far = far
        self._metrics = metrics
        self._limits = limits
        self._spaces: dict[Space, SpaceKey] = {}
        self._stores: set[asyncio.Task[None]] = set()
        self._forgotten: OrderedDict[Key, Forgotten] = OrderedDict()

    def keys(self, space: Space, framer: Framer, rows: Sequence[Row], parameters: bytes) -> list[Key]:
        """key: the identity of every row."""
        return self.keys_of(space, framer.frames(rows, parameters))

    def keys_of(self, space: Space, frames: Sequence[bytes]) -> list[Key]:
        """The same for frames that are made already."""
        return keys_of_frames(self.space_key(space), frames)

    def look_near(self, keys: Iterable[Key], policy: Policy, age_limits: MaxAge = ANY_AGE) -> LookResult:
        """near: the entries this process holds of these keys. Keys that it has no entry of are in neither map."""
        now, get, at_ease = self.clock(), self.near.get, age_limits is ANY_AGE
        found: dict[Key, Answer] = {}
        missing: dict[Key, Miss] = {}
        stale = False
        for key in keys:
            if key in found or key in missing:
                continue
            prediction = get(key)
            if prediction is None:
                continue
            if at_ease and fresh(prediction.expires_at, now):  # what `judge` would say, at a fifth of its price
                found[key] = Answer(prediction, "near")
                continue
            judged = judge(prediction, "near", now, policy, age_limits)
            if isinstance(judged, Answer):
                found[key] = judged
                stale = stale or judged.why is not None
                continue
            missing[key] = judged
            if judged == EXPIRED:
                self.near.forget(key)
        return LookResult(found, missing, None, stale)

    async def look_far(
        self, space: Space, keys: Sequence[Key], policy: Policy, age_limits: MaxAge = ANY_AGE
    ) -> LookResult:
        """far: the entries Redis has of these keys, verified. If Redis fails, all are misses."""
        if self._far is None:
            return LookResult({}, dict.fromkeys(keys, COLD))
        started = time.perf_counter()
        try:
            values = await self._far.get(keys)
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            return LookResult({}, dict.fromkeys(keys, FAR_DOWN), time.perf_counter() - started)
        seconds = time.perf_counter() - started
        self._metrics.far_seconds.of("get").add(seconds)
        self._metrics.stages.add("far", seconds)
        now, trip = self.clock(), TierSeconds(seconds)
        found: dict[Key, Answer] = {}
        missing: dict[Key, Miss] = {}
        for failed in {id(value): value for value in values if isinstance(value, FarError)}.values():
            self._metrics.far_errors.labels(failed.kind).inc()
        for key, value in zip(keys, values, strict=True):
            proved = self._proved(space, key, value)
            judged = proved if isinstance(proved, Miss) else judge(proved, "far", now, policy, age_limits, trip)
            if isinstance(judged, Miss):
                missing[key] = judged
            else:
                found[key] = judged
        return LookResult(found, missing, seconds)

    async def look_far_row(self, space: Space, key: Key) -> tuple[Prediction | Miss, float | None]:
        """The same for one row, before freshness is checked: its prediction, or the reason why there is none; and the
        seconds it took."""
        if self._far is None:
            return COLD, None
        started = time.perf_counter()
        try:
            (value,) = await self._far.get((key,))
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            return FAR_DOWN, time.perf_counter() - started
        seconds = time.perf_counter() - started
        self._metrics.far_seconds.of("get").add(seconds)
        self._metrics.stages.add("far", seconds)
        if isinstance(value, FarError):
            self._metrics.far_errors.labels(value.kind).inc()
        return COLD if value is None else self._proved(space, key, value), seconds

    def _proved(self, space: Space, key: Key, value: bytes | FarError | None) -> Prediction | Miss:
        """The prediction of a far value that proves to be the entry asked for; else why it is a miss."""
        if value is None:
            return COLD
        if isinstance(value, FarError):
            return FAR_DOWN
        try:
            prediction = self._codec.unpack(key, space.digest, value)
        except EntryError as error:
            self._metrics.verify_failed.labels(error.reason).inc()
            return Miss("verify-failed")
        forgotten = self._forgotten.get(key)
        if forgotten is not None and prediction.made_at <= forgotten.purged_at + SKEW_SECONDS:
            return COLD  # not deleted yet, or another process has stored it again
        return prediction

    def keep(
        self,
        fresh: Sequence[tuple[Key, Prediction]],
        policy: Policy,
        began: float,
        stored: Callable[[], None] = lambda: None,
    ) -> bool:
        """keep: store in near now, in far after the answer. True if all of it is stored somewhere. A key purged since
        its computation began is not stored. `stored` is called when far has the entries, or will not have them."""
        wanted = [one for one in fresh if not self._forgotten_since(one[0], began)] if self._forgotten else fresh
        kept = [self.keep_near(key, prediction) for key, prediction in wanted]
        sent = self._keep_far(wanted, policy, stored)
        return bool(wanted) and (sent or all(kept)) and len(wanted) == len(fresh)

    def keep_row(self, key: Key, prediction: Prediction, began: float) -> tuple[bool, int]:
        """The same of one row, but that far gets it by `store_row`: whether it is stored, and the bytes of its entry, 0
        where far is not to get it."""
        if self._forgotten and self._forgotten_since(key, began):
            return False, 0
        kept = self.keep_near(key, prediction)
        if self._far is None:
            return kept, 0
        size = self._codec.size(prediction)
        self._metrics.entry_bytes.add(size)
        too_large = size > self._limits.far_value_bytes
        if too_large or self.pending_bytes + size > self._limits.far_pending_bytes:
            self._metrics.dropped.labels("large" if too_large else "pending").inc()
            return kept, 0
        self.pending_bytes += size
        return True, size

    async def store_row(self, key: Key, prediction: Prediction, policy: Policy, size: int) -> None:
        """Send far the entry that `keep_row` has counted, when this turn of the event loop has sent its replies."""
        task = asyncio.current_task()
        assert self._far is not None
        assert task is not None
        self._stores.add(task)
        try:
            await self._store(self._far, ((key, prediction),), policy, size)
        finally:
            self._stores.discard(task)

    def _forgotten_since(self, key: Key, began: float) -> bool:
        forgotten = self._forgotten.get(key)
        return forgotten is not None and forgotten.at >= began

    def keep_near(self, key: Key, prediction: Prediction) -> bool:
        kept = bool(self.near.capacity_bytes) and self.near.put(key, prediction)
        if self.near.evictions > self._evictions:  # kept text makes room for itself, too
            self._metrics.evictions.inc(self.near.evictions - self._evictions)
            self._evictions = self.near.evictions
        return kept

    def _keep_far(self, fresh: Sequence[tuple[Key, Prediction]], policy: Policy, stored: Callable[[], None]) -> bool:
        """Start storing entries, within the limits on one entry and on all pending ones; True if all are being
        stored."""
        if self._far is None or not fresh:
            stored()
            return False
        sizes = [self._codec.size(prediction) for _, prediction in fresh]
        for size, times in Counter(sizes).items():
            self._metrics.entry_bytes.add(size, times)
        storable = [pair for pair, size in zip(fresh, sizes, strict=True) if size <= self._limits.far_value_bytes]
        total = sum(size for size in sizes if size <= self._limits.far_value_bytes)
        if len(storable) < len(fresh):
            self._metrics.dropped.labels("large").inc(len(fresh) - len(storable))
        fits = self.pending_bytes + total <= self._limits.far_pending_bytes
        if not fits:
            self._metrics.dropped.labels("pending").inc(len(storable))
        if not (fits and storable):
            stored()
            return False
        self.pending_bytes += total
        task = asyncio.get_running_loop().create_task(self._store(self._far, storable, policy, total))
        self._stores.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._stores.discard)
        task.add_done_callback(lambda _: stored())
        return len(storable) == len(fresh)

    async def _store(self, far: FarTier, fresh: Sequence[tuple[Key, Prediction]], policy: Policy, size: int) -> None:
        await asyncio.sleep(0)  # the answer goes first: packing and sending this cost as much as the reply
        started, now = time.perf_counter(), self.clock()
        try:
            await far.put(self._entries(fresh, policy, now))
            self._metrics.far_seconds.of("put").add(time.perf_counter() - started)
        except FarError as error:
            self._metrics.far_errors.labels(error.kind).inc()
            self._metrics.dropped.labels("far").inc(len(fresh))
        finally:
            self.pending_bytes -= size

    async def put_far(self, entries: Sequence[tuple[Key, Prediction]], policy: Policy) -> None:
        """Store entries in far before anything else happens. Raises FarError, also where there is no far."""
        if self._far is None:
            raise FarError("none")
        now, limit = self.clock(), self._limits.far_value_bytes
        small = [(key, p) for key, p in entries if self._codec.size(p) <= limit]
        await self._far.put(self._entries(small, policy, now))

    def _entries(
        self, fresh: Sequence[tuple[Key, Prediction]], policy: Policy, now: float
    ) -> list[tuple[Key, bytes, int]]:
        """What far is to store: packed entries, each with its lifetime in ms; without those that have expired."""
        lives = [int(kept_for(p.expires_at, now, policy) * 1000) for _, p in fresh]
        entries = self._codec.pack_all(fresh)
        return [(key, entry, life) for (key, _), entry, life in zip(fresh, entries, lives, strict=True) if life > 0]

    def space_key(self, space: Space) -> SpaceKey:
        key = self._spaces.get(space)
        if key is None:
            if len(self._spaces) >= MAX_SPACES:  # old digests and generations are never asked for again
                self._spaces.clear()
            key = self._spaces[space] = space_key(self._root, space)
        return key

    async def forget(self, keys: Mapping[Key, float] | None) -> None:
        """Forget keys, by when they were purged (Unix seconds), or all of near. From then on older entries are ignored
        for their maximum lifetime. Returns when no pending write can store an older one."""
        if keys is None:
            self.near.clear()
            return
        now = asyncio.get_running_loop().time()
        for key, purged_at in keys.items():
            self.near.forget(key)
            self._forgotten[key] = Forgotten(now, purged_at)
        while len(self._forgotten) > MAX_FORGOTTEN:
            self._forgotten.popitem(last=False)
        stores = set(self._stores)
        if stores:
            await asyncio.wait(stores)

    async def delete_far(self, keys: Sequence[Key]) -> int | None:
        """Delete entries in far; how many there were, None without far. Raises FarError."""
        return None if self._far is None else await self._far.forget(keys)

    async def close(self, seconds: float) -> None:
        """Wait for pending writes, at most `seconds`."""
        if self._stores:
            await asyncio.wait(self._stores, timeout=seconds)
