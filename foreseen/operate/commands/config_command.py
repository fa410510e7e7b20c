"""`foreseen config show`: the effective settings of a command, and the source of each.

Passwords in addresses are masked. Secrets appear only as the names of their files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import orjson
from cyclopts import MissingArgumentError

from foreseen.errors import SetupError
from foreseen.settings import NAMES, Common
from foreseen.settings.common import INTERNAL
from foreseen.settings.renamed import renamed_flags
from foreseen.settings.sources import Origin, Origins
from foreseen.stores.redis_urls import shown

_QUERY_PASSWORD = re.compile(r"([?&](?:password|sslpassword|token)=)[^&]*", re.IGNORECASE)


def show(
    command: str,
    flags: Sequence[str],
    parse: Callable[[list[str]], Mapping[str, Any]],
    origins: Origins,
    warn: Callable[[str], None],
    *,
    json: bool,
) -> str:
    """What `config show` prints; `parse` reads a command line and leaves the origins of its settings in `origins`."""
    kind = NAMES.get(command)
    if kind is None:
        raise SetupError(f"config show {command}: no such command; there are {', '.join(NAMES)}")
    modern, warnings = renamed_flags(command, flags)
    for text in warnings:
        warn(text)
    settings: Common | None = None
    try:
        arguments = parse([command, *modern])
        settings = arguments["settings"] if "settings" in arguments else kind()
    except MissingArgumentError:
        pass  # a required setting, or a file to work on: the words that were given are shown
    return written(effective(kind, settings, origins.found), json=json)


def effective(kind: type[Common], settings: Common | None, origins: Mapping[str, Origin]) -> list[dict[str, Any]]:
    """One line per setting. Without `settings` (a required one is missing) the words stand for what was given."""
    lines = []
    for one in fields(kind):
        if one.name in INTERNAL:
            continue
        origin = origins.get(one.name)
        value: Any = None if one.default is MISSING else one.default
        if settings is not None:
            value = getattr(settings, one.name)
        elif origin is not None:
            value = origin.words[0] if len(origin.words) == 1 else list(origin.words)
        place = origin.place if origin is not None else "required" if one.default is MISSING else "default"
        lines.append({"setting": one.name.replace("_", "-"), "value": _public(value), "from": place})
    return lines


def written(lines: list[dict[str, Any]], *, json: bool) -> str:
    """For people, one line a setting; or as JSON."""
    if json:
        return orjson.dumps(lines).decode()
    names = max(len(line["setting"]) for line in lines)
    values = [_text(line["value"]) for line in lines]
    width = min(max(map(len, values)), 40)
    return "\n".join(
        f"{line['setting']:<{names}}  {value:<{width}}  {line['from']}"
        for line, value in zip(lines, values, strict=True)
    )


def _public(value: Any) -> Any:
    """A value as it may be shown, as JSON has it. JSON has no infinity."""
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return _QUERY_PASSWORD.sub(r"\1…", shown(value)) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)
