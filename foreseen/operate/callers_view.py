"""The heaviest callers of a scrape, as a document and as a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from foreseen.operate.scrape import Scrape

SHOWN_CALLERS = 6


def callers_of(after: Scrape) -> list[dict[str, Any]]:
    """The heaviest callers of the last minute, those with the most requests first."""
    found = [
        {
            "caller": caller,
            "requests": after.total("foreseen_caller_requests", caller=caller),
            "rows": after.total("foreseen_caller_rows", caller=caller),
            "computed_rows": after.total("foreseen_caller_computed_rows", caller=caller),
        }
        for caller in after.values("foreseen_caller_requests", "caller")
    ]
    return sorted(found, key=lambda one: (one["caller"] == "other", -one["requests"]))


def callers_table(callers: list[dict[str, Any]]) -> Table:
    """The first few of them."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("heaviest callers, last minute", no_wrap=True, min_width=12)
    for column in ("requests", "rows", "computed"):
        table.add_column(column, justify="right")
    for one in callers[:SHOWN_CALLERS]:
        table.add_row(one["caller"], *(f"{one[name]:,.0f}" for name in ("requests", "rows", "computed_rows")))
    return table
