"""Listening sockets: TCP, the operators' unix socket, inherited descriptors; and the limit on open files."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from pathlib import Path

import structlog

from foreseen.errors import SetupError
from foreseen.paths import admin_socket, make_run_folder
from foreseen.settings import ProxySettings

BACKLOG = 1024
OTHER_FILES = 256
"""Descriptors that a worker needs beside its clients' connections: Redis, models, logs, metrics; and a reserve."""

log = structlog.get_logger()


def warn_of_open_listener(settings: ProxySettings) -> None:
    """Say loudly that every machine that reaches this address may use all models."""
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and settings.keys_file is None and settings.tls_client_ca is None:
        log.warning(
            "the listener is open: every caller that reaches it is public; give --keys-file, or bind to 127.0.0.1",
            host=settings.host,
        )
    if not loopback and settings.admin_port is not None and settings.tls_cert is None:
        log.warning(
            "operators' keys are sent unencrypted: give --tls-cert, or leave out --admin-port",
            host=settings.host,
            port=settings.admin_port,
        )


def listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A listening, non-blocking socket. Raises SetupError naming the port, and the flag that changes it, where it is
    in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with {flag}") from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def reserve(host: str, port: int, flag: str) -> socket.socket:
    """A port for listeners of several processes of this system (SO_REUSEPORT), taken but not listened on. Without it,
    two systems with the same port would share its connections. Raises SetupError as `listen` does."""
    listen(host, port, flag).close()  # which fails also where another system shares the port among its own
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise SetupError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with {flag}") from None
    return reserved


def listen_admin(settings: ProxySettings, *, take: bool = False) -> socket.socket:
    """The operators' listener: a unix socket under the data directory, or a TCP port if configured. `take`: the holder
    of the data directory's lock may replace the socket of a previous process that is still ending. Raises OSError, also
    where another process listens there."""
    if settings.admin_port is not None:
        return listen(settings.host, settings.admin_port, "--admin-port")
    make_run_folder(settings.data)
    path = admin_socket(settings.data)
    if not take and _is_listened_on(path):
        raise OSError(errno.EADDRINUSE, "another process listens on it", str(path))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener with a full backlog is one, too
        return probe.connect_ex(str(path)) not in (errno.ENOENT, errno.ECONNREFUSED)


def inherited(descriptor: int) -> socket.socket:
    """A listening socket that the supervisor made."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener


def files_for(connections: int) -> int:
    """How many of the wanted connections the limit on open files allows; raises the soft limit as far as possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    most = max(1, soft - OTHER_FILES)
    log.warning("fewer connections than configured: open files are limited", files=soft, connections=most)
    return most
