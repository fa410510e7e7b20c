"""Warms far (Redis) from Arrow batches, and returns a small table with the result of each row.

    convert   columns become client tensors                   columns.py
    prepare, key                                               keys.py, with the proxy's own code
    far       what is there is skipped: one MGET, or SET NX where outputs are given
    model     the rest, neighbours in length, at the lowest priority; two requests under way keep the process busy
    keep      at once after each answer, so that a kill costs one request

Not safe to share between threads; pickle it, or make one for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from foreseen.errors import EntryError, SetupError
from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import secret_check, space_key, tag_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.paths import model_socket, redis_socket
from foreseen.types import Key, Prediction, Row, Space
from foreseen.warm.model.model_rows import ModelRows, Rows
from foreseen.warm.plan import COMPUTED, FAILED, HIT, Plan, Warmed
from foreseen.warm.read.keys import KeyedBatch, Keyer, given_of
from foreseen.warm.run.generation import SpaceGenerations
from foreseen.warm.write.bulk_redis import BulkRedis
from foreseen.warm.write.importer import Importer


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

    def ready_rows(self, rows: Sequence[tuple[Row, bytes]]) -> ReadyBatch:
        """Key rows that are prepared, with their parameters."""
        return self._opened().ready_rows(rows)

    def warm_ready(self, ready: ReadyBatch) -> Warmed:
        """Compute and store what far lacks of a keyed batch; all predictions. Raises SetupError."""
        return self._opened().computed(ready, wanted=True)

    def answers(self, ready: ReadyBatch) -> dict[Key, Prediction]:
        """The answers to a keyed batch: far's entries, and the model's where there is none; stores nothing."""
        return self._opened().answers(ready)

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
        self._model = ModelRows(plan, address)
        self._importer = Importer(plan, self._codec, self._pipe, answered)

    def close(self) -> None:
        self._model.close()
        self._importer.close()
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
        made, _ = self._model.ask(list(rows), rows, held=False)
        return len(made), time.perf_counter() - started

    def computed(self, ready: ReadyBatch, *, wanted: bool) -> Warmed:
        warmed, waiters, _ = ready
        found = self._found(list(waiters))
        missing = [key for key in waiters if key not in found]
        made, failed = self._model.ask(missing, waiters, self._kept)
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

    def ready_rows(self, rows: Sequence[tuple[Row, bytes]]) -> ReadyBatch:
        generation = self.generation()
        keys = self._keyer_of(generation).of_rows(rows)
        warmed = Warmed(list(keys), np.full(len(rows), FAILED, np.int8), {}, {})
        return ReadyBatch(warmed, dict(zip(keys, rows, strict=True)), generation)

    def answers(self, ready: ReadyBatch) -> dict[Key, Prediction]:
        found = self._found(list(ready.waiters))
        made, _ = self._model.ask([key for key in ready.waiters if key not in found], ready.waiters)
        return found | made

    def predicted(self, batch: pa.RecordBatch, places: Sequence[int]) -> dict[int, Prediction]:
        warmed, waiters, _ = self.prepared(batch.take(pa.array(places)))
        made, _ = self._model.ask(list(waiters), waiters)
        return {
            place: made[Key(key)] for place, key in zip(places, warmed.keys, strict=True) if key and Key(key) in made
        }

    def _keyed(self, batch: pa.RecordBatch, bad: dict[int, str], generation: int) -> list[KeyedBatch]:
        given = given_of(batch, self._plan.manifest, self._plan.inputs, bad)
        keyer = self._keyer_of(generation)
        return [keyed for part in given for keyed in keyer.keyed(part, bad)]

    def _keyer_of(self, generation: int) -> Keyer:
        keyer = self._keyers.get(generation)
        if keyer is None:
            keyer = self._keyer(generation)
            self._keyers = {generation: keyer}
        return keyer

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

    def _kept(self, answered: Mapping[Key, Prediction]) -> dict[Key, str]:
        """Store answers; of those that are too large, why not."""
        entries = {key: self._codec.pack(key, prediction) for key, prediction in answered.items()}
        failed = {}
        for key in [key for key, entry in entries.items() if len(entry) > self._plan.value_bytes]:
            failed[key] = f"its entry has {len(entries.pop(key))} bytes, more than {self._plan.value_bytes}"
        with self._lock:
            self._pipe.put(list(entries), list(entries.values()), [answered[key].expires_at for key in entries])
        self._answered(len(answered))
        return failed
