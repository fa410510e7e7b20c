"""The commands of the README and of the docs, as they stand, against a running system: they do what is said of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.live import Live

ROOT = Path(__file__).parent.parent.parent
ASKED = "http://127.0.0.1:8000"


def commands(page: str) -> list[str]:
    """What an indented block tells to run, without its comment."""
    lines = re.findall(r"(?m)^    ((?:foreseen|curl) .*)$", (ROOT / page).read_text())
    return [re.split(r"\s+# ", line)[0] for line in lines]


def run(command: str, system: Live, folder: Path, *, url: bool = False) -> subprocess.CompletedProcess[str]:
    """In a shell, with the system's address for the docs' own; `foreseen` is this environment's."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FORESEEN_DATA": str(system.data)}
    if url:
        environment["FORESEEN_URL"] = system.url
    command = command.replace(ASKED, system.url).replace("http://proxy:8000", system.url)
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env=environment, cwd=folder, timeout=120
    )


def test_the_readmes_question_twice(own: Live, tmp_path: Path) -> None:
    """A miss, then a hit with the same body, in the very headers that the README shows."""
    text = (ROOT / "README.md").read_text()
    (curl,) = commands("README.md")[:1]
    told = [run(curl, own, tmp_path).stdout for _ in range(2)]
    heads, bodies = zip(*(one.replace("\r", "").split("\n\n", 1) for one in told), strict=True)
    assert "Cache-Status: foreseen;fwd=miss;stored" in heads[0]
    assert "    Cache-Status: foreseen;fwd=miss;stored" in text
    assert re.search(r"Cache-Status: foreseen;hit;ttl=\d+;detail=near\nAge: \d+", heads[1])
    assert re.search(r"Cache-Status: foreseen;hit;ttl=\d+;detail=near\n    Age: \d+", text)
    assert bodies[0] == bodies[1]


def test_what_operators_are_told_to_run(own: Live, tmp_path: Path) -> None:
    """doctor is content, top shows (once, here), curl has metrics, purge is acknowledged."""
    doctor, top, metrics, purge, build = commands("docs/operating.md")
    assert build == "foreseen models build minilm"  # run on a smaller model while it serves: test_61
    looked = run(f"{doctor} --model minilm --model fingerprint", own, tmp_path, url=True)
    assert (looked.returncode, looked.stderr) == (0, ""), looked.stdout
    assert "requests/s" in run(f"{top} --once --interval 0.2", own, tmp_path, url=True).stdout
    assert "foreseen_requests_total" in run(metrics, own, tmp_path).stdout
    purged = run(purge, own, tmp_path)
    assert purged.returncode == 0, purged.stderr


def test_batch_teams_and_models(own: Live, tmp_path: Path) -> None:
    """Every command of the first blocks that needs nobody else's machine, in their order: warm computes, keeps, imports
    and looks ahead; models are listed and told about."""
    (tmp_path / "questions.csv").write_text("text\n" + "\n".join(f"question {n % 7}" for n in range(20)) + "\n")
    compute, imported, _, keep, dry = commands("docs/batch.md")[:5]
    for command in (dry, compute, keep, imported):
        done = run(command, own, tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    listed = [command for command in commands("docs/models.md") if re.fullmatch(r"foreseen models list", command)]
    assert listed
    assert "minilm" in run(listed[0], own, tmp_path).stdout


def test_the_quick_start_prints_what_it_says(own: Live, tmp_path: Path) -> None:
    """The blocks of docs/quickstart.md as one program; what each prints is the block below it, but for lifetimes."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    program = "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```$", page)).replace(ASKED, own.url)
    expected = "\n".join(re.findall(r"(?m)^    ((?:foreseen;|\[|\d).*)$", page))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.sub(r"ttl=\d+", "ttl=N", done.stdout.strip()) == re.sub(r"ttl=\d+", "ttl=N", expected)


def test_the_function_that_takes_the_place_of_encode(own: Live, tmp_path: Path) -> None:
    """docs/i-have.md: the call of an API whose model has moved out."""
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "docs" / "i-have.md").read_text())
    command = [sys.executable, "-c", program.replace(ASKED, own.url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
