"""The wheel is safe to install: one top-level name, nothing of anybody else's shadowed, everything needed inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.project.test_project import ROOT

pytestmark = pytest.mark.processes

SOURCES = ("foreseen", "proxy", "inference", "models", "grafana")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built by the backend alone from a copy, without network."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    program = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    out = tmp_path_factory.mktemp("wheels")
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


def test_the_only_top_level_name_is_foreseen(wheel: Path) -> None:
    """proxy.py and Roboflow's inference own the names that these folders have in the repository."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"foreseen"}


def test_everything_that_is_needed_travels_in_the_wheel(wheel: Path) -> None:
    """Every module, manifest, script, dashboard, rule and the licence; links became real files."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("proxy", "inference", "models"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".toml"}:
                assert f"foreseen/{path.relative_to(ROOT)}" in inside
    for path in (ROOT / "foreseen").rglob("*"):  # does not follow links
        if path.suffix in {".py", ".lua", ".typed", ".proto", ".binpb"}:
            assert str(path.relative_to(ROOT)) in inside
    assert "foreseen/operate/grafana_files/dashboards/overview.json" in inside
    assert "foreseen/operate/grafana_files/rules/alerts.yml" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_commands_work_where_other_packages_have_our_folders_names(wheel: Path, tmp_path: Path) -> None:
    """In a directory with models/, proxy/, inference/ and tests/ of somebody else, and with proxy.py's package
    installed beside ours, the commands import what is theirs."""
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("models", "proxy", "inference", "tests"):
        for at in (work, site):
            (at / name).mkdir(parents=True)
            (at / name / "__init__.py").write_text("raise ImportError('somebody else')\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for words in (["models", "list"], ["proxy", "--help"], ["inference", "--help"], ["up", "--help"]):
        command = [sys.executable, "-P", "-m", "foreseen", *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)


def test_dashboards_are_written(tmp_path: Path) -> None:
    """`foreseen dashboards --out DIR` writes the files of this tree, byte for byte."""
    from foreseen.operate.dashboards import write_dashboards

    written = write_dashboards(tmp_path)
    assert {path.name for path in written} >= {"overview.json", "alerts.yml", "recording.yml"}
    assert (tmp_path / "dashboards" / "overview.json").read_bytes() == (
        ROOT / "grafana" / "dashboards" / "overview.json"
    ).read_bytes()


def test_alerts_link_to_the_runbook_of_a_site(tmp_path: Path) -> None:
    """`--runbook-base`: `runbook_url` is a heading of the page below that address; no other text changes."""
    from foreseen.errors import SetupError
    from foreseen.operate.dashboards import write_dashboards

    write_dashboards(tmp_path, "https://docs.example/foreseen/")
    rules = (tmp_path / "rules" / "alerts.yml").read_text()
    assert "runbook_url: https://docs.example/foreseen/runbook.html#foreseenstoredown" in rules
    original = (ROOT / "grafana" / "prometheus" / "rules" / "alerts.yml").read_text()
    assert rules.replace("https://docs.example/foreseen/runbook.html#", "docs/runbook.md#") == original
    for wrong in ("docs", "https://docs.example/a b", "ftp://docs.example", 'https://a"b'):
        with pytest.raises(SetupError, match="--runbook-base"):
            write_dashboards(tmp_path, wrong)
