"""An example DAG: warms the cache every night with the day's requests, then starts a DAG that needs a warm cache.

Copy it, or point Airflow at this folder. Settings come from Airflow variables or the environment:
FORESEEN_WARM_FILES, FORESEEN_WARM_MODEL, FORESEEN_WARM_OPTIONS (JSON of what `foreseen warm` takes besides).
"""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.sdk import DAG, task

from foreseen.airflow.operators import WarmOperator, cache_warm

FILES = os.environ.get("FORESEEN_WARM_FILES", "/srv/questions/{{ ds }}/*.parquet")
MODEL = os.environ.get("FORESEEN_WARM_MODEL", "minilm")
OPTIONS = json.loads(os.environ.get("FORESEEN_WARM_OPTIONS", '{"url": "http://127.0.0.1:8000"}'))

with DAG("foreseen_warm", schedule="@daily", catchup=False, tags=["foreseen"]) as warm_dag:
    WarmOperator(task_id="warm", files=FILES, model=MODEL, options=OPTIONS)

with DAG("foreseen_after_warm", schedule=[cache_warm(MODEL)], catchup=False, tags=["foreseen"]):

    @task  # type: ignore[untyped-decorator] # Airflow is not installed where types are checked
    def report(triggering_asset_events: Any = None) -> None:
        """Log the summary of the run that started this DAG: rows, hits, computed."""
        for events in triggering_asset_events.values():
            for event in events:
                print(json.dumps(event.extra))

    report()
