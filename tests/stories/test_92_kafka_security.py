"""TLS, SASL and rights of `foreseen kafka`, against a real broker behind a gate that demands them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from foreseen.proxy.kafka.client import KafkaConsumer
from foreseen.proxy.kafka.messages import Outgoing
from foreseen.proxy.kafka.ports import BrokerError, Place
from foreseen.proxy.kafka.producer import KafkaProducer
from foreseen.settings import KafkaSettings
from tests.certificates import authority, signed
from tests.kafka_broker import broker
from tests.kafka_gate import METADATA, Gate, gate, granting
from tests.ports import free_port

pytestmark = pytest.mark.long

USERS = {"alice": "se cret"}
SECONDS = 90


@contextlib.asynccontextmanager
async def guarded(
    folder: Path, *topics: str, users: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Gate]:
    """A broker with these topics, and a gate in front of it that has become strict."""
    port = free_port()
    with broker(folder, port) as one:
        async with gate(one, port):
            await one.create(*topics, partitions=3)
        async with gate(one, port, users, tls) as before:
            yield before


class Owner:
    """Takes note of the partitions that it gets."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    async def partitions_assigned(self, places: list[Place]) -> None:
        self.places += places

    async def partitions_revoked(self, places: list[Place]) -> None:
        """Nothing is under way."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    made = authority(folder)
    for name in ("server", "client"):
        signed(folder, name, made)
    (folder / "password").write_text("se cret\n")
    (folder / "wrong").write_text("other\n")
    return folder


def ending_tls(folder: Path, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    return context


def secured(
    address: str, folder: Path, protocol: str, mechanism: str = "PLAIN", password: str = "password"
) -> list[str]:
    flags = [f"--security-protocol={protocol}", f"--brokers={address}"]
    if protocol.startswith("SASL"):
        flags += [f"--sasl-mechanism={mechanism}", "--sasl-username=alice", f"--sasl-password-file={folder / password}"]
    if protocol.endswith("SSL"):
        flags += [f"--ssl-cafile={folder / 'ca.pem'}"]
    return flags


def settings_of(flags: list[str], **more: Any) -> KafkaSettings:
    """The settings that these flags are."""
    given = (flag.removeprefix("--").partition("=") for flag in flags)
    named: dict[str, Any] = {name.replace("-", "_"): value for name, _, value in given}
    paths = {name: Path(value) for name, value in named.items() if name.endswith("file")}
    brokers = (named["brokers"],)
    return KafkaSettings(**{**named, **paths, "brokers": brokers, "topic": "t", "group": "g", **more})


async def passed(settings: KafkaSettings) -> bytes | None:
    """A record there and back, by the process's own producer and consumer."""
    producer = KafkaProducer(settings)
    try:
        await producer.start()
        assert await producer.send([Outgoing("t", b"k", b"v", [("h", b"1")])]) == [None]
    finally:
        await producer.stop()
    consumer = KafkaConsumer(settings, Owner())
    try:
        await consumer.start()
        async with asyncio.timeout(SECONDS):
            while not (found := await consumer.poll(500, 10)):
                pass
        return found[0].value
    finally:
        await consumer.stop()


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_users_with_passwords(tmp_path: Path, certificates: Path, protocol: str, mechanism: str) -> None:
    """The right password passes; a wrong one is refused in one line that says so."""
    tls = ending_tls(certificates, mutual=False) if protocol == "SASL_SSL" else None
    async with guarded(tmp_path, "t", users=USERS, tls=tls) as before:
        assert await passed(settings_of(secured(before.address, certificates, protocol, mechanism))) == b"v"
        assert before.authenticated
        wrong = settings_of(secured(before.address, certificates, protocol, mechanism, "wrong"))
        with pytest.raises(BrokerError, match=r"SaslAuthenticationFailed: Authentication failed$"):
            await passed(wrong)


async def test_mutual_tls(tmp_path: Path, certificates: Path) -> None:
    """A client with a certificate of the authority passes, one without is refused, and so is a broker that another
    authority vouches for."""
    stranger = authority(tmp_path, "stranger")[0]
    async with guarded(tmp_path, "t", tls=ending_tls(certificates, mutual=True)) as before:
        flags = secured(before.address, certificates, "SSL")
        own = {"ssl_certfile": certificates / "client.pem", "ssl_keyfile": certificates / "client.key"}
        assert await passed(settings_of(flags, **own)) == b"v"
        with pytest.raises(BrokerError, match="certificate"):
            await passed(settings_of(flags, **{**own, "ssl_cafile": stranger}))
        with pytest.raises(BrokerError):
            await passed(settings_of(flags))


def doctor(data: Path, *flags: str) -> dict[str, dict[str, str]]:
    """The findings of `foreseen doctor` about Kafka, by what they are about."""
    words = [sys.executable, "-P", "-m", "foreseen.cli", "doctor", f"--data={data}", "--json", *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    findings = json.loads(done.stdout)
    return {one["what"]: one for one in findings if one["what"].split()[0] in ("kafka", "topic", "group")}


async def test_the_doctor_looks_at_brokers_topics_and_rights(tmp_path: Path, certificates: Path) -> None:
    async with guarded(tmp_path, "asked", "replies", users=USERS) as before:
        flags = secured(before.address, certificates, "SASL_PLAINTEXT", "SCRAM-SHA-256")
        flags += ["--topic=asked", "--reply-topic=replies", "--dead-letter-topic=dead", "--group=g"]
        before.rewrites[METADATA] = granting({"asked": ("read",), "replies": ("read",)})
        found = await asyncio.to_thread(doctor, tmp_path, *flags)
        wrong = secured(before.address, certificates, "SASL_PLAINTEXT", "SCRAM-SHA-256", "wrong")
        refused = await asyncio.to_thread(doctor, tmp_path, *wrong)
    graded = {what: (one["grade"], one["said"]) for what, one in found.items()}
    assert found["kafka"]["grade"] == "ok"
    assert graded["topic asked"] == ("ok", "3 partition(s), this user may read it")
    assert graded["topic replies"] == ("must", "this user may not write it")
    assert graded["topic dead"] == ("must", "the brokers have no such topic")
    assert found["group g"]["grade"] == "ok"
    assert refused["kafka"]["grade"] == "must"
    assert "SaslAuthenticationFailed" in refused["kafka"]["said"]
    assert "other" not in json.dumps(refused), "no password"
