"""A proxy in front of a server that speaks gRPC alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from foreseen.errors import SetupError
from foreseen.proxy.backend.grpc.channel import STATUSES
from foreseen.proxy.backend.text_servers.recognise import grpc_server_at
from foreseen.proxy.tools.doctor import upstream
from foreseen.settings import DoctorSettings
from tests.foreign import Front, fronted
from tests.grpc_upstream import GrpcForeign, grpc_listening
from tests.ports import free_port
from tests.questions import fingerprint, numbers

Code = grpc.StatusCode


@pytest.fixture
async def foreign() -> GrpcForeign:
    return GrpcForeign()


@pytest.fixture
async def front(tmp_path: Path, foreign: GrpcForeign) -> AsyncIterator[Front]:
    """Once its rows are keyed one by one."""
    async with grpc_listening(foreign) as address, fronted(address, tmp_path) as made:
        await made.until(lambda said: said.get("rows") == "each")
        yield made


async def test_models_are_found_and_rows_are_asked_once(front: Front, foreign: GrpcForeign) -> None:
    """As over HTTP: found by the repository index, probed, keyed by the row, versioned by the metadata."""
    described = await front.get("/v2/models/fp")
    assert described["versions"] == ["3"]
    assert described["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 16]}]
    assert described["parameters"]["digest_from"] == "version"
    status, cache, digests = await front.infer(numbers(1), numbers(2))
    assert (status, cache, digests) == (200, "foreseen;fwd=miss;stored", [fingerprint(numbers(at)) for at in (1, 2)])
    assert (await front.infer(numbers(2)))[1].startswith("foreseen;hit")
    assert foreign.rows_like(numbers(1)) == foreign.rows_like(numbers(2)) == 1


async def test_parameters_deadline_and_trace_go_with_a_request(front: Front, foreign: GrpcForeign) -> None:
    """What may change an answer is asked for; the server knows until when the answer is waited for."""
    body = {
        "inputs": [
            {"name": "x", "shape": [1, 16], "datatype": "INT64", "data": numbers(3), "parameters": {"kind": "a"}}
        ],
        "outputs": [{"name": "digest", "parameters": {"level": 2}}],
        "parameters": {"temperature": 0.5, "timeout": 5_000_000},
    }
    assert (await front.post(body))[0] == 200
    asked = foreign.requests[-1]
    assert asked.parameters["temperature"].double_param == 0.5
    assert asked.inputs[0].parameters["kind"].string_param == "a"
    assert asked.outputs[0].parameters["level"].int64_param == 2
    assert foreign.seconds[-1] is not None
    assert 0 < foreign.seconds[-1] < 6  # of 30; grpcio rounds
    status, _, document = await front.post({**body, "more": 1})
    assert (status, document["code"]) == (400, "bad_input")
    assert "more" in document["error"]


async def test_what_a_reply_holds_beside_its_tensors_is_kept(front: Front, foreign: GrpcForeign) -> None:
    """Its parameters come back with every hit."""

    def named(reply: object) -> object:
        reply.parameters["by"].string_param = "fp"  # type: ignore[attr-defined]
        return reply

    foreign.lie = named
    for _ in range(2):
        assert (await front.post(asked_of(4)))[2]["parameters"] == {"by": "fp"}
    assert foreign.rows_like(numbers(4)) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARGUMENT, 400),
        (Code.RESOURCE_EXHAUSTED, 503),
        (Code.UNAVAILABLE, 503),
        (Code.INTERNAL, 502),
        (Code.UNKNOWN, 502),
        (Code.UNIMPLEMENTED, 502),
    ],
)
async def test_a_code_becomes_the_status_that_http_has(
    front: Front, foreign: GrpcForeign, code: Code, status: int
) -> None:
    """And the next request is asked again: nothing is stored."""
    foreign.refuse = code, "not now"
    answered, _, document = await front.post(asked_of(5))
    assert answered == status
    assert "not now" in document["error"]
    foreign.refuse = None
    assert (await front.post(asked_of(5)))[0] == 200


async def test_a_reply_that_cannot_be_right_is_refused(front: Front, foreign: GrpcForeign) -> None:
    """Another shape, another id, too few raw contents: 502, and nothing is stored."""

    def short(reply: object) -> object:
        reply.raw_output_contents[0] = reply.raw_output_contents[0][:-8]  # type: ignore[attr-defined]
        return reply

    def other(reply: object) -> object:
        reply.id = "another"  # type: ignore[attr-defined]
        return reply

    def none(reply: object) -> object:
        del reply.raw_output_contents[:]  # type: ignore[attr-defined]
        return reply

    for lie in (short, other, none):
        foreign.lie = lie
        assert (await front.post(asked_of(6)))[0] == 502
    foreign.lie = lambda reply: reply
    assert (await front.post(asked_of(6)))[0] == 200


async def test_a_server_that_comes_back_is_asked_again(tmp_path: Path, foreign: GrpcForeign) -> None:
    """Away: 503, hits go on. Back at the same address: answered."""
    port = free_port()
    async with fronted(f"grpc://127.0.0.1:{port}", tmp_path, deadline_seconds=5.0) as front:
        async with grpc_listening(foreign, port):
            await front.until(lambda said: said.get("rows") == "each")
            assert (await front.post(asked_of(7)))[0] == 200
        assert (await front.post(asked_of(8)))[0] in (503, 504)
        assert (await front.post(asked_of(7)))[1]["Cache-Status"].startswith("foreseen;hit")
        async with grpc_listening(foreign, port):
            async with asyncio.timeout(10):
                while (await front.post(asked_of(8)))[0] != 200:
                    pass


async def test_what_is_wrong_with_a_server_is_said(tmp_path: Path, foreign: GrpcForeign) -> None:
    """No server, a server that lists nothing, and an address of another kind."""
    foreign.lists = False
    async with grpc_listening(foreign) as address:
        (found,) = [one async for one in upstream(address, DoctorSettings())]
        assert (found.grade, "does not list its models" in found.fix) == ("must", True)
        async with fronted(address, tmp_path, model=("fp",)) as front:  # named, it is served all the same
            assert (await front.infer(numbers(9)))[0] == 200
        foreign.lists = True
        (found,) = [one async for one in upstream(address, DoctorSettings())]
        assert found.grade == "ok"
    (found,) = [one async for one in upstream(f"grpc://127.0.0.1:{free_port()}", DoctorSettings())]
    assert "found no gRPC server" in found.said
    with pytest.raises(SetupError, match="neither http://host:port nor grpc://host:port"):
        async with fronted("tcp://127.0.0.1:1", tmp_path):
            pass
    server = grpc_server_at(address)
    await server.close()


def test_every_code_that_is_mapped_is_one() -> None:
    """grpcio's names."""
    assert all(hasattr(Code, name) for name in STATUSES)


def asked_of(seed: int) -> dict[str, object]:
    return {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "INT64", "data": numbers(seed)}]}
