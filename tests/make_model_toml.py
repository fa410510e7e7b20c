"""Writes docs/model-toml.md, the reference of `model.toml`, from the classes of foreseen/modelspec/manifest."""

from __future__ import annotations

import ast
import inspect
import sys
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, Struct

from foreseen.modelspec.manifest import Manifest

PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any value"}
INTRODUCTION = """# model.toml

Every field of `models/NAME/model.toml`, which describes one model. Made from the code by `make docs`. A field that is
not listed here is an error that names it. `foreseen models add` writes the file for you; examples are in
[models/](../models/minilm/model.toml).

Only `name`, the inputs and outputs of `[model]`, and a `[source]` or an `upstream` are needed. How inputs may be
normalized: [normalization](normalization.md). What a change does to the cache: [upgrading](upgrading.md).

A shape is a list of sizes. A string in it names a size that differs between requests; the first one is `"rows"`.
"""


def model_toml_page() -> str:
    """docs/model-toml.md"""
    lines = [INTRODUCTION]
    for where, kind in _sections(Manifest, "", listed=False):
        lines += [f"## {where or 'Top level'}", "", _said_of(kind), ""]
        lines += ["| field | type | default | what it does |", "| --- | --- | --- | --- |", *_rows(kind), ""]
    return "\n".join(lines).rstrip() + "\n"


def _sections(kind: type[Struct], path: str, *, listed: bool) -> list[tuple[str, type[Struct]]]:
    """The tables of the file, each with its class, outer ones first."""
    heading = path and (f"`[[{path}]]`" if listed else f"`[{path}]`")
    found = [(heading, kind)]
    for name, hint in _hints(kind).items():
        for inner, is_list in _structs(hint):
            found += _sections(inner, f"{path}.{name}".lstrip("."), listed=is_list)
    return found


def _structs(hint: Any) -> list[tuple[type[Struct], bool]]:
    """The tables that a field holds, and whether it holds a list of them."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return [(hint, False)]
    is_list = get_origin(hint) is tuple
    return [(inner, is_list) for part in get_args(hint) for inner, _ in _structs(part)]


def _hints(kind: type[Struct]) -> dict[str, Any]:
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]))
    return {field.name: hints[field.name] for field in msgspec.structs.fields(kind)}


def _rows(kind: type[Struct]) -> list[str]:
    said, hints = _field_docstrings(kind), _hints(kind)
    rows = []
    for field in msgspec.structs.fields(kind):
        text = " ".join(said.get(field.name, "").split()).replace("|", "\\|")
        rows.append(f"| `{field.name}` | {type_name(hints[field.name])} | {_default(field)} | {text} |")
    return rows


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "**required**"
    value = field.default if field.default is not NODEFAULT else field.default_factory()  # type: ignore[operator]
    if isinstance(value, Struct):
        return "see its table"
    if value is None or value in ((), {}, ""):
        return "none"
    return f"`{msgspec.json.encode(value).decode()}`"


def type_name(hint: Any) -> str:
    """A Python type in the words of TOML."""
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Struct):
        return "table"
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f'`"{one}"`' for one in inside)
    if origin in (Union, UnionType):
        return " or ".join(type_name(one) for one in inside if one is not NoneType)
    if origin in (tuple, list):
        each = [type_name(one) for one in inside if one is not Ellipsis]
        return f"list of {len(each)} × {each[0]}" if len(each) > 1 else f"list of {each[0]}"
    if origin is dict:
        return f"table: name → {type_name(inside[1])}"
    raise TypeError(f"no name for {hint!r}")


def _said_of(kind: type[Struct]) -> str:
    written = vars(kind).get("__doc__") or ""
    return "" if written.startswith(f"{kind.__name__}(") else " ".join(inspect.cleandoc(written).split())


def _field_docstrings(kind: type[Struct]) -> dict[str, str]:
    """The string below each field of a class, as its source has it."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    said = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            said[ast.unparse(field.target)] = str(below.value.value)
    return said
