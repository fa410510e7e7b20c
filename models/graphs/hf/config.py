"""`config.json` of a Hugging Face folder → values by name, with errors that say which field is missing or unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from foreseen.errors import SetupError

FILE = "config.json"
MISSING: Any = object()


class Config:
    """A JSON object whose fields are read by name."""

    def __init__(self, fields: dict[str, Any], file: str = FILE) -> None:
        self._fields = fields
        self._file = file

    def number(self, name: str, default: int = MISSING) -> int:
        found: int = self._of(name, int, default)
        return found

    def real(self, name: str, default: float = MISSING) -> float:
        return float(self._of(name, (int, float), default))

    def text(self, name: str, default: str = MISSING) -> str:
        found: str = self._of(name, str, default)
        return found

    def flag(self, name: str, default: bool = MISSING) -> bool:
        found: bool = self._of(name, bool, default)
        return found

    def get(self, name: str) -> Any:
        """The field, None where it is missing."""
        return self._fields.get(name)

    def error(self, name: str, why: str) -> SetupError:
        return SetupError(f"{self._file}: {name}: {why}")

    def refuse(self, name: str, *allowed: Any) -> None:
        """Raise where a field has a value that the builders do not write. A missing field is allowed."""
        value = self._fields.get(name)
        if value is not None and value not in allowed:
            raise self.error(name, f"is {value!r}; the builder writes {' or '.join(map(repr, allowed))} only")

    def _of(self, name: str, kind: Any, default: Any) -> Any:
        value = self._fields.get(name)
        if value is None:
            if default is MISSING:
                raise self.error(name, "missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(name, f"is {value!r}, which is of the wrong kind")
        return value


def read(path: Path) -> Config:
    """A JSON file of one object."""
    return Config(read_json(path, dict[str, Any]), path.name)


def read_json(path: Path, kind: Any) -> Any:
    """A JSON file of that kind. Raises SetupError with the file's name."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise SetupError(f"{path.name}: is not the JSON that it should be: {error}") from None


def labels(config: Config) -> tuple[str, ...]:
    """`id2label` in the order of its numbers; empty where it is missing."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return ()
    try:
        numbered = {int(key): str(value) for key, value in named.items()}
    except ValueError:
        raise config.error("id2label", "its keys are not numbers") from None
    if sorted(numbered) != list(range(len(numbered))):
        raise config.error("id2label", "its numbers are not 0, 1, 2, …")
    return tuple(numbered[number] for number in range(len(numbered)))
