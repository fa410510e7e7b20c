"""A configuration file: TOML with the flags' names; keys at the top are for every command, a table for its own.

near-bytes = "64MiB"
model = ["minilm", "fingerprint"]

[proxy]
port = 8080
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.settings.commands import LISTS, NAMES, OTHER_NAMES, all_settings, settings_of
from foreseen.settings.common import INTERNAL
from foreseen.settings.renamed import renamed_keys, warning

MAX_FILE_BYTES = 2**20
_NEVER = INTERNAL | {"config"}

Values = Mapping[str, tuple[str, ...]]
"""Settings as words, as they would stand on a command line."""


class ConfigFile(Struct, frozen=True):
    """What a file gives: for all commands, and for each."""

    path: str
    shared: Values
    tables: Mapping[str, Values]
    warnings: tuple[str, ...]

    def values(self, command: str) -> dict[str, tuple[str, ...]]:
        """What it gives one command; its own table wins."""
        if command not in NAMES and command not in OTHER_NAMES:
            return {}
        own = settings_of(command)
        return {name: words for name, words in self.shared.items() if name in own} | dict(self.tables.get(command, {}))


def read_config(path: Path) -> ConfigFile:
    """Read and check a file. Raises SetupError that names the key and its near spellings."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise SetupError(f"{path}: has more than {MAX_FILE_BYTES} bytes; is it a configuration file?")
        document = tomllib.loads(text.decode())
    except OSError as error:
        raise SetupError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{path}: is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path}: {error}") from None
    return checked(str(path), document)


def checked(path: str, document: Mapping[str, Any]) -> ConfigFile:
    """A file's content as settings. Raises SetupError."""
    commands = (*NAMES, *OTHER_NAMES)
    tables = {name: table for name, table in document.items() if isinstance(table, dict)}
    if unknown := [name for name in tables if name not in commands]:
        raise SetupError(f"{path}: [{unknown[0]}] is not a command{_near(unknown[0], commands)}")
    warnings: list[str] = []
    top = {name: value for name, value in document.items() if name not in tables}
    shared = _section(path, "", top, all_settings(), warnings)
    own = {name: _section(path, name, table, settings_of(name), warnings) for name, table in tables.items()}
    return ConfigFile(path, shared, own, tuple(warnings))


def _section(
    path: str, command: str, keys: Mapping[str, Any], known: Collection[str], warnings: list[str]
) -> dict[str, tuple[str, ...]]:
    """One table's settings; the old names among them are warned of."""
    given = {key.replace("-", "_"): (key, value) for key, value in keys.items()}
    if len(given) < len(keys):
        raise SetupError(f"{path}: {_place(command)}a key is given twice, with - and with _")
    found: dict[str, tuple[str, ...]] = {}
    old = dict(renamed_keys(command, given))
    for name, new in old.items():
        if name in known:
            continue
        key, value = given.pop(name)
        warnings.append(f"{path}: {_place(command)}{warning(key, new and new.replace('_', '-'))}")
        if new is not None and new not in given:
            found.setdefault(new, _words(f"{path}: {_place(command)}{key}", value, several=False))
    allowed = {name for name in known if name not in _NEVER}
    for name, (key, value) in given.items():
        if name not in allowed:
            flags = sorted(one.replace("_", "-") for one in allowed)
            raise SetupError(f"{path}: {_place(command)}{key} is not a setting{_near(key.replace('_', '-'), flags)}")
        found[name] = _words(f"{path}: {_place(command)}{key}", value, several=name in LISTS)
    return found


def _place(command: str) -> str:
    return f"[{command}] " if command else ""


def _words(place: str, value: Any, *, several: bool) -> tuple[str, ...]:
    """A TOML value as words. Raises SetupError; the value itself is never named, it may be a secret."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise SetupError(f"{place}: must be a string, a number, true, false, or a list of these")
    if len(values) != 1 and not several:
        raise SetupError(f"{place}: takes one value, not a list")
    return tuple(str(one).lower() if isinstance(one, bool) else str(one) for one in values)


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "; see docs/settings.md"
