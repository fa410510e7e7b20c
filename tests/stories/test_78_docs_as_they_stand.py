"""The commands and programs of the README and of the docs, as they stand, against a running system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fences import PAGES, ROOT, Fence, commands, fences
from tests.live import Live

ASKED = re.compile(r"(?:http://)?(?:127\.0\.0\.1|localhost|proxy):8000")
SECONDS = 120
TICKET = re.compile(r"[\w-]{48}")
RUNNING = [page for page in PAGES if any(fence.mark == "run" for fence in fences(page))]


def run(command: str, system: Live, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a shell, with the system's address for the docs' own; `foreseen` is this environment's."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FORESEEN_DATA": str(system.data)}
    command = ASKED.sub(system.url, command)
    return subprocess.run(
        ["bash", "-euc", command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
        timeout=SECONDS,
    )


def alike(text: str) -> str:
    """Without what differs from run to run: lifetimes, ages, tickets, the ends of lines."""
    text = re.sub(r"ttl=\d+", "ttl=N", text.replace("\r", ""))
    return TICKET.sub("TICKET", re.sub(r"Age: \d+", "Age: N", text)).strip()


def console(fence: Fence, system: Live, folder: Path) -> None:
    """Each `$` line, and below it what it prints: `…` ends a line of which only the beginning is shown. A ticket of the
    page stands for the one that this system gave."""
    given: dict[str, str] = {}
    for part in re.split(r"(?m)^\$ ", fence.text.replace("\\\n", " "))[1:]:
        command, _, shown = part.partition("\n")
        for ticket, own in given.items():
            command = command.replace(ticket, own)
        done = run(command, system, folder)
        assert done.returncode == 0, done.stderr
        printed = [line for line in alike(done.stdout).splitlines() if line]
        for line in filter(None, alike(shown).splitlines()):
            head, cut, _ = line.partition("…")
            assert any(one.startswith(head) if cut else one == line for one in printed), (line, done.stdout)
        given |= dict(zip(TICKET.findall(shown), TICKET.findall(done.stdout), strict=False))


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(own: Live, tmp_path: Path, page: Path) -> None:
    """Those marked `run`, in their order and in one folder, beside the system's `data`. Blocks of Python are one
    program; what it prints is in the `text output` blocks below them."""
    program, expected, last = "", "", ""
    for fence in fences(page):
        if fence.language == "python" and fence.mark == "run":
            program += fence.text
        elif fence.mark == "output" and fence.language == "text" and last == "python":
            expected += fence.text
        elif fence.language == "console" and fence.mark == "run":
            console(fence, own, tmp_path)
        elif fence.language == "sh" and fence.mark == "run":
            done = run(fence.text, own, tmp_path)
            assert done.returncode == 0, (fence.text, done.stdout, done.stderr)
        last = fence.language
    done = subprocess.run(
        [sys.executable, "-c", ASKED.sub(own.url, program)],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert alike(done.stdout) == alike(expected)


def test_the_readmes_question_twice(own: Live, tmp_path: Path) -> None:
    """A miss, then a hit with the same body, in the very headers that the README shows."""
    (curl,) = [
        fence for fence in fences(ROOT / "README.md") if fence.language == "sh" and fence.text.startswith("curl")
    ]
    shown = [fence.text for fence in fences(ROOT / "README.md") if fence.language == "text"]
    heads, bodies = zip(*(alike(run(curl.text, own, tmp_path).stdout).split("\n\n", 1) for _ in range(2)), strict=True)
    for head, lines in zip(heads, shown[:2], strict=True):
        assert set(alike(lines).splitlines()) <= set(head.splitlines())
    assert "fwd=miss" in heads[0]
    assert "hit" in heads[1]
    assert bodies[0] == bodies[1]


def test_batch_teams_and_models(own: Live, tmp_path: Path) -> None:
    """Every command of the first block of docs/batch.md that needs no other machine: warm computes, keeps, imports and
    estimates; models are listed."""
    (tmp_path / "questions.csv").write_text("text\n" + "\n".join(f"question {n % 7}" for n in range(20)) + "\n")
    compute, imported, _, keep, dry = commands("docs/batch.md")[:5]
    for command in (dry, compute, keep, imported):
        done = run(command, own, tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "foreseen models list" in commands("docs/models.md")
    assert "minilm" in run("foreseen models list", own, tmp_path).stdout
