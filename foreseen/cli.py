"""The entry point `foreseen`: reads the environment, runs a command, turns errors into one line and a status."""

from __future__ import annotations

import os
import sys

from cyclopts import CycloptsError

from foreseen.command_line import foreign, misspelt
from foreseen.commands.app import command_name, log_form
from foreseen.commands.registry import app
from foreseen.errors import ForeseenError, SetupError
from foreseen.logs import fail
from foreseen.settings import WITHOUT_ENVIRONMENT
from foreseen.settings.commands import all_settings
from foreseen.settings.kserve import transformer_flags
from foreseen.settings.renamed import take_old_names

__all__ = ["app", "main"]

_BROKEN_PIPE = 128 + 13
"""The status that a shell reports of a program that SIGPIPE has ended."""


def main() -> None:
    """Run a command. An error of the operator is one line on stderr with its remedy, and status 1."""
    command = command_name()
    for name in WITHOUT_ENVIRONMENT.get(command, ()):
        os.environ.pop(f"FORESEEN_{name.upper()}", None)
    for name in foreign(os.environ):
        del os.environ[name]
    sys.argv[2:] = transformer_flags(command, sys.argv[2:])
    old = take_old_names(sys.argv, os.environ)
    form = log_form(command)
    for warning in (*old, *misspelt(os.environ, all_settings())):
        fail(warning, form, command)
    try:
        try:
            app(exit_on_error=False, print_error=False)
        finally:
            sys.stdout.flush()  # here a broken pipe is handled without a traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is still buffered
        sys.exit(_BROKEN_PIPE)
    except CycloptsError as error:
        fail(f"{' '.join(str(error).split())} See --help.", form, command)
        sys.exit(2)
    except (SetupError, ForeseenError) as error:
        fail(str(error), form, command)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}; give a folder that this user can use", form, command)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
