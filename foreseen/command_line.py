"""Parsing beside plain flags: units, lists in the environment; and warnings for misspelt environment names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_origin

from cyclopts import CycloptsError

from foreseen.units import number_of, words_of

PREFIX = "FORESEEN_"
_OF_KUBERNETES = re.compile(r"FORESEEN_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_.+)")
"""What Kubernetes sets in every container beside a Service called foreseen, or foreseen-…"""


class Units:
    """A configuration of cyclopts: numbers with units, wherever they were given, become plain ones."""

    def __call__(self, app: Any, commands: tuple[str, ...], arguments: Any) -> None:
        for argument in arguments:
            name = argument.name.lstrip("-").replace("-", "_")
            for at, token in enumerate(argument.tokens):
                try:
                    number = number_of(name, token.value)
                except ValueError as error:
                    raise CycloptsError(msg=f"{token.keyword or argument.name}: {error}.") from None
                if number is not None:
                    argument.tokens[at] = token.evolve(value=f"{number:.0f}" if number == number // 1 else repr(number))


def split(hint: Any, value: str, *, delimiter: str | None = None) -> list[str]:
    """An environment variable's value as the words of its setting: several only where the setting takes several."""
    return words_of(value) if get_origin(hint) is tuple else [value]


def foreign(environment: Mapping[str, str]) -> list[str]:
    """Names set by Kubernetes, not for us: for a Service `foreseen` it sets FORESEEN_PORT=tcp://10.0.0.7:8000."""
    return [name for name, value in environment.items() if name == f"{PREFIX}PORT" and "://" in value]


def misspelt(environment: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """A warning for every FORESEEN_ name that is not a setting of any command, with the most similar setting."""
    known = sorted(f"{PREFIX}{name.upper()}" for name in settings)
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or _OF_KUBERNETES.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        meant = f"; did you mean {near[0]}?" if near else "; see docs/settings.md"
        yield f"{name} is not a setting and changes nothing{meant}"
