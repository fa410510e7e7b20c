"""Warm: every kind of file becomes the very entries that a proxy asks for, once, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from foreseen.errors import SetupError
from foreseen.modelspec.artifact import read_serving
from foreseen.modelspec.manifest import find
from foreseen.paths import model_socket, redis_socket, state_socket
from foreseen.settings import WarmSettings
from foreseen.stores.state import generation_of, read_generations
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm import Plan, Warmer, plan_for
from foreseen.warm.checkpoint import Progress
from foreseen.warm.run.command import Job, Summary
from foreseen.warm.run.console import pace
from foreseen.warm.run.dry_run import _Distinct
from foreseen.warm.run.via_proxy import hits_of
from foreseen.warm.write.results import where
from tests.live import Live
from tests.models_fixture import PACKAGED
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers

NOWHERE = "unix:/nowhere/model.sock"
Table = dict[str, Any]


class Unwatched:
    """Nobody looks at the progress."""

    def started(self, rows: int | None, done: Progress) -> None: ...
    def moved(self, done: Progress) -> None: ...


class Impatient:
    """Counts what it is told of; unless it is patient it ends the run after the first chunk."""

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.told: list[int] = []

    def started(self, rows: int | None, done: Progress) -> None: ...

    def inside(self, rows: int) -> None:
        self.told.append(rows)

    def moved(self, done: Progress) -> None:
        if not self._patient:
            raise KeyboardInterrupt


def settings(live: Live, **more: Any) -> WarmSettings:
    return WarmSettings(**{"data": live.data, "model": "fingerprint", "checkpoint": live.data / "warm", **more})


def warmed(live: Live, *files: Path | str, **more: Any) -> Summary:
    return Job([str(file) for file in files], settings(live, **more)).go(Unwatched())


def counts(summary: Summary) -> tuple[int, int, int, int]:
    return summary.hit, summary.computed, summary.imported, summary.failed


def refused(live: Live, *files: Path | str, **more: Any) -> str:
    """The one line that a run is refused with."""
    with pytest.raises(SetupError) as error:
        warmed(live, *files, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def digest_of(live: Live, model: str = "fingerprint") -> str:
    said = read_serving(live.data, model)
    assert said is not None
    return said.digest


def rows_of(first: int, count: int) -> list[list[int]]:
    """Rows that no other test of the shared system asks."""
    return [numbers(seed) for seed in range(40_000_000 + first, 40_000_000 + first + count)]


def predicted(rows: Sequence[Sequence[int]]) -> Table:
    """What a batch run would have stored."""
    return {"x": rows, "digest": [fingerprint(row) for row in rows], "seal": [[1]] * len(rows)}


def parquet(path: Path, columns: Table, digest: str | None = None, row_group_size: int | None = None) -> Path:
    table = pa.table(columns)
    if digest is not None:
        table = table.replace_schema_metadata({"foreseen.digest": digest})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def hit(live: Live, *rows: Sequence[int]) -> bool:
    """Whether the proxy answers these from memory, and rightly."""
    _, headers, body = live.post("/v2/models/fingerprint/infer", ask_fingerprint(*rows))
    flat = [value for row in rows for value in fingerprint(row)]
    assert json.loads(body)["outputs"][0]["data"] == flat
    return headers["cache-status"].startswith("foreseen;hit")


def write_jsonl(path: Path, rows: list[list[int]]) -> None:
    path.write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))


def write_v2(path: Path, rows: list[list[int]]) -> None:
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(ask_fingerprint(*rows)) + "\n")


def write_csv_lists(path: Path, rows: list[list[int]]) -> None:
    path.write_text("y,x\n" + "".join(f'a,"{row}"\n' for row in rows))


def write_csv_columns(path: Path, rows: list[list[int]]) -> None:
    lines = [[f"x_{i}" for i in range(16)], *rows]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))


def write_parquet(path: Path, rows: list[list[int]]) -> None:
    parquet(path, {"x": rows}, row_group_size=7)


def write_feather(path: Path, rows: list[list[int]]) -> None:
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([v for row in rows for v in row]), 16)
    feather.write_feather(pa.table({"x": fixed}), str(path))


def write_stream(path: Path, rows: list[list[int]]) -> None:
    table = pa.table({"x": rows})
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=6)


def write_npz(path: Path, rows: list[list[int]]) -> None:
    np.savez_compressed(path, x=np.array(rows), other=np.zeros(len(rows)))


WRITERS = [
    ("a.jsonl", write_jsonl),
    ("b.jsonl.gz", write_v2),
    ("c.csv", write_csv_lists),
    ("d.csv", write_csv_columns),
    ("e.parquet", write_parquet),
    ("f.feather", write_feather),
    ("g.arrow", write_stream),
    ("h.npz", write_npz),
]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
def test_every_kind_of_file_becomes_entries(live: Live, tmp_path: Path, name: str, write: Any) -> None:
    """Computed once, then hits, in the warmer's eyes and in the proxy's; equal rows are computed once."""
    first = 10_000 + 100 * [other for other, _ in WRITERS].index(name)
    rows = rows_of(first, 20)
    write(tmp_path / name, rows + rows[:3])
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    assert counts(warmed(live, tmp_path / name, chunk_rows=8)) == (3, 20, 0, 0)
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") - before == 20
    assert counts(warmed(live, tmp_path / name)) == (23, 0, 0, 0)
    assert hit(live, *rows)


def test_texts_are_keyed_by_their_tokens(live: Live, tmp_path: Path) -> None:
    """What the model cannot tell apart is computed once; a text that looks like a number is a text; --map maps."""
    (tmp_path / "t.csv").write_text('question\n"Warm me, please"\n"WARM  me, please"\n12345678\n"two\nlines"\n')
    done = warmed(live, tmp_path / "t.csv", model="minilm", map=("question=text",))
    assert counts(done) == (1, 3, 0, 0)
    headers = live.post("/v2/models/minilm/infer", ask_minilm("warm me, PLEASE", "12345678", "two lines"))[1]
    assert headers["cache-status"].startswith("foreseen;hit")


def test_globs_folders_and_urls(live: Live, tmp_path: Path) -> None:
    """Files in the order of their names; what is no table is passed over."""
    for i in range(3):
        write_parquet(tmp_path / f"{i}.parquet", rows_of(11_000 + 5 * i, 5))
    (tmp_path / "_SUCCESS").touch()
    assert counts(warmed(live, tmp_path / "[01].parquet")) == (0, 10, 0, 0)
    assert counts(warmed(live, tmp_path)) == (10, 5, 0, 0)
    with fsspec.open("memory://warm/a.jsonl", "wt") as file:
        file.write(json.dumps({"x": numbers(11_100)}))
    assert counts(warmed(live, "memory://warm/a.jsonl")) == (0, 1, 0, 0)
    assert counts(warmed(live, "memory://warm/*.jsonl")) == (1, 0, 0, 0)


def test_parameters_are_part_of_the_key(live: Live, tmp_path: Path) -> None:
    """A V2 line's parameters separate entries, as they do at the proxy."""
    body = {**ask_fingerprint(numbers(11_200)), "parameters": {"mode": "b"}}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [ask_fingerprint(numbers(11_200)), body])))
    assert counts(warmed(live, tmp_path / "a.jsonl")) == (0, 2, 0, 0)
    assert live.post("/v2/models/fingerprint/infer", body)[1]["cache-status"].startswith("foreseen;hit")


def test_bad_rows_are_set_aside_with_their_reason(live: Live, tmp_path: Path) -> None:
    """The run goes on; the rejects name file, row and reason; the rest is warmed."""
    lines = [json.dumps({"x": numbers(11_300)}), '{"x": [1, 2]}', "{", '{"x": null}', '{"x": ["a"]}', '{"y": 1}', "7"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"x": numbers(11_301)})]))
    done = warmed(live, path, chunk_rows=3)
    assert counts(done) == (0, 2, 0, 6)
    assert done.rejects is not None
    rejects = [json.loads(line) for line in Path(done.rejects).read_text().splitlines()]
    assert [(r["file"], r["row"]) for r in rejects] == [(str(path), row) for row in range(1, 7)]
    assert "takes 16" in rejects[0]["reason"]
    assert "null" in rejects[2]["reason"]
    assert hit(live, numbers(11_300), numbers(11_301))


def test_ragged_rows(live: Live, tmp_path: Path) -> None:
    """Lists of another length, nulls, cells too few, numbers that do not fit: each row by itself."""
    good = numbers(11_400)
    short, holed = good[:3], [None, *good[1:]]
    assert counts(warmed(live, parquet(tmp_path / "a.parquet", {"x": [good, short, None, holed]}))) == (0, 1, 0, 3)
    (tmp_path / "b.csv").write_text(f'x,y\n"{numbers(11_401)}",1\n"{good}"\n"[1.5, 2]",1\nhello,1\n')
    assert counts(warmed(live, tmp_path / "b.csv")) == (0, 1, 0, 3)
    floats = [[float(v) for v in numbers(11_402)], [0.5] * 16]
    assert counts(warmed(live, parquet(tmp_path / "c.parquet", {"x": floats}))) == (0, 1, 0, 1)
    (tmp_path / "d.csv").write_bytes(b"text\nfine\n\xff\xfe\n")
    assert counts(warmed(live, tmp_path / "d.csv", model="minilm")) == (0, 1, 0, 1)


def test_import_needs_no_model(live: Live, tmp_path: Path) -> None:
    """With the process away its last word counts; all rows are hits afterwards and none was computed."""
    rows = rows_of(12_000, 50)
    file = parquet(tmp_path / "a.parquet", predicted(rows), digest_of(live))
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    assert counts(warmed(live, file, outputs=("all",), address=NOWHERE, chunk_rows=16)) == (0, 0, 50, 0)
    assert hit(live, *rows)
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") == before
    assert counts(warmed(live, file, outputs=("all",), address=NOWHERE)) == (50, 0, 0, 0)


def test_import_of_columns_called_otherwise(live: Live, tmp_path: Path) -> None:
    """The digest may be a column or a flag, columns may have any name, JSON lines do as well."""
    rows = rows_of(12_100, 4)
    columns = predicted(rows)
    named = {"in": columns["x"], "out": columns["digest"], "s_0": [1] * 4, "foreseen.digest": [digest_of(live)] * 4}
    file = parquet(tmp_path / "a.parquet", named)
    done = warmed(live, file, map=("in=x",), outputs=("out=digest", "s_0=seal"), address=NOWHERE)
    assert counts(done) == (0, 0, 4, 0)
    lines = [{name: columns[name][i] for name in columns} for i in range(4)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert counts(warmed(live, tmp_path / "b.jsonl", outputs=("all",), digest=digest_of(live))) == (4, 0, 0, 0)
    assert hit(live, *rows)


def test_import_of_another_models_predictions_is_refused(live: Live, tmp_path: Path) -> None:
    """By metadata, by flag, by column, and where nothing says which model it was: nothing is written."""
    rows = rows_of(12_200, 3)
    plain = parquet(tmp_path / "plain.parquet", predicted(rows))
    strange = parquet(tmp_path / "strange.parquet", predicted(rows), "ab" * 32)
    column = parquet(tmp_path / "c.parquet", {**predicted(rows), "foreseen.digest": [digest_of(live)] * 2 + ["x"]})
    assert f"say --digest {digest_of(live)}" in refused(live, plain, outputs=("all",))
    assert "was computed by model abababab" in refused(live, strange, outputs=("all",))
    assert "was computed by model cd" in refused(live, plain, outputs=("all",), digest="cd" * 32)
    assert "hold predictions of model x" in refused(live, column, outputs=("all",))
    assert not hit(live, *rows)


def test_verify_computes_a_sample_first(live: Live, tmp_path: Path) -> None:
    """One wrong prediction in a sampled row and nothing at all is imported."""
    rows = rows_of(12_300, 30)
    columns = predicted(rows)
    columns["digest"][29] = [0, 0, 0, 0]
    file = parquet(tmp_path / "a.parquet", columns, digest_of(live))
    said = refused(live, file, outputs=("all",), verify="100%", chunk_rows=8)
    assert said.startswith(f"row 29 of {file}: digest is not what the model computes")
    assert not hit(live, *rows[:29])
    good = parquet(tmp_path / "b.parquet", predicted(rows_of(12_400, 30)), digest_of(live))
    assert counts(warmed(live, good, outputs=("all",), verify="50%")) == (0, 0, 30, 0)
    assert "start it" in refused(live, good, outputs=("all",), verify="50%", address=NOWHERE)


def test_predictions_that_no_model_gives_are_not_imported(live: Live, tmp_path: Path) -> None:
    """NaN and rows of another shape are set aside."""
    columns = {"text": ["nan nan", "short", "good one"], "embedding": [[np.nan] * 384, [0.5] * 3, [0.5] * 384]}
    path = tmp_path / "a.parquet"
    if len(find("minilm", PACKAGED).model.outputs) == 1:
        columns = {"text": columns["text"], find("minilm", PACKAGED).model.outputs[0].name: columns["embedding"]}
    file = parquet(path, columns, digest_of(live, "minilm"))
    assert counts(warmed(live, file, model="minilm", outputs=("all",))) == (0, 0, 1, 2)
    headers = live.post("/v2/models/minilm/infer", ask_minilm("GOOD one"))[1]
    assert headers["cache-status"].startswith("foreseen;hit")


def test_results_can_be_imported_again(live: Live, tmp_path: Path) -> None:
    """--out holds inputs, outputs and digest; after the cache is lost an import brings all of it back."""
    rows = rows_of(12_500, 25)
    file = parquet(tmp_path / "a.parquet", {"x": rows, "more": ["m"] * 25})
    warmed(live, file, out=tmp_path / "out", chunk_rows=10)
    parts = sorted((tmp_path / "out").iterdir())
    assert len(parts) == 3
    assert pq.read_schema(parts[0]).metadata[b"foreseen.digest"].decode() == digest_of(live)
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    assert table.column("digest").to_pylist() == [fingerprint(row) for row in rows]
    assert table.column("more").to_pylist() == ["m"] * 25
    keys = table.column("foreseen.key").to_pylist()
    digest = digest_of(live)
    generation = generation_of(read_generations(f"unix://{state_socket(live.data)}"), PUBLIC, "fingerprint", digest)
    warmer = Warmer(
        Plan(manifest=find("fingerprint", PACKAGED), scope=PUBLIC, digest=digest, data=live.data, generation=generation)
    )
    assert [row["key"] for row in warmer(pa.table({"x": rows})).to_pylist()] == keys
    warmer.close()
    assert counts(warmed(live, tmp_path / "out", outputs=("all",))) == (25, 0, 0, 0)
    warmed(live, tmp_path / "out", out=tmp_path / "again")
    assert counts(warmed(live, tmp_path / "again", outputs=("all",))) == (25, 0, 0, 0)


def test_results_in_a_database(live: Live, tmp_path: Path) -> None:
    """One row per key, however often the same command runs; PostgreSQL takes the same statements."""
    rows = rows_of(12_600, 10)
    file = parquet(tmp_path / "a.parquet", {"x": rows + rows[:2]})
    for _ in range(2):
        warmed(live, file, sql=f"sqlite:///{tmp_path}/p.db", sql_table="answers")
    with sqlite3.connect(tmp_path / "p.db") as database:
        stored = database.execute("SELECT inputs, outputs, digest FROM answers").fetchall()
    database.close()
    assert len(stored) == 10
    told = {json.dumps(json.loads(i)["x"]): json.loads(o)["digest"] for i, o, _ in stored}
    assert told == {json.dumps(row): fingerprint(row) for row in rows}
    assert "sqlite" in refused(live, file, sql="mysql://x/y") or "No module" in refused(live, file, sql="mysql://x/y")


def test_through_a_proxy(live: Live, tmp_path: Path) -> None:
    """Neither secret nor Redis: rows are asked for, equal ones once; Cache-Status is counted."""
    rows = rows_of(20_000, 300)
    file = parquet(tmp_path / "a.parquet", {"x": [*rows, rows[0], rows[0][:2]]})
    apart: dict[str, Any] = {"data": tmp_path / "none", "checkpoint": None, "url": live.url}
    assert hit(live, rows[0]) is False
    assert counts(warmed(live, file, **apart)) == (2, 299, 0, 1)
    assert counts(warmed(live, file, **apart, out=tmp_path / "out")) == (301, 0, 0, 1)
    assert hit(live, *rows)
    assert counts(warmed(live, tmp_path / "out", outputs=("all",))) == (301, 0, 0, 0)
    (tmp_path / "t.jsonl").write_text('{"text": "through and through"}\n{"text": 5}\n')
    assert counts(warmed(live, tmp_path / "t.jsonl", model="minilm", **apart)) == (0, 1, 0, 1)
    assert hits_of('foreseen;fwd=partial;detail="48/64"', 64) == 48
    assert hits_of("foreseen;fwd=miss;stored", 64) == 0


def test_the_summary_says_where_and_what(live: Live, tmp_path: Path) -> None:
    """Equal rows, what an attempt before had done, where the results lie; the password of a database is not said."""
    rows = rows_of(21_000, 20)
    file = parquet(tmp_path / "a.parquet", {"x": [*rows, *rows[:5]]})
    words = {"chunk_rows": 10, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        Job([str(file)], settings(live, **words)).go(Impatient())
    done = warmed(live, file, **words)
    assert (done.rows, done.resumed, done.equal) == (25, 10, 0)  # the rows that are equal were in the first attempt
    assert done.results == f"{tmp_path / 'out'} (Parquet)"
    done = warmed(live, file, chunk_rows=10)
    assert (done.rows, done.resumed, done.equal, done.results) == (25, 0, 5, None)
    said = where(settings(live, sql="postgresql+psycopg://me:secret@host/db?password=secret", sql_table="t"))
    assert said == "postgresql+psycopg://host/db: table t, one row per input row in view t_by_row"


def test_rows_inside_a_chunk_are_progress(live: Live, tmp_path: Path) -> None:
    """They are told of as soon as the model, the proxy or Redis has answered, whatever the size of the chunk."""
    for first, more in enumerate(({}, {"url": live.url}, {"outputs": ("all",), "digest": digest_of(live)})):
        rows = rows_of(22_000 + 1000 * first, 600)
        file = parquet(tmp_path / f"{first}.parquet", predicted(rows))
        looker = Impatient(patient=True)
        Job([str(file)], settings(live, **more)).go(looker, looker)
        assert sum(looker.told) == 600
        assert len(looker.told) > 1 or "outputs" in more


def test_the_pace_in_words() -> None:
    """Rows, rate and the time that is left; an estimate that turns out too low never says less than nothing."""
    assert pace(0, 100, 0.0) == "reading"
    assert pace(50, 100, 10.0) == "50 of 100 rows, 10 rows/s, 5 s left"
    assert pace(1000, 1_000_000, 100.0) == "1,000 of 1,000,000 rows, 100 rows/s, 2 h 46 min left"
    assert pace(70, 1000, 10.0).endswith("1 min 33 s left")
    assert pace(50, None, 10.0) == "50 rows, 10 rows/s"


def test_the_estimate_is_of_all_rows(live: Live, tmp_path: Path) -> None:
    """The sample is drawn over the whole file, not from its first rows, and the rate counts."""
    texts = ["short"] * 5 + [f"a longer text about {i} " * 8 for i in range(60)]
    file = parquet(tmp_path / "a.parquet", {"text": texts})
    told = Job([str(file)], settings(live, model="minilm", rows_per_second=1.0)).dry()
    assert (told.rows, told.distinct) == (65, 61)
    assert told.seconds is not None
    assert told.seconds >= 61


def test_dry_run_changes_nothing(live: Live, tmp_path: Path) -> None:
    """Rows, distinct rows, what is cached, and what the rest would cost."""
    rows = rows_of(12_800, 40)
    warmed(live, parquet(tmp_path / "a.parquet", {"x": rows[:10]}))
    told = Job([str(parquet(tmp_path / "b.parquet", {"x": rows + rows + [[1]]}))], settings(live)).dry()
    assert (told.rows, told.distinct, told.cached, told.failed, told.estimated) == (81, 40, 10, 1, False)
    assert told.seconds is not None
    assert told.far_bytes > 30 * 300
    importing = parquet(tmp_path / "c.parquet", predicted(rows), digest_of(live))
    told = Job([str(importing)], settings(live, outputs=("all",), address=NOWHERE)).dry()
    assert (told.rows, told.distinct, told.cached) == (40, 40, 10)
    assert told.seconds is not None
    assert not hit(live, rows[20])


def test_distinct_rows_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound the count is an estimate from a sample of the keys."""
    monkeypatch.setattr("foreseen.warm.run.dry_run.SAMPLE_KEYS", 2000)
    counter = _Distinct()
    dice = np.random.default_rng(0)
    for key in dice.bytes(32 * 50_000)[:].hex(" ", 32).split():
        counter.add(bytes.fromhex(key), cached=False)
        counter.add(bytes.fromhex(key), cached=False)
    assert abs(counter.counts()[0] - 50_000) < 5_000


def test_after_a_purge_the_new_space_is_warmed(own: Live, tmp_path: Path) -> None:
    """What was purged is computed again, under keys that the proxy asks for; without the state store nobody guesses."""
    rows = rows_of(0, 5)
    file = parquet(tmp_path / "a.parquet", {"x": rows})
    assert counts(warmed(own, file)) == (0, 5, 0, 0)
    purge = [sys.executable, "-m", "foreseen.cli", "purge", f"--data={own.data}", "--model=fingerprint"]
    subprocess.run(purge, check=True, capture_output=True)
    assert not hit(own, rows[0])
    assert counts(warmed(own, file)) == (1, 4, 0, 0)
    assert hit(own, *rows)
    assert "purges are not known" in refused(own, file, state="unix:///nowhere")
    apart: dict[str, Any] = {"data": tmp_path, "address": f"unix:{model_socket(own.data, 'fingerprint')}"}
    assert "give --state of the proxies" in refused(own, file, redis=f"unix://{redis_socket(own.data)}", **apart)


def test_a_warmer_follows_purges(own: Live) -> None:
    """A program's own Warmer asks the state store: what it writes after a purge is what the proxy asks for, also where
    the purge came while it was open."""
    plan = plan_for("fingerprint", own.data)
    assert plan.generation is None
    purge = [sys.executable, "-m", "foreseen.cli", "purge", f"--data={own.data}", "--model=fingerprint"]
    warmer = Warmer(plan)
    for first in 0, 10:
        table = pa.table({"x": rows_of(first, 3)})
        assert set(warmer(table).column("result").to_pylist()) == {"computed"}
        subprocess.run(purge, check=True, capture_output=True)
        warmer._open._generations._asked_at = 0.0  # type: ignore[union-attr] # a second later
        assert set(warmer(table).column("result").to_pylist()) == {"computed"}
        assert hit(own, *rows_of(first, 3))
    own.signal("state", signal.SIGSTOP)  # a store that says nothing takes no purge: what it said last counts
    try:
        warmer._open._generations._asked_at = 0.0  # type: ignore[union-attr]
        assert set(warmer(table).column("result").to_pylist()) == {"hit"}
    finally:
        own.signal("state", signal.SIGCONT)
    warmer.close()


def test_the_documented_program_runs(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/batch.md, as it stands there, in a folder whose `data` is a running system's."""
    page = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
    (example,) = re.findall(r"```python[^\n]*\n(from foreseen\.warm import .*?)```", page, re.DOTALL)
    (tmp_path / "data").symlink_to(live.data)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/batch.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["computed", "computed"]
    headers = live.post("/v2/models/minilm/infer", ask_minilm("How long does a card take?"))[1]
    assert headers["cache-status"].startswith("foreseen;hit")


def test_a_warmer_travels(live: Live) -> None:
    """Pickled, it opens its connections where it arrives; what it carries is no secret."""
    plan = Plan(manifest=find("fingerprint", PACKAGED), scope=PUBLIC, digest=digest_of(live), data=live.data)
    warmer = Warmer(plan)
    table = pa.table({"x": rows_of(12_900, 5)})
    assert set(warmer(table).column("result").to_pylist()) == {"computed"}
    sent = pickle.dumps(warmer)
    assert (live.data / "secret").read_bytes().strip() not in sent
    arrived: Warmer = pickle.loads(sent)
    assert set(arrived(table).column("result").to_pylist()) == {"hit"}
    assert arrived(table.slice(0, 0)).num_rows == 0
    warmer.close()
    arrived.close()


def test_a_rate_is_held(live: Live, tmp_path: Path) -> None:
    """--rows-per-second bounds what the model is asked for: a second's rows at a time, and the rest waits for them."""
    file = parquet(tmp_path / "a.parquet", {"x": rows_of(13_000, 150)})
    started = time.monotonic()
    assert counts(warmed(live, file, rows_per_second=100.0)) == (0, 150, 0, 0)
    assert time.monotonic() - started >= 0.49


def test_every_mistake_is_one_line(live: Live, tmp_path: Path) -> None:
    """Each says what to do, and nothing is half-written."""
    good = parquet(tmp_path / "good.parquet", {"x": rows_of(13_200, 3)})
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "head.csv").write_text("x\n")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"text\n" + b"a text\n" * 9000)[:-30])
    wrong = parquet(tmp_path / "wrong.parquet", {"y": [1, 2]})
    words = parquet(tmp_path / "words.parquet", {"text": [[1.5]]})
    (tmp_path / "other").write_text("another root secret of at least 32 bytes")
    (tmp_path / "other").chmod(0o600)
    for said, told in {
        "is empty; remove it": refused(live, good, tmp_path / "empty.parquet"),
        "is cut short or not what its name says": refused(live, good, tmp_path / "cut.parquet"),
        "holds no rows": refused(live, tmp_path / "head.csv"),
        "cut short": refused(live, tmp_path / "cut.npz"),
        "there is no such file": refused(live, tmp_path / "missing.parquet"),
        "call it .jsonl": refused(live, tmp_path / "other"),
        "no file there is": refused(live, str(tmp_path / "*.md")),
        "no column for 'x'; the file has y; give --map COLUMN=x": refused(live, wrong),
        "there is no column 'z'": refused(live, good, map=("z=x",)),
        "say COLUMN=NAME with an input of the model: x": refused(live, good, map=("x=z",)),
        "no column for 'digest'": refused(live, good, outputs=("all",), digest="ab"),
        "is nested 1 deep": refused(live, words, model="minilm"),
        "no model called 'nobody'": refused(live, good, model="nobody"),
        "does not run under": refused(live, good, address=NOWHERE),
        "redis unix:///nowhere": refused(live, good, redis="unix:///nowhere"),
        "no root secret": refused(live, good, secret_file=tmp_path / "nothing"),
        "cannot be reached; start it": refused(live, good, url="http://127.0.0.1:9"),
        "serves no model": refused(live, good, url=live.url, model="nobody"),
        "give --out a folder that can be written": refused(live, good, out=good / "under"),
        "needs the proxy's admin token": refused(live, good, url=live.url, outputs=("all",), data=tmp_path),
        "goes with --outputs": refused(live, good, verify="1%"),
        "is not a share": refused(live, good, outputs=("all",), verify="many"),
        "no files": refused(live),
    }.items():
        assert said in told
    assert "filled under another root secret" in refused(live, good, secret_file=tmp_path / "other")
    assert not hit(live, numbers(13_200))


def test_the_command(live: Live, tmp_path: Path) -> None:
    """JSON alone on stdout; status 1 and one line where more failed than the budget allows."""
    file = parquet(tmp_path / "a.parquet", {"x": [*rows_of(13_400, 9), [1]]})
    command = [sys.executable, "-m", "foreseen.cli", "warm", str(file), f"--data={live.data}", "--model=fingerprint"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["computed"] == 9
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"foreseen: 1 of 10 rows failed, the first: row 9 of {file}: x: has 1 elements")
    done = subprocess.run([*command, "--error-budget", "10%"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hit" in done.stdout
    told = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "nothing was changed" in told.stdout
    failed = subprocess.run([*command[:-1], "--model=nobody"], capture_output=True, text=True, check=False)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)
