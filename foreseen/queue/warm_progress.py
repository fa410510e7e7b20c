"""The progress of batch runs, in the state store, for the metrics of proxies. Pure.

    {fsj1}.warm.runs   hash   run → JSON: model, rows left, rows by result, time of its last report by the store's clock
    {fsj1}.warm.rows   hash   RESULT:MODEL → rows, over all runs

A run reports its totals, and the script adds the difference, so that a repeated report counts once. Both hashes are
bounded: every report removes silent runs, and the counts expire a month after the last report.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from foreseen.lua_scripts import lua_script
from foreseen.types import WarmRunStatus

RUNS, ROWS = "{fsj1}.warm.runs", "{fsj1}.warm.rows"
"""In the queue's slot: its client reads them."""
RESULTS = ("hit", "computed", "imported", "failed")
ALIVE_SECONDS = 15.0
"""A run reports every second or two; one that has been silent for so long has ended."""

REPORT = lua_script("foreseen.queue", "warm_report")


class WarmRun(Struct):
    """A run's report. `rows` are in the order of `RESULTS`; `left` is None where unknown."""

    model: str
    left: int | None
    rows: list[int]
    at: float = 0.0


def warming_of(runs: Mapping[bytes, bytes], rows: Mapping[bytes, bytes], now: float) -> WarmRunStatus:
    """Both hashes → the status of runs. `now` is the store's clock, Unix seconds."""
    counted: dict[tuple[str, str], int] = {}
    for name, value in rows.items():
        result, _, model = name.decode().partition(":")
        counted[model, result] = int(value)
    under_way: dict[str, int] = {}
    states: dict[tuple[str, str], int] = {}
    for text in runs.values():
        try:
            run = msgspec.json.decode(text, type=WarmRun)
        except msgspec.DecodeError:  # another version's
            continue
        if run.at < now - ALIVE_SECONDS:
            continue
        under_way[run.model] = under_way.get(run.model, 0) + 1
        for state, number in (("done", sum(run.rows)), ("left", run.left or 0)):
            states[run.model, state] = states.get((run.model, state), 0) + number
    return WarmRunStatus(under_way, states, counted)
