"""The settings of every command, by its name; and settings as flags for a process of another command."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args, get_origin

from foreseen.settings.common import Common
from foreseen.settings.inference import InferenceSettings
from foreseen.settings.kafka import KafkaSettings
from foreseen.settings.operators import (
    WITHOUT_ENVIRONMENT,
    CanarySettings,
    JobsSettings,
    KeySettings,
    PurgeSettings,
    UsageSettings,
)
from foreseen.settings.proxy import ProxySettings
from foreseen.settings.up import DoctorSettings, UpSettings
from foreseen.settings.warm import WarmSettings
from foreseen.settings.worker import WorkerSettings

NAMES: dict[str, type[Common]] = {
    "up": UpSettings,
    "proxy": ProxySettings,
    "worker": WorkerSettings,
    "kafka": KafkaSettings,
    "inference": InferenceSettings,
    "key": KeySettings,
    "purge": PurgeSettings,
    "canary": CanarySettings,
    "doctor": DoctorSettings,
    "warm": WarmSettings,
    "jobs": JobsSettings,
    "usage": UsageSettings,
}

OTHER_NAMES: dict[str, frozenset[str]] = {
    "explain": frozenset(one.name for one in fields(KeySettings)),
    "models": frozenset((*(one.name for one in fields(Common)), "full", "train", "test", "replace", "json")),
    "observed": frozenset(("config", "url", "data", "json")),
    "audit": frozenset(("config", "url", "data", "json")),
    "shadow": frozenset(("config", "url", "data", "json")),
    "top": frozenset(("config", "url", "data", "interval", "once", "json")),
    "dashboards": frozenset(("config", "out", "runbook_base")),
    "keys": frozenset(("data", "keys_file", "json")),
}
"""Settings of commands that have no class of their own."""
LISTS = frozenset(
    one.name for kind in NAMES.values() for one in fields(kind) if get_origin(get_args(one.type)[0]) is tuple
)
"""Settings that take several values, of some command."""
NOT_PASSED_ON = frozenset(("config",))
"""A process that another starts gets what was read from the file as flags."""


def settings_of(command: str) -> frozenset[str]:
    """The settings of a command that the environment and a file may give. Raises KeyError where there is no such."""
    if command in OTHER_NAMES:
        return OTHER_NAMES[command]
    found = frozenset(one.name for one in fields(NAMES[command]))
    return found - frozenset(WITHOUT_ENVIRONMENT.get(command, ()))


def all_settings() -> frozenset[str]:
    """Every setting that some command reads from the environment."""
    return frozenset().union(*map(settings_of, (*NAMES, *OTHER_NAMES)), ("name",))


def arguments(settings: Common, kind: type[Common]) -> list[str]:
    """The flags that give a command of another kind the same settings, as far as it has them and they are not its own
    defaults."""
    given = {f.name: getattr(settings, f.name) for f in fields(settings)}
    flags: list[str] = []
    for f in fields(kind):
        value = given.get(f.name, f.default)
        if value == f.default or value is None or f.name in NOT_PASSED_ON:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            name = f.name.replace("_", "-")
            flags.append((f"--{name}" if one else f"--no-{name}") if isinstance(one, bool) else f"--{name}={one}")
    return flags
