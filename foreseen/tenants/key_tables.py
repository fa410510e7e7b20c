"""Common code of the keys files of tenants and operators: TOML tables with hashes of keys and an expiry.

Errors name the table and the field, never what stands there: it may be a key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from foreseen.errors import SetupError

MAX_FILE_BYTES = 8 * 2**20
HASH = "sha256:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def content_of(path: Path) -> bytes | None:
    """A file's content, no more than one byte above the most that a keys file may have; None where there is no file.
    Raises SetupError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def tables_in(content: bytes) -> dict[str, Any]:
    """The tables of a keys file. Raises SetupError."""
    if len(content) > MAX_FILE_BYTES:
        raise SetupError(f"has more than {MAX_FILE_BYTES} bytes; is it a keys file?")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise SetupError("is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"is no TOML: {_toml_place(error)}") from None


def hashes_in(place: str, table: Mapping[str, Any]) -> list[bytes]:
    """The hashes of a table's `keys`. Raises SetupError."""
    found = []
    for hashed in texts_in(place, table, "keys"):
        match = _HASH.fullmatch(hashed)
        if match is None:
            raise SetupError(f'{place} keys: each must be "{HASH}" and 64 hexadecimal digits, never a key itself')
        found.append(bytes.fromhex(match[1]))
    return found


def texts_in(place: str, table: Mapping[str, Any], field: str, default: list[str] | None = None) -> list[str]:
    """A list of strings. Raises SetupError."""
    given = table.get(field, default or [])
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise SetupError(f"{place} {field}: must be a list of strings")
    return given


def expiry_in(place: str, table: Mapping[str, Any]) -> float | None:
    """`expires`, a date or date with time, as Unix seconds; without a zone it is UTC. Raises SetupError."""
    given = table.get("expires")
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            given = 0
    if isinstance(given, date) and not isinstance(given, datetime):
        given = datetime.combine(given, time(), UTC)
    if isinstance(given, datetime):
        return (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    if given is not None:
        raise SetupError(f"{place} expires: must be a date, or a date with a time")
    return None


def _toml_place(error: tomllib.TOMLDecodeError) -> str:
    """Where a file is wrong, without what stands there."""
    found = re.search(r"\(at [^)]*\)", str(error))
    return found[0].strip("()") if found else "cannot be read"
