"""`foreseen models handover --to URL`: hands a model over to the candidate of a running proxy, another server.

The proxy was started with `--candidate NAME=URL --canary 0%`. It answers the hottest rows by both sides, which fills
the candidate's key space; their answers are compared here. The switch is the canary's: all callers, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from foreseen.compare.comparison import Comparison
from foreseen.errors import SetupError
from foreseen.models.change.handover import RowCounts
from foreseen.models.change.hottest import HottestRows, reason_of
from foreseen.modelspec.row_records import RowRecord, TwoAnswers, record_of
from foreseen.operate.admin_client import ask_own_operators

PIECE_ROWS, PIECE_BYTES = 256, 8 * 2**20
PIECE_SECONDS = 180.0
SWITCH_SECONDS = 30.0
SCHEMES = ("http://", "https://", "grpc://", "unix:")


def is_address(text: str) -> bool:
    """Whether a candidate is named by its address."""
    return text.startswith(SCHEMES)


def compared(
    data: Path, model: str, address: str, hot: HottestRows, comparison: Comparison, report: Callable[[RowCounts], None]
) -> None:
    """Have both sides answer the rows, and add the answers to the comparison. Raises SetupError."""
    for piece in _pieces(hot):
        body = msgspec.msgpack.encode({"model": model, "candidate": address, "rows": piece})
        status, content = ask_own_operators(data, "/admin/candidate-rows", body, PIECE_SECONDS)
        if status != 200:
            raise SetupError(f"nothing has changed: {reason_of(content)}")
        try:
            pairs = msgspec.msgpack.decode(content, type=list[TwoAnswers])
        except msgspec.DecodeError:
            raise SetupError("what answers operators is no proxy of this version") from None
        report(_added(comparison, pairs))


def switch(data: Path, share: float) -> None:
    """Have the candidate answer this share of callers. Raises SetupError."""
    status, content = ask_own_operators(data, "/admin/canary", {"share": share}, SWITCH_SECONDS)
    if status != 200:
        raise SetupError(f"not switched: {reason_of(content)}")


def _pieces(hot: HottestRows) -> Iterator[Sequence[RowRecord]]:
    piece: list[RowRecord] = []
    size = 0
    for scope, row, parameters in hot.rows:
        record = record_of(scope, row, parameters, 0)
        piece.append(record)
        size += sum(len(tensor.data) for tensor in record.tensors)
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _added(comparison: Comparison, pairs: Sequence[TwoAnswers]) -> RowCounts:
    counts = RowCounts()
    for pair in pairs:
        if pair.old is None:
            comparison.failed_old += 1
            counts.failed += 1
        elif pair.new is None:
            comparison.failed_new += 1
            counts.failed += 1
        else:
            found = comparison.add(pair.key, pair.old, pair.new, pair.old.seconds, pair.new.seconds)
            changed = comparison.changed(found)
            counts.changed += changed
            counts.equal += not changed
    return counts
