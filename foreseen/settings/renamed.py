"""Renamed and removed settings: their old names are accepted with a warning for one release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from foreseen.units import size_of

_PROXY = {
    "replay_bytes": "reply_cache_bytes",
    "shortcut_bytes": "reply_cache_bytes",
    "short_road": None,
    "far_keys": None,
    "far_value_bytes": None,
    "model_rows": None,
    "model_requests": None,
    "head_bytes": None,
    "header_bytes": None,
    "headers": None,
    "queue_jobs": None,
    "webhook_calls": None,
    "observe_tolerance": None,
}
RENAMED: Mapping[str, Mapping[str, str | None]] = {
    "up": _PROXY,
    "proxy": _PROXY,
    "worker": _PROXY,
    "doctor": _PROXY,
    "warm": {"far_value_bytes": None},
}
"""By command: what a setting is called now; None where it is a constant."""
_SWITCHES = frozenset(("short_road",))
"""Those of them that stand without a value on a command line."""
ALL: Mapping[str, str | None] = {old: new for table in RENAMED.values() for old, new in table.items()}


def warning(old: str, new: str | None) -> str:
    """What to say of an old name; both as they are written where it was found."""
    if new is None:
        return f"{old} is no longer a setting and changes nothing; the next release refuses it"
    return f"{old} is called {new} now; the next release refuses the old name"


def renamed_flags(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's flags under the names of now, and the warnings."""
    table, kept, warnings = RENAMED.get(command, {}), list[str](), list[str]()
    values: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            kept += [word, *rest]
            break
        flag, equals, value = word.partition("=")
        old = _name(flag, table)
        if old is None:
            kept.append(word)
            continue
        new = table[old]
        warnings.append(warning(flag, new and _flag(new)))
        if not equals and old not in _SWITCHES:
            value = next(rest, "")
        if new is not None:
            values.setdefault(new, []).append(value)
    given = {word.partition("=")[0] for word in kept}
    return kept + [f"{_flag(new)}={_sum(found)}" for new, found in values.items() if _flag(new) not in given], warnings


def renamed_values(found: Mapping[str, str], prefix: str = "") -> tuple[dict[str, str], list[str]]:
    """The same of names with values: of the environment (prefix FORESEEN_)."""
    names = {f"{prefix}{old.upper()}": (old, new) for old, new in ALL.items()}
    kept = {name: value for name, value in found.items() if name not in names}
    values: dict[str, list[str]] = {}
    warnings = []
    for name, (_, new) in names.items():
        if name not in found:
            continue
        modern = None if new is None else f"{prefix}{new.upper()}"
        warnings.append(warning(name, modern))
        if modern is not None and modern not in kept:
            values.setdefault(modern, []).append(found[name])
    return kept | {name: _sum(several) for name, several in values.items()}, warnings


def take_old_names(argv: list[str], environment: MutableMapping[str, str]) -> list[str]:
    """Make the old names of a command line and its environment those of now, in place; the warnings."""
    words, warnings = renamed_flags(argv[1] if len(argv) > 1 else "", argv[2:])
    modern, more = renamed_values(environment, "FORESEEN_")
    argv[2:] = words
    if more:
        for name in set(environment) - set(modern):
            del environment[name]
        environment.update(modern)
    return warnings + more


def _name(flag: str, table: Mapping[str, str | None]) -> str | None:
    """The old name that a flag stands for; None where it is none."""
    if not flag.startswith("--"):
        return None
    name = flag[2:].replace("-", "_")
    bare = name.removeprefix("no_")
    return name if name in table else bare if bare in table and bare in _SWITCHES else None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sum(values: Sequence[str]) -> str:
    """Where two settings became one, their sizes add up. What is no size is left to be named as such."""
    try:
        return str(sum(map(size_of, values)))
    except ValueError:
        return values[0]


def renamed_keys(command: str, keys: Mapping[str, object]) -> Iterator[tuple[str, str | None]]:
    """The old names among the keys of a file, each with the name of now."""
    table = ALL if not command else RENAMED.get(command, {})
    yield from ((name, table[name]) for name in keys if name in table)
