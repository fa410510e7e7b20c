"""What tenants use, by tenant and model: counted in plain lists, and taken once a second."""

from __future__ import annotations

from collections.abc import Mapping

USAGE_KINDS = ("requests", "rows", "hits", "model_seconds", "saved_seconds")
"""`hits` are rows that cost the model nothing; seconds are of computation, used and saved."""
Usage = dict[tuple[str, str], list[float]]
"""By tenant and model: an amount of each kind."""


class UsageCounts:
    """Of one process, since `take`."""

    def __init__(self) -> None:
        self.now: Usage = {}
        """Until `take`, `requests`, `hits` and `saved_seconds` may be added to in place; `rows` are those computed."""

    def add(self, tenant: str, model: str, hits: int, computed: int, saved: float) -> None:
        """One request that was answered: rows that cost the model nothing, and others."""
        counts = self.now.get((tenant, model))
        if counts is None:
            counts = self.now[tenant, model] = [0.0] * len(USAGE_KINDS)
        counts[0] += 1
        counts[2] += hits
        counts[4] += saved
        if computed:
            counts[1] += computed

    def computed(self, tenant: str, model: str, seconds: float) -> None:
        """A model has computed so long for a tenant."""
        self.now.setdefault((tenant, model), [0.0] * len(USAGE_KINDS))[3] += seconds

    def take(self) -> Usage:
        """What was counted since the last call."""
        taken, self.now = self.now, {}
        for counts in taken.values():
            counts[1] += counts[2]  # until here, rows that were computed
        return taken


def added(into: Usage, more: Mapping[tuple[str, str], list[float]]) -> Usage:
    """`into`, with more added to it."""
    for key, counts in more.items():
        known = into.setdefault(key, [0.0] * len(USAGE_KINDS))
        for at, count in enumerate(counts):
            known[at] += count
    return into
