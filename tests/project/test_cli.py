"""The command line as a whole: what it does when the reader of its output has left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

COMMANDS = (["models", "list", "--json"], ["models", "list"], ["--help"])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_is_no_traceback(words: list[str]) -> None:
    """`foreseen … | head -1`: a full pipe's other end is closed before a word is written; stderr stays empty."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        command = [sys.executable, "-m", "foreseen.cli", *words]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.returncode in (1, 141)  # rich, which prints tables, has a status of its own for this
