"""Writes grafana/dashboards/*.json: `make dashboards`. The JSON is committed, and a test fails when it lags."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards.change import CHANGE
from grafana.boards.models import MODELS
from grafana.boards.overview import OVERVIEW
from grafana.boards.pipeline import PIPELINE
from grafana.boards.store import STORE
from grafana.boards.tenants import TENANTS
from grafana.panels import board

FOLDER = Path(__file__).parent / "dashboards"

UNUSED = {
    "foreseen_model_errors_total": "the codes of the model process; the proxy's own say what callers saw",
    "foreseen_model_requests_total": "the model process's statuses; the same",
}
"""Metrics that no panel shows, with the reason."""

BOARDS = {
    "overview": ("Overview", "Health, and what the cache saves.", OVERVIEW),
    "model": ("Model", "One model: latency and results for its callers, the work of its process.", MODELS),
    "store": ("Store", "Near and far: memory, evictions, latency, errors.", STORE),
    "tenants": ("Tenants", "What each tenant asks for, uses, saves, and is refused.", TENANTS),
    "change": ("Change", "A candidate beside the model in force; the audit of hits.", CHANGE),
    "pipeline": ("Pipeline", "Time by step of a request; jobs; warming; the workers.", PIPELINE),
}


def documents() -> dict[str, str]:
    """File name → JSON of every dashboard."""
    made = {}
    for name, (title, said, rows) in BOARDS.items():
        others = [(f"{word[0]}", f"foreseen-{other}") for other, word in BOARDS.items() if other != name]
        document = board(title, f"foreseen-{name}", said, rows, others=others)
        made[f"{name}.json"] = JSONEncoder(sort_keys=True, indent=2).encode(document) + "\n"
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
