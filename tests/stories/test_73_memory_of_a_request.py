"""No request takes more than 128 MiB of the proxy, whatever is in it; eight at once take no more than three.

A fuzzer that looks for memory: requests that are small and would be large once they are understood, of every route that
reads a body, some by hand and some by chance. Measured is the peak of the proxy's resident memory, which Linux counts.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import Live, started
from tests.questions import ask_fingerprint, numbers
from tests.raw import FINGERPRINT, binary, post

MOST_MIB = 128
PLAIN_BYTES = 48 * 2**20
MOST_ROWS = 458_752
CHANCES = 12
ATOMS = (
    "{}", "[]", "[[]]", "[[[[[]]]]]", '{"a":1}', '{"a":{"b":[]}}', "0", "-1.5", "1e5", "null", '""', '"a"', '"\\n"',
    '"\U0001f40e"', '"\\ud83d\\udc0e"', '[1,"a",{}]', '{"name":"x","datatype":"INT64","shape":[0,16],"data":[]}',
    '{"name":"x","datatype":"BYTES","shape":[1],"data":["a"]}', '{"x":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}',
    '{"b64":"YQ=="}',
)  # fmt: skip
FRAMES = (
    ('{"inputs":[%s]}', FINGERPRINT),
    ('{"inputs":[{"name":"x","datatype":"INT64","shape":[1,16],"data":[%s]}]}', FINGERPRINT),
    ('{"id":"a","parameters":{"a":[%s]},"inputs":[]}', FINGERPRINT),
    ('{"inputs":[],"outputs":[%s]}', FINGERPRINT),
    ('{"instances":[%s]}', "/v1/models/fingerprint:predict"),
    ('{"inputs":{"x":[%s]}}', "/v1/models/fingerprint:predict"),
    ('{"model":"fingerprint","inputs":[%s]}', "/v2/predictions:batch"),
    ('{"inputs":[%s]}', FINGERPRINT + "?explain"),
    ('{"inputs":[%s]}', FINGERPRINT + "?import"),
    ('{"inputs":[%s]}', FINGERPRINT + "?async"),
)


@pytest.fixture(scope="module")
def lean(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system whose memory nobody else asks for: without a near tier that grows."""
    folder = tmp_path_factory.mktemp("lean") / "d"
    with started(
        built, folder, "--near-bytes=1000000", "--reply-cache-bytes=1000000", models=("fingerprint",)
    ) as system:
        yield system


class Memory:
    """The resident memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def begin(self) -> int:
        """What it is now; the peak is counted from here on."""
        (self._folder / "clear_refs").write_text("5")
        return self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        match = re.search(rf"{name}:\s+(\d+)", (self._folder / "status").read_text())
        assert match is not None
        return int(match[1]) // 1024


def sent(system: Live, text: bytes, path: str, *, packed: bool = False) -> int:
    """The status of a body on a route; what it says behind `?` is the kind of request."""
    path, _, kind = path.partition("?")
    token = (system.data / "admin-token").read_text().strip()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    if kind in ("explain", "import"):
        path, headers = path.replace("/infer", f"/{kind}"), headers | {"Authorization": f"Bearer {token}"}
    if kind == "async":
        headers["Prefer"] = "respond-async"
    return post(system, path, gzip.compress(text, 1) if packed else text, **headers).status


def grown(system: Live, request: Callable[[], int]) -> tuple[int, int]:
    """The status of a request, and by how many MiB the proxy grew for it."""
    memory = Memory(system.children()["proxy"])
    before = memory.begin()
    status = request()
    return status, memory.peak() - before


def by_chance(seed: int) -> tuple[bytes, str]:
    """A body of one or two kinds of elements many times over, and the route for it."""
    chance = random.Random(seed)
    frame, path = chance.choice(FRAMES)
    size = chance.choice((2**20, 3 * 2**20, PLAIN_BYTES // 4, PLAIN_BYTES))
    unit = ",".join(chance.choices(ATOMS, k=chance.randrange(1, 3)))
    return (frame % ",".join([unit] * (size // (len(unit.encode()) + 1)))).encode(), path


def test_no_request_takes_much_memory(lean: Live) -> None:
    """Bodies by chance, of up to 48 MiB: each is answered, and none of them with a 5xx."""
    assert post(lean, FINGERPRINT, ask_fingerprint(numbers(73))).status == 200
    for seed in range(CHANCES):
        text, path = by_chance(seed)
        status, mib = grown(lean, lambda text=text, path=path: sent(lean, text, path))  # type: ignore[misc]
        assert mib <= MOST_MIB, f"seed {seed}: {len(text)} bytes to {path} took {mib} MiB ({status})"
        assert status in (200, 202, 400, 413), f"seed {seed}: {status}"


@pytest.mark.parametrize("path", sorted({path for _, path in FRAMES}))
def test_a_small_compressed_body_is_refused_for_what_it_would_be(lean: Live, path: str) -> None:
    """65 kB of gzip that were gigabytes of empty objects: 413 on every route."""
    text = b'{"model":"fingerprint","inputs":[' + b",".join([b"{}"] * (PLAIN_BYTES // 3)) + b"]}"
    status, mib = grown(lean, lambda: sent(lean, text, path, packed=True))
    assert status == 413
    assert mib <= MOST_MIB


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "status"),
    [
        ("BOOL", [PLAIN_BYTES, 1], bytes(PLAIN_BYTES), 413),
        ("UINT8", [PLAIN_BYTES // 16, 16], bytes(PLAIN_BYTES), 413),
        ("BYTES", [PLAIN_BYTES // 4], bytes(PLAIN_BYTES), 413),
        ("BYTES", [PLAIN_BYTES // 6], b"\2\0\0\0ab" * (PLAIN_BYTES // 6), 413),
        ("INT64", [MOST_ROWS, 16], bytes(MOST_ROWS * 128), 200),
        ("INT64", [MOST_ROWS + 1, 16], bytes((MOST_ROWS + 1) * 128), 413),
    ],
)
def test_binary_tensors_keep_their_size(lean: Live, datatype: str, shape: list[int], raw: bytes, status: int) -> None:
    """The most rows of numbers are answered; one more is refused, and what would be an object for every few bytes."""
    body, head = binary([{"name": "x", "datatype": datatype, "shape": shape}], raw, outputs=[{"name": "seal"}])
    got, mib = grown(lean, lambda: post(lean, FINGERPRINT, body, **head).status)
    assert got == status
    assert mib <= MOST_MIB


ALL_MIB = 900
"""A process that takes eight of the largest requests at once lives within a limit of 1 GB."""


def test_eight_at_once_share_the_room(lean: Live) -> None:
    """Large bodies of one moment are taken in turn or refused with 503; hits are answered all the while."""
    hit = ask_fingerprint(numbers(73))
    assert post(lean, FINGERPRINT, hit).status == 200
    text = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [0] * 900_000}]}).encode()
    body, head = binary([{"name": "x", "datatype": "BOOL", "shape": [PLAIN_BYTES, 1]}], bytes(PLAIN_BYTES))
    told: list[int] = []
    asking = [threading.Thread(target=lambda: told.append(sent(lean, text, FINGERPRINT))) for _ in range(8)]
    asking += [
        threading.Thread(target=lambda: told.append(post(lean, FINGERPRINT, body, **head).status)) for _ in "12345678"
    ]
    memory = Memory(lean.children()["proxy"])
    memory.begin()
    for one in asking:
        one.start()
    while any(one.is_alive() for one in asking):
        assert post(lean, FINGERPRINT, hit).status == 200
    assert memory.peak() <= ALL_MIB
    assert set(told) <= {400, 413, 503}
    assert len(told) == len(asking)
    assert post(lean, FINGERPRINT, body, **head).status == 413, "the room was given back"
