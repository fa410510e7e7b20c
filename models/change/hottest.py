"""What a handover says to running proxies and asks of them, over the operators' listener."""

from __future__ import annotations

from pathlib import Path

import msgspec

from foreseen.errors import SetupError
from foreseen.models.change.handover import RowCounts
from foreseen.modelspec.row_records import RowRecord, decode, row_of
from foreseen.operate.admin_client import ask_own_operators
from foreseen.types import Row, Scope

ASK_SECONDS = 30.0
TRIES_PER_WORKER = 16
"""Every connection reaches one worker, and the kernel decides which."""


def hottest_rows(data: Path, model: str, most: int) -> list[tuple[Scope, Row, bytes]]:
    """What the workers of this machine serve most, the hottest first. Raises SetupError where none keeps any."""
    found: dict[tuple[str, bytes, bytes], RowRecord] = {}
    seen: set[int] = set()
    workers, tries = 1, 0
    while len(seen) < workers and tries < TRIES_PER_WORKER * workers:
        tries += 1
        status, content = ask_own_operators(data, "/admin/hot-rows", {"model": model, "most": most}, ASK_SECONDS)
        if status != 200:
            raise SetupError(f"the proxies' hottest rows were not given: {_said(content)}")
        try:
            answer = decode(content)
        except msgspec.DecodeError:
            raise SetupError("what answers operators is no proxy of this version") from None
        workers = answer.workers
        if answer.worker not in seen:
            seen.add(answer.worker)
            for row in answer.rows:
                name = row.scope, row.parameters, msgspec.msgpack.encode(row.tensors)
                found[name] = msgspec.structs.replace(row, heat=row.heat + (found[name].heat if name in found else 0))
    ordered = sorted(found.values(), key=lambda row: -row.heat)[:most]
    return [(Scope(row.scope), row_of(row), row.parameters) for row in ordered]


def count_rows(data: Path, model: str, counts: RowCounts) -> None:
    """Have a proxy count rows that were handed over. A proxy that is away misses them: nothing depends on it."""
    body = {"model": model, "rows": msgspec.structs.asdict(counts)}
    try:
        ask_own_operators(data, "/admin/handover-rows", body, ASK_SECONDS)
    except SetupError:
        return


def _said(content: bytes) -> str:
    try:
        return str(msgspec.json.decode(content)["error"])[:200]
    except (msgspec.DecodeError, KeyError, TypeError):
        return "no reason given"
