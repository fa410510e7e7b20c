"""Deficit round robin by rows: the order in which callers' waiting rows are computed. Pure.

Each caller in turn may have so many rows computed (Shreedhar and Varghese, SIGCOMM 1995). A caller that had nothing
waiting comes before those that have waited, once (RFC 8290, section 4.2), so a single row does not wait for a round of
wide batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

QUANTUM_ROWS = 64
SPARE_CALLERS = 64
"""Callers with nothing waiting that are remembered beside as many as have."""


def _never(_: str) -> bool:
    return False


class FairOrder:
    """Whose rows are next. The rows themselves are the user's; this counts them."""

    def __init__(self, quantum: int = QUANTUM_ROWS) -> None:
        self.quantum = quantum
        """Rows of one caller before the next one's turn."""
        self._rows: dict[str, int] = {}
        self._credit: dict[str, int] = {}
        """Rows that a caller may still have before the next one's turn; below 0 where it had more."""
        self._weights: dict[str, int] = {}
        self._new: OrderedDict[str, None] = OrderedDict()
        self._old: OrderedDict[str, None] = OrderedDict()

    @property
    def waiting(self) -> Mapping[str, int]:
        """Rows that wait, by caller; of callers with any."""
        return self._rows

    def __len__(self) -> int:
        return len(self._credit)

    def add(self, caller: str, rows: int, weight: int = 1) -> None:
        """So many more rows wait. A caller has its weight times the rows of one of weight 1."""
        if caller not in self._credit:
            if len(self._credit) >= 2 * len(self._rows) + SPARE_CALLERS:
                self._forget_idle()
            self._credit[caller] = self.quantum * weight
            self._new[caller] = None
        self._weights[caller] = weight
        self._rows[caller] = self._rows.get(caller, 0) + rows

    def remove(self, caller: str, rows: int) -> None:
        """So many of a caller's rows wait no longer."""
        left = self._rows[caller] - rows
        if left > 0:
            self._rows[caller] = left
            return
        del self._rows[caller]
        if not self._rows:  # no caller owes anything to another one
            self._credit.clear()
            self._weights.clear()
            self._new.clear()
            self._old.clear()

    def charge(self, caller: str, rows: int) -> None:
        """So many rows of a caller are being computed. Called before `remove`."""
        self._credit[caller] -= rows

    def next(self, blocked: Callable[[str], bool] = _never) -> str | None:
        """The caller whose rows are next; None where none waits, or all that do are blocked."""
        passed = 0
        while passed < len(self._rows):
            turn = self._new or self._old
            caller = next(iter(turn))
            if self._credit[caller] <= 0:
                self._credit[caller] += self.quantum * self._weights[caller]
            elif caller in self._rows:
                if not blocked(caller):
                    return caller
                passed += 1
            elif turn is self._old:
                del self._old[caller], self._credit[caller], self._weights[caller]
                continue
            self._new.pop(caller, None)
            self._old.pop(caller, None)
            self._old[caller] = None
        return None

    def _forget_idle(self) -> None:
        for caller in [caller for caller in self._credit if caller not in self._rows]:
            del self._credit[caller], self._weights[caller]
            self._new.pop(caller, None)
            self._old.pop(caller, None)


def rows_before(own: int, rows: int, others: Iterable[int]) -> int:
    """Rows that are computed before the last of `rows` new ones of a caller: `own` of its own, and of each other
    caller's at most as many as it has itself."""
    most = own + rows
    return own + sum(min(waiting, most) for waiting in others)


def has_room(held: int, more: int, free: int) -> bool:
    """Whether a caller that holds so much of something shared may have more. One that holds nothing may have all that
    is free. Others may have twice what is free, so that there is room left for those who come (dynamic thresholds,
    Choudhury and Hahne, INFOCOM 1996): one caller has at most two thirds, n callers have 2n/(2n + 1)."""
    return more <= free and (not held or held + more <= 2 * free)
