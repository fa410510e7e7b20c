"""TLS of a listener: certificate, key and the authority of client certificates, read again when they change.

Connections are accepted here rather than by the event loop's own server, since each gets the context that is in force
when it comes: connections that are open keep theirs, so a new certificate drops none. TLS 1.2 is the least; below TLS
1.3 only ciphers with forward secrecy and authenticated encryption. HTTP/1.1 is the only protocol offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from foreseen.errors import SetupError
from foreseen.tenants.watched import WatchedFiles

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
"""Of TLS 1.2; those of TLS 1.3 are all good."""
HANDSHAKE_SECONDS = 10.0
HANDSHAKES = 1024
"""Handshakes under way at a time; further connections wait in the listener's backlog."""
PAUSE_SECONDS = 0.1
"""Where no descriptor is left."""
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
_SPECIAL = frozenset(',+"\\<>;=')

log = structlog.get_logger()


class TlsFiles:
    """Certificate, key and client authority of a listener; `context` is what they come to now."""

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None = None) -> None:
        """Raises SetupError where they are not as they must be."""
        self._certificate, self._key, self._authority = certificate, key, client_authority
        self._watched = WatchedFiles(
            [path for path in (certificate, key, client_authority) if path is not None], "certificate"
        )
        self.context = self._made()

    async def follow(self) -> None:
        """Take changed files, at the second look that finds them the same: they are written one after the other."""
        await self._watched.follow(self.look)

    def look(self) -> None:
        """One look at the files. What cannot be used is logged, and the former context stays."""
        context = self._watched.read_anew(self._made)
        if context is not None:
            self.context = context
            log.info("certificate loaded", certificate=str(self._certificate))

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        flag, path = "--tls-cert", self._certificate
        try:
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
            if self._authority is not None:
                flag, path = "--tls-client-ca", self._authority
                context.load_verify_locations(self._authority)
                context.verify_mode = ssl.CERT_OPTIONAL  # requests without one are refused, but for health
        except (OSError, ssl.SSLError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
            raise SetupError(f"{flag} {path}: {why}; it must be PEM, and --tls-key its key") from None
        return context


class TlsSite(web.BaseSite):
    """A listener whose connections speak TLS."""

    def __init__(self, runner: web.BaseRunner, listener: socket.socket, files: TlsFiles) -> None:
        super().__init__(runner, ssl_context=files.context)
        self._listener, self._files = listener, files
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listening = False

    @property
    def name(self) -> str:
        host, port, *_ = self._listener.getsockname()
        return f"https://{host}:{port}"

    async def start(self) -> None:
        await super().start()
        self._listen()

    async def stop(self) -> None:
        """Accept no more; handshakes under way end by themselves."""
        self._runner._check_site(self)  # noqa: SLF001 - as aiohttp's own sites do
        self._hush()
        if self._handshakes:
            await asyncio.wait(self._handshakes, timeout=1.0)
        self._listener.close()
        self._runner._unreg_site(self)  # noqa: SLF001 - as above

    def _listen(self) -> None:
        if not self._listening and self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
            self._listening = True

    def _hush(self) -> None:
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listening = False

    def _accept(self) -> None:
        """Take all that wait, as far as there is room for handshakes."""
        loop = asyncio.get_running_loop()
        while len(self._handshakes) < HANDSHAKES:
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:  # no descriptor is left
                self._hush()
                loop.call_later(PAUSE_SECONDS, self._again)
                return
            accepted.setblocking(False)
            task = loop.create_task(self._take(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._done)
        self._hush()

    def _again(self) -> None:
        if self in self._runner.sites:
            self._listen()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._again()

    async def _take(self, accepted: socket.socket) -> None:
        server: Any = self._runner.server
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                server, accepted, ssl=self._files.context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except (OSError, TimeoutError) as error:  # what is no TLS, an old version, or has left
            log.debug("TLS handshake failed", why=type(error).__name__)
            with contextlib.suppress(OSError):
                accepted.close()


def tls_files(certificate: Path | None, key: Path | None, client_authority: Path | None) -> TlsFiles | None:
    """The files of the settings; None where TLS is not asked for. Raises SetupError."""
    if certificate is None and key is None:
        if client_authority is not None:
            raise SetupError("--tls-client-ca: needs --tls-cert and --tls-key")
        return None
    if certificate is None or key is None:
        raise SetupError("--tls-cert and --tls-key: give both")
    return TlsFiles(certificate, key, client_authority)


def subject_of(transport: object) -> str | None:
    """The subject of a connection's verified client certificate, as RFC 4514 writes it; None where it has none."""
    certificate = getattr(transport, "get_extra_info", lambda _: None)("peercert")
    if not isinstance(certificate, dict) or not certificate.get("subject"):
        return None
    return subject_text(certificate["subject"])


def subject_text(names: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A subject of `ssl` as text: the last name first, as `openssl x509 -subject -nameopt RFC2253` shows it."""
    return ",".join(
        "+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in one) for one in reversed(names)
    )


def _escaped(value: str) -> str:
    text = "".join(f"\\{one}" if one in _SPECIAL else one for one in value)
    if text.startswith((" ", "#")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text
