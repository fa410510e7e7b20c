"""Where the settings of a command line come from: a configuration file is read last, and every origin is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin

from cyclopts.argument import Token
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.settings.config_file import read_config

_FILE = "config"


class Origin(Struct, frozen=True):
    """Where one setting was given, and as which words."""

    place: str
    """`flag`, or the environment variable's name, or the file's path."""
    words: tuple[str, ...]


class FromFile:
    """A configuration of cyclopts: what neither flags nor the environment give is taken of the file of --config."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def __call__(self, app: Any, commands: tuple[str, ...], arguments: Any) -> None:
        """Raises SetupError where the file is not as it must be."""
        path = next((one.tokens[0].value for one in arguments if _name(one) == _FILE and one.tokens), None)
        if not path or not commands:
            return
        file = read_config(Path(path))
        for warning in file.warnings:
            self._warn(warning)
        values = file.values(commands[0])
        for argument in arguments:
            name = _name(argument)
            if argument.tokens or name not in values:
                continue
            words = values[name]
            if len(words) != 1 and get_origin(argument.hint) is not tuple:
                if name in file.tables.get(commands[0], {}):
                    raise SetupError(f"{path}: [{commands[0]}] {name.replace('_', '-')}: takes one value, not a list")
                continue  # a list at the top is meant for commands that take several
            for index, word in enumerate(words):
                argument.append(Token(keyword=name.replace("_", "-"), value=word, source=path, index=index))


class Origins:
    """A configuration of cyclopts that changes nothing: it keeps where the settings of the last parse were given."""

    def __init__(self) -> None:
        self.found: dict[str, Origin] = {}

    def __call__(self, app: Any, commands: tuple[str, ...], arguments: Any) -> None:
        self.found = {_name(one): _origin(one.tokens) for one in arguments if one.tokens}


def _origin(tokens: list[Token]) -> Origin:
    first = tokens[0]
    place = {"cli": "flag", "env": first.keyword or "environment"}.get(first.source, first.source)
    implicit = isinstance(first.implicit_value, bool | tuple)
    return Origin(place, (str(first.implicit_value),) if implicit else tuple(one.value for one in tokens))


def _name(argument: Any) -> str:
    return str(argument.name).lstrip("-").replace("-", "_")
