"""Predictions in a database: one row per key in SQLite and in a real PostgreSQL, however often a run is repeated."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from tests.live import Live
from tests.postgres import OWNER, postgres
from tests.questions import ask_fingerprint, fingerprint
from tests.warm.test_warm import counts, digest_of, parquet, refused, rows_of, warmed


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/p.db"
    url: str = request.getfixturevalue("server")
    return url


def stored(url: str, table: str) -> list[tuple[str, str, str, str]]:
    engine = sql.create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(sql.text(f"SELECT key, inputs, outputs, digest FROM {table}")).fetchall()
    engine.dispose()
    return [tuple(row) for row in found]


def test_one_row_per_key(live: Live, tmp_path: Path, database: str) -> None:
    """Inputs, outputs and digest as JSON; equal rows, a repeated run and another file with them add nothing."""
    rows = rows_of(90_000, 30)
    file = parquet(tmp_path / "a.parquet", {"x": rows + rows[:5], "id": [f"é{i}" for i in range(35)]})
    for _ in range(2):
        warmed(live, file, sql=database, sql_table="answers", chunk_rows=8)
    more = parquet(tmp_path / "b.parquet", {"x": rows[20:] + rows_of(90_100, 4), "id": ["b"] * 14})
    warmed(live, more, sql=database, sql_table="answers")
    found = stored(database, "answers")
    told = {json.dumps(json.loads(i)["x"]): json.loads(o)["digest"] for _, i, o, _ in found}
    assert len(found) == 34
    assert told == {json.dumps(row): fingerprint(row) for row in rows + rows_of(90_100, 4)}
    assert {digest for *_, digest in found} == {digest_of(live)}
    assert all(len(key) == 64 for key, *_ in found)


def test_one_row_per_row_of_the_input(live: Live, tmp_path: Path, database: str) -> None:
    """Equal rows keep their own ids: the view has one row each, with the answer; a repeated run adds nothing."""
    rows = rows_of(93_000, 4)
    lines = [{"x": rows[i % 4], "id": f"id {i}"} for i in range(10)] + [{"x": [1], "id": "bad"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    request = json.dumps(ask_fingerprint(*rows))  # one line that holds four rows
    (tmp_path / "b.jsonl").write_text(request)
    for _ in range(2):
        warmed(live, tmp_path / "a.jsonl", tmp_path / "b.jsonl", sql=database, sql_table="answers_93", chunk_rows=4)
    engine = sql.create_engine(database)
    with engine.connect() as connection:
        found = connection.execute(sql.text("SELECT * FROM answers_93_by_row ORDER BY file, row_number, item"))
        names, told = list(found.keys()), [row._mapping for row in found]
    engine.dispose()
    assert not any("." in name for name in names)
    assert len(stored(database, "answers_93")) == 4
    assert [json.loads(one["inputs"]).get("id") for one in told] == [f"id {i}" for i in range(10)] + [None] * 4
    assert [(one["row_number"], one["item"]) for one in told[10:]] == [(0, i) for i in range(4)]
    assert [json.loads(one["outputs"])["digest"] for one in told[:10]] == [fingerprint(rows[i % 4]) for i in range(10)]


def test_two_runs_at_a_time_share_a_table(live: Live, tmp_path: Path, server: str) -> None:
    """The same rows in opposite orders: neither waits for the other in a circle, and no row is there twice."""
    rows = rows_of(91_000, 400)
    files = [parquet(tmp_path / f"{i}.parquet", {"x": part}) for i, part in enumerate((rows, rows[::-1]))]
    told: list[tuple[int, int, int, int]] = []
    runs = [
        threading.Thread(
            target=lambda file=file: told.append(
                counts(warmed(live, file, sql=server, sql_table="shared", chunk_rows=50))
            )
        )
        for file in files
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [sum(one) for one in told] == [400, 400]
    assert len(stored(server, "shared")) == 400


def test_what_a_database_refuses_is_one_line(live: Live, tmp_path: Path, server: str) -> None:
    """Away, no such database, no right to make a table, a table of somebody else's."""
    file = parquet(tmp_path / "a.parquet", {"x": rows_of(92_000, 3)})
    engine = sql.create_engine(server)
    with engine.begin() as connection:
        connection.execute(sql.text("CREATE ROLE reader LOGIN"))
        connection.execute(sql.text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        connection.execute(sql.text("CREATE TABLE strange (key varchar PRIMARY KEY, n int)"))
    engine.dispose()
    for said, url in {
        "does not exist": server.replace("/postgres?", "/nobody?"),
        "permission denied for schema public": server.replace(OWNER, "reader"),
        "connection": server.replace("host=/tmp/", "host=/tmp/not-"),
        "unable to open database file": f"sqlite:///{tmp_path}/none/p.db",
    }.items():
        told = refused(live, file, sql=url)
        assert told.startswith("--sql: ")
        assert said in told
    told = refused(live, file, sql=server, sql_table="strange")
    assert told == "--sql: table 'strange' has no column 'model', it is not a run's; give another --sql-table"
