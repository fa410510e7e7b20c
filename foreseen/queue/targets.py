"""A webhook's URL → a target that the allow-list permits, or a refusal; and the check of its IP addresses.

Only what the operator names is allowed:

    HOST, *.DOMAIN       https, on one of the allowed ports
    https://HOST[:PORT]  https, on exactly this port
    http://HOST:PORT     without TLS; only so

A name may never resolve to a private address: the operator allows such a target by its address
(http://127.0.0.1:9000), or by its network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

from msgspec import Struct

from foreseen.errors import SetupError, WebhookRefused
from foreseen.queue.addresses import Network, why_not

MAX_URL = 2048
_HTTPS_PORT = 443
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A host whose last label is a number is an address in one of its spellings (0x7f.1, 2130706433), not a name."""
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<v6>[0-9a-f]*:[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:[/?][A-Za-z0-9/?:@!$&'()*+,;=._~%-]*)?)",
    re.IGNORECASE,
)
"""RFC 3986 without user names, fragments and everything that two parsers read differently."""


class WebhookTarget(Struct, frozen=True):
    """Where a webhook goes. `host` is lower case, an IPv6 address without brackets; `path` holds the query too."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class _Rule(Struct, frozen=True):
    """One entry of the allow-list. `port` is None where it is one of the allowed ports."""

    scheme: str
    host: str
    port: int | None

    def allows(self, target: WebhookTarget, ports: frozenset[int]) -> bool:
        if target.scheme != self.scheme or target.port not in (ports if self.port is None else {self.port}):
            return False
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:]) and not _is_address(target.host)
        return target.host == self.host


class Allowed:
    """What the operator allows."""

    def __init__(
        self, hosts: Iterable[str], ports: Iterable[int] = (_HTTPS_PORT,), networks: Iterable[str] = ()
    ) -> None:
        """Raises SetupError where an entry cannot be read."""
        self._rules = tuple(_rule(one) for one in hosts)
        self._ports = frozenset(ports)
        self._networks = tuple(_network(one) for one in networks)
        self._places = {
            (rule.host, port)
            for rule in self._rules
            if _is_address(rule.host)
            for port in (self._ports if rule.port is None else {rule.port})
        }

    def __bool__(self) -> bool:
        return bool(self._rules)

    def target(self, url: str) -> WebhookTarget:
        """The target of a URL. Raises WebhookRefused, which never says what the allow-list holds."""
        target = target_of(url)
        if not any(rule.allows(target, self._ports) for rule in self._rules):
            raise WebhookRefused("the operator does not allow the webhook's scheme, host or port")
        return target

    def why_not_name(self, address: str) -> str | None:
        """Why a name may not lead to this address; None where it may."""
        return why_not(address, self._networks)

    def why_not_connect(self, address: str, port: int) -> str | None:
        """Why no connection to this address may be made; None if it may. The last check, when connecting."""
        return None if (address, port) in self._places else why_not(address, self._networks)


def target_of(url: str) -> WebhookTarget:
    """A URL as a target, allowed or not. Raises WebhookRefused."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None:
        raise WebhookRefused("the webhook must be an absolute http or https URL in ASCII, without user or fragment")
    scheme, port = match["scheme"].lower(), match["port"]
    number = int(port) if port else _HTTPS_PORT if scheme == "https" else 80
    path = match["path"]
    return WebhookTarget(
        scheme, _host(match["v6"] or match["name"]), _port(number), path if path.startswith("/") else f"/{path}"
    )


def _host(given: str) -> str:
    """One spelling of every host. Raises WebhookRefused."""
    host = given.lower()
    if ":" in host or _NUMERIC.fullmatch(host):
        try:
            ip = ip_address(host)
        except ValueError:
            raise WebhookRefused("the webhook's host is a number that is no plain IP address") from None
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            raise WebhookRefused("the webhook's host is an IPv6 address that maps to an IPv4 address")
        return str(ip)
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise WebhookRefused("the webhook's host is not a host name")
    return host


def _port(number: int) -> int:
    if not 0 < number < 65536:
        raise WebhookRefused("the webhook's port is not a port")
    return number


def _is_address(host: str) -> bool:
    return ":" in host or bool(_NUMERIC.fullmatch(host))


def _rule(entry: str) -> _Rule:
    scheme, found, rest = entry.lower().rpartition("://")
    wild = "*." if rest.startswith("*.") else ""
    try:
        target = target_of(f"{scheme if found else 'https'}://{rest.removeprefix(wild)}")
    except WebhookRefused:
        target = None
    named = rest.rstrip("0123456789").endswith(":")
    if target is None or target.path != "/" or (scheme == "http" and not named) or (wild and _is_address(target.host)):
        raise SetupError(f"--webhook-allow {entry}: must be HOST, *.DOMAIN, https://HOST[:PORT] or http://HOST:PORT")
    return _Rule(target.scheme, wild + target.host, target.port if found or named else None)


def _network(entry: str) -> Network:
    try:
        return ip_network(entry)
    except ValueError:
        raise SetupError(f"--webhook-networks {entry}: must be a network, as 10.0.0.0/8") from None
