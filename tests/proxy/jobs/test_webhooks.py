"""One webhook, one receiver: signed, once looked up, and whatever the receiver does costs a bounded little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from foreseen.errors import SetupError
from foreseen.proxy.jobs.webhook.webhooks import READ_BYTES, Delivery, LookUp, WebhookSender
from foreseen.queue.signing import Signer, make_webhook_secret
from foreseen.queue.targets import Allowed
from foreseen.tenants.tenant import PUBLIC_TENANT, owner_of

ANYONE = PUBLIC_TENANT.owner
SECRET = "whsec_" + b64encode(b"a secret of thirty-two bytes, so").decode()
OTHER = "whsec_" + b64encode(b"the secret that there was before").decode()
BODY = json.dumps({"type": "prediction.succeeded", "data": {"id": "t1"}}).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Sink:
    """A receiver that answers what a test scripts, byte by byte, and remembers what came."""

    def __init__(self, reply: bytes | None = OK) -> None:
        self.reply = reply
        self.forever = b""
        self.holds = False
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.sent = 0
        self.closed = asyncio.Event()
        self.arrived = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append((headers | {"": head[0]}, body))
            self.arrived.set()
            if self.reply is not None:
                writer.write(self.reply)
                await writer.drain()
            while self.forever:
                writer.write(self.forever)
                self.sent += len(self.forever)
                await writer.drain()
            if self.holds:
                await reader.read()  # until the caller hangs up
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.closed.set()
            writer.close()


@contextlib.asynccontextmanager
async def receiving(sink: Sink, tls: ssl.SSLContext | None = None) -> AsyncIterator[Sink]:
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, ssl=tls)
    sink.port = server.sockets[0].getsockname()[1]
    try:
        yield sink
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None
        await server.wait_closed()


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return signer_of(tmp_path, SECRET)


def signer_of(folder: Path, text: str) -> Signer:
    path = folder / "webhook-secret"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return Signer(path)


class Looked:
    """A name service that answers one script after the other, and counts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if not found:
            raise OSError("no such name")
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, one) for one in found]


@contextlib.asynccontextmanager
async def calling(
    allowed: Allowed, signer: Signer, *, seconds: float = 10, look_up: LookUp | None = None, **more: object
) -> AsyncIterator[WebhookSender]:
    caller = WebhookSender(allowed, signer, seconds=seconds, look_up=look_up, **more)  # type: ignore[arg-type]
    try:
        yield caller
    finally:
        await caller.close()


def at(port: int) -> tuple[Allowed, Delivery]:
    url = f"http://127.0.0.1:{port}/hook?x=%2F"
    return Allowed([f"http://127.0.0.1:{port}"]), Delivery("msg_1", ANYONE, url, BODY)


async def test_a_delivery_is_one_signed_post(signer: Signer) -> None:
    """Path and query as asked for, the body as it is; the specification's own library verifies it."""
    async with receiving(Sink()) as sink:
        allowed, delivery = at(sink.port)
        async with calling(allowed, signer) as caller:
            assert await caller.call(delivery) == ("delivered", "200")
    ((headers, body),) = sink.requests
    assert headers[""] == "POST /hook?x=%2F HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "msg_1"
    assert Webhook(SECRET).verify(body, headers) == json.loads(BODY)
    for wrong in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body, headers | wrong)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, headers)


def test_receivers_change_their_secret_one_after_the_other(tmp_path: Path) -> None:
    """A signature of every line of the file: the old secret still verifies, and the new one does."""
    headers = signer_of(tmp_path, f"{SECRET}\n{OTHER}").headers(ANYONE, "msg_1", BODY, datetime.now(UTC))
    assert Webhook(SECRET).verify(BODY, headers)
    assert Webhook(OTHER).verify(BODY, headers)


def test_every_tenant_has_secrets_of_its_own(tmp_path: Path) -> None:
    """What verifies one tenant's events verifies neither another's nor those of callers without a tenant, so it signs
    none of them either. They are the same after a restart, and change with the file's line by line."""
    signer, now = signer_of(tmp_path, f"{SECRET}\n{OTHER}"), datetime.now(UTC)
    owners = [ANYONE, owner_of("a"), owner_of("b")]
    secrets = {owner: signer.secrets_of(owner) for owner in owners}
    assert secrets[ANYONE] == [SECRET, OTHER]
    assert len({one for listed in secrets.values() for one in listed}) == 6
    assert signer_of(tmp_path, OTHER).secrets_of(owners[1]) == secrets[owners[1]][1:]
    for owner in owners:
        headers = signer.headers(owner, "msg_1", BODY, now)
        for other in owners:
            for one in secrets[other]:
                with contextlib.nullcontext() if other == owner else pytest.raises(WebhookVerificationError):
                    Webhook(one).verify(BODY, headers)


@pytest.mark.parametrize(
    "text",
    ["a password of thirty-two characters", "whsec_c2hvcnQ=" + " " * 20, SECRET[:-1] + "!", f"{SECRET}\nnonsense", ""],
)
def test_a_secret_that_is_none_stops_the_start(tmp_path: Path, text: str) -> None:
    """Without its prefix, short, no base64, or one bad line among good ones."""
    with pytest.raises(SetupError):
        signer_of(tmp_path, text)


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    """Made where there is none, and left alone where there is one."""
    path = tmp_path / "webhook-secret"
    make_webhook_secret(path)
    first = path.read_text()
    make_webhook_secret(path)
    assert path.read_text() == first
    headers = Signer(path).headers(ANYONE, "msg_1", BODY, datetime.now(UTC))
    assert Webhook(first.strip()).verify(BODY, headers)


def test_a_secret_that_everybody_reads_stops_the_start(tmp_path: Path) -> None:
    """And so does one that is not there."""
    with pytest.raises(SetupError):
        Signer(tmp_path / "nothing")
    path = tmp_path / "open"
    path.write_text(SECRET)
    path.chmod(0o644)
    with pytest.raises(SetupError, match="readable by every user"):
        Signer(path)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(204, "delivered"), (301, "failed"), (400, "failed"), (410, "refused"), (429, "failed"), (500, "failed")],
)
async def test_only_2xx_is_delivered(signer: Signer, status: int, outcome: str) -> None:
    """410 unsubscribes; all else is tried again."""
    async with receiving(Sink(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())) as sink:
        allowed, delivery = at(sink.port)
        async with calling(allowed, signer) as caller:
            assert await caller.call(delivery) == (outcome, str(status))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(signer: Signer, status: int) -> None:
    """Wherever they lead, also to what is allowed."""
    async with receiving(Sink()) as inner, receiving(Sink()) as sink:
        to = f"http://127.0.0.1:{inner.port}/secret"
        sink.reply = f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
        allowed = Allowed([f"http://127.0.0.1:{sink.port}", f"http://127.0.0.1:{inner.port}"])
        async with calling(allowed, signer) as caller:
            assert await caller.call(at(sink.port)[1]) == ("failed", str(status))
        assert inner.requests == []


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
async def test_an_endless_reply_is_left_after_4_kib(signer: Signer, head: bytes) -> None:
    """The connection is closed; what the kernel took meanwhile is bounded by its buffers."""
    async with receiving(Sink(head)) as sink:
        sink.forever = b"10000\r\n" + b"\x1f" * 65536 + b"\r\n" if b"chunked" in head else b"\x1f" * 65536
        allowed, delivery = at(sink.port)
        async with calling(allowed, signer) as caller:
            assert await caller.call(delivery) == ("delivered", "200")
            await asyncio.wait_for(sink.closed.wait(), 10)
        assert sink.sent < 64 * 2**20
    assert READ_BYTES == 4096


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_a_receiver_that_never_ends_its_answer_is_left_in_time(signer: Signer, reply: bytes | None) -> None:
    """Nothing, half a head, an interim answer and then nothing. A head that is whole counts, whatever its body does."""
    async with receiving(Sink(reply)) as sink:
        sink.holds = True
        allowed, delivery = at(sink.port)
        async with calling(allowed, signer, seconds=0.3) as caller:
            assert (await caller.call(delivery))[0] == "failed"
            sink.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
            assert (await caller.call(delivery))[0] == "delivered"


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"",
    ],
)
async def test_a_reply_that_is_no_http_fails(signer: Signer, reply: bytes) -> None:
    """Another protocol, a header above every limit, a length below zero, a hang-up: failed, and nothing worse."""
    async with receiving(Sink(reply)) as sink:
        allowed, delivery = at(sink.port)
        async with calling(allowed, signer) as caller:
            assert (await caller.call(delivery))[0] == "failed"


async def test_a_receiver_that_is_not_there_fails(signer: Signer) -> None:
    """And so does a name that nobody knows."""
    async with receiving(Sink()) as sink:
        pass
    allowed, delivery = at(sink.port)
    async with calling(allowed, signer) as caller:
        assert (await caller.call(delivery))[0] == "failed"
    async with calling(Allowed(["nowhere.example"]), signer, look_up=Looked([])) as caller:
        assert (await caller.call(Delivery("m", ANYONE, "https://nowhere.example/", BODY)))[0] == "failed"


async def test_what_is_no_longer_allowed_is_not_sent(signer: Signer) -> None:
    """The allow-list at the moment of sending counts, whatever lies in the outbox."""
    async with receiving(Sink()) as sink:
        async with calling(Allowed(["hooks.example"]), signer) as caller:
            assert await caller.call(at(sink.port)[1]) == ("refused", "not-allowed")
        assert sink.requests == []


class Opened:
    """Opens no socket: remembers that it was asked to, and says that there is no way."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, **_: object) -> socket.socket:
        self.count += 1
        raise OSError("no way there")


async def test_a_name_that_leads_elsewhere_the_second_time_leads_nowhere(signer: Signer) -> None:
    """Rebinding: each call looks up once and connects to what it looked at. The receiver on loopback sees nothing."""
    async with receiving(Sink()) as sink:
        allowed = Allowed([f"http://evil.example:{sink.port}"])
        delivery = Delivery("m", ANYONE, f"http://evil.example:{sink.port}/", BODY)
        looked, opened = Looked(["93.184.216.34"], ["127.0.0.1"]), Opened()
        async with calling(allowed, signer, look_up=looked, open_socket=opened) as caller:
            assert (await caller.call(delivery))[0] == "failed"
            assert (looked.asked, opened.count) == (1, 1)
            assert await caller.call(delivery) == ("refused", "loopback")
            assert (looked.asked, opened.count) == (2, 1)
        assert sink.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["93.184.216.34", "10.0.0.1"],
        ["2606:4700::1", "::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["169.254.169.254"],
        ["fe80::1%1"],
        ["0.0.0.0"],
    ],
)
async def test_one_bad_address_spoils_a_name(signer: Signer, answer: list[str]) -> None:
    """No socket is opened, also not for the good address that came first."""
    opened = Opened()
    async with calling(Allowed(["evil.example"]), signer, look_up=Looked(answer), open_socket=opened) as caller:
        assert (await caller.call(Delivery("m", ANYONE, "https://evil.example/", BODY)))[0] == "refused"
    assert opened.count == 0


async def test_localhost_by_the_systems_own_look_up_is_refused(signer: Signer) -> None:
    """The real resolver, a real listener, an allowed name: refused for where it leads."""
    async with receiving(Sink()) as sink:
        allowed = Allowed([f"http://localhost:{sink.port}"])
        async with calling(allowed, signer) as caller:
            told = await caller.call(Delivery("m", ANYONE, f"http://localhost:{sink.port}/", BODY))
        assert told == ("refused", "loopback")
        assert sink.requests == []
        networks = Allowed([f"http://localhost:{sink.port}"], networks=["127.0.0.0/8", "::1/128"])
        async with calling(networks, signer) as caller:
            assert (await caller.call(Delivery("m", ANYONE, f"http://localhost:{sink.port}/", BODY)))[0] == "delivered"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of hooks.example, signed by itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    what = ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example", "-days", "2", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *what]
    subprocess.run([*command, "-keyout", path, "-out", path.with_suffix(".crt")], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "outcome"),
    [("hooks.example", True, "delivered"), ("other.example", True, "failed"), ("hooks.example", False, "failed")],
)
@pytest.mark.processes
async def test_the_certificate_is_of_the_name_and_not_of_the_address(
    signer: Signer, certificate: Path, host: str, trusted: bool, outcome: str
) -> None:
    """Connecting to a checked address, TLS is still about the name; a certificate nobody signed fails."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate) if trusted else None)
    async with receiving(Sink(), tls) as sink:
        allowed = Allowed([f"https://{host}:{sink.port}"], networks=["127.0.0.0/8"])
        async with calling(allowed, signer, look_up=Looked(["127.0.0.1"]), tls=trust) as caller:
            told = await caller.call(Delivery("m", ANYONE, f"https://{host}:{sink.port}/", BODY))
        assert told[0] == outcome
        assert len(sink.requests) == (outcome == "delivered")


def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch, signer: Signer) -> None:
    """A proxy would do the look-up that is not to be done again."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def told() -> tuple[str, str]:
        async with receiving(Sink()) as sink:
            allowed, delivery = at(sink.port)
            async with calling(allowed, signer) as caller:
                return await caller.call(delivery)

    run: Callable[..., tuple[str, str]] = asyncio.run
    assert run(told()) == ("delivered", "200")
