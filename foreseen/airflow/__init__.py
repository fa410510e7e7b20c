"""Foreseen for Airflow 3: an operator that warms a cache, and the asset "cache warm" that later DAGs start on.

Needs `foreseen[airflow]`; nothing else of Foreseen imports it. `foreseen_warm` in `example_dags` shows it at work.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


def provider_info() -> dict[str, Any]:
    """The metadata that Airflow's provider manager reads from an installed distribution."""
    return {
        "package-name": "foreseen",
        "name": "Foreseen",
        "description": "Batch runs fill the cache of a caching prediction proxy.",
        "versions": [version("foreseen")],
        "integrations": [{"integration-name": "Foreseen", "tags": ["software"]}],
        "operators": [{"integration-name": "Foreseen", "python-modules": ["foreseen.airflow.operators"]}],
    }
