"""Imports the outputs that a batch run computed as entries in far (Redis), without asking a model.

Numbers of fixed shape become entries by the column: a million rows cost two hashes each and no object. While Redis
takes one slice, the next is being packed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import pyarrow as pa

from foreseen.keys.entry import EntryCodec, Table
from foreseen.modelspec.manifest import ModelOutput
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.types import Array, Key, Output, Prediction
from foreseen.warm.plan import FAILED, HIT, IMPORTED, Plan, Warmed
from foreseen.warm.read.columns import columns_for, fixed, floats, ragged, tensor
from foreseen.warm.read.keys import KeyedBatch
from foreseen.warm.write.bulk_redis import BulkRedis

SLICE_ROWS = 4096
AHEAD = 3
"""Slices that are packed or under way while the next is being made."""
OUTPUT_PREFIX = "output."
"""Before an output's column name, where an input has the same name."""
MADE_AT_COLUMN, SECONDS_COLUMN = "foreseen.made_at", "foreseen.seconds"
"""When and at what cost a row was predicted, in Unix seconds and compute seconds; may be left out."""


class Importer:
    """Writes given outputs."""

    def __init__(self, plan: Plan, codec: EntryCodec, pipe: BulkRedis, answered: Callable[[int], None]) -> None:
        self._plan = plan
        self._answered = answered
        self._codec = codec
        self._pipe = pipe
        self._lock = Lock()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="far")
        self._dice = np.random.default_rng()

    def imported(
        self, batch: pa.RecordBatch, keyed: Callable[[pa.RecordBatch, dict[int, str]], list[KeyedBatch]]
    ) -> Warmed:
        """Raises SetupError for a column that is missing or can never be the output."""
        warmed = Warmed([b""] * batch.num_rows, np.full(batch.num_rows, FAILED, np.int8), {}, {})
        flying: list[tuple[Array, Future[None]]] = []
        for low in range(0, batch.num_rows, SLICE_ROWS):
            part, bad = batch.slice(low, SLICE_ROWS), dict[int, str]()
            for places, stored in self._sent(part, keyed(part, bad), bad, warmed.keys, low):
                flying.append((low + places, stored))
            warmed.reasons |= {low + place: why for place, why in bad.items()}
            while len(flying) > AHEAD:
                self._land(warmed.codes, *flying.pop(0))
        for one in flying:
            self._land(warmed.codes, *one)
        return warmed

    def _land(self, codes: Array, places: Array, sent: Future[None]) -> None:
        sent.result()
        codes[places] = np.where(self._pipe.stored(len(places)), IMPORTED, HIT)
        self._answered(len(places))

    def _sent(
        self, batch: pa.RecordBatch, keyed: Sequence[KeyedBatch], bad: dict[int, str], keys: list[bytes], low: int
    ) -> Iterator[tuple[Array, Future[None]]]:
        """Pack one slice and pass it to the sender; the places of its rows, and the future of their results."""
        outputs = given_outputs(batch, self._plan, bad)
        made_at, seconds = facts_of(batch)
        times = made_at, time.time() + self._lives(batch.num_rows), seconds
        for part in keyed:
            places, own = part.places, part.keys
            if len(own) == batch.num_rows:
                keys[low : low + len(own)] = own
            else:
                for place, key in zip(places.tolist(), own, strict=True):
                    keys[low + place] = key
            if bad:
                good = [i for i, place in enumerate(places.tolist()) if place not in bad]
                places, own = places[good], [own[i] for i in good]
            if not own:
                continue
            for at, lines in self._packed(own, places, outputs, times):
                if lines.shape[1] > self._plan.value_bytes:
                    why = f"its entry has {lines.shape[1]} bytes, more than {self._plan.value_bytes}"
                    bad.update(dict.fromkeys(places[at].tolist(), why))
                    continue
                sent = [own[i] for i in at.tolist()] if len(at) < len(own) else own
                expiry = times[1][places[at]]
                commands = self._pipe.additions(sent, lines, expiry)
                yield places[at], self._sender.submit(self._pipe.send, commands)

    def close(self) -> None:
        self._sender.shutdown()

    def _packed(
        self,
        keys: Sequence[Key],
        places: Array,
        outputs: Sequence[Array | list[Array | None]],
        times: tuple[Array, ...],
    ) -> list[tuple[Array, Array]]:
        """Entries of one length each, with the rows that they are of."""
        specs = self._plan.manifest.model.outputs
        made_at, expires_at, seconds = (column[places] for column in times)
        if all(isinstance(column, np.ndarray) and column.dtype != object for column in outputs):
            heads = tuple(_head(spec, np.asarray(column[0])) for spec, column in zip(specs, outputs, strict=True))
            data = tuple(_raw(column, places) for column in outputs if isinstance(column, np.ndarray))
            lines = self._codec.pack_table(keys, Table(heads, data, made_at, expires_at, seconds))
            return [(np.arange(len(keys)), lines)]
        packed: dict[int, list[tuple[int, bytes]]] = {}
        for i, key in enumerate(keys):
            arrays: list[Array] = [np.asarray(column[places[i]]) for column in outputs]
            heads = tuple(_head(spec, array) for spec, array in zip(specs, arrays, strict=True))
            data_of = tuple(raw_of(a, DATATYPES[h.datatype]) for h, a in zip(heads, arrays, strict=True))
            facts = float(made_at[i]), float(expires_at[i]), float(seconds[i])
            entry = self._codec.pack(key, Prediction(heads, data_of, self._plan.digest, *facts))
            packed.setdefault(len(entry), []).append((i, entry))
        return [(np.array([i for i, _ in group]), _lines([entry for _, entry in group])) for group in packed.values()]

    def _lives(self, rows: int) -> Array:
        return self._plan.ttl_seconds * self._dice.uniform(1 - self._plan.jitter, 1 + self._plan.jitter, rows)


def given_outputs(batch: pa.RecordBatch, plan: Plan, bad: dict[int, str]) -> list[Array | list[Array | None]]:
    """Every output of the model as the batch has it; rows that cannot be an answer go into `bad`."""
    made: list[Array | list[Array | None]] = []
    for spec in plan.manifest.model.outputs:
        columns = columns_for(spec, batch.schema.names, plan.outputs, OUTPUT_PREFIX)
        if not fixed(spec):
            made.append(ragged(batch, columns[0], spec, bad))
            continue
        array = tensor(batch, columns, spec, bad)
        if DATATYPES[spec.datatype].kind == "f" and not np.isfinite(array).all():
            for index in np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)).tolist():
                bad.setdefault(index, f"{spec.name}: holds NaN or infinity")
        made.append(array)
    return made


def facts_of(batch: pa.RecordBatch) -> tuple[Array, Array]:
    """When each row was predicted (Unix seconds) and at what cost (seconds), as far as the batch says."""
    names, now = batch.schema.names, time.time()
    made_at: Array = np.full(batch.num_rows, now)
    if MADE_AT_COLUMN in names:
        made_at = np.minimum(floats(batch.column(MADE_AT_COLUMN), now), now)
    seconds: Array = np.zeros(batch.num_rows, np.float32)
    if SECONDS_COLUMN in names:
        seconds = floats(batch.column(SECONDS_COLUMN), 0.0).astype(np.float32)
    return made_at, seconds


def _head(spec: ModelOutput, array: Array) -> Output:
    return Output(spec.name, spec.datatype, array.shape)


def _raw(column: Array, places: Array) -> Array:
    part = np.ascontiguousarray(column[places])
    return part.reshape(len(part), -1).view(np.uint8) if part.size else np.empty((len(part), 0), np.uint8)


def _lines(entries: Sequence[bytes]) -> Array:
    return np.frombuffer(b"".join(entries), np.uint8).reshape(len(entries), -1)
