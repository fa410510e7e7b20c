"""The operator and its example DAG in a real Airflow 3: migrated database, `dag.test()`, and what the asset starts."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import ROOT, Run
from tests.live import Live
from tests.warm.test_warm import hit, parquet, rows_of

DAGS = ROOT / "foreseen" / "airflow" / "example_dags"
PROGRAM = ROOT / "tests" / "integrations" / "one_run.py"


class Airflow:
    """A home of its own with the example DAGs in it."""

    def __init__(self, run: Run, home: Path, files: str, options: dict[str, Any]) -> None:
        self._run = run
        self.database = home / "airflow.db"
        self.environment = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",  # the asset starts no DAG that is paused
            "FORESEEN_WARM_FILES": files,
            "FORESEEN_WARM_MODEL": "fingerprint",
            "FORESEEN_WARM_OPTIONS": json.dumps(options),
        }
        self.command("db", "migrate")
        self.command("dags", "reserialize")

    def command(self, *words: str) -> str:
        return self._run("airflow", *words, **self.environment).stdout

    def one_run(self) -> Any:
        """`dag.test()`: the state, and what the task returned."""
        return json.loads(self._run("python", PROGRAM, **self.environment).stdout.splitlines()[-1])

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "airflow"


def test_the_example_dag_warms_and_starts_what_waits_for_it(
    live: Live, tmp_path: Path, home: Path, airflow: Run
) -> None:
    """Through a proxy: all are hits afterwards, the asset has an event with the counts, and the DAG that is scheduled
    on it is queued; the provider is known by its entry point."""
    rows = rows_of(80_000, 300)
    parquet(tmp_path / "a.parquet", {"x": rows})
    system = Airflow(airflow, home, f"{tmp_path}/*.parquet", {"url": live.url, "data": str(tmp_path)})
    told = system.one_run()
    assert (told["state"], told["returned"]["computed"], told["returned"]["failed"]) == ("success", 300, 0)
    assert hit(live, *rows)
    ((name, extra),) = system.rows(
        "SELECT asset.name, asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_event.asset_id"
    )
    assert name == "foreseen_warm_fingerprint"
    assert json.loads(extra)["rows"] == 300
    assert system.rows("SELECT target_dag_id FROM asset_dag_run_queue") == [("foreseen_after_warm",)]
    assert "foreseen" in system.command("providers", "list")


def test_a_run_that_must_not_be_is_a_failed_task(live: Live, tmp_path: Path, home: Path, airflow: Run) -> None:
    """An import under a wrong digest, where the secret is: the task fails with the one line, and no asset event."""
    rows = rows_of(81_000, 3)
    file = parquet(tmp_path / "a.parquet", {"x": rows, "digest": [[1] * 4] * 3, "seal": [[1]] * 3}, "ab" * 32)
    system = Airflow(airflow, home, str(file), {"data": str(live.data), "outputs": ["all"]})
    assert system.one_run()["state"] == "failed"
    assert system.rows("SELECT count(*) FROM asset_event") == [(0,)]
    assert not hit(live, *rows)
