"""What every command takes, and how a setting that `--help` does not show is marked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.errors import SetupError
from foreseen.paths import MODELS


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    config: Annotated[
        Path | None,
        Parameter(
            help="Settings from a TOML file (docs/settings.md). Flags and environment variables take precedence."
        ),
    ] = None
    data: Annotated[Path, Parameter(help="Data directory: secret, sockets, stores and built models.")] = Path("data")
    models: Annotated[Path | None, Parameter(help="Folder of additional models, with one NAME/model.toml each.")] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Parameter(help="Lowest level that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"] | None,
        Parameter(
            help="Format of stderr. Default: text on a terminal; otherwise json for servers and text for commands."
        ),
    ] = None

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The folders of manifests, the operator's first. Raises SetupError where that does not exist: with a misspelt
        one the packaged models would stay in force."""
        if self.models is not None and not self.models.is_dir():
            raise SetupError(f"--models {self.models}: there is no such folder")
        return ((self.models,) if self.models else ()) + (MODELS,)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StoreSettings(Common):
    """How Redis, the state store and Sentinels are to be spoken to."""

    redis_ca_file: Annotated[
        Path | None,
        Parameter(help="Certificates (PEM) that verify Redis and the state store over TLS. Default: the system's."),
    ] = None
    sentinel_user: Annotated[str | None, Parameter(help="ACL user for Sentinels. Default: none.")] = None
    sentinel_password_file: Annotated[
        Path | None, Parameter(help="File with the password for Sentinels. Default: no password is sent.")
    ] = None


INTERNAL = frozenset(("fd", "ready_fd", "slot", "admin_fd", "internal_fd", "artifact"))
"""Settings that only one of our processes passes to another: hidden from help, docs and files."""
