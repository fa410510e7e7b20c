"""Imports grpcio only when it is needed: it starts threads, and a fork after that hangs (grpc/grpc#16001)."""

from __future__ import annotations

import os
from importlib import import_module

from foreseen.errors import SetupError

_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""grpcio's own lines on stderr are not in the form of our log, and would name what clients send."""


def import_grpc(setting: str) -> None:
    """Raises SetupError, naming the setting, where the extra is missing."""
    for name, value in _ENVIRONMENT.items():  # read at the import
        os.environ.setdefault(name, value)
    try:
        for name in ("grpc.aio", "google.protobuf", "grpc_health.v1", "grpc_reflection.v1alpha"):
            import_module(name)
    except ImportError as error:
        raise SetupError(f"{setting} needs the extra: pip install foreseen[grpc] ({error})") from None
