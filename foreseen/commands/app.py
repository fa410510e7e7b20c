"""The application `foreseen` without its commands: name, version, and the sources of settings."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from itertools import pairwise

import cyclopts
from cyclopts import App, Parameter

from foreseen.command_line import Units, split
from foreseen.logs import Format, default_format, fail
from foreseen.settings.sources import FromFile, Origins

ORIGINS = Origins()
"""Where each setting of the command that runs was given."""
SERVERS = ("up", "proxy", "worker", "inference")
"""Commands that log as servers do."""


def command_name() -> str:
    """The command that was asked for, before its flags are parsed."""
    return sys.argv[1] if len(sys.argv) > 1 else ""


def log_form(command: str) -> Format | None:
    """How this command writes to stderr, before its flags are parsed: they may be what is wrong."""
    words = sys.argv[1:]
    given = [word.partition("=")[2] for word in words if word.startswith("--log-format=")]
    given += [after for word, after in pairwise(words) if word == "--log-format"]
    said = (given or [os.environ.get("FORESEEN_LOG_FORMAT", "")])[-1]
    if said in ("json", "text"):
        return "json" if said == "json" else "text"
    return default_format() if command in SERVERS else None


app = App(
    name="foreseen",
    help="A caching prediction proxy: ask once, the model answers; ask again, the cache does.",
    version=version("foreseen"),
    config=(
        cyclopts.config.Env("FORESEEN_", command=False),
        FromFile(lambda text: fail(text, log_form(command_name()), command_name())),
        Units(),
        ORIGINS,
    ),
    default_parameter=Parameter(env_var_split=split, negative_iterable=()),
)
