"""The heaviest callers: bounded in memory, in series and in files, over a minute that moves on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from foreseen.telemetry.callers import MOST_CALLERS, MOST_LEFT, OTHER, CallerCounts, heaviest
from foreseen.telemetry.exposition import MULTIPROCESS_FOLDER


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(counts: CallerCounts) -> dict[str, tuple[int, ...]]:
    """By caller: requests, rows, computed rows."""
    return {caller: tuple(one) for caller, one in counts.heaviest().items()}


def test_requests_and_rows_are_counted_by_address() -> None:
    """The heaviest first; an IPv6 network of 64 bits is one caller."""
    counts = CallerCounts(10)
    for _ in range(3):
        counts.add("10.0.0.1", 2, 1)
    counts.add("2001:db8::1", 5, 0)
    counts.add("2001:db8::2", 5, 5)
    assert told(counts) == {"10.0.0.1": (3, 6, 3), "2001:db8::/64": (2, 10, 5)}
    assert next(iter(told(counts))) == "10.0.0.1"


def test_only_the_heaviest_are_series() -> None:
    """By requests, and by what a model had to compute; all others are one."""
    counts = CallerCounts(4)
    for number in range(50):
        for _ in range(number + 1):
            counts.add(f"10.0.0.{number}", 1, 0)
    counts.add("10.9.9.9", 100, 100)
    shown = told(counts)
    assert len(shown) == 5
    assert {"10.0.0.49", "10.9.9.9", OTHER} <= set(shown)
    assert sum(one[0] for one in shown.values()) == sum(range(1, 51)) + 1


def test_a_flood_of_addresses_takes_bounded_memory() -> None:
    """The heavy caller among them stays, no request is lost from the sum."""
    counts = CallerCounts(2)
    for number in range(3 * MOST_CALLERS):
        counts.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1, 0)
        if number % 10 == 0:
            counts.add("192.0.2.7", 1, 0)
    shown = told(counts)
    assert next(iter(shown)) in ("192.0.2.7", OTHER)
    assert shown["192.0.2.7"][0] == len(range(0, 3 * MOST_CALLERS, 10))
    assert sum(one[0] for one in shown.values()) == 3 * MOST_CALLERS + shown["192.0.2.7"][0]
    assert len(counts._slices[-1]) <= MOST_CALLERS + 1


def test_a_minute_later_they_are_forgotten() -> None:
    """Counts are of the last minute, in steps of ten seconds; with 0 shown nothing is counted."""
    clock = Clock()
    counts = CallerCounts(4, clock)
    counts.add("10.0.0.1", 1, 0)
    clock.now += 55
    counts.beat()
    assert told(counts) == {"10.0.0.1": (1, 1, 0)}
    clock.now += 10
    counts.beat()
    assert told(counts) == {}
    off = CallerCounts(0)
    off.add("10.0.0.1", 1, 0)
    assert told(off) == {}


def test_a_scrape_sums_over_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others left a moment ago counts; what a worker that has ended left is removed."""
    monkeypatch.setenv(MULTIPROCESS_FOLDER, str(tmp_path))
    counts = CallerCounts(4)
    counts.add("10.0.0.1", 1, 1)
    counts.beat()
    other, ended, torn = (tmp_path / f"callers-{name}.json" for name in ("other", "ended", "torn"))
    other.write_text(json.dumps({"10.0.0.1": [5, 6, 7], "10.0.0.2": [1, 1, 1]}))
    ended.write_text(json.dumps({"10.0.0.1": [100, 100, 100]}))
    os.utime(ended, (time.time() - 60, time.time() - 60))
    torn.write_text("{")
    assert told(counts) == {"10.0.0.1": (6, 7, 8), "10.0.0.2": (1, 1, 1)}
    assert not ended.exists()


def test_what_is_left_for_others_is_bounded() -> None:
    """A file holds so many callers and the sum of the rest."""
    many = {f"10.0.{number >> 8}.{number & 255}": [number, 1, 1] for number in range(1000)}
    kept = heaviest(many, MOST_LEFT)
    assert len(kept) == MOST_LEFT + 1
    assert sum(one[1] for one in kept.values()) == 1000
