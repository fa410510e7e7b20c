"""Checks the flags of a batch run before anything is opened, and reads shares such as `1%`."""

from __future__ import annotations

from foreseen.errors import SetupError
from foreseen.settings import WarmSettings


def check(settings: WarmSettings) -> None:
    """Flags that contradict each other. Raises SetupError."""
    if settings.url is not None and settings.verify is not None:
        raise SetupError("--verify needs the model process itself: omit --url and run on its machine")
    if settings.outputs and (settings.out is not None or settings.sql is not None):
        raise SetupError("--outputs imports existing predictions: omit --out and --sql")
    if settings.out is not None and settings.sql is not None:
        raise SetupError("give --out or --sql, not both")
    if settings.verify is not None and not settings.outputs:
        raise SetupError("--verify goes with --outputs: without them the model computes every row itself")
    share_of(settings.error_budget)
    if settings.verify is not None:
        share_of(settings.verify)
    if settings.chunk_rows < 1 or settings.batch_ms <= 0 or (settings.rows_per_second or 1) <= 0:
        raise SetupError("--chunk-rows, --batch-ms and --rows-per-second must be above 0")


def share_of(text: str) -> float:
    """`1%` or `0.01` as a share of one. Raises SetupError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SetupError(f"{text!r} is not a share: write 1% or 0.01")
    return share
