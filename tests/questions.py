"""Questions that several tests ask, and the fingerprint oracle that proves their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MASK = 2**64 - 1


def fingerprint(x: Sequence[int]) -> list[int]:
    """`x·M` mod 2⁶⁴ with `M[i][j] = (2i+3)^(j+1)`, as signed 64-bit integers: the oracle."""
    digest = []
    for j in range(4):
        total = sum((value & MASK) * (2 * i + 3) ** (j + 1) for i, value in enumerate(x)) & MASK
        digest.append(total - 2**64 if total >= 2**63 else total)
    return digest


def numbers(seed: int) -> list[int]:
    """Sixteen numbers that no other seed gives."""
    return [(seed * 1_000_003 + i * 7919) % (2**40) - 2**39 for i in range(16)]


def ask_fingerprint(*rows: Sequence[int]) -> dict[str, Any]:
    flat = [value for row in rows for value in row]
    return {"inputs": [{"name": "x", "shape": [len(rows), 16], "datatype": "INT64", "data": flat}]}


def ask_minilm(*texts: str) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}]}
