"""`foreseen observed`: from a running proxy's metrics, what the cache would have done for observed models."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from foreseen.operate.scrape import fetch

OUTCOMES = ("hit-exact", "hit-close", "hit-different", "collapsed", "miss")


def read(url: str, key: str | None = None) -> dict[str, dict[str, Any]]:
    """By model: rows by outcome, the would-be hit ratio, compute seconds that would have been saved."""
    return summary_of(fetch(url, key=key).decode())


def summary_of(exposition: str) -> dict[str, dict[str, Any]]:
    """The same of an exposition."""
    rows: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(OUTCOMES, 0))
    saved: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "foreseen_observed_rows_total":
                rows[sample.labels["model"]][sample.labels["outcome"]] = int(sample.value)
            elif sample.name == "foreseen_observed_saved_compute_seconds_total":
                saved[sample.labels["model"]] = sample.value
    return {
        model: {
            "rows": sum(counts.values()),
            **counts,
            "hit_ratio": round(_hits(counts) / max(1, sum(counts.values())), 4),
            "saved_compute_seconds": round(saved[model], 6),
        }
        for model, counts in rows.items()
    }


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text for people."""
    if not summary:
        return "no model is observed, or none has been asked yet; start the proxy with --observe NAME"
    lines = []
    for model, counts in summary.items():
        lines.append(f"{model}: {counts['rows']} rows, {counts['hit_ratio']:.1%} would have been hits")
        lines += [f"  {outcome:<14}{counts[outcome]:>10}" for outcome in OUTCOMES]
        lines.append(f"  compute saved {counts['saved_compute_seconds']:>10.3f} s")
        if counts["hit-different"]:
            lines.append("  Some cached answers differ from fresh ones: do not trust the cache with this model yet.")
    return "\n".join(lines)


def _hits(counts: dict[str, int]) -> int:
    return counts["hit-exact"] + counts["hit-close"] + counts["hit-different"]
