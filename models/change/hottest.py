"""Asks the proxies of a data directory for the rows that they serve most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.modelspec.row_records import RowRecord, decode, row_of
from foreseen.operate.admin_client import ask_own_operators
from foreseen.types import Row, Scope

ASK_SECONDS = 60.0
TRIES_PER_WORKER = 16
"""Every connection reaches one worker, and the kernel decides which."""


class HottestRows(Struct, frozen=True):
    """The rows, the hottest first, and how many of the workers gave theirs."""

    rows: Sequence[tuple[Scope, Row, bytes]]
    asked: int
    workers: int


def hottest_rows(data: Path, model: str, most: int) -> HottestRows:
    """What the workers of this machine serve most. Raises SetupError where they keep no inputs."""
    found: dict[tuple[str, bytes, bytes], RowRecord] = {}
    seen: set[str] = set()
    workers, tries = 1, 0
    while len(seen) < workers and tries < TRIES_PER_WORKER * workers:
        tries += 1
        status, content = ask_own_operators(data, "/admin/hot-rows", {"model": model, "most": most}, ASK_SECONDS)
        if status != 200:
            raise SetupError(f"the hottest rows: {reason_of(content)}")
        try:
            head, rows = decode(content)
        except msgspec.DecodeError:
            raise SetupError("what answers operators is no proxy of this version") from None
        workers = head.workers
        if head.worker not in seen:
            seen.add(head.worker)
            _add(found, rows)
    ordered = sorted(found.values(), key=lambda row: -row.heat)[:most]
    return HottestRows([(row.scope, row_of(row), row.parameters) for row in ordered], len(seen), workers)


def _add(found: dict[tuple[str, bytes, bytes], RowRecord], rows: Sequence[RowRecord]) -> None:
    """Add the rows of a worker; what several have is as hot as all of theirs."""
    for row in rows:
        name = row.scope, row.parameters, msgspec.msgpack.encode(row.tensors)
        known = found.get(name)
        found[name] = row if known is None else msgspec.structs.replace(row, heat=row.heat + known.heat)


def reason_of(content: bytes) -> str:
    """What the error of a proxy says."""
    try:
        return str(msgspec.json.decode(content)["error"])[:200]
    except (msgspec.DecodeError, KeyError, TypeError):
        return "no reason given"
