"""What one request passes, from bytes to bytes: docs/architecture.md lists it, and the running code is held to that."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from aiohttp import web

import foreseen
from foreseen.proxy.fastpath.fast_connection import FastConnection
from foreseen.proxy.fastpath.known_heads import KnownHeads
from foreseen.web.runner import AppRunner
from tests.proxy.fastpath.test_responder import ASK, System, body

ROOT = Path(foreseen.__file__).resolve().parent.parent
MAX_FILES, MAX_FILES_OF_AN_ID, MAX_TYPES = 7, 9, 18
MAX_LINES = 1716
"""Of the fast path and of serving. The aim is 1,150: lower this with every cut."""


class Asked:
    """What ran for one request: files of the project, and objects of its types that functions took or gave."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.objects: dict[int, Any] = {}

    def note(self, frame: FrameType, event: str, result: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event not in ("call", "return") or ROOT not in path.parents or "/.venv" in str(path):
            return
        name = (
            str(path.relative_to(ROOT)).removeprefix("foreseen/")
            if "/foreseen/proxy/" in str(path)
            else str(path.relative_to(ROOT))
        )
        if name.startswith("tests/"):
            return
        self.files.add(name)
        for value in [*frame.f_locals.values()] if event == "call" else [result]:
            if type(value).__module__.startswith("foreseen."):
                self.objects[id(value)] = value

    @property
    def types(self) -> set[type]:
        return {type(value) for value in self.objects.values()}


class Line:
    """One keep-alive connection to a responder."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, asked: bytes) -> bytes:
        """The head of the reply."""
        self._writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked)
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 10)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        await self._reader.readexactly(int(length[1]))
        return head

    async def watched(self, asked: bytes) -> tuple[Asked, bytes]:
        """What ran for it, and the head of its reply."""
        seen = Asked()
        sys.setprofile(seen.note)
        try:
            head = await self.ask(asked)
        finally:
            sys.setprofile(None)
        return seen, head


@asynccontextmanager
async def connected(system: System) -> AsyncIterator[Line]:
    """A connection that knows the head of what it is asked."""
    heads = KnownHeads(body_bytes=1_000_000)

    async def answer(asked: web.Request) -> web.Response:
        deadline = asyncio.get_running_loop().time() + 20
        reply = await system.responder.answer(ASK, await asked.read(), 0.0, deadline)
        assert isinstance(asked.protocol, FastConnection)
        asked.protocol.learn(asked, ASK, reply)
        return web.Response(body=reply.body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = AppRunner(app, lambda manager, **options: FastConnection(manager, system.responder, heads, **options))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        await runner.cleanup()


def listed(heading: str) -> set[str]:
    """The names in backticks in the first column of the table below a heading of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split(f"\n### {heading}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `([^`]+)`", section, re.MULTILINE))


async def test_a_known_hit_opens_the_files_that_the_docs_list() -> None:
    """The same bytes, and a fresh id: all code of the project that runs from a request's bytes to its reply's. The
    least of three requests counts: one may fall on the turn of a second, which renders the head again."""
    system = System(near_bytes=100_000)
    opened = []
    async with connected(system) as line:
        for bodies in ([body((4, 2))] * 8, [body((4, 2), own=f"n{n}") for n in range(8)]):
            for one in bodies[:-3]:
                await line.ask(one)
            files = []
            for one in bodies[-3:]:
                seen, head = await line.watched(one)
                assert b"detail=near" in head
                assert re.search(rb"Server-Timing: (replay|shortcut)\r", head)
                files.append(seen.files)
            opened.append(min(files, key=len))
    same, fresh = opened
    assert same | fresh == listed("Files that a known hit uses")
    assert len(same) <= MAX_FILES
    assert len(same | fresh) <= MAX_FILES_OF_AN_ID


def test_the_fast_way_and_serving_stay_small() -> None:
    """Lines of the files that docs/architecture.md lists, docstrings and blank lines included."""
    files = listed("Code of the fast path and of serving")
    assert {name for name in files if name.startswith("proxy/fastpath/")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "proxy" / "fastpath").glob("*.py") if path.name != "__init__.py"
    }
    assert sum(len((ROOT / name).read_text().splitlines()) for name in files) <= MAX_LINES


async def test_the_types_that_carry_a_request_are_those_that_the_docs_list() -> None:
    """Known hits, a near hit of a body never seen, a far hit and a miss: objects that are made for one request."""
    carriers, parts = listed("Types that carry a request"), listed("Types of its rows")
    known, made = set[str](), set[type]()
    for near_bytes, kinds in ((100_000, ("same", "fresh", "unseen", "miss", "odd")), (0, ("same", "fresh"))):
        system = System(near_bytes=near_bytes)
        async with connected(system) as line:
            for kind in kinds:
                bodies = {
                    "same": [body((4, 2))] * 7,
                    "fresh": [body((4, 2), own=f"n{n}") for n in range(7)],
                    "unseen": [body((4, 2), parameters=f'{{"timeout":{10**8 + n}}}') for n in range(7)],
                    "odd": [body((4 + n, 5), parameters='{"priority":2}') for n in range(7)],
                    "miss": [body((4 + n, 3)) for n in range(7)],
                }[kind]
                for one in bodies[:-2]:
                    await line.ask(one)
                    await system.pipeline.tiers.close(5)
                before, _ = await line.watched(bodies[-2])
                seen, _ = await line.watched(bodies[-1])
                known |= {kind.__name__ for kind in seen.types}
                made |= {type(one) for key, one in seen.objects.items() if before.objects.get(key) is not one}
    public = {kind for kind in made if not kind.__name__.startswith("_")}
    of_requests = {kind for kind in public if kind.__module__.split(".")[1] not in ("protocol", "errors")}
    undocumented = {kind.__name__ for kind in of_requests} - carriers - parts
    assert not undocumented
    assert carriers <= known
    assert len(carriers) <= MAX_TYPES


def test_one_line_of_code_writes_the_head_of_a_hit() -> None:
    """For hits of near and far, fresh and stale, cached and not."""
    lines = [
        f"{path.name}: {line}"
        for path in (ROOT / "proxy").rglob("*.py")
        for line in path.read_text().splitlines()
        if "foreseen;hit" in line
    ]
    assert len(lines) == 1, lines
