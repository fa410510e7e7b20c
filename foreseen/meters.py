"""prometheus_client on the hot path: children that are looked up once, histograms that are filled in plain lists.

`.labels()` costs 0.7 µs a call, and an observation in multiprocess mode 1.6 µs (measured): a kept child costs 0.1 µs,
an addition to a tally 0.3 µs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Kept(Generic[Metric]):
    """A metric with labels. `labels` returns the child of these values, made once. Values are of closed sets."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: Metric) -> None:
        self._metric: Metric = metric
        self._children: dict[tuple[str, ...], Metric] = {}

    def labels(self, *values: str) -> Metric:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


class Tally:
    """A histogram without labels, or one child of it. What was added shows after `flush`, which only the event loop's
    thread calls, as it alone adds: about once a second and before each scrape."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram) -> None:
        self._child = child
        self._bounds = child._upper_bounds  # noqa: SLF001 - the library takes one observation at a time
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        if not any(self._counts):
            return
        for number, count in enumerate(self._counts):
            if count:
                self._child._buckets[number].inc(count)  # noqa: SLF001
        self._child._sum.inc(self._sum)  # noqa: SLF001
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0


class Tallies:
    """Tallies by the value of a histogram's one label, made when first asked for."""

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._tallies: dict[str, Tally] = {}

    def add(self, label: str, value: float) -> None:
        tally = self._tallies.get(label)
        if tally is None:
            tally = self._tallies[label] = Tally(self._metric.labels(label))
        tally.add(value)

    def __iter__(self) -> Iterator[Tally]:
        return iter(self._tallies.values())
