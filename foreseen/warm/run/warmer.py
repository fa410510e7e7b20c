"""Warms far (Redis) from Arrow batches, and returns a small table with the result of each row.

    convert   columns become client tensors                   columns.py
    prepare, key                                               keys.py, with the proxy's own code
    far       what is there is skipped: one MGET, or SET NX where outputs are given
    model     the rest, neighbours in length, at the lowest priority; two requests under way keep the process busy
    keep      at once after each answer, so that a kill costs one request

Not safe to share between threads; pickle it, or make one for each.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from foreseen.errors import BadInput, EntryError, ModelFailed, SetupError, TooLarge
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import secret_check, space_key, tag_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.modelspec.row_outputs import split_outputs
from foreseen.modelspec.rows import stack, tokens
from foreseen.paths import model_socket, redis_socket
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Key, Output, Prediction, Row, Space
from foreseen.warm.plan import COMPUTED, FAILED, HIT, Plan, Warmed
from foreseen.warm.read.keys import KeyedBatch, Keyer, given_of
from foreseen.warm.run.client import V2Client
from foreseen.warm.run.generation import SpaceGenerations
from foreseen.warm.write.bulk_redis import BulkRedis
from foreseen.warm.write.importer import Importer

FIRST_ROWS = 32
"""Rows of the first request, before it is known how long a row takes."""
MAX_ROWS = 4096
UNDER_WAY = 2


Rows = dict[Key, tuple[Row, bytes]]
"""One row of each key, with its parameters."""


class ReadyBatch(NamedTuple):
    """A batch with its keys in one generation, and one row of each key."""

    warmed: Warmed
    waiters: Rows
    generation: int


def unwatched(rows: int) -> None:
    """Ignores progress within a batch: the default of `answered`."""


class Warmer:
    """Warms by the batch: `warmer(table)`. Opens its connections when first called, in whatever process that is."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.answered: Callable[[int], None] = unwatched
        """Called with the number of rows whenever some of a batch are through, in any thread."""
        self._open: _Open | None = None

    def __getstate__(self) -> Plan:
        return self.plan

    def __setstate__(self, plan: Plan) -> None:
        self.plan, self.answered, self._open = plan, unwatched, None

    def __call__(self, table: pa.Table | pa.RecordBatch) -> pa.Table:
        """One row per row of the table: key, result (hit, computed, imported, failed), reason.

        Raises SetupError where nothing can be done: secret, Redis, model, columns, digest.
        """
        batches = table.to_batches() if isinstance(table, pa.Table) else [table]
        made = [self.warm(batch).table() for batch in batches if batch.num_rows]
        return pa.concat_tables(made) if made else Warmed([], np.empty(0, np.int8), {}, {}).table()

    def open(self) -> None:
        """Open the connections now, in this thread. Raises SetupError."""
        if self._open is None:
            self._open = _Open(self.plan, self.answered)

    def ready(self, batch: pa.RecordBatch) -> ReadyBatch | None:
        """Prepare and key a batch for `warm`, in another thread than it if need be: the model waits for no
        tokenizer. Importing does that by itself."""
        assert self._open is not None
        return self._open.prepared(batch) if self.plan.mode == "compute" else None

    def warm(self, batch: pa.RecordBatch, *, wanted: bool = False, ready: ReadyBatch | None = None) -> Warmed:
        """The same as a call, with the predictions where they are wanted."""
        opened = self._opened()
        if self.plan.mode == "import":
            return opened.imported(batch)
        if ready is None or ready.generation != opened.generation():  # purged since it was made
            ready = opened.prepared(batch)
        return opened.computed(ready, wanted=wanted)

    def cached(self, batch: pa.RecordBatch) -> Warmed:
        """Look only: hit, or computed for a row that would have to be computed."""
        return self.looked(batch)[0]

    def looked(self, batch: pa.RecordBatch) -> tuple[Warmed, Rows]:
        """The same, with one row of each key that would have to be computed."""
        return self._opened().looked(batch)

    def timed(self, rows: Rows) -> tuple[int, float]:
        """How many of these rows the model answers, and in how many seconds, as in a run; stores nothing."""
        return self._opened().timed(rows)

    def predicted(self, batch: pa.RecordBatch, places: Sequence[int]) -> dict[int, Prediction]:
        """The model's present answers to these rows, cached or not; stores nothing."""
        return self._opened().predicted(batch, places)

    def _opened(self) -> _Open:
        self.open()
        assert self._open is not None
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def preparer_of(manifest: Manifest, data: Any) -> Preparer:
    """The model's own preparation. Raises SetupError where its assets are not there."""
    if not any(spec.tokenizer for spec in manifest.seen.inputs):
        return Preparer(manifest, {})
    artifact = read_record(data, manifest.name).artifact
    return Preparer(manifest, {file.name: read_file(data, artifact, file) for file in artifact.assets})


class _Open:
    """The open connections and state of a warmer."""

    def __init__(self, plan: Plan, answered: Callable[[int], None]) -> None:
        manifest, root = plan.manifest, read_secret(plan.secret_file or plan.data / "secret")
        self._plan = plan
        self._signature = manifest.model
        self._codec = EntryCodec(tag_key(root))
        self._root, self._answered = root, answered
        self._preparer = preparer_of(manifest, plan.data)
        self._generations = SpaceGenerations(plan)
        self._keyers = {generation: self._keyer(generation) for generation in [self._generations.current()]}
        self._pipe = BulkRedis(plan.redis or f"unix://{redis_socket(plan.data)}", plan.patience_seconds)
        try:
            self._pipe.check_secret(secret_check(root))
        except SetupError:
            self._pipe.close()
            raise
        self._lock = threading.Lock()  # one connection to Redis, two threads with answers for it
        address = plan.model or f"unix:{model_socket(plan.data, manifest.name)}"
        self._client = V2Client(address, manifest.name, plan.patience_seconds)
        self._threads = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="warm")
        self._importer = Importer(plan, self._codec, self._pipe, answered)
        self._row_seconds: float | None = None
        self._not_before = 0.0

    def close(self) -> None:
        self._threads.shutdown()
        self._importer.close()
        self._client.close()
        self._pipe.close()

    def generation(self) -> int:
        return self._generations.current()

    def _keyer(self, generation: int) -> Keyer:
        manifest = self._plan.manifest
        space = Space(self._plan.scope, manifest.name, self._plan.digest, generation)
        return Keyer(manifest, self._preparer, space_key(self._root, space))

    def imported(self, batch: pa.RecordBatch) -> Warmed:
        generation = self.generation()
        return self._importer.imported(batch, lambda part, bad: self._keyed(part, bad, generation))

    def looked(self, batch: pa.RecordBatch) -> tuple[Warmed, Rows]:
        warmed, waiters, _ = self.prepared(batch)
        found = self._found(list(waiters))
        for index, key in enumerate(warmed.keys):
            if key:
                warmed.codes[index] = HIT if key in found else COMPUTED
        return warmed, {key: row for key, row in waiters.items() if key not in found}

    def timed(self, rows: Rows) -> tuple[int, float]:
        started = time.perf_counter()
        made, _ = self._ask(list(rows), rows, keep=False, held=False)
        return len(made), time.perf_counter() - started

    def computed(self, ready: ReadyBatch, *, wanted: bool) -> Warmed:
        warmed, waiters, _ = ready
        found = self._found(list(waiters))
        missing = [key for key in waiters if key not in found]
        made, failed = self._ask(missing, waiters, keep=True)
        fresh = set(made)
        for index, key in enumerate(map(Key, warmed.keys)):
            if key in failed:
                warmed.codes[index], warmed.reasons[index] = FAILED, failed[key]
            elif key in fresh:
                warmed.codes[index] = COMPUTED
                fresh.discard(key)  # equal rows are computed once; the others are hits
            elif key:
                warmed.codes[index] = HIT
        if wanted:
            warmed.predictions = dict([*found.items(), *made.items()])
        return warmed

    def predicted(self, batch: pa.RecordBatch, places: Sequence[int]) -> dict[int, Prediction]:
        warmed, waiters, _ = self.prepared(batch.take(pa.array(places)))
        made, _ = self._ask(list(waiters), waiters, keep=False)
        return {
            place: made[Key(key)] for place, key in zip(places, warmed.keys, strict=True) if key and Key(key) in made
        }

    def _keyed(self, batch: pa.RecordBatch, bad: dict[int, str], generation: int) -> list[KeyedBatch]:
        given = given_of(batch, self._plan.manifest, self._plan.inputs, bad)
        keyer = self._keyers.get(generation)
        if keyer is None:
            keyer = self._keyer(generation)
            self._keyers = {generation: keyer}
        return [keyed for part in given for keyed in keyer.keyed(part, bad)]

    def prepared(self, batch: pa.RecordBatch) -> ReadyBatch:
        """The batch with its keys, and one row of each key."""
        bad: dict[int, str] = {}
        keys: list[bytes] = [b""] * batch.num_rows
        waiters: Rows = {}
        generation = self.generation()
        for part in self._keyed(batch, bad, generation):
            for i, (place, key) in enumerate(zip(part.places.tolist(), part.keys, strict=True)):
                keys[place] = key
                if key not in waiters:
                    waiters[key] = part.row(i), part.parameters[i] if part.parameters else b""
        return ReadyBatch(Warmed(keys, np.full(batch.num_rows, FAILED, np.int8), bad, {}), waiters, generation)

    def _found(self, keys: Sequence[Key]) -> dict[Key, Prediction]:
        """The entries that Redis has and that verify; the others count as missing."""
        found, now = {}, time.time()
        with self._lock:
            values = self._pipe.get(keys)
        for key, value in zip(keys, values, strict=True):
            if value is None:
                continue
            try:
                prediction = self._codec.unpack(key, self._plan.digest, value)
            except EntryError:
                continue
            if prediction.expires_at > now:
                found[key] = prediction
        return found

    def _ask(
        self, keys: Sequence[Key], waiters: Rows, *, keep: bool, held: bool = True
    ) -> tuple[dict[Key, Prediction], dict[Key, str]]:
        """The model's answers: sorted by length, in requests of `batch_ms`, two under way; `held` to the rate."""
        # Shortest first within one set of parameters: neighbours in length need least padding.
        queue = sorted(keys, key=lambda key: (waiters[key][1], tokens(waiters[key][0], self._signature)))
        made: dict[Key, Prediction] = {}
        failed: dict[Key, str] = {}
        flying: list[Future[None]] = []
        at = 0
        try:
            while at < len(queue):
                size = self._size(len(queue) - at)
                part = [key for key in queue[at : at + size] if waiters[key][1] == waiters[queue[at]][1]]
                at += len(part)
                if len(flying) == UNDER_WAY:
                    flying.pop(0).result()
                if held:
                    self._wait_turn(len(part))
                flying.append(self._threads.submit(self._part, part, waiters, made, failed, keep))
        finally:
            for one in flying:
                one.result()
        return made, failed

    def _size(self, left: int) -> int:
        """How many rows the model computes in `batch_ms`, as far as measured; the last rows are split evenly."""
        seconds = self._row_seconds
        most = FIRST_ROWS if not seconds else int(self._plan.batch_ms / 1000 / seconds)
        if self._plan.rows_per_second is not None:
            most = min(most, max(1, int(self._plan.rows_per_second)))
        return min(max(most, 1), MAX_ROWS, left)

    def _part(
        self,
        keys: Sequence[Key],
        waiters: Rows,
        made: dict[Key, Prediction],
        failed: dict[Key, str],
        keep: bool,
    ) -> None:
        """One request; if it is refused, its halves, down to the row that is wrong."""
        rows = [waiters[key][0] for key in keys]
        try:
            predictions = self._predict(rows, waiters[keys[0]][1])
        except (BadInput, TooLarge, ModelFailed) as error:
            if len(keys) == 1:
                failed[keys[0]] = str(error)
                return
            half = len(keys) // 2
            self._part(keys[:half], waiters, made, failed, keep)
            self._part(keys[half:], waiters, made, failed, keep)
            return
        answered = dict(zip(keys, predictions, strict=True))
        if keep:
            entries = {key: self._codec.pack(key, prediction) for key, prediction in answered.items()}
            for key in [key for key, entry in entries.items() if len(entry) > self._plan.value_bytes]:
                failed[key] = f"its entry has {len(entries.pop(key))} bytes, more than {self._plan.value_bytes}"
            with self._lock:
                self._pipe.put(list(entries), list(entries.values()), [answered[key].expires_at for key in entries])
            self._answered(len(keys))
        made.update(answered)

    def _wait_turn(self, rows: int) -> None:
        """Keep to the rate: wait until so many rows are due."""
        if self._plan.rows_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            wait = self._not_before - now
            self._not_before = max(now, self._not_before) + rows / self._plan.rows_per_second
        if wait > 0:
            time.sleep(wait)

    def _predict(self, rows: Sequence[Row], parameters: bytes) -> list[Prediction]:
        batch = stack(rows, self._signature)
        asked = [(i.name, i.datatype, batch[i.name]) for i in self._signature.inputs]
        reply = self._client.infer(asked, parameters)
        digest = reply.response.parameters.get("digest")
        if digest != self._plan.digest:
            raise SetupError("the model has changed while it was warmed; run the same command again for the new one")
        reported = reply.response.parameters.get("seconds")
        each = float(reported) if isinstance(reported, int | float) else reply.seconds / len(rows)
        outputs = {tensor.name: tensor.array for tensor in reply.response.outputs}
        answered = split_outputs(outputs, rows, self._signature)
        self._row_seconds = each if self._row_seconds is None else (self._row_seconds + each) / 2
        now, plan = time.time(), self._plan
        predictions = []
        for arrays in answered:
            heads = tuple(
                Output(s.name, s.datatype, a.shape) for s, a in zip(self._signature.outputs, arrays, strict=True)
            )
            data = tuple(raw_of(a, DATATYPES[h.datatype]) for h, a in zip(heads, arrays, strict=True))
            life = plan.ttl_seconds * random.uniform(1 - plan.jitter, 1 + plan.jitter)  # noqa: S311 - spreads expiry
            predictions.append(Prediction(heads, data, plan.digest, now, now + life, each))
        return predictions
