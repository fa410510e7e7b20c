"""Dashboards: made by code, committed as they are made, readable at night, asking for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from foreseen.inference.metrics import ModelMetrics
from foreseen.telemetry.exposition import CALLER_STATE, CHILD_STATE, FAR_STATE, QUEUE_STATE, WARM_STATE
from foreseen.telemetry.metrics import ProxyMetrics
from grafana.make import BOARDS, UNUSED, documents

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "grafana" / "dashboards"
UNITS = {"reqps", "percentunit", "s", "none", "short", "rowsps", "bytes", "ops"}
STANDS_FOR = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$model": ".+", "$price": "1"}


def metrics() -> set[str]:
    """Every metric that the program has, by the name of its counter or gauge, or the stem of its histogram."""
    more = (*QUEUE_STATE, *WARM_STATE, *CHILD_STATE, *CALLER_STATE)
    found = {name for name, _, _ in FAR_STATE} | {name for name, _, _, _ in more}
    for registry in (ProxyMetrics().registry, ModelMetrics("m").registry):
        for collector in list(registry._collector_to_names):
            family = next(iter(collector.describe()))
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(documents()[f"{name}.json"])["panels"] if panel["type"] != "row"]


def queries(name: str) -> list[str]:
    """A board's queries with its variables filled in."""
    found = [target["expr"] for panel in panels(name) for target in panel.get("targets", [])]
    for variable, value in STANDS_FOR.items():
        found = [query.replace(variable, value) for query in found]
    return found


def selected(expression: promql_parser.Expr) -> set[str]:
    """Names of the metrics that an expression selects."""
    found = set(re.findall(r"\bforeseen_\w+", str(expression)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def test_the_committed_dashboards_are_current() -> None:
    """`make dashboards` would change nothing, and no other file lies there."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*")} == documents()


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_parses(name: str) -> None:
    """By promql-parser, with the variables filled in."""
    for query in queries(name):
        assert "$" not in query, query
        promql_parser.parse(query)


def test_every_metric_used_exists_and_every_metric_is_used() -> None:
    """A new metric gets a panel in grafana/make.py, or stands in UNUSED with the reason."""
    used = {metric for name in BOARDS for query in queries(name) for metric in selected(promql_parser.parse(query))}
    assert used - metrics() == set()
    assert metrics() - used - set(UNUSED) == set(), "a panel, or UNUSED in grafana/make.py"
    assert not set(UNUSED) & used
    assert set(UNUSED) <= metrics()


@pytest.mark.parametrize("name", BOARDS)
def test_somebody_woken_at_night_understands(name: str) -> None:
    """Every panel has a title of its own, a whole sentence that says what it means, a unit, and steps if it is a
    number; ids and places are its own, and nothing overlaps or hangs over the edge."""
    document = json.loads(documents()[f"{name}.json"])
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    places: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y) for x in range(at.get("x", 0), at.get("x", 0) + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
    for panel in panels(name):
        if panel["type"] == "text":
            continue
        assert re.fullmatch(r"(?s)\w.{10,}\.", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"]
