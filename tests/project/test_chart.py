"""The Helm chart as text: flags, variables and metrics of its templates exist, and its values have a schema.

`make test-deploy` renders it and checks more. This part needs no Helm, so it is in `make test`.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from foreseen.settings import NAMES
from foreseen.settings.commands import all_settings
from tests.project.test_dashboards import metrics

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "foreseen"
TEMPLATES = sorted((CHART / "templates").iterdir())
VALKEY = {"--dir", "--protected-mode", "--maxmemory", "--maxmemory-policy", "--save", "--appendonly", "--appendfsync"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_what_a_template_names_exists(path: Path) -> None:
    text = path.read_text()
    flags = {f"--{one.name.replace('_', '-')}" for kind in NAMES.values() for one in fields(kind)}
    known = flags | (VALKEY if path.name == "state.yaml" else set())
    assert set(re.findall(r"(?m)^\s*- (--[a-z-]+)", text)) <= known
    variables = {f"FORESEEN_{name.upper()}" for name in all_settings()}
    assert set(re.findall(r"\bFORESEEN_[A-Z_]+", text)) <= variables
    assert set(re.findall(r"\bforeseen_\w+", text)) <= metrics()


def test_every_value_has_a_schema_and_no_other_is_taken() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def check(part: Any, rule: Any, at: str) -> None:
        rule = schema["$defs"]["model"] if "$ref" in rule else rule
        if not isinstance(part, dict) or "properties" not in rule:
            return
        assert rule["additionalProperties"] is False, at
        assert set(part) == set(rule["properties"]) - ({"global"} if not at else set()), at
        for name, one in part.items():
            check(one, rule["properties"][name], f"{at}.{name}")

    check(values, schema, "")


def test_every_value_is_used() -> None:
    """A value that no template reads would be a promise."""
    text = "".join(path.read_text() for path in TEMPLATES)
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def names(part: Any) -> set[str]:
        return set(part) | {name for one in part.values() for name in names(one)} if isinstance(part, dict) else set()

    of_resources = {"requests", "limits", "cpu", "memory"}
    unused = {name for name in names(values) if not re.search(rf"\b{name}\b", text)} - of_resources
    assert unused == set()
