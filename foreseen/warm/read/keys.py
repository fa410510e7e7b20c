"""Prepares the rows of an Arrow batch and makes their frames and keys with the proxy's own code.

Numbers of fixed shape go by the column, everything else by the row; the keys are the same. A row that is refused does
not fail the others: a refused batch is bisected until the bad row is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from msgspec import Struct

from foreseen.errors import BadInput, TooLarge
from foreseen.keys.key import Framer, SpaceKey, key_of, keys_of
from foreseen.modelspec.manifest import ClientInput, Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire import InputTensor
from foreseen.types import Array, Columns, Key, Row
from foreseen.warm.plan import LINE_COLUMN, PARAMETERS_COLUMN, REJECT_COLUMN
from foreseen.warm.read.columns import columns_for, fixed, ragged, tensor


class ClientBatch(Struct, frozen=True):
    """The good rows of a batch as client tensors. `places[i]` is where row i stands in the batch."""

    places: Array
    tensors: list[InputTensor]
    parameters: list[bytes]
    """One per row, or empty for none at all."""

    def part(self, low: int, high: int) -> ClientBatch:
        cut = [InputTensor(t.name, t.datatype, t.array[low:high]) for t in self.tensors]
        return ClientBatch(self.places[low:high], cut, self.parameters[low:high])


class KeyedBatch(Struct, frozen=True):
    """Rows with their keys; `row(i)` is what the model is asked about row i."""

    places: Array
    keys: list[Key]
    row: Callable[[int], Row]
    parameters: list[bytes]


def given_of(
    batch: pa.RecordBatch, manifest: Manifest, mapped: Mapping[str, str], bad: dict[int, str]
) -> list[ClientBatch]:
    """The batch as client tensors, in one part, or in one per row where rows differ in size. Rows that cannot become
    any go into `bad`. Raises SetupError for a column that is missing or can never be the input."""
    have = batch.schema.names
    names = [name for name in have if name not in (REJECT_COLUMN, LINE_COLUMN, PARAMETERS_COLUMN)]
    if REJECT_COLUMN in have:
        whys = batch.column(REJECT_COLUMN).to_pylist()
        bad.update({index: why for index, why in enumerate(whys) if why is not None})
    parameters: list[bytes] = []
    if PARAMETERS_COLUMN in have:
        parameters = [value or b"" for value in batch.column(PARAMETERS_COLUMN).to_pylist()]
    masks = {spec.trim for spec in manifest.seen.inputs if spec.trim}
    specs = [s for s in manifest.seen.inputs if not s.optional or _is_there(s, names, mapped, masks)]
    wanted = [spec for spec in specs if _is_there(spec, names, mapped, masks)]
    if all(fixed(spec) for spec in wanted):
        made = {s.name: tensor(batch, columns_for(s, names, mapped), s, bad) for s in wanted}
        places = np.array([i for i in range(batch.num_rows) if i not in bad], np.int64)
        if len(places) < batch.num_rows:
            made = {name: array[places] for name, array in made.items()}
        arrays = [InputTensor(s.name, s.datatype, made.get(s.name, _blank(s, len(places)))) for s in specs]
        return [ClientBatch(places, arrays, [parameters[i] for i in places] if parameters else [])]
    columns = {s.name: ragged(batch, columns_for(s, names, mapped)[0], s, bad) for s in wanted if not fixed(s)}
    tables = {s.name: tensor(batch, columns_for(s, names, mapped), s, bad) for s in wanted if fixed(s)}
    parts = []
    for i in range(batch.num_rows):
        if i in bad:
            continue
        row = {n: c[i] for n, c in columns.items()} | {n: t[i] for n, t in tables.items()}
        arrays = [InputTensor(s.name, s.datatype, _with_rows(s, row, specs)) for s in specs]
        parts.append(ClientBatch(np.array([i]), arrays, parameters[i : i + 1]))
    return parts


class Keyer:
    """Client tensors → keys in one space."""

    def __init__(self, manifest: Manifest, preparer: Preparer, space: SpaceKey) -> None:
        self._preparer = preparer
        self._framer = Framer(manifest.model)
        self._space = space

    def keyed(self, given: ClientBatch, bad: dict[int, str]) -> list[KeyedBatch]:
        """Usually one part; rows that prepare refuses go into `bad`."""
        if not len(given.places):
            return []
        try:
            return [self._prepared(given)]
        except (BadInput, TooLarge) as error:
            if len(given.places) == 1:
                bad[int(given.places[0])] = str(error)
                return []
            half = len(given.places) // 2
            return self.keyed(given.part(0, half), bad) + self.keyed(given.part(half, len(given.places)), bad)

    def of_rows(self, rows: Sequence[tuple[Row, bytes]]) -> list[Key]:
        """The keys of prepared rows with their parameters."""
        return [key_of(self._space, self._framer.frame(row, parameters)) for row, parameters in rows]

    def _prepared(self, given: ClientBatch) -> KeyedBatch:
        rows = self._preparer.rows(given.tensors)
        if isinstance(rows, Columns) and not any(given.parameters):
            columns = rows.arrays
            keys = keys_of(self._space, self._framer.table(columns))
            return KeyedBatch(given.places, keys, lambda i: Row(tuple(c[i, ...] for c in columns)), given.parameters)
        parameters = given.parameters or [b""] * len(rows)
        frames = (self._framer.frame(row, more) for row, more in zip(rows, parameters, strict=True))
        return KeyedBatch(given.places, [key_of(self._space, frame) for frame in frames], rows.__getitem__, parameters)


def _is_there(spec: ClientInput, names: Sequence[str], mapped: Mapping[str, str], masks: set[str]) -> bool:
    """An input that is dropped, or a mask that follows from its rows, may be left out of a table."""
    needed = not (spec.ignore or spec.optional or spec.name in masks)
    return needed or spec.name in names or spec.name in mapped.values()


def _blank(spec: ClientInput, rows: int) -> Array:
    made: Array = np.zeros((rows, *(dim if isinstance(dim, int) else 1 for dim in spec.shape[1:])), _dtype(spec))
    if DATATYPES[spec.datatype].kind == "s":
        made[...] = b""
    return made


def _with_rows(spec: ClientInput, row: Mapping[str, Array | None], specs: Sequence[ClientInput]) -> Array:
    """One row's input under its batch axis; a mask that was left out is all ones."""
    value = row.get(spec.name)
    if value is not None:
        return value[None, ...] if isinstance(value, np.ndarray) else np.array([value], _dtype(spec))
    padded = next((row.get(one.name) for one in specs if one.trim == spec.name), None)
    return _blank(spec, 1) if padded is None else np.ones((1, padded.shape[0]), _dtype(spec))


def _dtype(spec: ClientInput) -> np.dtype[np.generic]:
    return DATATYPES[spec.datatype].dtype
