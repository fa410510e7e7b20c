"""The command line of the offline side: what stands on stdout, what on stderr, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foreseen.errors import SetupError
from foreseen.models.commands import app

pytestmark = pytest.mark.processes


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m models.commands …` as a process of its own."""
    command = [sys.executable, "-m", "foreseen.models.commands", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def called(*arguments: str) -> None:
    """The same in this process."""
    app(arguments, result_action="return_value")


def test_build_list_and_report_as_a_program(tmp_path: Path) -> None:
    """JSON stands alone on stdout; what the build is doing goes to stderr, a line per step where nobody watches."""
    data = ["--data", str(tmp_path)]
    built = ran("build", "digits", *data)
    assert built.returncode == 0, built.stderr
    assert "digits: fp32 in force" in built.stdout
    assert "check fp32 on 48 rows" in built.stderr
    reported = ran("report", "digits", "--json", *data)
    report = json.loads(reported.stdout)
    assert report["chosen"] == "fp32"
    assert [candidate["precision"] for candidate in report["candidates"]] == ["fp32", "int8-rowwise"]
    assert all(candidate["why"] for candidate in report["candidates"])
    shown = ran("report", "digits", *data)
    assert "97.22% of the labels right" in shown.stdout
    assert shown.stderr == ""


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = ran("report", "digits", "--data", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: model 'digits' is not built; run: foreseen models build digits --data {tmp_path}"
    ]


def test_list_shows_what_is_built_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called("build", "fingerprint", "--data", str(tmp_path))
    capsys.readouterr()
    called("list", "--json", "--data", str(tmp_path))
    listed = {model["name"]: model["built"] for model in json.loads(capsys.readouterr().out)}
    assert listed["fingerprint"]["precision"] == "fp32"
    assert listed["minilm"] is None
    called("list", "--data", str(tmp_path))
    assert "not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["build", "nothing"], "no model called 'nothing'"),
        (["build", "digits", "--train", "x.csv"], "--train and --test go together"),
        (["build", "digits", "--train", "x.csv", "--test", "x.csv"], "x.csv: there is no such file"),
        (["add", "x.onnx"], "give the folder of your models"),
    ],
)
def test_mistakes_are_setup_errors(tmp_path: Path, arguments: list[str], why: str) -> None:
    with pytest.raises(SetupError, match=why):
        called(*arguments, "--data", str(tmp_path))
