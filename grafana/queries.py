"""Parts of queries: label filters, rates, quantiles, sums; and the thresholds of colours.

Queries say `$job` for the proxies and `$model` for models; a model process is found by its model alone, whatever the
job is called that scrapes it.
"""

from __future__ import annotations

OURS = 'job=~"$job"'
OF = 'job=~"$job", model=~"$model"'
MODEL = 'model=~"$model"'
RATE = "$__rate_interval"

OBJECTIVE = 0.999
"""Of requests that are not answered with a 5xx; the same as in grafana/prometheus/rules."""

GOOD_HIGH = ((None, "red"), (0.2, "orange"), (0.5, "green"))
GOOD_LOW_HIT = ((None, "green"), (0.005, "orange"), (0.02, "red"))
GOOD_LOW_MISS = ((None, "green"), (1.0, "orange"), (5.0, "red"))
UP_OR_DOWN = ((1.0, "up", "green"), (0.0, "down", "red"))
NEEDS_ONE = ((None, "red"), (1.0, "green"))
NEEDS_NONE = ((None, "green"), (1.0, "red"))
BUDGET = ((None, "red"), (0.0, "orange"), (0.5, "green"))


def rate(metric: str, by: str, where: str = OF) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def quantile(share: float, metric: str, by: str = "", where: str = OF) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def total(metric: str, where: str = OF, window: str = RATE) -> str:
    return f"sum(rate({metric}{{{where}}}[{window}]))"


def one(metric: str, by: str = "", where: str = "") -> str:
    """A value that every proxy on a state store reports alike: one of them, not their sum."""
    return f"max{f' by ({by})' if by else ''} ({metric}{{{OURS}{f', {where}' if where else ''}}})"


def fastest(metric: str, by: str = "", where: str = "") -> str:
    """The rate of such a counter."""
    chosen = f"{OURS}, {where}" if where else OURS
    return f"max{f' by ({by})' if by else ''} (rate({metric}{{{chosen}}}[{RATE}]))"


BROKEN = OURS + ', code=~"5.."'
FRESH = OF + ', result=~"near|far"'
CACHED = OF + ', result=~"near|far|collapsed|stale"'
HIT = OF + ', result="hit"'
MISS = OF + ', result="miss"'
FIRING = (
    'sum by (alertname) (ALERTS{alertname=~"Foreseen.+", alertstate="firing"})'
    ' or label_replace(vector(0), "alertname", "none", "", "")'
)
FAILED = f'(sum(increase(foreseen_requests_total{{{OURS}, code=~"5..", code!="501"}}[$__range])) or vector(0))'
ANSWERED = f"sum(increase(foreseen_requests_total{{{OURS}}}[$__range]))"
RATIO = f"{total('foreseen_rows_total', FRESH)} / {total('foreseen_rows_total')}"
