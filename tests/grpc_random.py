"""Random requests over all encodings against a running system, whose answers have to be the same bits.

`python -m tests.grpc_random URL GRPC_ADDRESS --requests 20000` asks `fingerprint`: V2 JSON, V2 binary, V1 by row and by
column, gRPC with contents and raw, alone and in streams, with and without ids, compressed or not, of rows that come
again and rows that do not. Every digest is held against the formula. Prints counts as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import grpc
import numpy as np

from foreseen.protocol.open_inference import SERVICE
from tests.grpc_calls import Channel, asking
from tests.questions import fingerprint

AT_ONCE = 32
KNOWN = 400
Rows = list[list[int]]
Ask = Callable[[Rows], Awaitable[Rows]]


class RandomRequests:
    """The ways to ask, and what they came to."""

    def __init__(self, url: str, address: str, client: aiohttp.ClientSession, seed: int) -> None:
        self._url, self._client, self._dice = url, client, random.Random(seed)
        self._plain, self._packed = Channel(address), Channel(address, compression=grpc.Compression.Gzip)
        self._pool = [[self._dice.randrange(-(2**63), 2**63) for _ in range(16)] for _ in range(KNOWN)]
        self.counts: Counter[str] = Counter()
        self.ways: dict[str, Ask] = {
            "json": self._json,
            "binary": self._binary,
            "v1 rows": self._v1_rows,
            "v1 columns": self._v1_columns,
            "grpc": self._grpc,
            "grpc stream": self._stream,
        }

    async def close(self) -> None:
        await self._plain.close()
        await self._packed.close()

    async def one(self) -> None:
        """One request of some way. Raises AssertionError where an answer is another one."""
        way = self._dice.choice(list(self.ways))
        rows = [self._row() for _ in range(self._dice.choice((1, 1, 1, 2, 5, 17)))]
        answer = await self.ways[way](rows)
        assert answer == [fingerprint(row) for row in rows], (way, rows, answer)
        self.counts[way] += 1
        self.counts["rows"] += len(rows)

    def _row(self) -> list[int]:
        if self._dice.random() < 0.9:
            return self._dice.choice(self._pool)
        return [self._dice.randrange(-(2**63), 2**63) for _ in range(16)]

    async def _post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[bytes, str | None]:
        async with self._client.post(self._url + path, data=body, headers=headers) as reply:
            content = await reply.read()
            assert reply.status == 200, content
            return content, reply.headers.get("Inference-Header-Content-Length")

    async def _json(self, rows: Rows) -> Rows:
        flat = [value for row in rows for value in row]
        body = {"inputs": [{"name": "x", "shape": [len(rows), 16], "datatype": "INT64", "data": flat}]}
        if self._dice.random() < 0.5:
            body["id"] = str(self._dice.random())  # type: ignore[assignment]
        content, _ = await self._post("/v2/models/fingerprint/infer", json.dumps(body).encode())
        data = next(one for one in json.loads(content)["outputs"] if one["name"] == "digest")["data"]
        return [data[at : at + 4] for at in range(0, len(data), 4)]

    async def _binary(self, rows: Rows) -> Rows:
        raw = np.array(rows, "<i8").tobytes()
        tensor = {"name": "x", "shape": [len(rows), 16], "datatype": "INT64"}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        wanted = [{"name": "digest", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        content, length = await self._post("/v2/models/fingerprint/infer", head + raw, headers)
        return np.frombuffer(content[int(length or 0) :], "<i8").reshape(-1, 4).tolist()

    async def _v1_rows(self, rows: Rows) -> Rows:
        content, _ = await self._post("/v1/models/fingerprint:predict", json.dumps({"instances": rows}).encode())
        return [row["digest"] for row in json.loads(content)["predictions"]]

    async def _v1_columns(self, rows: Rows) -> Rows:
        content, _ = await self._post("/v1/models/fingerprint:predict", json.dumps({"inputs": {"x": rows}}).encode())
        return json.loads(content)["outputs"]["digest"]

    def _request(self, rows: Rows) -> Any:
        more = {"id": str(self._dice.random())} if self._dice.random() < 0.5 else {}
        request = asking(*rows, raw=self._dice.random() < 0.5, model="fingerprint", **more)
        if self._dice.random() < 0.5:
            request.outputs.add(name="digest")
        return request

    async def _grpc(self, rows: Rows) -> Rows:
        request = self._request(rows)
        channel = self._dice.choice((self._plain, self._packed))
        answer = await channel.ask("ModelInfer", request)
        assert answer.code is grpc.StatusCode.OK, answer
        assert answer.reply.id == request.id
        return digests_of(answer.reply)

    async def _stream(self, rows: Rows) -> Rows:
        """Each row a request of one stream."""
        requests = [self._request([row]) for row in rows]
        answers, code = await self._plain.stream(requests)
        assert code is grpc.StatusCode.OK
        assert [one.infer_response.id for one in answers] == [one.id for one in requests]
        return [row for one in answers for row in digests_of(one.infer_response)]


def digests_of(reply: Any) -> Rows:
    """Of the output `digest`, whichever way it came."""
    at = [output.name for output in reply.outputs].index("digest")
    if reply.raw_output_contents:
        return np.frombuffer(reply.raw_output_contents[at], "<i8").reshape(-1, 4).tolist()
    return np.array(reply.outputs[at].contents.int64_contents).reshape(-1, 4).tolist()


async def ask_at_random(url: str, address: str, requests: int, seed: int = 1) -> Counter[str]:
    """So many requests, some at a time. Raises AssertionError."""
    async with aiohttp.ClientSession() as client:
        asked, left = RandomRequests(url, address, client, seed), iter(range(requests))

        async def ask() -> None:
            for _ in left:
                await asked.one()

        try:
            await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        finally:
            await asked.close()
        return asked.counts


async def cancel_calls(address: str, calls: int) -> int:
    """So many calls that are cancelled at some moment of theirs; how many were answered before."""
    channel, dice, answered = Channel(address), random.Random(2), 0
    infer = channel.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    left = iter(range(calls))

    async def ask() -> None:
        nonlocal answered
        for number in left:
            call = infer(asking([number] * 16, raw=True, model="fingerprint").SerializeToString())
            await asyncio.sleep(dice.choice((0, 0, 0.0005, 0.002)))
            call.cancel()
            try:
                await call
                answered += 1
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                pass

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    await channel.close()
    return answered


async def half_closed(address: str, streams: int) -> None:
    """So many streams that are left in some state: before a request, with answers unread, half-closed, cancelled."""
    channel, dice = Channel(address), random.Random(3)
    for _ in range(streams):
        call = channel.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for _ in range(dice.randrange(3)):
            await call.write(asking([dice.randrange(100)] * 16, model="fingerprint").SerializeToString())
        if dice.random() < 0.5:
            await call.done_writing()
            if dice.random() < 0.5:
                await call.read()
        call.cancel()
    await channel.close()


async def malformed(address: str, requests: int) -> Counter[str]:
    """So many requests with bytes changed; the codes that they ended with."""
    channel, dice, codes = Channel(address), random.Random(4), Counter[str]()
    for _ in range(requests):
        body = bytearray(asking([1] * 16, raw=dice.random() < 0.5, model="fingerprint").SerializeToString())
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(body))
            body[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            body = body or bytearray(b"\0")
        codes[(await channel.ask("ModelInfer", bytes(body))).code.name] += 1
    await channel.close()
    return codes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("address")
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(ask_at_random(options.url, options.address, options.requests))))


if __name__ == "__main__":
    main()
