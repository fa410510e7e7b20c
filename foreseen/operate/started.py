"""`DATA/started.json`: the settings of the last `foreseen up`, so that `doctor` and `top` examine that system.

It holds addresses of stores, with their passwords: mode 0600, like the secrets beside it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from foreseen.settings import Common, DoctorSettings, UpSettings
from foreseen.stores.redis_urls import shown

NAME = "started.json"
DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
_OF_THE_COMMAND = frozenset(("config", "data", "log_level", "log_format", "json", "url"))
"""Settings of the examining command itself, never taken from the running system."""
_ADDRESSES = frozenset(("redis", "state", "upstream", "candidate"))
_Settings = TypeVar("_Settings", bound=Common)


def write_started(settings: UpSettings, port: int) -> None:
    """Write the settings that differ from the defaults; `port` is the port in use."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _OF_THE_COMMAND and value != field.default:
            found[field.name] = str(value.resolve()) if isinstance(value, Path) else value
    found["port"] = port
    path = settings.data / NAME
    beside = path.with_name(f".{NAME}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    beside.replace(path)


def read_started(data: Path) -> dict[str, Any] | None:
    """The settings written last; None if `up` never ran there, or only an older version."""
    try:
        document = msgspec.json.decode((data / NAME).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return document if isinstance(document, dict) else None


def as_started(settings: DoctorSettings, given: Collection[str]) -> DoctorSettings:
    """The settings of the system to examine: the given ones, else those of the last `up`, else the defaults."""
    document = read_started(settings.data) or {}
    known = {field.name: field for field in fields(DoctorSettings)}
    taken: dict[str, Any] = {}
    for name, value in document.items():
        if name in known and name not in given and name not in _OF_THE_COMMAND:
            taken[name] = _typed(name, value, DoctorSettings)
    return replace(settings, **taken)


def settings_at(data: Path, kind: type[_Settings], **given: Any) -> _Settings:
    """The settings of a command of this kind for the system that `up` started there: the given ones, else that
    system's, else the defaults."""
    document = read_started(data) or {}
    names = {field.name for field in fields(kind)} - given.keys() - _OF_THE_COMMAND
    taken = {name: _typed(name, value, kind) for name, value in document.items() if name in names}
    return kind(data=data, **taken, **given)


def url_of(data: Path) -> str:
    """Where the proxy of a data directory answers."""
    document = read_started(data) or {}
    port, host = document.get("port"), document.get("host", "127.0.0.1")
    secure = document.get("tls_cert") is not None
    return DEFAULT_URL if not isinstance(port, int) else url_at(str(host), port, secure=secure)


def watcher_key(url: str, data: Path) -> str | None:
    """The operators' key of a data directory, for the metrics of a proxy on this machine; None for other machines, and
    where it cannot be read."""
    if urlsplit(url).hostname not in LOOPBACK:
        return None
    try:
        return (data / "admin-token").read_text().strip() or None
    except OSError:
        return None


def url_at(host: str, port: int, *, secure: bool = False) -> str:
    """The address of a listener for a client on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - listens there, asked here
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def flags_of(data: Path) -> str:
    """The settings as flags, for people, without passwords."""
    document = read_started(data) or {}
    flags = []
    for name, value in document.items():
        flag = name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                flags.append(f"--{flag}" if one else f"--no-{flag}")
            else:
                flags.append(f"--{flag}={shown(one) if name in _ADDRESSES and isinstance(one, str) else one}")
    return " ".join(flags)


def _typed(name: str, value: Any, kind: type[Common]) -> Any:
    """A JSON value as the setting has it."""
    if isinstance(value, list):
        return tuple(value)
    paths = {field.name for field in fields(kind) if "Path" in str(field.type)}
    return Path(value) if name in paths and isinstance(value, str) else value
