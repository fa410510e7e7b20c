"""Uses the HTTP listener's certificate for gRPC. A new certificate is used from the next handshake on.

`TlsFiles` follows the files and takes only a certificate and key that fit, so files that are being replaced, one after
the other, are not used here either.
"""

from __future__ import annotations

from typing import Any

import grpc

from foreseen.errors import SetupError
from foreseen.settings import ProxySettings
from foreseen.web.tls import TlsFiles

Context = Any
"""A call, as grpcio's servicer gets it."""


def server_credentials(settings: ProxySettings, tls: TlsFiles | None) -> grpc.ServerCredentials | None:
    """The credentials of the gRPC listener; None where it speaks without TLS. Raises SetupError."""
    if tls is None:
        return None
    files = [path for path in (settings.tls_key, settings.tls_cert, settings.tls_client_ca) if path is not None]
    taken = tls.context

    def made() -> Any:
        key, certificate, *authority = (path.read_bytes() for path in files)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *authority)

    def changed() -> Any:
        nonlocal taken
        now = tls.context
        if now is taken:
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
