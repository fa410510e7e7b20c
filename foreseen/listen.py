"""Host and port → a listening socket, or one line that names the port."""

from __future__ import annotations

import socket

from foreseen.errors import SetupError
from foreseen.places import admin_socket, make_run_folder
from foreseen.settings import ProxySettings

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening, non-blocking socket. Raises SetupError naming the port where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --port") from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def listen_admin(settings: ProxySettings) -> socket.socket:
    """The operators' listener: a unix socket under the data directory, or a TCP port where one is asked for."""
    if settings.admin_port is not None:
        return listen(settings.host, settings.admin_port)
    make_run_folder(settings.data)
    path = admin_socket(settings.data)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def inherited(descriptor: int) -> socket.socket:
    """A listening socket that the supervisor made."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener
