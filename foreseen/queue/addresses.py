"""An IP address → why a webhook may not connect to it, or None for a public address: the defence against SSRF.

The tables are IANA's special-purpose registries (RFC 6890) as of 2026, written out, because `ipaddress.is_global`
changes between versions of Python. Of IPv6 only global unicast (2000::/3) is allowed, so that mapped, translated
(NAT64, RFC 6052 and RFC 8215), unique-local, link-local, site-local and multicast addresses need no entry.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

_V4 = {
    "unspecified": ("0.0.0.0/8",),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    "shared": ("100.64.0.0/10",),  # carrier-grade NAT; one cloud's metadata service lies here
    "loopback": ("127.0.0.0/8",),
    "link-local": ("169.254.0.0/16",),  # most clouds' metadata services
    "cloud-internal": ("168.63.129.16/32",),  # Azure's platform services, at a public address
    "special": ("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "198.18.0.0/15"),
    "documentation": ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    "6to4": ("192.88.99.0/24",),
    "multicast": ("224.0.0.0/4",),
    "reserved": ("240.0.0.0/4",),
}
_V6 = {
    "special": ("2001::/23",),  # Teredo, ORCHID, benchmarking
    "documentation": ("2001:db8::/32", "3fff::/20"),
    "6to4": ("2002::/16",),
}
_NAMED_V6 = {
    "unspecified": "::/128",
    "loopback": "::1/128",
    "v4-mapped": "::ffff:0:0/96",
    "nat64": "64:ff9b::/96",
    "local-nat64": "64:ff9b:1::/48",
    "unique-local": "fc00::/7",
    "link-local": "fe80::/10",
    "site-local": "fec0::/10",
    "multicast": "ff00::/8",
}
"""Outside of global unicast, hence refused anyway; listed so that the refusal has a name."""


def _networks(table: dict[str, tuple[str, ...]]) -> tuple[tuple[str, Network], ...]:
    return tuple((why, ip_network(one)) for why, listed in table.items() for one in listed)


_FORBIDDEN = _networks(_V4) + _networks(_V6) + tuple((why, ip_network(one)) for why, one in _NAMED_V6.items())
_GLOBAL_UNICAST = ip_network("2000::/3")


def why_not(address: str, besides: tuple[Network, ...] = ()) -> str | None:
    """One word for why no connection to an address is allowed; None where it is. `besides` are networks that the
    operator allows. IPv6 addresses that stand for an IPv4 one, or name an interface, are never allowed: the same host
    would have two spellings."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "malformed"
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return "scoped"
    mapped = isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None
    if not mapped and any(ip in network for network in besides):
        return None
    return _forbidden(ip)


def _forbidden(ip: IPv4Address | IPv6Address) -> str | None:
    for why, network in _FORBIDDEN:
        if ip in network:
            return why
    if isinstance(ip, IPv6Address) and ip not in _GLOBAL_UNICAST:
        return "not-global"
    return None if ip.is_global else "not-global"
