"""Names are the field's own: class names are unique, and a list of retired words does not come back.

Checked are identifiers, log events, the help texts of metrics and settings, and the docs. A word counts as a whole word
of a name: `seats` and `_seat_of` contain `seat`, `statement` does not contain `state`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest

from foreseen.settings import NAMES
from foreseen.telemetry.metric_table import PROXY_METRICS
from tests.project.test_docs import PAGES
from tests.project.test_project import modules

RETIRED = frozenset(
    (
        "aboard", "aloft", "asker", "askers", "boarding", "brought", "cabin", "cabins", "crew", "journey", "journeys",
        "landing", "landings", "manner", "manners", "mortal", "nobody", "party", "road", "roads", "seat", "seats",
        "somebody", "teller", "told", "turnstile", "turnstiles", "visit", "whereabouts",
    )
)  # fmt: skip
"""Words that need a dictionary. docs/architecture.md and CONTRIBUTING.md say what is written instead."""
LOG_METHODS = frozenset(("debug", "info", "warning", "error", "critical", "exception"))


def words_of(name: str) -> set[str]:
    """The words of an identifier or a sentence, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def names_of(tree: ast.AST) -> set[str]:
    """Everything in a module that its author named, but what only calls other libraries."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def events_of(tree: ast.AST) -> set[str]:
    """The events that a module logs."""
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOG_METHODS
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def test_class_names_are_unique() -> None:
    """One name, one class: a reader who finds `Limits` knows which."""
    places = defaultdict(list)
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_retired_words_do_not_come_back_in_names() -> None:
    """Modules, classes, functions, arguments, attributes and variables."""
    bad = {
        f"{module}: {name}"
        for module, tree in modules().items()
        for name in {*names_of(tree), module}
        if words_of(name) & RETIRED
    }
    assert sorted(bad) == []


def test_retired_words_do_not_come_back_in_log_events() -> None:
    """An operator searches for these."""
    bad = {
        f"{module}: {event}"
        for module, tree in modules().items()
        for event in events_of(tree)
        if words_of(event) & RETIRED
    }
    assert sorted(bad) == []


def test_retired_words_do_not_come_back_in_help() -> None:
    """Help texts of metrics; names of settings."""
    bad = {spec.name for spec in PROXY_METRICS.values() if words_of(spec.help) & RETIRED}
    bad |= {one.name for kind in NAMES.values() for one in fields(kind) if words_of(one.name) & RETIRED}
    assert sorted(bad) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_retired_words_do_not_come_back_in_docs(page: Path) -> None:
    """README and docs, but for code: old names of settings are listed there."""
    prose = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`|^    .*?$", "", page.read_text())
    bad = [f"{line}: {words}" for line in prose.splitlines() if (words := sorted(words_of(line) & RETIRED))]
    assert bad == []
