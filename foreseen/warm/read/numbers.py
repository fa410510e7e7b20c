"""Reads numbers and truth values as tools write them in text.

What JSON reads is read as JSON. Besides, `True` (pandas) and `t` (PostgreSQL) are truth values, `+1`, `.5`, `1.` and
`007` are numbers; where an input takes NaN, the usual marks of a missing value are NaN, and `inf` is infinity.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

_NUMBER = re.compile(r"\s*([+-]?)0*(\d*)(?:\.(\d*))?([eE][+-]?\d+)?\s*", re.ASCII)
_TRUTH = {"true": True, "t": True, "false": False, "f": False}
_MISSING = frozenset(("", "nan", "-nan", "+nan", "na", "n/a", "#n/a", "null", "none", r"\n", "<na>"))
_INFINITE = {"inf": math.inf, "infinity": math.inf}


def value_of(text: str | bytes, *, truth: bool, missing: bool, listed: bool) -> Any:
    """One cell as a JSON value; `missing` says that NaN is allowed, `listed` that the cell is a list.

    Raises ValueError (orjson's is one) where it is none.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        plain = text.decode() if isinstance(text, bytes) else text
        return _list_of(plain) if listed and missing else _scalar_of(plain, truth=truth, missing=missing)
    return math.nan if value is None and missing and not listed else value


def _scalar_of(text: str, *, truth: bool, missing: bool) -> Any:
    word = text.strip().lower()
    if truth and word in _TRUTH:
        return _TRUTH[word]
    if missing and word in _MISSING:
        return math.nan
    if missing and word.lstrip("+-") in _INFINITE:
        return -math.inf if word[0] == "-" else math.inf
    found = _NUMBER.fullmatch(text)
    zeros = found is not None and "0" in text.partition("e")[0]
    if found is None or not (found[2] or found[3] or zeros):
        raise ValueError("is not a number")
    sign, whole, fraction, power = found.groups(default="")
    return orjson.loads(f"{'-' * (sign == '-')}{whole or '0'}{'.' * bool(fraction)}{fraction}{power}")


def _list_of(text: str) -> Any:
    """A list with NaN or infinities in it, as Python's json and str write them. Raises ValueError."""
    return json.loads(re.sub(r"\b(nan|inf)\b", lambda found: {"nan": "NaN", "inf": "Infinity"}[found[1]], text))
