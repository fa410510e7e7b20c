"""Which URLs webhooks may be sent to, and which addresses they may lie at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from foreseen.errors import SetupError, WebhookRefused
from foreseen.queue.addresses import why_not
from foreseen.queue.targets import Allowed, WebhookTarget, target_of

FORBIDDEN = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "shared",
    "100.100.100.200": "shared",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "168.63.129.16": "cloud-internal",
    "192.0.0.192": "special",
    "198.18.0.1": "special",
    "192.0.2.1": "documentation",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "192.88.99.1": "6to4",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::7f00:1": "not-global",  # IPv4-compatible, as it once was
    "::ffff:8.8.8.8": "v4-mapped",
    "::ffff:127.0.0.1": "v4-mapped",
    "::ffff:0:7f00:1": "not-global",  # translated, RFC 2765
    "64:ff9b::7f00:1": "nat64",
    "64:ff9b:1::1": "local-nat64",
    "100::1": "not-global",
    "2001::1": "special",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "special",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2002:808:808::": "6to4",
    "fc00::1": "unique-local",
    "fd00:ec2::254": "unique-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "scoped",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    "4000::1": "not-global",
    "127.1": "malformed",
    "0x7f.0.0.1": "malformed",
    "010.0.0.1": "malformed",
    "2130706433": "malformed",
    "localhost": "malformed",
    "": "malformed",
}


@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_address_that_is_not_the_internets_is_connected_to(address: str) -> None:
    """Every family of special addresses has its word."""
    assert why_not(address) == FORBIDDEN[address]


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a00:1450::1"])
def test_addresses_of_the_internet_are(address: str) -> None:
    """Also the ones just beside the special ones."""
    assert why_not(address) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_not_let_by_in_ipv6s_clothes(address: object) -> None:
    """Mapped, compatible, translated, 6to4 or Teredo: whatever the IPv4 address is."""
    digits = int.from_bytes(getattr(address, "packed"), "big")  # noqa: B009
    low, high = digits & 0xFFFF, digits >> 16
    for clothes in (
        "::ffff:{h:x}:{l:x}",
        "::{h:x}:{l:x}",
        "64:ff9b::{h:x}:{l:x}",
        "2002:{h:x}:{l:x}::",
        "2001::{h:x}:{l:x}",
    ):
        assert why_not(clothes.format(h=high, l=low)) is not None


def test_networks_open_what_is_named_and_nothing_else() -> None:
    """A network of the operator's lets its addresses by, though not in IPv6's spelling of an IPv4 one."""
    allowed = Allowed(["in.example"], networks=["10.1.0.0/16", "fd00::/8"])
    assert allowed.why_not_name("10.1.2.3") is None
    assert allowed.why_not_name("fd12::1") is None
    assert allowed.why_not_name("10.2.0.1") == "private"
    assert allowed.why_not_name("127.0.0.1") == "loopback"
    assert allowed.why_not_name("::ffff:10.1.2.3") == "v4-mapped"
    assert Allowed(["in.example"], networks=["::/0"]).why_not_name("::ffff:10.1.2.3") == "v4-mapped"


def test_a_url_has_one_reading() -> None:
    """Scheme and host in lower case, the port always there, path and query as they were given."""
    assert target_of("HTTPS://Hooks.Example:8443/a%20b?c=d") == WebhookTarget(
        "https", "hooks.example", 8443, "/a%20b?c=d"
    )
    assert target_of("https://hooks.example") == WebhookTarget("https", "hooks.example", 443, "/")
    assert target_of("http://[2606:4700:0::1]?q") == WebhookTarget("http", "2606:4700::1", 80, "/?q")
    assert target_of("http://[2606:4700:0::1]?q").url == "http://[2606:4700::1]:80/?q"


REFUSED = [
    "",
    "hooks.example",
    "//hooks.example/",
    "ftp://hooks.example/",
    "file:///etc/passwd",
    "gopher://hooks.example/",
    "https:/hooks.example",
    "https:hooks.example",
    "https://",
    "https:///path",
    "https://user@hooks.example/",
    "https://user:password@hooks.example/",
    "https://hooks.example@evil.example/",
    "https://hooks.example\\@evil.example/",
    "https://hooks.example\\.evil.example/",
    "https://hooks.example/#fragment",
    "https://hooks.example/\r\nX: y",
    "https://hooks.example/ x",
    " https://hooks.example/",
    "https://hooks.example/\n",
    "https://hooks.example\t/",
    "https://hooks.exämple/",
    "https://hooks。example/",
    "https://ⓗooks.example/",
    "https://hooks.example./",
    "https://.hooks.example/",
    "https://hooks..example/",
    "https://-hooks.example/",
    "https://hooks.example:0/",
    "https://hooks.example:65536/",
    "https://hooks.example:/",
    "https://hooks.example:443:443/",
    "https://hooks.example:+443/",
    "https://2130706433/",
    "https://127.1/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://0x7f000001/",
    "https://1.2.3.4.5/",
    "https://hooks.example.1/",
    "https://[::1%25eth0]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[127.0.0.1]/x:",
    "https://[]/",
    "https://::1/",
    "https://hooks.example/" + "a" * 2048,
    "https://" + "a." * 130 + "example/",
    "https://" + "a" * 64 + ".example/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_two_parsers_could_read_differently_is_refused(url: str) -> None:
    """Also where everything would be allowed."""
    with pytest.raises(WebhookRefused):
        target_of(url)


@given(st.text(alphabet="htps:/[]@\\.?#%0123456789abxzAX-_~&;=+ \n", max_size=40), st.sampled_from(["https://", ""]))
def test_the_library_that_sends_reads_what_we_read(text: str, scheme: str) -> None:
    """Whatever passes: yarl sees the same scheme, host and port in what we make of it, and in the original."""
    try:
        target = target_of(scheme + text)
    except WebhookRefused:
        return
    for read in (URL(target.url, encoded=True), URL(scheme + text)):
        assert (read.scheme, read.port) == (target.scheme, target.port)
        assert read.host == target.host or ":" in target.host


def test_only_named_hosts_schemes_and_ports_are_allowed() -> None:
    """A host means https on the allowed ports; a port or http has to be named; a star is for names below."""
    allowed = Allowed(
        ["hooks.example", "*.in.example", "https://odd.example:8443", "http://plain.example:9000", "other.example:444"]
    )
    for url in (
        "https://hooks.example/x",
        "https://HOOKS.example:443",
        "https://a.in.example",
        "https://a.b.in.example",
        "https://odd.example:8443",
        "http://plain.example:9000/x",
        "https://other.example:444",
    ):
        assert allowed.target(url)
    for url in (
        "http://hooks.example",
        "http://hooks.example:443",
        "https://hooks.example:8443",
        "https://x.hooks.example",
        "https://in.example",
        "https://evilin.example",
        "https://odd.example",
        "http://odd.example:8443",
        "https://plain.example:9000",
        "https://plain.example",
        "http://plain.example",
        "https://other.example",
        "https://hooks.example.evil.example",
        "https://1.2.3.4",
    ):
        with pytest.raises(WebhookRefused):
            allowed.target(url)


def test_ports_are_an_allow_list_of_their_own() -> None:
    """A host without a port may be called on these and no others."""
    allowed = Allowed(["hooks.example"], ports=[443, 8443])
    assert allowed.target("https://hooks.example:8443/").port == 8443
    with pytest.raises(WebhookRefused):
        allowed.target("https://hooks.example:6379/")


def test_loopback_is_allowed_where_the_operator_names_it_and_for_no_name() -> None:
    """The very address on the very port; a name that leads there is refused all the same."""
    allowed = Allowed(["http://127.0.0.1:9000", "https://[::1]:9001", "10.0.0.5", "hooks.example"])
    assert allowed.target("http://127.0.0.1:9000/").host == "127.0.0.1"
    assert allowed.why_not_connect("127.0.0.1", 9000) is None
    assert allowed.why_not_connect("::1", 9001) is None
    assert allowed.why_not_connect("10.0.0.5", 443) is None
    assert allowed.why_not_connect("127.0.0.1", 6379) == "loopback"
    assert allowed.why_not_connect("127.0.0.2", 9000) == "loopback"
    assert allowed.why_not_name("127.0.0.1") == "loopback"
    assert not Allowed([])


@pytest.mark.parametrize(
    "entry",
    ["", "http://plain.example", "https://h.example/path", "ftp://h.example", "*", "*.1.2.3.4", "u@h.example", "h:x"],
)
def test_an_allow_list_that_cannot_be_read_stops_the_start(entry: str) -> None:
    """The message names the flag and the entry."""
    with pytest.raises(SetupError, match="--webhook-allow"):
        Allowed([entry])


def test_a_network_that_cannot_be_read_stops_the_start() -> None:
    """An address with host bits set is no network."""
    with pytest.raises(SetupError, match="--webhook-networks"):
        Allowed(["h.example"], networks=["10.0.0.1/8"])
