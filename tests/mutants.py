"""Reads what `mutmut run` left in `mutants/` and says how many died: `make mutants`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

LEAST = 0.90
KILLED = {1, 3, 24, 36, -24, 152, 255}
"""Exit codes of a test run that noticed: failures, and time-outs (a mutant that waits for ever is noticed too)."""


def main() -> None:
    """Print the share of mutants that died, by module; status 1 under the bar."""
    total: Counter[str] = Counter()
    died: Counter[str] = Counter()
    for path in Path("mutants").rglob("*.meta"):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        module = str(path.relative_to("mutants")).removesuffix(".meta")
        total[module] += len(codes)
        died[module] += sum(code in KILLED for code in codes.values())
    for module, count in sorted(total.items()):
        print(f"{module:<24}{died[module]:>5} of {count:>4} mutants died  {died[module] / count:.1%}")
    share = sum(died.values()) / max(1, sum(total.values()))
    print(f"{'all':<24}{sum(died.values()):>5} of {sum(total.values()):>4} mutants died  {share:.1%}")
    sys.exit(share < LEAST)


if __name__ == "__main__":
    main()
