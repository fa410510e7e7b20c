"""Writes a run's results: Parquet parts that can be imported again, or a table of a database.

A part is written to a temporary file, synced and renamed. Its name says which rows of which file it holds, so a resumed
run writes the same parts again or none. Rows of a database are inserted by key, once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from foreseen.errors import BadRequest, SetupError
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES, elements
from foreseen.protocol.tensors import array_of_raw, json_of_raw
from foreseen.settings import WarmSettings
from foreseen.types import Output, Prediction
from foreseen.warm.plan import LINE_COLUMN, PARAMETERS_COLUMN, REJECT_COLUMN, Plan, Warmed
from foreseen.warm.read.looks import DIGEST_METADATA
from foreseen.warm.read.reader import Chunk
from foreseen.warm.write.importer import MADE_AT_COLUMN, OUTPUT_PREFIX, SECONDS_COLUMN

KEY_COLUMN = "foreseen.key"


_BOUNDS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 60},  # another run may hold the file
    "postgresql": {"connect_timeout": 10, "options": "-c statement_timeout=60000", "tcp_user_timeout": 60_000},
}
"""No database is waited for without end: seconds, and milliseconds where they are PostgreSQL's own."""


class Store(Protocol):
    """A store of predictions. `write` is idempotent and has stored its rows when it returns."""

    def write(self, file: int, url: str, chunk: Chunk, warmed: Warmed) -> None: ...
    def close(self) -> None: ...


def store_of(settings: WarmSettings, plan: Plan, run: str) -> Store | None:
    """The store that was asked for, if any. Raises SetupError where it cannot be written."""
    if settings.out is not None:
        return ParquetFolder(settings.out, plan.manifest, plan.digest, run)
    if settings.sql is not None:
        return Database(settings.sql, settings.sql_table, plan.manifest, plan.digest)
    return None


class ParquetFolder:
    """Parts in a folder, with the model digest in each one's metadata."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str, run: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".{run}").touch()
            (folder / f".{run}").unlink()
        except OSError as error:
            raise SetupError(f"{folder}: {error.strerror}; give --out a folder that can be written") from None
        self._folder, self._run = folder, run
        self._outputs = manifest.model.outputs
        self._metadata = {DIGEST_METADATA: digest.encode(), b"foreseen.model": manifest.name.encode()}

    def write(self, file: int, url: str, chunk: Chunk, warmed: Warmed) -> None:
        good = [i for i, key in enumerate(warmed.keys) if key and key in warmed.predictions]
        if not good:
            return
        table = pa.Table.from_batches([chunk.batch.take(pa.array(good))])
        table = table.drop_columns([n for n in (REJECT_COLUMN, LINE_COLUMN) if n in table.column_names])
        predictions = [warmed.predictions[warmed.keys[i]] for i in good]
        for index, head in enumerate(predictions[0].outputs):
            name = OUTPUT_PREFIX + head.name if head.name in table.column_names else head.name
            table = table.append_column(name, _column(head, index, predictions))
        keys = pa.array([warmed.keys[i] for i in good], pa.binary())
        table = table.append_column(KEY_COLUMN, keys)
        table = table.append_column(MADE_AT_COLUMN, pa.array([p.made_at for p in predictions], pa.float64()))
        table = table.append_column(SECONDS_COLUMN, pa.array([p.seconds for p in predictions], pa.float32()))
        name = f"part-{self._run}-{file:05d}-{chunk.start:012d}.parquet"
        beside = self._folder / f".{name}"
        try:
            with beside.open("wb") as handle:
                pq.write_table(table.replace_schema_metadata(self._metadata), handle, compression="zstd")
                handle.flush()
                os.fsync(handle.fileno())
            beside.replace(self._folder / name)
        except OSError as error:
            raise SetupError(f"{self._folder}: {error.strerror}; run the same command to go on") from None

    def close(self) -> None:
        pass


class Database:
    """Answers by key, once each, and which key every row of the input has.

    TABLE          key (hex, primary), model, digest, inputs and outputs as JSON, made_at, seconds
    TABLE_rows     model, file, row_number and item (of a line that holds several) → key, all columns as JSON
    TABLE_by_row   a view: one row per input row, with its columns and its answer
    """

    def __init__(self, url: str, table: str, manifest: Manifest, digest: str) -> None:
        try:
            import sqlalchemy as sql
            from sqlalchemy.dialects import postgresql, sqlite
        except ImportError:
            raise SetupError("--sql needs SQLAlchemy; install foreseen[warm], see docs/install.md") from None
        self._error = sql.exc.SQLAlchemyError
        self._url, self._manifest, self._digest = url, manifest, digest
        inserts: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        try:
            kind = sql.make_url(url).get_dialect().name
            if kind not in inserts:
                raise SetupError("--sql takes sqlite:///FILE and postgresql+psycopg://USER@HOST/NAME")
            self._engine = sql.create_engine(url, connect_args=_BOUNDS[kind])
        except (self._error, ImportError) as error:
            raise SetupError(f"--sql: {_line(error)}") from None
        schema, _, name = table.rpartition(".")  # a dot in a name would have to be quoted by every reader
        metadata = sql.MetaData(schema=schema or None)
        self._answers = sql.Table(
            name,
            metadata,
            sql.Column("key", sql.String(64), primary_key=True),
            *(sql.Column(column, kind, nullable=False) for column, kind in _answer_columns(sql)),
        )
        self._rows = sql.Table(
            f"{name}_rows",
            metadata,
            *(sql.Column(column, kind, primary_key=True) for column, kind in _place_columns(sql)),
            sql.Column("key", sql.String(64), nullable=False),
            sql.Column("inputs", sql.Text, nullable=False),
        )
        self._view = f"{name}_by_row"
        self._insert = inserts[kind](self._answers).on_conflict_do_nothing(index_elements=["key"])
        upsert = inserts[kind](self._rows)
        self._upsert = upsert.on_conflict_do_update(
            index_elements=[column for column, _ in _place_columns(sql)],
            set_={"key": upsert.excluded.key, "inputs": upsert.excluded.inputs},
        )
        try:
            for one in (self._answers, self._rows):
                self._make_ready(one, sql.inspect)
            self._make_view(sql)
        except self._error as error:
            self._engine.dispose()
            raise SetupError(f"--sql: {_line(error)}") from None
        except SetupError:
            self._engine.dispose()
            raise

    def _make_ready(self, table: Any, inspect: Callable[[Any], Any]) -> None:
        """Create the table if it is missing. A table of another layout is refused before anything is computed."""
        try:
            table.create(self._engine, checkfirst=True)
        except self._error:
            if not inspect(self._engine).has_table(table.name, table.schema):  # two runs may make it at the same moment
                raise
        have = {column["name"] for column in inspect(self._engine).get_columns(table.name, table.schema)}
        lacking = [column.name for column in table.columns if column.name not in have]
        if lacking:
            lack = f"table {table.name!r} has no column {lacking[0]!r}"
            raise SetupError(f"--sql: {lack}, it is not a run's; give another --sql-table")

    def _make_view(self, sql: Any) -> None:
        answers, rows = self._answers.c, self._rows.c
        chosen = sql.select(
            *(rows[column] for column, _ in _place_columns(sql)),
            rows.inputs,
            answers.key,
            *(answers[column] for column in ("digest", "outputs", "made_at", "seconds")),
        ).join_from(self._rows, self._answers, rows.key == answers.key)
        named = self._engine.dialect.identifier_preparer.format_table(
            sql.Table(self._view, sql.MetaData(schema=self._answers.schema))
        )
        try:
            if self._view not in sql.inspect(self._engine).get_view_names(self._answers.schema):
                with self._engine.begin() as connection:
                    connection.execute(sql.text(f"CREATE VIEW {named} AS {chosen.compile(self._engine)}"))
        except self._error:
            if self._view not in sql.inspect(self._engine).get_view_names(self._answers.schema):
                raise

    def write(self, file: int, url: str, chunk: Chunk, warmed: Warmed) -> None:
        own = (REJECT_COLUMN, LINE_COLUMN, PARAMETERS_COLUMN)
        inputs = [name for name in chunk.batch.schema.names if name not in own]
        answers: dict[bytes, dict[str, Any]] = {}
        rows: list[dict[str, Any]] = []
        line, item = -1, 0
        for i, key in enumerate(warmed.keys):
            line, item = chunk.line(i), item + 1 if chunk.line(i) == line else 0
            prediction = warmed.predictions.get(key) if key else None
            if prediction is None:
                continue
            shown = _json({name: chunk.batch.column(name)[i].as_py() for name in inputs})
            place = {"model": self._manifest.name, "file": url, "row_number": line, "item": item}
            rows.append({**place, "key": key.hex(), "inputs": shown})
            if key not in answers:
                answers[key] = self._answer(key, prediction, shown)
        try:
            if rows:
                with self._engine.begin() as connection:
                    # In the order of keys, so that two runs never wait for each other's rows in a circle.
                    connection.execute(self._insert, [answers[key] for key in sorted(answers)])
                    connection.execute(self._upsert, rows)
        except self._error as error:
            raise SetupError(f"--sql: {_line(error)}; run the same command to go on") from None

    def _answer(self, key: bytes, prediction: Prediction, inputs: str) -> dict[str, Any]:
        outputs = {o.name: _plain(o, d) for o, d in zip(prediction.outputs, prediction.data, strict=True)}
        return {
            "key": key.hex(),
            "model": self._manifest.name,
            "digest": self._digest,
            "inputs": inputs,
            "outputs": _json(outputs),
            "made_at": prediction.made_at,
            "seconds": prediction.seconds,
        }

    def close(self) -> None:
        self._engine.dispose()


def _answer_columns(sql: Any) -> list[tuple[str, Any]]:
    texts = [("model", sql.Text), ("digest", sql.String(64)), ("inputs", sql.Text), ("outputs", sql.Text)]
    return [*texts, ("made_at", sql.Float), ("seconds", sql.Float)]


def _place_columns(sql: Any) -> list[tuple[str, Any]]:
    """The fields that name one row of the input."""
    return [("model", sql.Text), ("file", sql.Text), ("row_number", sql.BigInteger), ("item", sql.Integer)]


def where(settings: WarmSettings) -> str | None:
    """The place of a run's predictions as text, without a password."""
    if settings.out is not None:
        return f"{settings.out} (Parquet)"
    if settings.sql is None:
        return None
    place = urlsplit(settings.sql)
    host = place.netloc.rpartition("@")[2]
    table = settings.sql_table
    return f"{place.scheme}://{host}{place.path}: table {table}, one row per input row in view {table}_by_row"


def _column(head: Output, index: int, predictions: Sequence[Prediction]) -> pa.Array:
    """One output of all rows: scalars, or flat lists, of fixed size where all rows have one."""
    datatype = DATATYPES[head.datatype]
    shapes = {p.outputs[index].shape for p in predictions}
    raw = [p.data[index] for p in predictions]
    if datatype.kind == "s":
        items = [
            array_of_raw(r, datatype, p.outputs[index].shape, head.name) for r, p in zip(raw, predictions, strict=True)
        ]
        lists = [array.ravel().tolist() for array in items]
        return pa.array([one[0] for one in lists], pa.binary()) if shapes == {()} else pa.array(lists)
    flat = np.frombuffer(b"".join(raw), datatype.dtype)
    values = pa.array(flat if flat.dtype.kind in "biuf" else flat.astype(np.float32))
    if shapes == {()}:
        return values
    sizes = [elements(p.outputs[index].shape) for p in predictions]
    if len(shapes) == 1:
        return pa.FixedSizeListArray.from_arrays(values, sizes[0])
    return pa.ListArray.from_arrays(pa.array(np.concatenate(([0], np.cumsum(sizes))), pa.int32()), values)


def _plain(head: Output, raw: bytes) -> Any:
    try:
        return json_of_raw(raw, DATATYPES[head.datatype], elements(head.shape), head.name)
    except BadRequest:
        return {"hex": raw.hex()}


def _json(document: Any) -> str:
    def other(value: Any) -> Any:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return orjson.dumps(document, default=other, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _line(error: Exception) -> str:
    """The database's own message, without the statement and the values that SQLAlchemy adds."""
    said = getattr(error, "orig", None) or error
    return " ".join(str(said).split())[:200]
