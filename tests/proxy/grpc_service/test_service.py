"""The gRPC service of a proxy in this process: answers, errors, metadata, streams, limits."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from foreseen.protocol.open_inference import SERVICE, message, methods
from foreseen.proxy.grpc.call import address_in_peer
from foreseen.proxy.grpc.status import CODES
from tests.foreign import Foreign
from tests.grpc_calls import Channel, GrpcFront, asking, grpc_front
from tests.questions import fingerprint, numbers

Code = grpc.StatusCode


@pytest.fixture
async def foreign() -> Foreign:
    return Foreign()


@pytest.fixture
async def front(tmp_path: Path, foreign: Foreign) -> AsyncIterator[GrpcFront]:
    """Once its rows are keyed one by one."""
    async with grpc_front(tmp_path, foreign.application()) as made:
        await made.front.until(lambda said: said.get("rows") == "each")
        yield made


async def test_rows_have_one_entry_over_http_and_grpc(front: GrpcFront, foreign: Foreign) -> None:
    """Asked as JSON, as contents and as raw contents; an answer is raw where its request was."""
    await front.front.infer(numbers(1))
    plain, raw = await front.client.infer(numbers(1)), await front.client.infer(numbers(1), raw=True)
    assert plain.rows == raw.rows == [fingerprint(numbers(1))]
    assert plain.cache.startswith("foreseen;hit")
    assert raw.cache.startswith("foreseen;hit")
    assert not plain.reply.raw_output_contents
    assert raw.reply.raw_output_contents
    assert not raw.reply.outputs[0].HasField("contents")
    assert (await front.client.infer(numbers(2))).cache == "foreseen;fwd=miss;stored"
    assert (await front.front.infer(numbers(2)))[1].startswith("foreseen;hit")
    assert foreign.rows_like(numbers(1)) == foreign.rows_like(numbers(2)) == 1


async def test_an_id_comes_back_and_is_no_part_of_what_is_known(front: GrpcFront) -> None:
    """Requests that differ in their id alone are one body, whose third reply is cached."""
    for at in range(5):
        answer = await front.client.ask("ModelInfer", asking(numbers(1), raw=True, id=f"id-{at}"))
        assert answer.reply.id == f"id-{at}"
        assert answer.rows == [fingerprint(numbers(1))]
    assert answer.trailers["server-timing"] == "shortcut"
    assert (await front.client.ask("ModelInfer", asking(numbers(1), raw=True))).reply.id == ""
    long = "ä" * 300
    assert (await front.client.ask("ModelInfer", asking(numbers(1), raw=True, id=long))).reply.id == long


async def test_a_call_that_comes_again_as_a_whole_is_known_by_its_bytes(front: GrpcFront, foreign: Foreign) -> None:
    """Its reply is the same but for what changes with time. Metadata that mean something are read all the same, and a
    row that was computed anew is not answered from before."""
    ask = partial(front.client.infer, numbers(1), raw=True)
    answers = [await ask() for _ in range(5)]
    assert [one.trailers.get("server-timing") for one in answers[-2:]] == ["replay", "replay"]
    assert {one.reply.SerializeToString() for one in answers} == {answers[0].reply.SerializeToString()}
    assert answers[-1].cache.startswith("foreseen;hit")
    assert (await ask(prefer="nothing")).trailers["server-timing"] == "shortcut"
    assert (await front.client.infer(numbers(1))).trailers["server-timing"] != "replay"
    asked = foreign.rows_like(numbers(1))
    assert (await ask(cache_control="no-cache")).cache == "foreseen;fwd=request"
    assert foreign.rows_like(numbers(1)) == asked + 1
    again = [(await ask()).trailers["server-timing"] for _ in range(5)]
    assert again[0] != "replay"
    assert again[-1] == "replay"


async def test_metadata_are_the_headers_of_http(front: GrpcFront, foreign: Foreign) -> None:
    """`cache-control` is obeyed; `cache-status`, `age` and `server-timing` are trailing metadata."""
    await front.client.infer(numbers(1))
    hit = await front.client.infer(numbers(1))
    assert {"cache-status", "age", "server-timing"} <= hit.trailers.keys()
    again = await front.client.infer(numbers(1), cache_control="no-cache")
    assert again.cache == "foreseen;fwd=request"
    only = await front.client.infer(numbers(7), cache_control="only-if-cached")
    assert only.code is Code.DEADLINE_EXCEEDED
    assert only.trailers["error-code"] == "not_cached"
    wrong = await front.client.infer(numbers(1), traceparent="nonsense")
    assert wrong.code is Code.OK


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"model_name": "none"}, Code.NOT_FOUND, "Request for unknown model: 'none' is not found"),
        ({"model_version": "9"}, Code.NOT_FOUND, "Request for unknown model: 'fp' version '9' is not found"),
        ({"raw_input_contents": [bytes(3)]}, Code.INVALID_ARGUMENT, "inputs[0]: has both contents and raw contents"),
    ],
)
async def test_errors_are_those_of_http(front: GrpcFront, change: dict[str, Any], code: Code, text: str) -> None:
    """The message is the one that a V2 reply has, the code follows from the HTTP status."""
    request = asking(numbers(1))
    request.MergeFrom(message("ModelInferRequest")(**change))
    answer = await front.client.ask("ModelInfer", request)
    assert (answer.code, answer.details) == (code, text)
    labels = "fp" if change.get("model_name") != "none" else "other"
    status = str(404 if code is Code.NOT_FOUND else 400)
    assert front.front.proxy.metrics.requests.labels(labels, "grpc", status)._value.get() == 1


async def test_a_wrong_input_is_named(front: GrpcFront) -> None:
    """By the model's signature, and by the wire format."""
    request = asking(numbers(1))
    request.inputs[0].name = "y"
    answer = await front.client.ask("ModelInfer", request)
    assert answer.code is Code.INVALID_ARGUMENT
    assert "y" in answer.details
    assert (await front.client.ask("ModelInfer", b"\xff\xff")).details == "body: is not a ModelInferRequest"
    assert (await front.client.ask("ModelMetadata", b"\xff\xff")).details == "body: is not a ModelMetadataRequest"


def test_every_status_has_the_code_that_clients_expect() -> None:
    """The table of docs/grpc.md; a code that grpcio does not have would end a call as UNKNOWN."""
    assert {CODES[status] for status in (400, 422)} == {"INVALID_ARGUMENT"}
    wanted = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED"}
    wanted |= {429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED", 502: "INTERNAL", 503: "UNAVAILABLE"}
    assert {**CODES, **wanted, 504: "DEADLINE_EXCEEDED"} == dict(CODES)
    assert all(hasattr(Code, name) for name in CODES.values())


async def test_a_refused_call_says_when_to_come_back(tmp_path: Path, foreign: Foreign) -> None:
    """Above the rate of one address: RESOURCE_EXHAUSTED with `retry-after`, gRPC's pushback and RetryInfo."""
    async with grpc_front(tmp_path, foreign.application(), rate=0.001, rate_burst=1) as front:
        assert (await front.client.infer(numbers(1))).code is Code.OK
        refused = await front.client.infer(numbers(1))
        assert refused.code is Code.RESOURCE_EXHAUSTED
        assert int(refused.trailers["retry-after"]) > 0
        assert int(refused.trailers["grpc-retry-pushback-ms"]) == 1000 * int(refused.trailers["retry-after"])
        details = refused.trailers["grpc-status-details-bin"]
        assert details.startswith(b"\x08\x08\x12")
        assert b"type.googleapis.com/google.rpc.RetryInfo" in details
        assert (await front.client.ask("ModelMetadata")).code is Code.RESOURCE_EXHAUSTED
        assert (await front.client.ask("ServerLive")).reply.live


async def test_an_unavailable_model_is_unavailable(front: GrpcFront, foreign: Foreign) -> None:
    """A model whose server is away: 503 over HTTP. Hits go on."""
    await front.client.infer(numbers(1))
    served = front.front.proxy.served["fp"]
    served.facts, facts = None, served.facts
    answer = await front.client.infer(numbers(9))
    assert answer.code is Code.UNAVAILABLE
    assert answer.trailers["retry-after"] == "1"
    served.facts = facts
    assert (await front.client.infer(numbers(1))).cache.startswith("foreseen;hit")


async def test_the_deadline_is_the_calls_own(front: GrpcFront, foreign: Foreign) -> None:
    """The model takes longer: DEADLINE_EXCEEDED, and the next call is answered."""
    held = foreign.hold()
    late = await front.client.infer(numbers(3), seconds=0.3)
    assert late.code is Code.DEADLINE_EXCEEDED
    held.released.set()
    assert (await front.client.infer(numbers(3))).rows == [fingerprint(numbers(3))]


async def test_models_are_described_as_over_http(front: GrpcFront) -> None:
    """Every method of the service but the two that infer."""
    ask = front.client.ask
    assert (await ask("ServerLive")).reply.live
    assert (await ask("ServerReady")).reply.ready
    server = (await ask("ServerMetadata")).reply
    assert server.name == "foreseen"
    assert "binary_tensor_data" in server.extensions
    metadata = await front.front.get("/v2/models/fp")
    told = MessageToDict((await ask("ModelMetadata", message("ModelMetadataRequest")(name="fp"))).reply)
    assert told["inputs"] == [{"name": "x", "datatype": "INT64", "shape": ["-1", "16"]}]
    assert [told["name"], told["versions"]] == [metadata["name"], metadata["versions"]]
    config = (await ask("ModelConfig", message("ModelConfigRequest")(name="fp"))).reply.config
    assert [config.name, config.input[0].name, config.response_cache.enable] == ["fp", "x", True]
    assert (await ask("ModelReady", message("ModelReadyRequest")(name="fp"))).reply.ready
    assert not (await ask("ModelReady", message("ModelReadyRequest")(name="none"))).reply.ready
    await front.client.infer(numbers(1))
    statistics = (await ask("ModelStatistics")).reply.model_stats
    assert [(one.name, one.inference_stats.success.count) for one in statistics] == [("fp", 1)]
    assert [(one.name, one.state) for one in (await ask("RepositoryIndex")).reply.models] == [("fp", "READY")]
    unknown = await ask("ModelMetadata", message("ModelMetadataRequest")(name="none"))
    assert unknown.code is Code.NOT_FOUND
    assert set(methods()) >= {"ModelInfer", "ModelStreamInfer"}


async def test_what_is_left_out_says_so(front: GrpcFront) -> None:
    """UNIMPLEMENTED with a message, as for any method that Triton has and Foreseen does not."""
    for method in ("RepositoryModelLoad", "SystemSharedMemoryRegister", "TraceSetting"):
        answer = await front.client.ask(method)
        assert answer.code is Code.UNIMPLEMENTED
        assert answer.details.startswith(f"{method}: Foreseen does not")


async def test_a_stream_has_one_answer_for_each_request_in_order(front: GrpcFront) -> None:
    """Also where a later one is a hit and an earlier one is not; an error ends its request alone."""
    await front.client.infer(numbers(2))
    requests = [asking(numbers(at), id=str(at)) for at in range(70)]
    requests.insert(5, asking(numbers(1), model="none", id="wrong"))
    answers, code = await front.client.stream([*requests, b"\xff"])
    assert code is Code.OK
    assert [one.infer_response.id for one in answers[:-1]] == [one.id for one in requests]
    assert answers[5].error_message == "Request for unknown model: 'none' is not found"
    assert answers[-1].error_message == "body: is not a ModelInferRequest"
    assert [one.error_message for at, one in enumerate(answers[:-1]) if at != 5] == [""] * 70
    good = [one for at, one in enumerate(answers[:-1]) if at != 5]
    assert [list(one.infer_response.outputs[0].contents.int64_contents) for one in good] == [
        fingerprint(numbers(at)) for at in range(70)
    ]


async def test_a_compressed_message_is_one_like_others(front: GrpcFront) -> None:
    """gzip, as tritonclient's `compression_algorithm` sends it."""
    client = Channel(front.address, compression=grpc.Compression.Gzip)
    rows = [numbers(1)] * 200
    answer = await client.infer(*rows, raw=True)
    await client.close()
    assert answer.rows == [fingerprint(numbers(1))] * 200
    assert len(gzip.compress(asking(*rows, raw=True).SerializeToString())) < 2000


async def test_a_message_may_be_as_large_as_a_body(tmp_path: Path, foreign: Foreign) -> None:
    """The default of 4 MiB does not hold; `--body-bytes` does, and what is above is refused."""
    async with grpc_front(tmp_path, foreign.application(), body_bytes=6 * 2**20) as front:
        client = Channel(front.address, options=[(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")])
        request = asking(numbers(1), raw=True, id="x" * (5 * 2**20))
        assert (await client.ask("ModelInfer", request)).reply.id == request.id
        request.id = "x" * (7 * 2**20)
        above = await client.ask("ModelInfer", request)
        assert above.code is Code.RESOURCE_EXHAUSTED
        await client.close()


async def test_a_message_that_inflates_above_the_limit_is_refused(tmp_path: Path, foreign: Foreign) -> None:
    """A megabyte that inflates to 100: grpcio stops at the limit."""
    async with grpc_front(tmp_path, foreign.application(), body_bytes=2**20) as front:
        options = [("grpc.max_send_message_length", -1)]
        client = Channel(front.address, options=options, compression=grpc.Compression.Gzip)
        assert (await client.ask("ModelInfer", bytes(100 * 2**20))).code is Code.RESOURCE_EXHAUSTED
        await client.close()


async def test_health_is_what_readiness_is(front: GrpcFront) -> None:
    """grpc.health.v1, for the server as a whole and for the service."""
    stub = health_pb2_grpc.HealthStub(front.client.channel)
    for name in ("", SERVICE):
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
    front.server._service.is_ready = lambda: False
    await front.server._tell_health()
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == 2


async def test_reflection_names_the_services_and_their_messages(front: GrpcFront) -> None:
    """As grpcurl asks: services, then the file of a symbol, of which messages are made."""

    def reflected() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(front.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol("inference.ModelInferRequest")
            database.FindFileContainingSymbol("grpc.health.v1.HealthCheckRequest")
            return list(database.get_services()), [one.name for one in file.message_type]

    services, kinds = await asyncio.to_thread(reflected)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
    assert "ModelInferResponse" in kinds


async def test_a_draining_server_answers_and_then_ends_its_streams(tmp_path: Path, foreign: Foreign) -> None:
    """A call under way is answered; an idle stream ends UNAVAILABLE after `--drain-seconds`; no new call is taken."""
    async with grpc_front(tmp_path, foreign.application(), drain_seconds=0.2) as front:
        held = foreign.hold()
        waiting = asyncio.create_task(front.client.infer(numbers(4)))
        stream = front.client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        await stream.write(asking(numbers(5)).SerializeToString())
        await held.until(2)
        draining = asyncio.create_task(front.server.drain(0.2, 10.0))
        held.released.set()
        assert (await waiting).code is Code.OK
        assert message("ModelStreamInferResponse").FromString(await stream.read()).error_message == ""
        assert await stream.code() is Code.UNAVAILABLE
        await draining
        assert (await front.client.infer(numbers(4))).code is Code.UNAVAILABLE


def test_the_peer_of_a_call_is_an_address() -> None:
    """As gRPC says it, over IPv4, IPv6 and a unix socket."""
    assert address_in_peer("ipv4:127.0.0.1:4000") == "127.0.0.1"
    assert address_in_peer("ipv6:%5B::1%5D:4000") == "::1"
    assert address_in_peer("unix:/run/x") == "unix"
