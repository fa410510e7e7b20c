"""The fenced blocks of the docs, and how each is tested: said by the fence's own info string.

```sh                      every command is in the table of tests/project/test_docs_commands.py
```sh run                  tests/stories/test_78_docs_as_they_stand.py runs the block; python and console as well
```text output             what the block above it prints
```sh test=FILE::NAME      the test of that name, below tests/, takes the block from the page or runs its commands
```sh integrations=FILE    the same, by `make test-integrations`
```sh output               only shown: it needs a machine that no test has
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "cli.md")]
PROGRAMS = frozenset(("sh", "console", "python", "js"))
"""Languages of blocks that are meant to be run; others are data."""
_FENCE = re.compile(r"(?ms)^( *)```([\w-]*)[ ]?([^\n]*)\n(.*?)^\1```$")


@dataclass(frozen=True)
class Fence:
    """A block: its page, its language, its mark (the rest of the info string) and its text."""

    page: Path
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        return f"{self.page.relative_to(ROOT)}: {first.strip()[:60]}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block without comments; one that goes on with a backslash is one line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        told = [re.split(r"\s+# ", line)[0].strip() for line in lines]
        return [line for line in told if line and not line.startswith("#")]


def fences(page: Path) -> list[Fence]:
    """All blocks of a page, in order."""
    return [Fence(page, found[2], found[3].strip(), found[4]) for found in _FENCE.finditer(page.read_text())]


def commands(page: str) -> list[str]:
    """The command lines of a page's shell blocks, in order."""
    return [
        command for fence in fences(ROOT / page) if fence.language in ("sh", "console") for command in fence.commands
    ]
