"""A finding of `foreseen doctor`: what was checked, what was found and, unless it is ok, the fix."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

Grade = Literal["ok", "note", "must"]
"""`must`: Foreseen does not work, or not as it promises, until this is fixed. `note`: an operator should know."""


class Finding(Struct, frozen=True):
    """One check: what was checked, what was seen and, unless it is well, the fix."""

    grade: Grade
    what: str
    said: str
    fix: str = ""

    def line(self) -> str:
        return f"{self.grade:<5} {self.what:<10} {self.said}" + (f"; fix: {self.fix}" if self.fix else "")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
