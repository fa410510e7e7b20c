"""TLS on the listener: versions and ciphers, new certificates under load, client certificates as tenants."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import authority, signed
from tests.live import given
from tests.ports import free_port
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_60_start_and_stop import foreseen
from tests.stories.tls_live import SecureLive, secure

seeds = itertools.count(920_000)
BEARER = {"Authorization": "Bearer the key of a", "Content-Type": "application/json"}
KEYS = """
[tenant.a]
keys = ["{a}"]
[tenant.mesh]
subjects = ["CN=mesh,O=Example\\\\, Inc"]
[tenant.second]
subjects = ["CN=other"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls")
    signed(made, "server", authority(made))
    (made / "keys.toml").write_text(KEYS.format(a="sha256:" + hashlib.sha256(b"the key of a").hexdigest()))
    return made


@pytest.fixture(scope="module")
def listening(built: Path, folder: Path) -> Iterator[SecureLive]:
    """A system of two workers over TLS, with tenants."""
    given(built, folder / "data")
    flags = ("--workers=2", f"--keys-file={folder / 'keys.toml'}", "--model=fingerprint")
    for name in ("grpc", "admin"):
        (folder / f"{name}-port").write_text(str(free_port()))
        flags += (f"--{name}-port={(folder / f'{name}-port').read_text()}",)
    with secure(folder / "data", folder / "ca.pem", (folder / "server.pem", folder / "server.key"), *flags) as system:
        yield system


def test_predictions_go_over_tls_and_the_fast_way_works(listening: SecureLive) -> None:
    """Also bodies that come in several records; plain HTTP on the port gets no answer."""
    assert listening.url.startswith("https://")
    client, question = listening.client(), json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    timings = set()
    for _ in range(8):
        status, headers, _ = ask(client, question)
        assert status == 200
        timings.add(headers["server-timing"])
    assert "replay" in timings
    many = json.dumps(ask_fingerprint(*(numbers(n) for n in range(400)))).encode()
    assert len(many) > 3 * 16384
    for _ in range(4):
        assert ask(client, many)[0] == 200
    with socket.create_connection(("127.0.0.1", listening.port)) as plain:
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
        plain.settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in plain.recv(4096)


def ask(client: http.client.HTTPSConnection, body: bytes, headers: dict[str, str] = BEARER) -> tuple[int, Any, bytes]:
    client.request("POST", FINGERPRINT, body, headers)
    reply = client.getresponse()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(listening: SecureLive, version: ssl.TLSVersion) -> None:
    """By a client that would speak them, with every cipher that it has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection(("127.0.0.1", listening.port)) as raw:
        context.wrap_socket(raw)
    flag = "-tls1" if version == ssl.TLSVersion.TLSv1 else "-tls1_1"
    assert "Cipher is (NONE)" in s_client(listening, flag, "-cipher", "ALL:@SECLEVEL=0")


@pytest.mark.parametrize(
    "cipher",
    ["AES128-SHA", "AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "DES-CBC3-SHA",
     "AECDH-AES128-SHA", "ECDHE-ECDSA-NULL-SHA", "ECDHE-ECDSA-AES128-CCM8", "DHE-RSA-AES128-SHA", "RC4-SHA"],
)  # fmt: skip
def test_weak_ciphers_are_refused(listening: SecureLive, cipher: str) -> None:
    """Without forward secrecy, with CBC, without a certificate, or without encryption."""
    said = s_client(listening, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert "Cipher is (NONE)" in said or "no cipher match" in said or "Error with command" in said


@pytest.mark.parametrize(("flag", "cipher"), [("-tls1_2", "ECDHE-ECDSA-AES128-GCM-SHA256"), ("-tls1_3", "TLS_AES_")])
def test_good_versions_and_ciphers_are_spoken(listening: SecureLive, flag: str, cipher: str) -> None:
    """TLS 1.2 and 1.3; HTTP/1.1 is chosen, no compression, no renegotiation by the client."""
    said = s_client(listening, flag, "-alpn", "h2,http/1.1", *(("-cipher", cipher) if flag == "-tls1_2" else ()))
    assert f"Cipher is {cipher}" in said
    assert "ALPN protocol: http/1.1" in said
    assert "Compression: NONE" in said


def s_client(live: SecureLive, *flags: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{live.port}", *flags]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=30, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_a_new_certificate_under_load_fails_no_request(listening: SecureLive, folder: Path) -> None:
    """Every worker has it within seconds; connections that are open go on; a broken file changes nothing."""
    stop, failed, done = threading.Event(), [], [0]
    old = listening.client()
    body = json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    assert ask(old, body)[0] == 200

    def load(*, keep: bool) -> None:
        client = listening.client()
        while not stop.is_set():
            try:
                if ask(client, body)[0] != 200:
                    failed.append("status")
                done[0] += 1
                if not keep:
                    client.close()
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
                client.close()

    threads = [threading.Thread(target=load, kwargs={"keep": keep}) for keep in (True, False, False)]
    for thread in threads:
        thread.start()
    try:
        before = {listening.served() for _ in range(8)}
        assert len(before) == 1
        replaced(folder, signed(folder, "renewed", (folder / "ca.pem", folder / "ca.key")))
        until(lambda: not before & {listening.served() for _ in range(12)})
        renewed = {listening.served() for _ in range(8)}
        assert len(renewed) == 1
        (folder / "server.pem").write_text("no certificate")
        at = done[0]
        until(lambda: done[0] > at + 200)
        assert {listening.served() for _ in range(8)} == renewed
        shutil.copy(folder / "renewed.pem", folder / "server.pem")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert ask(old, body)[0] == 200


GRPC_LOAD = """
import grpc, pathlib, sys
from foreseen.protocol.open_inference import methods
authority, port, end = pathlib.Path(sys.argv[1]).read_bytes(), sys.argv[2], pathlib.Path(sys.argv[3])
reply, trust = methods()["ServerMetadata"][1], grpc.ssl_channel_credentials(authority)

def ask(channel):
    call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
    return reply.FromString(call(b"", metadata=[("x-api-key", "the key of a")], timeout=20)).name

asked = failed = 0
with grpc.secure_channel(f"127.0.0.1:{port}", trust) as kept:
    while not end.exists():
        with grpc.secure_channel(f"127.0.0.1:{port}", trust, [("grpc.use_local_subchannel_pool", 1)]) as new:
            for channel in (kept, new):
                asked += 1
                try:
                    failed += ask(channel) != "foreseen"
                except grpc.RpcError as error:
                    failed += 1
                    print(error.code().name, error.details(), file=sys.stderr)
        print(asked, failed, flush=True)
"""


def test_grpc_takes_a_new_certificate_under_load(listening: SecureLive, folder: Path) -> None:
    """Calls on a channel that stays open and on new ones go on; a key beside the former certificate changes nothing."""
    port, end = int((folder / "grpc-port").read_text()), folder / "end"

    def served() -> set[str]:
        return {ssl.get_server_certificate(("127.0.0.1", port)) for _ in range(8)}

    command = [sys.executable, "-c", GRPC_LOAD, str(folder / "ca.pem"), str(port), str(end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        try:
            assert load.stdout.readline() == "2 0\n"
            before = served()
            assert len(before) == 1
            key, certificate = reversed(signed(folder, "third", (folder / "ca.pem", folder / "ca.key")))
            shutil.copy(key, folder / "server.key")
            time.sleep(1.0)  # longer than a file has to stay as it is to be taken
            assert served() == before
            shutil.copy(certificate, folder / "server.pem")
            until(lambda: not before & served())
            assert served() == {ssl.get_server_certificate(("127.0.0.1", listening.port))}
        finally:
            end.touch()
            said, errors = load.communicate(timeout=60)
    asked, failed = map(int, said.splitlines()[-1].split())
    assert (failed, errors) == (0, "")
    assert asked > 20


def test_the_operators_port_speaks_tls(listening: SecureLive, folder: Path) -> None:
    """With the listener's certificate, which `foreseen purge` verifies; in the clear there is no answer."""
    port = (folder / "admin-port").read_text()
    purge = ("purge", f"--data={listening.data}", "--model=fingerprint", f"--admin-ca-file={folder / 'ca.pem'}")
    done = foreseen(*purge, f"--admin=https://127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"confirmed by [23] workers", done.stdout)  # the worker of jobs may have come by then
    for wrong in (("--admin", f"127.0.0.1:{port}"), ("--admin", f"https://127.0.0.1:{port}", "--admin-ca-file", "")):
        done = foreseen(*purge, *wrong)
        assert done.returncode != 0, wrong
    done = foreseen("purge", f"--data={listening.data}", "--all", f"--admin=https://127.0.0.1:{port}")
    assert "no proxy answers operators" in done.stderr
    old = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    said = subprocess.run(old, input=b"", capture_output=True, timeout=30, check=False)
    assert b"Cipher is (NONE)" in said.stdout


def replaced(folder: Path, by: tuple[Path, Path]) -> None:
    """Key and certificate, one after the other, as a renewal does it."""
    for made, name in ((by[1], "server.key"), (by[0], "server.pem")):
        shutil.copy(made, folder / f".{name}")
        (folder / f".{name}").rename(folder / name)


def until(there: Any) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def mutual(built: Path, tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[SecureLive]:
    """A system whose callers need certificates; its own first predictions went through without."""
    own = tmp_path_factory.mktemp("mutual")
    by = authority(own, "ca")
    signed(own, "server", by)
    for name, subject in (("mesh", "/O=Example, Inc/CN=mesh"), ("other", "/CN=other"), ("stranger", "/CN=nobody")):
        signed(own, name, by, subject)
    signed(own, "forged", authority(own, "another"), "/CN=other")
    given(built, own / "data")
    (own / "grpc-port").write_text(str(free_port()))
    flags = (f"--keys-file={folder / 'keys.toml'}", f"--tls-client-ca={own / 'ca.pem'}", "--model=fingerprint")
    flags += (f"--grpc-port={(own / 'grpc-port').read_text()}",)
    with secure(own / "data", own / "ca.pem", (own / "server.pem", own / "server.key"), *flags) as system:
        yield system


def test_a_certificates_subject_is_a_tenant(mutual: SecureLive) -> None:
    """Without one every request but for health is refused, also with a key; with one a key comes first."""
    body = json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    plain = {"Content-Type": "application/json"}
    bare = mutual.client()
    assert ask(bare, body)[0] == 401
    assert ask(bare, body, plain)[0] == 401
    bare.request("GET", "/v2/health/ready")
    reply = bare.getresponse()
    assert (reply.status, bool(reply.read())) == (200, True)
    own = mutual.data.parent
    assert ask(mutual.client(own / "mesh.pem"), body, plain)[0] == 200
    assert ask(mutual.client(own / "stranger.pem"), body, plain)[0] == 401
    assert ask(mutual.client(own / "stranger.pem"), body)[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(mutual.client(own / "forged.pem"), body, plain)


def test_the_same_bytes_with_two_certificates_are_of_two_tenants(mutual: SecureLive) -> None:
    """A head and a whole request that were learned on one connection are never used for another certificate's."""
    own, plain = mutual.data.parent, {"Content-Type": "application/json"}
    body = json.dumps(ask_fingerprint(numbers(next(seeds)))).encode()
    clients = {name: mutual.client(own / f"{name}.pem") for name in ("mesh", "other", "stranger")}
    bare, before = mutual.client(), mutual.model_rows()
    for _ in range(12):
        for name, client in clients.items():
            assert ask(client, body, plain)[0] == (401 if name == "stranger" else 200), name
        assert ask(bare, body, plain)[0] == 401
    assert mutual.model_rows() - before == 2
    for name in ("mesh", "other"):
        assert ask(clients[name], body, plain)[1]["server-timing"] == "replay"


GRPC = """
import grpc, pathlib, sys
from foreseen.protocol.open_inference import methods
own, port = pathlib.Path(sys.argv[1]), sys.argv[2]
reply = methods()["ServerMetadata"][1]
for name in ("", "mesh", "stranger"):
    files = [(own / f"{name}.{end}").read_bytes() for end in ("key", "pem")] if name else []
    for key in ("", "the key of a", "no key"):
        trust = grpc.ssl_channel_credentials((own / "ca.pem").read_bytes(), *files)
        with grpc.secure_channel(f"127.0.0.1:{port}", trust) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            try:
                said = reply.FromString(call(b"", metadata=[("x-api-key", key)] if key else [], timeout=10)).name
            except grpc.RpcError as error:
                said = error.code().name
            print(f"{name}:{key}:{said}")
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    try:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10)
        print("plain")
    except grpc.RpcError:
        print("no plain text")
"""


def test_grpc_has_the_same_certificates_and_keys(mutual: SecureLive) -> None:
    """Without a certificate there is no connection; a key comes before the certificate's tenant."""
    own = mutual.data.parent
    command = [sys.executable, "-c", GRPC, str(own), (own / "grpc-port").read_text()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert said[:3] == [f":{key}:UNAVAILABLE" for key in ("", "the key of a", "no key")]
    assert said[3:6] == ["mesh::foreseen", "mesh:the key of a:foreseen", "mesh:no key:UNAUTHENTICATED"]
    assert said[6:8] == ["stranger::UNAUTHENTICATED", "stranger:the key of a:foreseen"]
    assert said[-1] == "no plain text"
