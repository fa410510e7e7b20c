"""The model process over real sockets and real ONNX models: a V2 server of its own."""

from __future__ import annotations

import asyncio
import gzip
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import structlog
from msgspec.structs import replace

from foreseen.errors import SetupError
from foreseen.inference.app import start
from foreseen.inference.batching.batcher import Batcher
from foreseen.inference.served import LoadedModel
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.modelspec.artifact import read_record, read_serving, write_record
from foreseen.modelspec.manifest import find
from foreseen.protocol import wire, wire_render
from foreseen.settings import InferenceSettings
from foreseen.types import Row
from tests import inference_fixture as tiny
from tests.models_fixture import PACKAGED, built_data

Reply = tuple[int, dict[str, Any], Any]


class Client:
    """Asks one running model process; replies are (status, document, headers)."""

    def __init__(self, http: aiohttp.ClientSession, base: str, model: str, served: LoadedModel) -> None:
        self.http = http
        self.base = base
        self.model = model
        self.served = served

    @property
    def batcher(self) -> Batcher:
        assert self.served._batcher is not None
        return self.served._batcher

    async def get(self, path: str, method: str = "GET") -> Reply:
        async with self.http.request(method, self.base + path) as reply:
            assert reply.headers["Content-Type"] == "application/json"
            return reply.status, await reply.json(), reply.headers

    async def infer(self, document: object, **headers: str) -> Reply:
        body = document if isinstance(document, bytes) else aiohttp.JsonPayload(document)
        url = f"{self.base}/v2/models/{self.model}/infer"
        async with self.http.post(url, data=body, headers=headers) as reply:
            return reply.status, await reply.json(), reply.headers

    async def binary(self, arrays: dict[str, tuple[str, np.ndarray]], **parameters: object) -> wire.Response:
        """An all-binary request, and its reply by the same codec that the proxy uses."""
        tensors = [(name, datatype, array) for name, (datatype, array) in arrays.items()]
        body, length = wire_render.render_request(tensors, parameters, "b")
        headers = {"Inference-Header-Content-Length": str(length)}
        async with self.http.post(f"{self.base}/v2/models/{self.model}/infer", data=body, headers=headers) as reply:
            assert reply.status == 200, await reply.text()
            assert reply.headers["Content-Type"] == "application/octet-stream"
            return wire.parse_response(await reply.read(), int(reply.headers["Inference-Header-Content-Length"]))

    async def metrics(self) -> dict[str, float]:
        async with self.http.get(f"{self.base}/metrics") as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=")
            lines = (await reply.text()).splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


async def until(happened: Callable[[], bool]) -> None:
    """Let the loop turn until the server, which lives on it too, has got there."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 -- what is waited for is the state of queues, which have no event
            await asyncio.sleep(0)


@asynccontextmanager
async def listening(settings: InferenceSettings, *, ready: bool = True) -> AsyncIterator[Client]:
    served = LoadedModel(settings)
    runner = await start(settings, served)
    if ready:
        await served.open()
    (host, port), *_ = runner.addresses
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as http:
            yield Client(http, f"http://{host}:{port}", settings.model, served)
    finally:
        await runner.cleanup()
        await served.close()


@pytest.fixture
async def words(tmp_path: Path) -> AsyncIterator[Client]:
    async with listening(tiny.publish(tmp_path, tiny.WORDS, tiny.words())) as client:
        yield client


@pytest.fixture
async def inverse(tmp_path: Path) -> AsyncIterator[Client]:
    async with listening(tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse(), body_bytes=10_000)) as client:
        yield client


def tensor(name: str, datatype: str, data: list[Any], *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def one(number: float) -> dict[str, Any]:
    return {"inputs": [tensor("x", "FP32", [number], 1, 1)]}


async def test_it_describes_itself(inverse: Client) -> None:
    """Server and model metadata, configuration and the list of models, with version and without."""
    status, server, _ = await inverse.get("/v2")
    assert (status, server["name"]) == (200, "foreseen-inference")
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(server["extensions"])
    assert (await inverse.get("/v2/"))[1] == server
    assert (await inverse.get("/v2/models"))[1] == {"models": ["inverse"]}
    _, model, _ = await inverse.get("/v2/models/inverse")
    assert (await inverse.get("/v2/models/inverse/versions/7?test_1=1"))[1] == model
    parameters = model.pop("parameters")
    assert model == {
        "name": "inverse",
        "versions": ["7"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }
    assert parameters == {
        "digest": inverse.served.session.digest,
        "artifact": inverse.served.session.record.artifact.digest,
        "preparation": inverse.served.session.record.artifact.preparation,
        "precision": "fp32",
        "provider": "CPUExecutionProvider",
        "rows": "each",
        "row_independent": True,
    }
    _, config, _ = await inverse.get("/v2/models/inverse/config")
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}]


async def test_health(inverse: Client) -> None:
    """Live, ready, model ready."""
    assert (await inverse.get("/v2/health/live"))[1] == {"live": True}
    assert (await inverse.get("/v2/health/ready"))[1] == {"ready": True, "live": True}
    assert (await inverse.get("/v2/models/inverse/ready"))[1] == {"name": "inverse", "ready": True}


async def test_it_is_live_but_not_ready_before_the_model_has_run(tmp_path: Path) -> None:
    """Until the self-test has passed everything that needs the model is 503 with Retry-After."""
    async with listening(tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse()), ready=False) as client:
        assert (await client.get("/v2/health/live"))[0] == 200
        for path in ("/v2/health/ready", "/v2/models/inverse/ready", "/v2/models/inverse"):
            status, document, headers = await client.get(path)
            assert (status, document["code"], headers["Retry-After"]) == (503, "model_unavailable", "1")
        assert (await client.infer(one(4)))[0] == 503
        assert (await client.get("/v2/models/inverse/config"))[0] == 200
        assert "not ready" in repr(client.served)
        await client.served.open()
        assert (await client.get("/v2/health/ready"))[0] == 200


async def test_a_model_that_fails_its_self_test_never_gets_ready(tmp_path: Path) -> None:
    """Readiness means that the model has really answered."""
    settings = tiny.publish(tmp_path, tiny.INVERSE.replace("x = [4]", "x = [0]"), tiny.inverse())
    async with listening(settings, ready=False) as client:
        with pytest.raises(SetupError, match="self-test"):
            await client.served.open()
        assert (await client.get("/v2/health/ready"))[0] == 503


async def test_json(inverse: Client) -> None:
    """JSON in, flat JSON out, the id echoed, digest and compute seconds beside it."""
    document = {"id": "a", "model_name": "ignored", "inputs": [tensor("x", "FP32", [[2], [4]], 2, 1)]}
    status, reply, headers = await inverse.infer(document)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    parameters = reply.pop("parameters")
    assert parameters["digest"] == inverse.served.session.digest
    assert 0 < parameters["seconds"] < 1
    assert reply == {
        "model_name": "inverse",
        "model_version": "7",
        "id": "a",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [0.5, 0.25]}],
    }
    assert "id" not in (await inverse.infer(one(4)))[1]


async def test_binary(words: Client) -> None:
    """Binary in, binary out, rows padded and masked by the server where the mask is left out."""
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    response = await words.binary({"ids": ("INT64", ids)})
    assert (response.id, response.model) == ("b", "words")
    assert {o.name: o.array.tolist() for o in response.outputs} == {
        "sum": [6, 15],
        "twice": [[2, 4, 6], [8, 10, 12]],
    }


async def test_a_given_mask_trims(words: Client) -> None:
    """Rows end where the mask ends; sequence outputs are zero behind it."""
    ids, mask = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 1, 1], [1, 0, 0]])
    response = await words.binary({"ids": ("INT64", ids), "mask": ("INT64", mask)})
    assert {o.name: o.array.tolist() for o in response.outputs} == {"sum": [6, 4], "twice": [[2, 4, 6], [8, 0, 0]]}
    mask[1] = [1, 0, 1]
    inputs = [tensor("ids", "INT64", ids.tolist(), 2, 3), tensor("mask", "INT64", mask.tolist(), 2, 3)]
    status, document, _ = await words.infer({"inputs": inputs})
    assert (status, document["code"]) == (400, "bad_input")
    assert document["error"].startswith("inputs.mask: a mask is ones followed by zeros")


async def test_outputs_are_selected_and_encoded_as_asked(words: Client) -> None:
    """Only the asked outputs, in the asked order; the flag of an output wins over the request's."""
    wanted = [{"name": "twice", "parameters": {"binary_data": True}}, {"name": "sum"}]
    body = {"inputs": [tensor("ids", "INT64", [1, 2], 1, 2)], "outputs": wanted}
    async with words.http.post(f"{words.base}/v2/models/words/versions/1/infer", json=body) as reply:
        response = wire.parse_response(await reply.read(), int(reply.headers["Inference-Header-Content-Length"]))
    assert [(o.name, o.array.tolist()) for o in response.outputs] == [("twice", [[2.0, 4.0]]), ("sum", [3])]
    status, document, _ = await words.infer({**body, "outputs": [{"name": "nope"}]})
    assert (status, document["error"]) == (400, "outputs.nope: the model has no such output; it has sum, twice")
    status, document, _ = await words.infer({**body, "outputs": [{"name": "sum", "parameters": {"classification": 1}}]})
    assert (status, document["code"]) == (501, "unsupported")


async def test_a_raw_request_is_the_bytes_of_the_one_input(inverse: Client) -> None:
    """`Inference-Header-Content-Length: 0`: no JSON at all."""
    headers = {"Inference-Header-Content-Length": "0"}
    body = np.array([2, 8], "<f4").tobytes()
    async with inverse.http.post(f"{inverse.base}/v2/models/inverse/infer", data=body, headers=headers) as reply:
        response = wire.parse_response(await reply.read(), int(reply.headers["Inference-Header-Content-Length"]))
    assert response.outputs[0].array.tolist() == [[0.5], [0.125]]


async def test_strings(tmp_path: Path) -> None:
    """BYTES in and out, as JSON and as binary."""
    async with listening(tiny.publish(tmp_path, tiny.ECHO, tiny.echo())) as client:
        _, reply, _ = await client.infer({"inputs": [tensor("text", "BYTES", ["grün", ""])]})
        assert reply["outputs"][0]["data"] == ["grün", ""]
        response = await client.binary({"text": ("BYTES", np.array(["grün".encode()], object))})
        assert response.outputs[0].array.tolist() == ["grün".encode()]


async def test_no_rows(words: Client) -> None:
    """A request with zero rows is 200 with empty outputs and runs nothing."""
    runs = words.served.runs
    response = await words.binary({"ids": ("INT64", np.empty((0, 5), np.int64))})
    assert [o.array.shape for o in response.outputs] == [(0,), (0, 0)]
    assert words.served.runs == runs


@pytest.mark.parametrize(
    ("more", "independent"),
    [("", False), ("gates = { max_difference = 2.0 }", True), ("batching = { single = true }", True)],
)
async def test_whether_rows_are_independent_is_measured_where_they_run(
    more: str, independent: bool, tmp_path: Path
) -> None:
    """The build said yes (on another machine, with another provider); what a proxy is told is what is so here."""
    settings = tiny.publish(tmp_path, tiny.CENTRED.format(more=more), tiny.centred())
    async with listening(settings) as client:
        assert client.served.session.record.row_independent
        assert (await client.get("/v2/models/centred"))[1]["parameters"]["row_independent"] is independent
        serving = read_serving(settings.data, "centred")
        assert serving is not None
        assert serving.row_independent is independent


async def test_rows_that_go_together(tmp_path: Path) -> None:
    """With `rows = "together"` each request is a run of its own, whatever else waits."""
    settings = tiny.publish(tmp_path, tiny.CENTRED.format(more='rows = "together"'), tiny.centred())
    async with listening(settings) as client:
        pairs = [{"inputs": [tensor("x", "FP32", [n, n + 2], 2, 1)]} for n in range(20)]
        replies = await asyncio.gather(*map(client.infer, pairs))
        assert all(reply[1]["outputs"][0]["data"] == [-1.0, 1.0] for reply in replies)
        assert (await client.get("/v2/models/centred"))[1]["parameters"]["rows"] == "together"


BAD = [
    (b"{", "bad_request", ""),
    ({"inputs": []}, "bad_input", "inputs"),
    ({"inputs": [tensor("z", "FP32", [1], 1, 1)]}, "bad_input", "inputs.z: the model has no such input; it has x"),
    ({"inputs": [tensor("x", "INT32", [1], 1, 1)]}, "bad_input", "inputs.x.datatype: must be FP32"),
    ({"inputs": [tensor("x", "FP32", [1, 2], 1, 2)]}, "bad_input", "inputs.x.shape: is [1, 2], must be [-1, 1]"),
    ({**one(1), "parameters": {"timeout": -1}}, "bad_input", "parameters.timeout"),
    ({**one(1), "parameters": {"priority": "high"}}, "bad_input", "parameters.priority"),
]


@pytest.mark.parametrize(("body", "code", "message"), BAD)
async def test_bad_requests_name_the_field(inverse: Client, body: object, code: str, message: str) -> None:
    """400 with `{"error", "code"}` under exactly application/json."""
    status, document, headers = await inverse.infer(body)
    assert (status, document["code"], headers["Content-Type"]) == (400, code, "application/json")
    assert document["error"].startswith(message)


async def test_other_refusals(inverse: Client) -> None:
    """404, 405 with Allow, 413, 415; gzip is decoded."""
    unknown = "Request for unknown model: 'other' is not found"
    assert (await inverse.get("/v2/models/other"))[1] == {"error": unknown, "code": "unknown_model"}
    status, document, _ = await inverse.get("/v2/models/inverse/versions/1")
    assert (status, document["error"]) == (
        404,
        "Request for unknown model: 'inverse' version '1' is not found",
    )
    assert (await inverse.get("/v3"))[1]["code"] == "not_found"
    status, document, headers = await inverse.get("/v2/models/inverse/infer")
    assert (status, document["code"], headers["Allow"]) == (405, "method_not_allowed", "POST")
    status, document, _ = await inverse.infer(b" " * 10_001)
    assert (status, document["code"]) == (413, "too_large")
    status, document, _ = await inverse.infer(b"x", **{"Content-Encoding": "compress"})
    assert (status, document["code"]) == (415, "unsupported_coding")
    zipped = gzip.compress(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[4]}]}')
    assert (await inverse.infer(zipped, **{"Content-Encoding": "gzip"}))[0] == 200


async def test_a_poisoned_row_fails_its_own_request_only(inverse: Client) -> None:
    """A row whose output is infinite is 502; everybody who shared its batch is answered."""
    replies = await asyncio.gather(*(inverse.infer(one(n)) for n in (1, 0, 2, 4)))
    assert [status for status, _, _ in replies] == [200, 502, 200, 200]
    assert replies[1][1]["code"] == "model_failed"
    assert [reply["outputs"][0]["data"] for status, reply, _ in replies if status == 200] == [[1.0], [0.5], [0.25]]


async def test_metrics_are_exact(inverse: Client) -> None:
    """Every answered request is counted at the moment of the scrape; rows are those really computed."""
    label = 'model="inverse"'
    before = await inverse.metrics()
    assert before.get(f"foreseen_model_rows_total{{{label}}}") == 0.0
    await inverse.infer({"inputs": [tensor("x", "FP32", [1.0] * 20, 20, 1)]})
    await asyncio.gather(*(inverse.infer(one(n)) for n in (1, 0, 2)))
    await inverse.infer(b"{")
    now = await inverse.metrics()
    assert now[f"foreseen_model_rows_total{{{label}}}"] == 22
    assert now[f'foreseen_model_requests_total{{code="200",{label}}}'] == 3
    assert now[f'foreseen_model_requests_total{{code="502",{label}}}'] == 1
    assert now[f'foreseen_model_requests_total{{code="400",{label}}}'] == 1
    assert now[f'foreseen_model_errors_total{{code="model_failed",{label}}}'] == 1
    assert now[f"foreseen_model_queue_rows{{{label}}}"] == 0
    assert now[f"foreseen_model_batch_rows_sum{{{label}}}"] == 23
    assert now[f"foreseen_model_queue_seconds_count{{{label}}}"] == 23
    assert now[f"foreseen_model_run_seconds_count{{{label}}}"] == inverse.served.runs
    assert now[f"foreseen_model_padding_tokens_total{{{label}}}"] == 0


async def test_statistics_count_as_tritons(inverse: Client) -> None:
    """Requests under success and fail, rows as inference_count, runs as execution_count."""
    await asyncio.gather(*(inverse.infer(one(n)) for n in (1, 0, 2)))
    (stats,) = (await inverse.get("/v2/models/inverse/stats"))[1]["model_stats"]
    assert (stats["name"], stats["version"], stats["inference_count"]) == ("inverse", "7", 2)
    assert stats["execution_count"] == inverse.served.runs
    spent = stats["inference_stats"]
    assert (spent["success"]["count"], spent["fail"]["count"], spent["cache_hit"]["count"]) == (2, 1, 0)
    assert spent["success"]["ns"] >= spent["compute_infer"]["ns"] > 0
    assert len({spent[f"compute_{part}"]["count"] for part in ("input", "infer", "output")}) == 1
    assert (await inverse.get("/v2/models/stats"))[1]["model_stats"][0]["name"] == "inverse"


COUNT_FOR_EVER = {"inputs": [tensor("n", "INT64", [2**62], 1, 1)]}
COUNT_TO_FIVE = {"inputs": [tensor("n", "INT64", [5], 1, 1)]}


@asynccontextmanager
async def busy(tmp_path: Path, **more: object) -> AsyncIterator[Client]:
    """A model whose one instance is held up by a run that only the watchdog ends."""
    settings = tiny.publish(tmp_path, tiny.COUNTED, tiny.counted(), run_seconds=0.4, **more)
    async with listening(settings) as client:
        hanging = asyncio.ensure_future(client.infer(COUNT_FOR_EVER))
        await until(lambda: client.batcher.running == 1)
        yield client
        status, document, _ = await hanging
        assert (status, document["code"]) == (502, "model_failed")


async def test_a_timeout_parameter_is_the_deadline(tmp_path: Path) -> None:
    """Microseconds; work that has not begun by then is 504, and the model is not asked."""
    async with busy(tmp_path) as client:
        status, document, _ = await client.infer({**COUNT_TO_FIVE, "parameters": {"timeout": 10_000}})
        assert (status, document["code"]) == (504, "deadline_exceeded")
        _, reply, _ = await client.infer(COUNT_TO_FIVE)
        assert reply["outputs"][0]["data"] == [5]
    assert client.served.runs == 2


async def test_a_full_queue_is_503_at_once(tmp_path: Path) -> None:
    """With Retry-After, while the model is busy."""
    async with busy(tmp_path, queue_rows=1) as client:
        waiting = asyncio.ensure_future(client.infer(COUNT_TO_FIVE))
        await until(lambda: client.batcher.waiting == 1)
        status, document, headers = await client.infer(COUNT_TO_FIVE)
        assert (status, document["code"], headers["Retry-After"]) == (503, "overloaded", "1")
        assert (await waiting)[0] == 200


async def test_a_caller_that_hangs_up_gives_its_place_back(tmp_path: Path) -> None:
    """What nobody waits for any more never runs."""
    async with busy(tmp_path) as client:
        leaving = asyncio.ensure_future(client.infer(COUNT_TO_FIVE))
        await until(lambda: client.batcher.waiting == 1)
        leaving.cancel()
        await until(lambda: client.batcher.waiting == 0)
    assert client.served.runs == 1


async def test_priority_two_is_the_background_lane(tmp_path: Path) -> None:
    """Background work waits for online work that came later."""
    async with busy(tmp_path, max_rows=1) as client:
        order: list[str] = []

        async def ask(lane: str, priority: int) -> None:
            assert (await client.infer({**COUNT_TO_FIVE, "parameters": {"priority": priority}}))[0] == 200
            order.append(lane)

        tasks = [asyncio.ensure_future(ask("background", 2))]
        await until(lambda: client.batcher.waiting == 1)
        tasks += [asyncio.ensure_future(ask("online", 1)), asyncio.ensure_future(ask("online", 0))]
        await asyncio.gather(*tasks)
    assert order == ["online", "online", "background"]


async def test_a_traceparent_is_logged_and_no_input_is(inverse: Client) -> None:
    """The trace context is in the log of the request; no tensor and no whole digest is."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with structlog.testing.capture_logs() as logs:
        await inverse.infer(one(12345.5), traceparent=trace)
        await inverse.infer(one(0))
    (event,) = [log for log in logs if log["event"] == "infer"]
    assert (event["traceparent"], event["rows"]) == (trace, 1)
    assert "12345" not in str(logs)
    assert not re.search(r"[0-9a-f]{64}", str(logs))


async def test_fingerprints_are_exact() -> None:
    """The integer oracle: concurrent requests of any size, each row's digest is x·M mod 2^64."""
    settings = InferenceSettings(model="fingerprint", data=built_data(), port=0, max_rows=16, instances=2)
    weights = np.array([[pow(2 * i + 3, j + 1, 2**64) for j in range(4)] for i in range(16)], np.uint64)
    dice = np.random.default_rng(1)
    questions = [dice.integers(-(2**63), 2**63, (int(rows), 16)) for rows in dice.integers(1, 40, 60)]
    async with listening(settings) as client:
        answers = await asyncio.gather(*(client.binary({"x": ("INT64", x)}) for x in questions))
    for x, answer in zip(questions, answers, strict=True):
        digest, seal = (output.array for output in answer.outputs)
        assert np.array_equal(digest.view(np.uint64), x.view(np.uint64) @ weights)
        assert set(seal.ravel().tolist()) == {1}


async def test_minilm_rows_are_bit_identical_whoever_shares_their_batch() -> None:
    """Row-wise int8 through the server, random concurrent batches to 32 rows: all 384 floats as alone, lengths 4–62."""
    manifest = find("minilm", PACKAGED)
    alone = open_session(manifest, built_data(), SessionPlan())
    assert alone.record.artifact.precision == "int8-rowwise"
    dice = np.random.default_rng(2)
    lengths = dice.permutation(np.tile(np.arange(4, 63), 6))
    rows = [dice.integers(1000, 30000, length) for length in lengths]
    requests, at = [], 0
    while at < len(rows):
        count = int(dice.integers(1, 33))
        requests.append(rows[at : at + count])
        at += count
    settings = InferenceSettings(model="minilm", data=built_data(), port=0, instances=2)
    async with listening(settings) as client:
        answers = await asyncio.gather(*(client.binary(padded(request)) for request in requests))
        assert client.served.runs < len(rows)
    together = np.concatenate([answer.outputs[0].array for answer in answers])
    for row, embedding in zip(rows, together, strict=True):
        assert alone.run([Row((row,))])[0][0].tobytes() == embedding.tobytes()
    alone.close()


def padded(rows: list[np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Ids and mask as a client pads them."""
    shape = len(rows), max(map(len, rows))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ("INT64", ids), "attention_mask": ("INT64", mask)}


@pytest.mark.processes
async def test_the_process_serves_on_a_unix_socket_until_sigterm() -> None:
    """Started as a command does it: a stale socket is no obstacle, SIGTERM ends it with status 0."""
    data = built_data()
    with tempfile.TemporaryDirectory(prefix="fs") as folder:  # pytest's folders are too long for a socket's name
        path = Path(folder) / "m.sock"
        script = (
            "import sys; from pathlib import Path\n"
            "from foreseen.settings import InferenceSettings\nfrom inference.app import serve\n"
            "serve(InferenceSettings(model='fingerprint', data=Path(sys.argv[1]), uds=Path(sys.argv[2])))"
        )
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(data), str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        while b"model ready" not in (line := await process.stdout.readline()):
            assert line, "the process ended before it was ready"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            url, body = "http://model/v2/models/fingerprint/infer", {"inputs": [tensor("x", "INT64", [0] * 16, 1, 16)]}
            async with http.post(url, json=body) as reply:
                assert (await reply.json())["outputs"][0]["data"] == [0, 0, 0, 0]
        process.send_signal(signal.SIGTERM)
        await process.stdout.read()
        assert await process.wait() == 0


@pytest.mark.processes
async def test_the_process_ends_with_what_is_wrong(tmp_path: Path) -> None:
    """A model that cannot be opened ends the process: SetupError goes to the command line."""
    script = (
        "import sys; from pathlib import Path\nfrom foreseen.errors import SetupError\n"
        "from foreseen.settings import InferenceSettings\nfrom inference.app import serve\n"
        "try: serve(InferenceSettings(model='fingerprint', data=Path(sys.argv[1]), port=0))\n"
        "except SetupError as error: sys.exit(str(error))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"is not built; run: foreseen models build fingerprint" in said


async def test_the_process_leaves_word_of_its_digest(tmp_path: Path) -> None:
    """An import that comes when the process is down finds the digest; a rebuilt model makes it unknown again."""
    settings = tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse())
    async with listening(settings) as client:
        digest = client.served.session.digest
    said = read_serving(settings.data, "inverse")
    assert said is not None
    assert said.digest == digest
    record = read_record(settings.data, "inverse")
    write_record(settings.data, replace(record, artifact=replace(record.artifact, digest="another")))
    assert read_serving(settings.data, "inverse") is None
    assert read_serving(settings.data, "nobody") is None
