"""Real Redis servers (Debian's `redis-server`) for tests: one, a Cluster, one with Sentinels, one over TLS."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.ports import free_port

SERVER = "/usr/bin/redis-server"
START_SECONDS = 20


@dataclass
class Server:
    """One running server, which a test may stop, kill and start again as it was."""

    port: int
    folder: Path
    command: list[str]
    process: subprocess.Popen[bytes]
    login: tuple[str, str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> Redis:
        user, password = self.login or (None, None)
        return Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0), username=user, password=password)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        """Start it once more, with what it wrote to disk, if anything."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, cwd=self.folder)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def serving(folder: Path, *flags: str, port: int | None = None) -> Iterator[Server]:
    """One server; without flags of its own in the cache role."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    plain = () if any(flag == "--port" for flag in flags) else ("--port", str(port))
    own = ("--bind", "127.0.0.1", "--save", "", "--dir", str(folder), "--repl-diskless-sync-delay", "0")
    command = [SERVER, *plain, *own, *flags]
    server = Server(port, folder, command, subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder))
    try:
        until(lambda: _listens(port))
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@contextlib.contextmanager
def cluster(folder: Path, *flags: str, masters: int = 3, replicas: Sequence[int] = ()) -> Iterator[list[Server]]:
    """A Cluster of so many masters with all slots; then a replica of each of these masters."""
    with contextlib.ExitStack() as stack:
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
        places = [folder / str(number) for number in range(masters + len(replicas))]
        servers = [stack.enter_context(serving(place, *own, *flags)) for place in places]
        for number, server in enumerate(servers[:masters]):
            with server.client() as client:
                first, last = 16384 * number // masters, 16384 * (number + 1) // masters - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            with server.client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        until(lambda: all(_well(server, len(servers)) for server in servers))
        for number, server in zip(replicas, servers[masters:], strict=True):
            with servers[number].client() as client:
                name = client.execute_command("CLUSTER", "MYID")
            with server.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", name)
        until(lambda: all(_replicates(server) for server in servers[masters:]))
        yield servers


@dataclass
class Watched:
    """A master, its replicas, and the Sentinels that watch them."""

    name: str
    master: Server
    replicas: list[Server]
    watchers: list[Server]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(one.address for one in self.watchers)}/{self.name}"


@contextlib.contextmanager
def sentinels(
    folder: Path,
    *flags: str,
    name: str = "cache",
    replicas: int = 1,
    count: int = 1,
    login: tuple[str, str] | None = None,
) -> Iterator[Watched]:
    """A master, its replicas, and Sentinels that take one of these when the master is gone for half a second; with a
    login (user and password, of the least rights) they answer nobody without."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(serving(folder / "master", *flags))
        source = ("--replicaof", "127.0.0.1", str(master.port))
        others = [
            stack.enter_context(serving(folder / f"replica{number}", *flags, *source)) for number in range(replicas)
        ]
        until(lambda: all(_replicates(one) for one in others))
        watchers = []
        for number in range(count):
            place, port = folder / f"sentinel{number}", free_port()
            place.mkdir(parents=True)
            told = f"sentinel monitor {name} 127.0.0.1 {master.port} {count // 2 + 1}\n"
            told += f"sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 2000\n"
            if login is not None:
                told += "user default off\nuser admin on >admin ~* &* +@all\n"
                told += f"user {login[0]} on >{login[1]} resetchannels -@all +sentinel|get-master-addr-by-name\n"
                told += "sentinel sentinel-user admin\nsentinel sentinel-pass admin\n"
            (place / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {place}\n{told}")
            command = [SERVER, str(place / "sentinel.conf"), "--sentinel"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            until(lambda port=port: _listens(port))  # type: ignore[misc]
            watchers.append(Server(port, place, command, process, None if login is None else ("admin", "admin")))
        until(lambda: all(_knows(one, name, replicas, count - 1) for one in watchers))
        yield Watched(name, master, others, watchers)


def replicated(master: Server, replica: Server) -> None:
    """Wait until the replica has all that the master has now; WAIT is for a connection's own writes."""
    with master.client() as client:
        wanted = client.info("replication")["master_repl_offset"]
    with replica.client() as client:
        until(lambda: client.info("replication")["slave_repl_offset"] >= wanted)


def certificates(folder: Path) -> dict[str, Path]:
    """A certificate authority made for one test, and a server's certificate for 127.0.0.1: ca, cert, key."""
    made = {name: folder / f"{name}.pem" for name in ("ca", "ca_key", "cert", "key")}
    folder.mkdir(parents=True, exist_ok=True)
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    request = str(folder / "request.pem")
    new = ("-newkey", "rsa:2048", "-nodes")
    own = ("-keyout", str(made["ca_key"]), "-out", str(made["ca"]))
    _openssl("req", "-x509", *new, "-days", "2", "-subj", "/CN=the authority of one test", *own)
    _openssl("req", *new, "-subj", "/CN=localhost", "-keyout", str(made["key"]), "-out", request)
    signer = ("-CA", str(made["ca"]), "-CAkey", str(made["ca_key"]), "-CAcreateserial")
    out = ("-extfile", str(extensions), "-out", str(made["cert"]))
    _openssl("x509", "-req", "-in", request, *signer, "-days", "2", *out)
    return made


@contextlib.contextmanager
def serving_tls(folder: Path, *flags: str) -> Iterator[tuple[Server, Path]]:
    """A server that speaks TLS alone, and the file of certificates to verify it with."""
    made, port = certificates(folder / "certificates"), free_port()
    tls = {"port": "0", "tls-port": str(port), "tls-auth-clients": "no", "tls-ca-cert-file": str(made["ca"])}
    tls |= {"tls-cert-file": str(made["cert"]), "tls-key-file": str(made["key"])}
    words = [word for name, value in tls.items() for word in (f"--{name}", value)]
    with serving(folder, *words, *flags, port=port) as one:
        yield one, made["ca"]


def until(there, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def _listens(port: int) -> bool:
    with socket.socket() as plug:
        return plug.connect_ex(("127.0.0.1", port)) == 0


def _well(server: Server, count: int) -> bool:
    with server.client() as client, contextlib.suppress(RedisError):
        told = client.execute_command("CLUSTER INFO")
        nodes, slots = told["cluster_known_nodes"], told["cluster_slots_ok"]  # without full coverage it is ok before
        return told["cluster_state"] == "ok" and (nodes, slots) == (str(count), "16384")
    return False


def _replicates(server: Server) -> bool:
    with server.client() as client, contextlib.suppress(RedisError):
        return client.info("replication").get("master_link_status") == "up"
    return False


def _knows(server: Server, name: str, replicas: int, others: int) -> bool:
    with server.client() as client, contextlib.suppress(RedisError):
        told: Sequence[object] = client.execute_command("SENTINEL", "REPLICAS", name)
        known: Sequence[object] = client.execute_command("SENTINEL", "SENTINELS", name)
        return len(told) == replicas and len(known) == others
    return False
