"""A running proxy's metrics → what its shadow traffic has found: the changed share with its interval, by model."""

from __future__ import annotations

from typing import Any

from foreseen.compare.intervals import interval
from foreseen.operate.scrape import Scrape, scrape

CONFIDENCE = 0.99
ROWS, DISTANCE = "foreseen_shadow_rows_total", "foreseen_shadow_cosine_distance"
_QUANTILES = (0.5, 0.99)


def read(url: str) -> dict[str, dict[str, Any]]:
    """By model: compared rows by outcome, the changed share with its interval, distances, compute times. Raises
    SetupError."""
    return summary_of(scrape(url))


def summary_of(found: Scrape) -> dict[str, dict[str, Any]]:
    """The same of metrics."""
    return {model: _model(found, model) for model in found.values(ROWS, "model")}


def _model(found: Scrape, model: str) -> dict[str, Any]:
    def rows(outcome: str) -> int:
        return round(found.total(ROWS, model=model, outcome=outcome))

    compared, changed = sum(map(rows, ("equal", "close", "changed"))), rows("changed")
    low, high = interval(changed, compared, CONFIDENCE)
    return {
        "compared": compared,
        "equal": rows("equal"),
        "close": rows("close"),
        "changed": changed,
        "share": changed / compared if compared else None,
        "low": low,
        "high": high,
        "confidence": CONFIDENCE,
        "not_comparable": rows("not-comparable"),
        "dropped": rows("dropped"),
        "failed": rows("failed"),
        "workers_running": round(found.total("foreseen_shadow_running", model=model)),
        "ms_a_row": {side: _ms(found, model, side, compared) for side in ("live", "candidate")},
        "cosine_distance_at_most": {f"p{100 * share:g}": _quantile(found, model, share) for share in _QUANTILES},
    }


def _ms(found: Scrape, model: str, side: str, rows: int) -> float | None:
    seconds = found.total("foreseen_shadow_compute_seconds_total", model=model, side=side)
    return 1000 * seconds / rows if rows else None


def _quantile(found: Scrape, model: str, share: float) -> float | None:
    """The bound of the bucket that has the quantile; None where there are no distances, or it is above all bounds."""
    total = found.total(f"{DISTANCE}_count", model=model)
    for bound in sorted(found.values(f"{DISTANCE}_bucket", "le"), key=float) if total else ():
        if found.total(f"{DISTANCE}_bucket", model=model, le=bound) >= share * total:
            return float(bound) if bound != "+Inf" else None
    return None


def lines(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as text for people."""
    if not summary:
        return "no candidate is asked; start the proxy with --candidate ADDRESS --shadow 5%"
    return "\n".join(line for model, one in summary.items() for line in _lines(model, one))


def _lines(model: str, one: dict[str, Any]) -> list[str]:
    state = f"{one['workers_running']} workers send rows" if one["workers_running"] else "ended"
    if not one["compared"]:
        return [f"{model}: no row compared yet, {state}", _left_out(one)]
    within = f"{100 * one['low']:.3g} to {100 * one['high']:.3g} % at {100 * one['confidence']:.0f} % confidence"
    share = f"{100 * one['share']:.3g} %"
    found = [
        f"{model}: {one['changed']:,} of {one['compared']:,} rows changed: {share} ({within}), {state}",
        f"  equal bit for bit {one['equal']:,}, close {one['close']:,}",
        _left_out(one),
    ]
    live, candidate = one["ms_a_row"]["live"], one["ms_a_row"]["candidate"]
    found.append(f"  compute time of a row: {live:.3g} ms, of the candidate {candidate:.3g} ms")
    distances = [
        f"{name} at most {value:g}" for name, value in one["cosine_distance_at_most"].items() if value is not None
    ]
    if distances:
        found.append(f"  1 - cosine: {', '.join(distances)}")
    return found


def _left_out(one: dict[str, Any]) -> str:
    return f"  not comparable {one['not_comparable']:,}, dropped {one['dropped']:,}, failed {one['failed']:,}"
