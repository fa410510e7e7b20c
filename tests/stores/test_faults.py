"""The fault proxy does what it says to real connections, and nothing when it is told nothing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import FaultProxy, Faults, between, cut_replies
from tests.stores.test_far import valkey_server

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey_server(tmp_path_factory.mktemp("faults")) as (path, _):
        yield f"unix:{path}"


@pytest.fixture(params=["tcp", "unix"])
def proxy(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Iterator[FaultProxy]:
    with between(server, "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/p.sock") as one:
        yield one


@contextlib.contextmanager
def client(proxy: FaultProxy, seconds: float = 5.0) -> Iterator[socket.socket]:
    unix = proxy.address.startswith("unix:")
    host, _, port = proxy.address.rpartition(":")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as plug:
        plug.connect(proxy.address.removeprefix("unix:") if unix else (host, int(port)))
        plug.settimeout(seconds)
        yield plug


def ask(plug: socket.socket, *words: str) -> bytes:
    """The one reply to one command."""
    plug.sendall(f"*{len(words)}\r\n".encode() + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
    data = b""
    while not cut_replies(data)[0]:
        more = plug.recv(65536)
        if not more:
            raise EOFError(data)
        data += more
    return data


def test_without_faults_it_is_not_there(proxy: FaultProxy) -> None:
    """Every byte arrives, also of a value that fills many packets."""
    with client(proxy) as plug:
        assert ask(plug, "SET", "big", "v" * 300_000) == b"+OK\r\n"
        assert ask(plug, "GET", "big") == b"$300000\r\n" + b"v" * 300_000 + b"\r\n"


def test_latency_delays_every_reply_and_bandwidth_the_large_ones(proxy: FaultProxy) -> None:
    """At least as long as it says; healed, it is gone."""
    with client(proxy) as plug:
        ask(plug, "SET", "big", "v" * 20_000)
        proxy.faults = Faults(latency=0.05, jitter=0.01)
        started = time.monotonic()
        ask(plug, "PING")
        assert time.monotonic() - started >= 0.05
        proxy.faults = Faults(bytes_per_second=200_000)
        started = time.monotonic()
        ask(plug, "GET", "big")
        assert time.monotonic() - started >= 0.1
        proxy.heal()
        assert ask(plug, "PING") == b"+PONG\r\n"


def test_slices_arrive_whole(proxy: FaultProxy) -> None:
    """Three bytes at a time are the same bytes."""
    with client(proxy) as plug:
        ask(plug, "SET", "k", "abcdefghijklmnop")
        proxy.faults = Faults(slice_bytes=3)
        assert ask(plug, "GET", "k") == b"$16\r\nabcdefghijklmnop\r\n"


def test_a_connection_is_cut_after_so_many_bytes(proxy: FaultProxy) -> None:
    """Those bytes arrive, then the end; a new connection has as many."""
    proxy.faults = Faults(cut_after=10)
    for _ in range(2):
        with client(proxy) as plug:
            assert ask(plug, "PING") == b"+PONG\r\n"
            with pytest.raises((EOFError, ConnectionError)) as cut:
                ask(plug, "PING")
            assert isinstance(cut.value, ConnectionError) or cut.value.args == (b"+PO",)


def test_a_connection_is_cut_in_the_middle_of_a_reply(proxy: FaultProxy) -> None:
    """So many whole ones, then half of the next."""
    proxy.faults = Faults(cut_after_replies=1)
    with client(proxy) as plug:
        assert ask(plug, "PING") == b"+PONG\r\n"
        with pytest.raises((EOFError, ConnectionError)):
            ask(plug, "PING")


def test_down_refuses_and_resets_and_up_serves(proxy: FaultProxy) -> None:
    """An open connection ends, a new one finds nobody, until it is up again."""
    with client(proxy) as plug:
        ask(plug, "PING")
        proxy.down()
        with pytest.raises((EOFError, ConnectionError)):
            ask(plug, "PING")
    with pytest.raises((ConnectionError, FileNotFoundError)), client(proxy):
        pass
    proxy.up()
    with client(proxy) as plug:
        assert ask(plug, "PING") == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises((EOFError, ConnectionError)):
            ask(plug, "PING")


def test_a_black_hole_takes_questions_and_says_nothing(proxy: FaultProxy) -> None:
    """Nothing is lost: what was asked is answered when the hole closes."""
    with client(proxy, 0.1) as plug:
        proxy.faults.black_hole = True
        with pytest.raises(TimeoutError):
            ask(plug, "PING")
        proxy.heal()
        plug.settimeout(5)
        assert plug.recv(100) == b"+PONG\r\n"


def test_two_replies_are_swapped_between_connections_and_within_one(proxy: FaultProxy) -> None:
    """Each gets the other's; pipelined ones change places; then all is as before."""
    with client(proxy) as one, client(proxy) as other:
        proxy.swap()
        one.sendall(b"ECHO one\r\n")
        while proxy._held is None:  # the first has been taken
            time.sleep(0.001)
        other.sendall(b"ECHO other\r\n")
        assert one.recv(100) == b"$5\r\nother\r\n"
        assert other.recv(100) == b"$3\r\none\r\n"
        proxy.swap()
        one.sendall(b"ECHO a\r\nECHO b\r\n")
        said = b""
        while len(said) < 14:
            said += one.recv(100)
        assert said == b"$1\r\nb\r\n$1\r\na\r\n"
    assert proxy.swapped == 2
    with client(proxy) as third:
        assert ask(third, "PING") == b"+PONG\r\n"


def test_a_shifted_connection_answers_the_question_before(proxy: FaultProxy) -> None:
    """One reply comes twice; every later one is that of the question before."""
    with client(proxy) as plug:
        proxy.shift()
        said = ask(plug, "ECHO", "a")
        while len(said) < 14:
            said += plug.recv(100)
        assert said == b"$1\r\na\r\n" * 2
        assert proxy.shifted == 1


def test_flipped_bytes_differ_in_one_bit_and_by_the_same_seed_alike(server: str) -> None:
    """All of them at a share of 1; the same seed does the same."""
    seen = []
    for _ in range(2):
        with between(server, seed=7) as proxy, client(proxy) as plug:
            proxy.faults = Faults(flip=1.0)
            plug.sendall(b"PING\r\n")
            said = plug.recv(100)
            assert [(a ^ b).bit_count() for a, b in zip(said, b"+PONG\r\n", strict=True)] == [1] * 7
            seen.append(said)
    assert seen[0] == seen[1]


def test_replies_are_cut_where_they_end() -> None:
    """Every kind of RESP2, nested, nil, and what is only begun."""
    replies = [
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":5\r\n",
        b"$-1\r\n",
        b"$4\r\n\r\n$1\r\n",
        b"*-1\r\n",
        b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
    ]
    for at in range(len(replies[-1])):
        assert cut_replies(b"".join(replies[:-1]) + replies[-1][:at]) == (replies[:-1], replies[-1][:at])
    assert cut_replies(b"".join(replies)) == (replies, b"")
