"""The heaviest callers of the last minute: a bounded table in each worker, summed over workers at a scrape.

With several workers each writes its counts into the folder of metrics once a second; the worker that is scraped reads
all. Series are bounded: a scrape reports the heaviest few, and the others as `other`.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from foreseen.telemetry.exposition import MULTIPROCESS_FOLDER
from foreseen.web.limits import network_of

SLICE_SECONDS, SLICES = 10.0, 6
"""Resolution of the sliding minute."""
MOST_CALLERS = 4096
"""Of one slice; where there are more, those with the fewest requests are counted as one."""
MOST_LEFT = 256
"""Of one worker for the others: a file is written every second."""
STALE_SECONDS = 5.0
OTHER = "other"
Counts = dict[str, list[int]]
"""By caller: requests, rows, computed rows."""


class CallerCounts:
    """The table of one worker. `shown` callers are reported; with 0 nothing is counted."""

    def __init__(self, shown: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._clock = clock
        self.now: Counts = {}
        self._slices: deque[Counts] = deque([self.now], maxlen=SLICES)
        self._until = clock() + SLICE_SECONDS

    def add(self, address: str, rows: int, computed: int) -> None:
        """One request."""
        one = self.now.get(address)
        if one is None:
            if not self._shown:
                return
            one = self._new(grouped(address) if ":" in address else address)
        one[0] += 1
        one[1] += rows
        one[2] += computed

    def _new(self, address: str) -> list[int]:
        """The counts of a caller that has asked nothing in this slice, or of an IPv6 network, which is found here."""
        if address not in self.now and len(self.now) > MOST_CALLERS:
            _halve(self.now)
        return self.now.setdefault(address, [0, 0, 0])

    def beat(self) -> None:
        """Once a second: move on, and leave the counts for the worker that is scraped."""
        while self._clock() >= self._until:
            self._until += SLICE_SECONDS
            self.now = {}
            self._slices.append(self.now)
        folder = os.environ.get(MULTIPROCESS_FOLDER)
        if folder is not None and self._shown:
            path = Path(folder) / f"callers-{os.getpid()}.json"
            beside = path.with_suffix(".new")
            beside.write_text(json.dumps(heaviest(self._sum(), MOST_LEFT)))
            beside.replace(path)

    def heaviest(self) -> Counts:
        """The heaviest callers over all workers, for a scrape."""
        return heaviest(_added([self._sum(), *_of_others()]), self._shown) if self._shown else {}

    def _sum(self) -> Counts:
        return _added(self._slices)


def heaviest(counts: Mapping[str, list[int]], shown: int) -> Counts:
    """The first few by requests and by computed rows, and the sum of all others."""
    named = {address: one for address, one in counts.items() if address != OTHER}
    by_requests = sorted(named, key=lambda address: (-named[address][0], address))
    by_computed = sorted(named, key=lambda address: (-named[address][2], address))
    chosen = dict.fromkeys([*by_computed[: shown // 2], *by_requests])
    kept = list(chosen)[:shown]
    heaviest = {address: named[address] for address in sorted(kept, key=lambda address: -named[address][0])}
    rest = [one for address, one in counts.items() if address not in heaviest]
    if rest:
        heaviest[OTHER] = [sum(one[at] for one in rest) for at in range(3)]
    return heaviest


@lru_cache(MOST_CALLERS)
def grouped(address: str) -> str:
    """What counts as one caller: an IPv4 address, or an IPv6 network of 64 bits."""
    return network_of(address)


def _added(many: list[Counts] | deque[Counts]) -> Counts:
    total: Counts = {}
    for counts in many:
        for address, one in counts.items():
            known = total.setdefault(address, [0, 0, 0])
            for at in range(3):
                known[at] += one[at]
    return total


def _halve(counts: Counts) -> None:
    """Count the lighter half as one: a flood of addresses takes bounded memory, and the heavy ones stay."""
    lighter = sorted(counts, key=lambda address: counts[address][0])[: len(counts) // 2]
    rest = counts.pop(OTHER, [0, 0, 0])
    for address in lighter:
        one = counts.pop(address, [0, 0, 0])
        rest = [rest[at] + one[at] for at in range(3)]
    counts[OTHER] = rest


def _of_others() -> Iterator[Counts]:
    """What the other workers left within the last seconds; the file of one that has ended is removed."""
    folder = os.environ.get(MULTIPROCESS_FOLDER)
    for path in Path(folder).glob("callers-*.json") if folder is not None else ():
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
            elif path.stem != f"callers-{os.getpid()}":
                yield {str(address): [int(n) for n in one] for address, one in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError):  # it was replaced or removed in between
            continue
