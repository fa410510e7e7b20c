"""One metric as a value: name, help text, labels."""

from __future__ import annotations

from typing import NamedTuple


class CounterSpec(NamedTuple):
    """A counter; `labels` are closed sets."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


class HistogramSpec(NamedTuple):
    """A histogram. `at_once`: with several workers every observation is counted before the answer is sent."""

    name: str
    help: str
    buckets: tuple[float, ...]
    labels: tuple[str, ...] = ()
    at_once: bool = False


class GaugeSpec(NamedTuple):
    """A gauge. `mode` is prometheus_client's `multiprocess_mode`."""

    name: str
    help: str
    mode: str
    labels: tuple[str, ...] = ()


Spec = CounterSpec | HistogramSpec | GaugeSpec
