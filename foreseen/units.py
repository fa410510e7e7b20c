"""Sizes, durations and lists as people write them → numbers and words: `64MiB`, `2h`, `minilm,fingerprint`.

A setting's name says its unit: `…_bytes`, `…_seconds`, `…_ms`. A plain number is in that unit. Pure.
"""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?|[0-9]+\.|inf", re.IGNORECASE)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)
_SIZES = {"": 1, "b": 1}
_SIZES |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_SIZES |= {letter: 1024**power for power, letter in enumerate("kmgt", 1)}
_SIZES |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_SECONDS = {
    "ms": 0.001, "s": 1, "sec": 1, "second": 1, "seconds": 1, "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400, "w": 604800,
}  # fmt: skip


def size_of(text: str) -> int:
    """Bytes: `1048576`, `1MiB`, `1M` (2²⁰), `1MB` (10⁶), `1.5GiB`. Raises ValueError that says how to write it."""
    found = _SIZE.fullmatch(text.strip())
    factor = _SIZES.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ValueError(f"{text!r} is no size; write a number of bytes, or 64MiB, 1.5GiB, 500kB")
    count = float(found[1]) * factor
    if count != int(count):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(found[1]) * factor if found[1].isdigit() else int(count)


def seconds_of(text: str, unit: str = "s") -> float:
    """Seconds: `90`, `1.5`, `500ms`, `2h`, `1h30m`, `7d`, `inf`; a plain number is in `unit`. Raises ValueError."""
    plain = text.strip()
    if _NUMBER.fullmatch(plain):
        return float(plain) * _SECONDS[unit]
    parts = _PART.findall(plain)
    if not parts or re.sub(r"\s", "", plain) != "".join(f"{n}{u}" for n, u in parts):
        raise ValueError(f"{text!r} is not a duration; write a number, or 500ms, 90s, 1h30m, 7d")
    if unknown := [u for _, u in parts if u.lower() not in _SECONDS]:
        raise ValueError(f"{text!r}: {unknown[0]!r} is not a unit of time; use ms, s, m, h, d and w")
    return sum(float(n) * _SECONDS[u.lower()] for n, u in parts)


def share_of(text: str) -> float:
    """A share from 0 to 1: `0.1%`, `0.001`. Raises ValueError that says how to write it."""
    plain = text.strip()
    number, factor = (plain[:-1].rstrip(), 0.01) if plain.endswith("%") else (plain, 1.0)
    share = float(number) * factor if _NUMBER.fullmatch(number) else -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{text!r} is not a share; write 0.1% or 0.001, at most 100%")
    return share


def words_of(text: str) -> list[str]:
    """The words of a list in one environment variable: separated by commas or white space."""
    return [word for word in re.split(r"[,\s]+", text.strip()) if word]


def number_of(name: str, text: str) -> float | None:
    """The number that a setting's text stands for, in the setting's own unit; None where its name says no unit.

    Raises ValueError.
    """
    if name.endswith("bytes"):
        return size_of(text)
    if name.endswith("seconds"):
        return seconds_of(text)
    if name.endswith("_ms"):
        return round(seconds_of(text, "ms") * 1000, 9)
    return None
