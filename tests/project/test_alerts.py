"""Alerts: each says how urgent it is, what happened and where it is written what to do; each is tested both ways."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from foreseen.telemetry.exposition import FAR_STATE
from grafana.make import BOARDS
from grafana.queries import OBJECTIVE
from tests.project.test_dashboards import metrics, panels

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "grafana" / "prometheus"
RULES = [
    rule
    for path in sorted((FOLDER / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def headings() -> set[str]:
    return set(re.findall(r"^## (Foreseen\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE))


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.processes
def test_rules_and_their_cases_pass() -> None:
    """`promtool check rules` and `promtool test rules`."""
    promtool("check", "rules", *(str(path) for path in (FOLDER / "rules").glob("*.yml")))
    promtool("test", "rules", *(str(path) for path in (FOLDER / "tests").glob("*.yml")))


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """None is forgotten, and no case is of an alert that is gone."""
    fires, silent = set(), set()
    for path in (FOLDER / "tests").glob("*.yml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for one in case["alert_rule_test"]:
                (fires if one["exp_alerts"] else silent).add(one["alertname"])
    assert fires == silent == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name: str) -> None:
    """Severity, summary, description, a runbook section, and a board that exists."""
    rule = ALERTS[name]
    assert name.startswith("Foreseen")
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url", "dashboard"}
    assert told["description"].endswith(".")
    assert told["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert told["dashboard"].removeprefix("/d/foreseen-") in BOARDS


def test_the_runbook_has_a_section_for_every_alert_and_panels_lead_to_them() -> None:
    """No section without its alert; "See runbook: X" of a panel is one of them."""
    assert headings() == set(ALERTS)
    named = {name for board in BOARDS for panel in panels(board) for name in re.findall(r"runbook: (\w+)", str(panel))}
    assert named
    assert named <= headings()


def test_rules_ask_for_metrics_that_exist() -> None:
    """Expressions parse; every metric in them is one that the program has or a rule records."""
    for rule in RULES:
        promql_parser.parse(rule["expr"])
        recorded = set(re.findall(r"\b\w+:\w+:\w+", rule["expr"]))
        assert recorded <= RECORDED, rule
        names = {
            re.sub(r"_(bucket|sum|count)$", "", name)
            for name in re.findall(r"(?<![:\w])foreseen_\w+(?!\w*:)", rule["expr"])
        }
        assert names <= metrics() | {name for name, _, _ in FAR_STATE}, rule


def test_the_objective_is_one() -> None:
    """The board's error budget and the alerts' are the same."""
    burning = ALERTS["ForeseenErrorBudgetBurnsFast"]["expr"]
    assert f"14.4 * {1 - OBJECTIVE:.3f}" in burning
