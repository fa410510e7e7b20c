"""Whether callers' credentials are passed on to the upstream, by the settings."""

from __future__ import annotations

from foreseen.errors import SetupError
from foreseen.keys.key import passed_key
from foreseen.keys.secret import read_secret
from foreseen.settings import ProxySettings
from foreseen.tenants.passed import PassedCredentials

_GRPC = "grpc"
"""The beginning of addresses of upstreams that are asked over gRPC."""


def check_passed(settings: ProxySettings) -> None:
    """Raises SetupError for settings that exclude passing credentials on. `foreseen up` checks before it starts."""
    if not settings.upstream_pass_authorization:
        return
    if settings.keys_file is not None:
        raise SetupError("--upstream-pass-authorization: a request has one key, of --keys-file or of the upstream")
    if any(one.startswith(_GRPC) for one in settings.upstream):
        raise SetupError("--upstream-pass-authorization: is for upstreams over HTTP")


def passed_of(settings: ProxySettings) -> PassedCredentials | None:
    """Callers' credentials, if they are passed on. Raises SetupError."""
    if not settings.upstream_pass_authorization:
        return None
    check_passed(settings)
    return PassedCredentials(passed_key(read_secret(settings.secret_file or settings.data / "secret")))
