"""A model answers NaN or refuses a row: the request of that row gets the error, in every encoding, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from foreseen.protocol.wire import parse_request
from foreseen.protocol.wire_render import render_request
from foreseen.proxy.backend.poison.bisecting import SPLITS
from foreseen.web.http import HEADER_LENGTH
from tests.foreign import Foreign, Front, fronted, listening

STRANGE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
BAD = 13


class Floats(Foreign):
    """Answers half of each number; where the first is 13, something that is no number, or 400. `binary`: as bytes."""

    def __init__(self, *, binary: bool) -> None:
        super().__init__()
        self.metadata["inputs"] = [{"name": "x", "datatype": "INT64", "shape": [-1, 2]}]
        self.metadata["outputs"] = [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
        self.binary = binary
        self.strange: float | None = float("nan")
        self.asked: list[int] = []
        self.mended = False

    async def _infer(self, request: web.Request) -> web.Response:
        given = request.headers.get(HEADER_LENGTH)
        if given is not None and not self.binary:
            return web.json_response({"detail": "not JSON"}, status=422)
        asked = parse_request(await request.read(), None if given is None else int(given))
        rows = asked.inputs[0].array
        self.asked.append(len(rows))
        answers = rows.astype("<f4") / 2
        bad = (rows[:, 0] == BAD) & (not self.mended)
        if bad.any() and self.strange is None:
            return web.json_response({"error": "x: 13 brings bad luck"}, status=400)
        answers[bad, 1] = self.strange
        output: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(answers.shape)}
        head = {"model_name": "fp", "id": asked.id, "outputs": [output]}
        if given is None:
            output["data"] = answers.ravel().tolist()
            return web.Response(body=json.dumps(head).encode(), content_type="application/json")  # Python's own NaN
        output["parameters"] = {"binary_data_size": answers.nbytes}
        told = json.dumps(head).encode()
        return web.Response(body=told + answers.tobytes(), headers={HEADER_LENGTH: str(len(told))})


class FloatsClient:
    """Somebody who asks in every way there is."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def v2(self, *rows: list[int], binary: bool = False) -> tuple[int, str, Any]:
        """Status, Cache-Status, and the numbers or the error."""
        flat = [value for row in rows for value in row]
        parameters = {"parameters": {"binary_data_output": True}} if binary else {}
        body = {"inputs": [{"name": "x", "shape": [len(rows), 2], "datatype": "INT64", "data": flat}], **parameters}
        return await self._told("/v2/models/fp/infer", json.dumps(body).encode(), {})

    async def v2_binary(self, row: list[int]) -> tuple[int, str, Any]:
        body, length = render_request([("x", "INT64", np.array([row]))], {}, "mine")
        return await self._told("/v2/models/fp/infer", body, {HEADER_LENGTH: str(length)})

    async def v1(self, row: list[int]) -> tuple[int, str, Any]:
        return await self._told("/v1/models/fp:predict", json.dumps({"instances": [row]}).encode(), {})

    async def _told(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, Any]:
        async with self._front._client.post(self._front._url + path, data=body, headers=headers) as reply:
            content, length = await reply.read(), reply.headers.get(HEADER_LENGTH)
            cached = reply.headers.get("Cache-Status", "")
            if reply.status != 200:
                return reply.status, cached, json.loads(content)
            if length is not None and int(length) < len(content):
                data = content[int(length) :]
                return 200, cached, list(struct.unpack(f"<{len(data) // 4}f", data))
            told = json.loads(content[: int(length)] if length else content)
            return 200, cached, told["outputs"][0]["data"] if "outputs" in told else told["predictions"][0]


@contextlib.asynccontextmanager
async def floats(data: Path, *, binary: bool) -> AsyncIterator[tuple[Floats, FloatsClient]]:
    foreign = Floats(binary=binary)
    async with listening(foreign.application()) as url, fronted(url, data) as front:
        await front.until(lambda told: told.get("rows") == "each")
        foreign.asked.clear()
        yield foreign, FloatsClient(front)


@pytest.mark.parametrize("binary", [True, False], ids=["binary upstream", "JSON upstream"])
@pytest.mark.parametrize("strange", STRANGE)
async def test_what_is_no_number_is_502_in_every_encoding_and_is_not_kept(
    tmp_path: Path, strange: str, *, binary: bool
) -> None:
    """JSON has no word for NaN and infinity, and an encoding does not change an answer: V2 in and out of JSON and
    binary, and V1, get the same error with the output's name; the model is asked each time, until it is mended."""
    async with floats(tmp_path / "data", binary=binary) as (foreign, client):
        foreign.strange = STRANGE[strange]
        bad = [BAD, 4]
        ways = [client.v2(bad), client.v2(bad, binary=True), client.v2_binary(bad), client.v1(bad)]
        for way in ways:
            status, cached, told = await way
            assert (status, told["code"], "hit" in cached) == (502, "model_failed", False)
            assert "NaN" in told["error"] or not binary
        assert foreign.asked == [1] * 4
        foreign.mended = True
        assert await client.v2(bad) == (200, "foreseen;fwd=miss;stored", [6.5, 2.0])
        assert (await client.v2(bad, binary=True))[2] == [6.5, 2.0]


@pytest.mark.parametrize("strange", [float("nan"), None], ids=["NaN", "400"])
async def test_who_asks_at_the_same_time_is_answered(tmp_path: Path, strange: float | None) -> None:
    """Thirty requests in one flight, one with a row that the model refuses: 29 answers, stored; one error."""
    async with floats(tmp_path / "data", binary=True) as (foreign, client):
        foreign.strange = strange
        rows = [[number, 2 * number] for number in range(20, 49)]
        told = await asyncio.gather(*(client.v2(row) for row in [*rows[:15], [BAD, 0], *rows[15:]]))
        (refused,) = [one for one in told if one[0] != 200]
        assert (refused[0], refused[2]["code"]) == (
            (502, "model_failed") if strange is not None else (400, "bad_input")
        )
        assert [one[2] for one in told if one[0] == 200] == [[row[0] / 2, row[0]] for row in rows]
        asked = len(foreign.asked)
        assert asked <= 1 + 2 * 5
        assert {(await client.v2(row))[1].split(";")[1] for row in rows} == {"hit"}
        assert (await client.v2(rows[0], [BAD, 0], rows[1]))[0] in (400, 502)
        assert len(foreign.asked) == asked + 1


async def test_a_model_that_refuses_everything_is_not_asked_without_end(tmp_path: Path) -> None:
    """All of 256 rows are bad: what is asked beyond that is bounded, and so it is the next time."""
    async with floats(tmp_path / "data", binary=True) as (foreign, client):
        assert (await client.v2(*[[BAD, number] for number in range(256)]))[0] == 502
        assert len(foreign.asked) <= 1 + 1.2 * SPLITS  # what is sent earns a tenth
        foreign.asked.clear()
        for _ in range(20):
            assert (await client.v2(*[[BAD, number] for number in range(256)]))[0] == 502
        assert len(foreign.asked) <= 20 * 1.5
