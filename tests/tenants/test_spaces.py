"""Every key space is built with a tenant's scope that is handed in: no module makes one up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreseen.keys.key import space_key
from foreseen.tenants.tenant import PUBLIC, own_scope, scope_of
from foreseen.types import Space
from tests.project.test_project import ROOT
from tests.project.test_sizes import ROOMS

MAKERS = {"foreseen/tenants/tenant.py", "foreseen/tenants/keyring.py"}
"""The only modules that make a scope or an owner, but for locks, which hold no entry."""
LOCKS = {"proxy/backend/poison/isolation.py"}
HANDED_IN = {"scope", "_TRIAL"}
"""What the first argument of `Space` may be called: a parameter, or a field of what was handed in."""
CONSTANTS = {
    "foreseen/warm/run/via_proxy.py",
    "foreseen/warm/run/warm_worker.py",
    "foreseen/warm/run/command.py",
    "models/change/side.py",
}
"""A batch run through a proxy writes no entry itself, nor does a comparison of two models: its plan's scope is never
used, or only names the run."""
PURGES = {"proxy/admin/purge_targets.py"}
"""An operator purges the public scope by its name. A purge reads and writes no entry."""


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        for path in sorted(room.rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield path, node


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_every_space_gets_a_scope_that_was_handed_in() -> None:
    """`Space(...)`: its first argument is a parameter or a field called `scope`, never a text or a constant."""
    built = [(path, call) for path, call in _calls() if _name(call.func) == "Space"]
    assert len(built) >= 7
    for path, call in built:
        assert call.args, path
        assert _name(call.args[0]) in HANDED_IN, (path, ast.unparse(call))


def _annotations(tree: ast.Module) -> set[ast.AST]:
    """Everything that stands in an annotation."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        noted = [getattr(node, field, None) for field in ("annotation", "returns")]
        found.update(one for kind in noted if isinstance(kind, ast.AST) for one in ast.walk(kind))
    return found


def test_a_space_is_made_by_calling_it_by_its_name_and_no_way_else() -> None:
    """Neither under another name, nor handed to a function that would call it, nor as a copy with another scope: the
    walk above sees every place where one is made."""
    seen = 0
    for path, tree in _trees():
        annotated = _annotations(tree)
        called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                renamed = {one.asname for one in node.names if one.name == "Space"}
                assert renamed <= {None, "Space"}, path
            elif isinstance(node, ast.Name | ast.Attribute) and _name(node) == "Space":
                seen += 1
                assert node in called | annotated, (path, node.lineno)
            elif isinstance(node, ast.Call) and _name(node.func) in ("replace", "convert", "_replace"):
                assert not {"space", "Space"} & {_name(one) for one in node.args}, (path, ast.unparse(node))
    assert seen >= 30


def test_a_space_without_a_tenant_cannot_be_made() -> None:
    """Its first field is the scope, without a default, and its bytes are part of the key of every entry."""
    with pytest.raises(TypeError, match="scope"):
        Space()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Space(model="m", digest="d")  # type: ignore[call-arg]
    assert Space.__struct_fields__[0] == "scope"
    scopes = [PUBLIC, *(own_scope(name) for name in ("a", "b")), *(scope_of(name, "a") for name in ("x", "y", "own"))]
    keys = {scope: space_key(bytes(32), Space(scope, "m", "d")) for scope in scopes}
    assert len(set(keys.values())) == len(keys) == 5


def test_generations_are_asked_for_with_the_scope() -> None:
    """A generation of another scope's purge is never taken for one's own."""
    asked = [
        (path, call) for path, call in _calls() if _name(call.func) in ("generation_of", "formerly", "_generation")
    ]
    asked += [
        (path, call)
        for path, call in _calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "of" and _name(call.func.value).endswith("purges")
    ]
    assert len(asked) >= 12
    for path, call in asked:
        names = [_name(one.slice) if isinstance(one, ast.Subscript) else _name(one) for one in call.args]
        if path == "proxy/predict/answer_cache.py":
            assert ast.unparse(call.args[0]) == "entry.meaning[4]"
        else:
            assert "scope" in names, (path, ast.unparse(call))


def test_every_way_to_a_space_names_the_scope() -> None:
    """`.space(...)` of a model, of the server and of tickets is never called without one."""
    asked = [(path, call) for path, call in _calls() if _name(call.func) in ("space", "_in_force")]
    assert len(asked) >= 6
    for path, call in asked:
        if path == "foreseen/tenants/keyring.py" or path.startswith("models/"):
            continue
        assert len(call.args) >= 1, (path, ast.unparse(call))
        assert _name(call.args[-1]) == "scope", (path, ast.unparse(call))


def test_only_the_tenants_room_makes_scopes_and_owners() -> None:
    """`Scope("…")` elsewhere would be a key space that no keys file knows."""
    made = {path for path, call in _calls() if _name(call.func) in ("Scope", "Owner")}
    assert made == MAKERS | LOCKS


def test_the_public_scope_is_named_in_few_places() -> None:
    """Nothing but the room of tenants, command lines without a tenant and plans of remote runs says `PUBLIC`."""
    named = set()
    for room in ROOMS:
        for path in room.rglob("*.py"):
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            if "PUBLIC" in names:
                named.add(str(path.relative_to(ROOT)))
    assert named == {"foreseen/tenants/tenant.py", "foreseen/tenants/keys_file.py", *MAKERS, *CONSTANTS, *PURGES}


def test_a_head_and_a_plan_cannot_be_made_without_a_tenant() -> None:
    """Both are required fields: what forgets them does not run."""
    for path, name, field in (
        (Path("proxy/predict/ask.py"), "RequestHead", "tenant"),
        (Path("foreseen/warm/plan.py"), "Plan", "scope"),
    ):
        tree = ast.parse((ROOT / path).read_text())
        (kind,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
        (given,) = [n for n in kind.body if isinstance(n, ast.AnnAssign) and _name(n.target) == field]
        assert given.value is None, name
