"""`foreseen config`: settings as they are in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from foreseen.commands.app import ORIGINS, app
from foreseen.logs import fail


def show(
    command: Annotated[str, Parameter(env_var=())] = "up",
    /,
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, env_var=())],
    json: bool = False,
) -> None:
    """Print the effective settings of a command, and the source of each: flag, environment, file, default.

    Parameters
    ----------
    command
        The command.
    flags
        Its flags.
    json
        Print JSON for machines.
    """
    from foreseen.operate.commands.config_command import show as shown_settings

    def parse(words: list[str]) -> Mapping[str, Any]:
        return app.parse_args(words, exit_on_error=False, print_error=False)[1].arguments

    print(shown_settings(command, flags, parse, ORIGINS, lambda text: fail(text, None, "config"), json=json))
