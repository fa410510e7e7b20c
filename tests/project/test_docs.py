"""Docs do not lag: links lead somewhere, and flags, commands, metrics and routes that they name exist."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from foreseen.cli import app
from foreseen.settings import NAMES
from tests.make_docs import cli_page
from tests.openapi import application, routes
from tests.project.test_dashboards import metrics

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = ("cli.md", "errors.md", "http.md", "metrics.md", "model-toml.md", "settings.md")
"""By code; tests/project/test_project.py holds them against it."""
OURS = [page for page in PAGES if page.name not in MADE]
OTHERS = {
    "--build",
    "--http",
    "--namespace",
    "--predictor",
    "--detach",
    "--find-links",
    "--index",
    "--wheel-dir",
    "--only",
    "--rm",
    "--scale",
    "--seconds",
    "--seed",
    "foreseen_warm",
}
"""Flags of docker, Helm, KServe, benchmarks and chaos, and the name of a DAG."""


FLAG = r"--[a-z]+(?:-[a-z]+)*"


@functools.cache
def known_flags() -> set[str]:
    ours = {f"--{f.name.replace('_', '-')}" for kind in NAMES.values() for f in fields(kind)}
    return ours | set(re.findall(FLAG, cli_page())) | OTHERS


def anchors(page: Path) -> set[str]:
    """The anchors that a renderer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist, and so do the headings that a link names."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    """docs/README.md leads to all of them."""
    links = set(re.findall(r"\]\(([\w.-]+)\)", (ROOT / "docs" / "README.md").read_text()))
    assert links == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} | {"openapi.json", "redis.acl"}


def test_the_site_has_every_page() -> None:
    """`nav` of mkdocs.yml: `make site` would fail for a page that is not there."""
    listed = set(re.findall(r"([\w/-]+\.md)\b", (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed - {"about.md", "api-http.md", "api-warm.md", "api-airflow.md"} == pages


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_what_readers_are_told_exists(page: Path) -> None:
    """Flags are those of commands, commands are commands, metrics are metrics, `make` targets stand in the Makefile."""
    text = page.read_text()
    assert {named.replace("--no-", "--") for named in re.findall(FLAG, text)} <= known_flags()
    commands = set(re.findall(r"`foreseen ([a-z]+)[` ]", text)) | set(
        re.findall(r"(?m)^(?:\$ )?foreseen ([a-z]+)", text)
    )
    assert commands <= {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"\bforeseen_\w+", text)) <= metrics() | OTHERS
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.processes
def test_the_scrape_configuration_of_the_docs_is_one(tmp_path: Path) -> None:
    """`promtool check config` takes it as it stands, with the rules where they are; its paths are routes."""
    (found,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "operating.md").read_text(), re.DOTALL)
    shutil.copytree(ROOT / "grafana" / "prometheus" / "rules", tmp_path / "rules")
    config = tmp_path / "prometheus.yml"
    config.write_text(found.replace("/path/to/grafana/prometheus", str(tmp_path)))
    done = subprocess.run(["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = [job for job in yaml.safe_load(found)["scrape_configs"] if "metrics_path" in job]
    assert job["metrics_path"] == "/metrics/minilm"
    assert ("/metrics/{model}", "GET") in routes(application())
