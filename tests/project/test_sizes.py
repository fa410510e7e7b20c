"""The size limits of the product's code: modules, functions and folders stay small enough to read."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.project.test_project import ROOT

ROOMS = tuple(ROOT / name for name in ("foreseen", "proxy", "inference", "models"))
MAX_MODULE_LINES = 400
LONG_MODULE_LINES = 300
MAX_LONG_MODULES = 8
MAX_FUNCTION_LINES = 60
MAX_FOLDER_MODULES = 14


def _modules() -> dict[str, Path]:
    """Every product module by its path in the repository; the links in foreseen/ are not followed."""
    return {str(path.relative_to(ROOT)): path for room in ROOMS for path in sorted(room.rglob("*.py"))}


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_module_is_over_400_lines() -> None:
    """A longer one holds two subjects."""
    over = {name for name, path in _modules().items() if _lines(path) > MAX_MODULE_LINES}
    assert not over


def test_few_modules_are_over_300_lines() -> None:
    """At most eight."""
    long = [name for name, path in _modules().items() if _lines(path) > LONG_MODULE_LINES]
    assert len(long) <= MAX_LONG_MODULES, long


def test_no_function_is_over_60_lines() -> None:
    """From its `def` to its last line, docstring included."""
    over = {
        f"{name}:{node.name}"
        for name, path in _modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not over


def test_no_folder_holds_over_14_modules() -> None:
    """`__init__.py` does not count."""
    counts: dict[str, int] = {}
    for name, path in _modules().items():
        if path.name != "__init__.py":
            folder = str(Path(name).parent)
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder for folder, count in counts.items() if count > MAX_FOLDER_MODULES} == set()
