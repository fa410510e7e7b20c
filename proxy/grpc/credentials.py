"""The HTTP listener's certificate for gRPC, too: taken anew when its files change, at the next handshake."""

from __future__ import annotations

from typing import Any

import grpc

from foreseen.errors import SetupError
from foreseen.settings import ProxySettings
from foreseen.tenants.watched import identity_of

Context = Any
"""A call, as grpcio's servicer gets it."""


def server_credentials(settings: ProxySettings) -> grpc.ServerCredentials | None:
    """The credentials of the gRPC listener; None where it speaks without TLS. Raises SetupError."""
    files = [path for path in (settings.tls_key, settings.tls_cert, settings.tls_client_ca) if path is not None]
    if len(files) < 2:
        return None
    taken = [identity_of(path) for path in files]

    def made() -> Any:
        key, certificate, *authority = (path.read_bytes() for path in files)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *authority)

    def changed() -> Any:
        nonlocal taken
        now = [identity_of(path) for path in files]
        if now == taken:
            return None  # as before
        try:
            configuration = made()
        except OSError:
            return None
        taken = now
        return configuration

    try:
        return grpc.dynamic_ssl_server_credentials(made(), changed, settings.tls_client_ca is not None)
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from None


def peer_subject(context: Context) -> str | None:
    """The subject of a call's verified client certificate, as RFC 4514 writes it; None where it has none."""
    return next((one.decode() for one in context.auth_context().get("x509_subject", ())), None)
