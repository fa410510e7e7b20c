"""A running proxy's metrics, and the keys noted under its data directory → what its audit of hits has found, by model.

The bound is one-sided (Clopper and Pearson, 1934): the largest share of hits that differ with which so few differences
among so many audited hits would still be seen in one of twenty audits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson

from foreseen.operate.scrape import Scrape, scrape

CONFIDENCE = 0.95
DIFFERENCES_FILE = "audit-differences.jsonl"
MAX_KEYS = 20
"""Keys of one model that are listed, the latest ones."""
_BISECTIONS = 200


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
        "at_most": upper_bound(different, audited),
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


def upper_bound(different: int, audited: int, confidence: float = CONFIDENCE) -> float:
    """The upper end of the one-sided Clopper-Pearson interval of a share; 1 where nothing was audited."""
    if different >= audited:
        return 1.0
    if different == 0:
        return -math.expm1(math.log(1 - confidence) / audited)
    low, high = different / audited, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _at_most(different, audited, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(successes: int, trials: int, share: float) -> float:
    """The probability of so many successes or fewer. Terms go from the largest to where they are nothing."""
    term = math.exp(
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
        + successes * math.log(share) + (trials - successes) * math.log1p(-share)
    )  # fmt: skip
    total, odds = term, (1 - share) / share
    for count in range(successes, 0, -1):  # below the mean, so that each term is smaller than the one before
        term *= count / (trials - count + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total
