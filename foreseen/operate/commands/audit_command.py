"""A running proxy's metrics, and the keys noted under its data directory → what its audit of hits has found, by model.

The bound is one-sided (Clopper and Pearson, 1934): the largest share of hits that differ with which so few differences
among so many audited hits would still be seen in one of twenty audits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from foreseen.compare.intervals import upper_bound
from foreseen.operate.scrape import Scrape, scrape

CONFIDENCE = 0.95
DIFFERENCES_FILE = "audit-differences.jsonl"
MAX_KEYS = 20
"""Keys of one model that are listed, the latest ones."""


def read(url: str, data: Path) -> dict[str, dict[str, Any]]:
    """By model: audited rows by outcome, the bound, distinct keys, keys that differ. Raises SetupError."""
    return summary_of(scrape(url), noted(data))


def summary_of(found: Scrape, keys: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """The same of metrics, and of keys that were noted."""
    return {model: _model(found, model, keys) for model in found.values("foreseen_audit_rows_total", "model")}


def _model(found: Scrape, model: str, keys: dict[str, list[str]]) -> dict[str, Any]:
    def rows(outcome: str) -> int:
        return round(found.total("foreseen_audit_rows_total", model=model, outcome=outcome))

    audited, different = rows("equal") + rows("different"), rows("different")
    return {
        "audited": audited,
        "different": different,
        "at_most": upper_bound(different, audited, CONFIDENCE),
        "confidence": CONFIDENCE,
        "distinct_keys": round(found.total("foreseen_audit_distinct_keys", model=model)),
        "workers": round(found.total("foreseen_workers")),
        "not_comparable": rows("not-comparable"),
        "dropped": rows("dropped"),
        "failed": rows("failed"),
        "repeatable": found.total("foreseen_audit_model_unrepeatable", model=model) == 0,
        "keys": keys.get(model, [])[-MAX_KEYS:],
    }


def noted(data: Path) -> dict[str, list[str]]:
    """By model: prefixes of the keys that differed, as the proxies of a data directory noted them."""
    keys: dict[str, list[str]] = {}
    try:
        text = (data / DIFFERENCES_FILE).read_bytes()
    except OSError:
        return keys
    for line in text.splitlines():
        try:
            one = orjson.loads(line)
            keys.setdefault(one["model"], []).append(one["key"])
        except (orjson.JSONDecodeError, KeyError, TypeError):  # cut off
            continue
    return keys


def lines(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text for people."""
    if not summary:
        return "nothing is audited; start the proxy with --audit 0.1%"
    return "\n".join(line for model, one in summary.items() for line in _lines(model, one))


def _lines(model: str, one: dict[str, Any]) -> list[str]:
    bound = f"at most {100 * one['at_most']:.2g} % at {100 * one['confidence']:.0f} % confidence"
    distinct = f"{'at most ' if one['workers'] > 1 else ''}{one['distinct_keys']:,} distinct keys"
    found = [
        f"{model}: {one['different']:,} of {one['audited']:,} audited hits differ: {bound} ({distinct})",
        f"  not comparable {one['not_comparable']:,}, dropped {one['dropped']:,}, failed {one['failed']:,}",
    ]
    if not one["repeatable"]:
        found.append("  The model's answers are not repeatable: one row got two. The bound says little.")
    if one["different"]:
        keys = ", ".join(one["keys"]) or "in the proxy's log, `audit: entry differs`"
        found.append(f"  keys that differ: {keys}")
    return found
