"""The V2 protocol over gRPC, asked by the unmodified tritonclient against two workers on one port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from foreseen.protocol.open_inference import message
from tests.grpc_calls import asking
from tests.grpc_random import ask_at_random, cancel_calls, half_closed, malformed
from tests.live import Live, started
from tests.ports import free_port
from tests.questions import ask_minilm, fingerprint, numbers
from tests.raw import MINILM, post
from tests.stories.test_80_unmodified_clients import PYTHON, ROOT

TEXTS = ["a text that Triton's gRPC client asks", "another, with ümlauts and 電線", "a third one of gRPC"]


class GrpcLive(NamedTuple):
    """A running system and its gRPC port."""

    live: Live
    port: int

    def command(self, scenario: str) -> list[str]:
        assert PYTHON.exists(), "no tritonclient: run `make .venv-tritonclient/installed`"
        script = ROOT / "tests" / "clients" / "triton_grpc.py"
        return [str(PYTHON), "-W", "error", str(script), f"127.0.0.1:{self.port}", scenario]

    def triton(self, scenario: str) -> dict[str, Any]:
        """The facts that one scenario prints; its warnings are errors, too."""
        done = subprocess.run(self.command(scenario), capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def grpc_live(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcLive]:
    port = free_port()
    flags = ("--workers=2", f"--grpc-port={port}", "--drain-seconds=1")
    with started(built, tmp_path_factory.mktemp("grpc") / "data", *flags) as live:
        yield GrpcLive(live, port)


def test_tritonclient_reads_everything_about_a_model(grpc_live: GrpcLive) -> None:
    """Health, metadata, configuration, statistics and repository; an unknown model is not ready."""
    facts = grpc_live.triton("about")
    assert (facts["live"], facts["ready"], facts["model_ready"]) == (True, True, [True, True, False, False])
    assert facts["server"]["name"] == "foreseen"
    assert facts["metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert facts["config"]["max_batch_size"] > 0
    assert [one["name"] for one in facts["statistics"]["model_stats"]] == ["fingerprint"]
    assert [one["name"] for one in facts["all_statistics"]["model_stats"]] == ["minilm", "fingerprint"]
    assert [one["state"] for one in facts["repository"]["models"]] == ["READY", "READY"]


def test_the_same_texts_by_every_way_to_ask_are_one_entry_each(grpc_live: GrpcLive) -> None:
    """gRPC plain and compressed, V2 JSON, V1 and OpenAI: the model computes each text once."""
    live = grpc_live.live
    before = live.model_metric("minilm", "foreseen_model_rows_total")
    facts = grpc_live.triton("texts")
    assert (facts["equal"], facts["ids"], facts["error"], facts["shape"]) == (True, True, None, [3, 384])
    reply = post(live, MINILM, ask_minilm(TEXTS[0]))
    assert reply.hit
    assert np.array_equal(np.float32(reply.outputs["embedding"]["data"]), np.float32(facts["embedding"]))
    status, _, body = live.post("/v1/models/minilm:predict", {"instances": TEXTS})
    assert status == 200
    assert np.array_equal(np.float32(json.loads(body)["predictions"][0]), np.float32(facts["embedding"]))
    status, _, body = live.post("/v1/embeddings", {"model": "minilm", "input": TEXTS})
    assert status == 200
    assert np.array_equal(np.float32(json.loads(body)["data"][0]["embedding"]), np.float32(facts["embedding"]))
    assert live.model_metric("minilm", "foreseen_model_rows_total") == before + len(TEXTS)


def test_rows_outputs_classes_and_sequences(grpc_live: GrpcLive) -> None:
    """Every digest is that of the formula; outputs come in the order that was asked for."""
    facts = grpc_live.triton("fingerprints")
    assert facts["digest"] == [fingerprint(row) for row in facts["rows"]]
    assert (facts["chosen"], facts["chosen_equal"]) == (["seal", "digest"], True)
    assert [len(row) for row in facts["classes"]] == [3, 3]
    best = max(range(4), key=lambda at: facts["digest"][0][at])
    assert facts["classes"][0][0] == f"{facts['digest'][0][best]}:{best}"
    assert facts["none"] == [0, 4]
    assert facts["sequence"] == fingerprint(facts["rows"][0])


def test_errors_reach_the_clients_user_in_words(grpc_live: GrpcLive) -> None:
    """Status and message of the exception that the client raises."""
    facts = grpc_live.triton("errors")
    unknown = "Request for unknown model: 'nobody' is not found"
    assert facts["unknown model"] == facts["unknown metadata"] == ["StatusCode.NOT_FOUND", unknown]
    assert facts["unknown version"][0] == "StatusCode.NOT_FOUND"
    for name in ("unknown output", "wrong shape", "shared memory"):
        assert facts[name][0] == "StatusCode.INVALID_ARGUMENT", name
    assert "shared memory is not supported" in facts["shared memory"][1]
    assert facts["register"][0] == facts["load"][0] == "StatusCode.UNIMPLEMENTED"
    assert facts["timeout"][0] == facts["deadline"][0] == "StatusCode.DEADLINE_EXCEEDED"


def test_a_call_that_prefers_it_gets_a_ticket(grpc_live: GrpcLive) -> None:
    """Its result is fetched over HTTP; a request whose answer is at hand is answered."""
    request = asking(numbers(8201), model="fingerprint")
    with grpc.insecure_channel(f"127.0.0.1:{grpc_live.port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        prefer = (("prefer", "respond-async"),)
        body, call = infer.with_call(request.SerializeToString(), metadata=prefer)
        ticket = message("ModelInferResponse").FromString(body)
        trailers = dict(call.trailing_metadata())
        assert trailers["preference-applied"] == "respond-async"
        assert trailers["location"] == f"/v2/predictions/{ticket.parameters['prediction'].string_param}"
        status, _, content = grpc_live.live.ask("GET", f"{trailers['location']}/result", None, {"Prefer": "wait=20"})
        assert status == 200
        data = next(one for one in json.loads(content)["outputs"] if one["name"] == "digest")["data"]
        assert data == fingerprint(numbers(8201))
        waited, _ = infer.with_call(request.SerializeToString(), metadata=(("prefer", "respond-async, wait=5"),))
        assert message("ModelInferResponse").FromString(waited).outputs
        with pytest.raises(grpc.RpcError) as caught:
            infer(request.SerializeToString(), metadata=(*prefer, ("foreseen-webhook", "https://a.example")))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_streams_answer_in_order(grpc_live: GrpcLive) -> None:
    """100 requests at once, one of an unknown model, which fails alone."""
    facts = grpc_live.triton("stream")
    assert facts["ids"] == [None if at == 50 else str(at) for at in range(100)]
    wanted = [None if at == 50 else fingerprint(row) for at, row in enumerate(facts["rows"])]
    assert facts["digests"] == wanted
    assert "Request for unknown model: 'nobody'" in facts["error"]


def test_the_asyncio_client(grpc_live: GrpcLive) -> None:
    """Many calls at once on one connection, equal ones too, and a stream."""
    facts = grpc_live.triton("aio")
    assert facts["digests"] == [fingerprint(row) for row in facts["rows"]]
    assert facts["equal"] == 1
    assert facts["streamed"] == facts["digests"][:20]
    assert facts["stream_errors"] == []
    assert facts["unknown"] == ["StatusCode.NOT_FOUND", "Request for unknown model: 'nobody' is not found"]
    assert facts["ready"] == [True, True, True]
    assert (facts["metadata"], facts["config"]) == ("minilm", "minilm")


def test_what_is_asked_over_grpc_is_counted_and_every_worker_serves(grpc_live: GrpcLive) -> None:
    """Requests have the protocol's label; new connections come to both workers, which differ in their statistics."""
    assert grpc_live.live.metric("foreseen_requests_total", model="fingerprint", protocol="grpc", code="200") > 50
    assert len({successes(grpc_live.port) for _ in range(40)}) > 1


def successes(port: int) -> int:
    """The successful requests of the worker that a new connection comes to."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        request = message("ModelStatisticsRequest")(name="fingerprint").SerializeToString()
        reply = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")(request)
    return message("ModelStatisticsResponse").FromString(reply).model_stats[0].inference_stats.success.count


def test_the_docs_recipe_runs_as_it_stands(grpc_live: GrpcLive) -> None:
    """docs/grpc.md, with this system's port."""
    (recipe,) = re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / "docs" / "grpc.md").read_text(), re.DOTALL)
    program = recipe.replace("127.0.0.1:8001", f"127.0.0.1:{grpc_live.port}")
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "(2, 384) 7\n"), done.stderr


def test_a_rolling_restart_fails_no_call(grpc_live: GrpcLive) -> None:
    """Calls go on while both workers are replaced: SIGHUP, and the same port all the time."""
    command = grpc_live.command("beside")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == "asking\n"
        before = set(grpc_live.live.workers())
        os.kill(grpc_live.live.process.pid, signal.SIGHUP)
        until_other_workers(grpc_live.live, before)
        client.stdin.close()
        facts = json.loads(client.stdout.read())
    assert facts["raised"] == []
    assert facts["count"] > 10


def until_other_workers(live: Live, before: set[int]) -> None:
    """Until none of these is there any more, and as many others are."""
    deadline = time.monotonic() + 60
    while (now := set(live.workers())) & before or len(now) != len(before):
        assert time.monotonic() < deadline, "the workers were not replaced"
        time.sleep(0.05)


def test_another_system_with_the_same_port_does_not_start(grpc_live: GrpcLive, tmp_path: Path) -> None:
    """SO_REUSEPORT would let it: each would get some of the other's connections."""
    command = ["-P", "-m", "foreseen.cli", "proxy", f"--data={grpc_live.live.data}", f"--port={free_port()}"]
    flags = [f"--grpc-port={grpc_live.port}", "--model=fingerprint", "--redis=none", "--state=none"]
    done = subprocess.run([sys.executable, *command, *flags], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{grpc_live.port}" in done.stderr
    assert "--grpc-port" in done.stderr
    with socket.create_connection(("127.0.0.1", grpc_live.port)):
        pass


async def test_random_requests_over_all_encodings_have_the_same_bits(grpc_live: GrpcLive) -> None:
    """1,500 here; `python -m tests.grpc_random` asks 20,000."""
    counts = await ask_at_random(grpc_live.live.url, f"127.0.0.1:{grpc_live.port}", 1_500)
    assert sum(counts.values()) - counts["rows"] == 1_500
    assert len(counts) == 7


async def test_calls_that_are_cancelled_leave_nothing_behind(grpc_live: GrpcLive) -> None:
    """10,000 calls cancelled at some moment of theirs, streams left in every state: as many descriptors as before."""
    address = f"127.0.0.1:{grpc_live.port}"
    await cancel_calls(address, 500)
    await until_flat(grpc_live.live)
    before = descriptors(grpc_live.live)
    await cancel_calls(address, 10_000)
    await half_closed(address, 200)
    async with asyncio.timeout(30):  # what leaks never goes; what is late may be half a minute on a busy machine
        while descriptors(grpc_live.live) > before + 4 or grpc_live.live.metric("foreseen_flight_rows"):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    assert grpc_live.triton("fingerprints")["none"] == [0, 4]


async def test_bytes_that_are_no_request_are_refused_and_that_is_all(grpc_live: GrpcLive) -> None:
    """Whatever is changed in a message: an answer, INVALID_ARGUMENT, NOT_FOUND or RESOURCE_EXHAUSTED."""
    before = set(grpc_live.live.workers())
    codes = await malformed(f"127.0.0.1:{grpc_live.port}", 1_000)
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    assert codes["INVALID_ARGUMENT"] > 300
    assert set(grpc_live.live.workers()) == before


def descriptors(live: Live) -> int:
    """Open files of all workers but unix sockets: connections to the model process are kept, up to a number."""
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    links = []
    for one in (one for pid in live.workers() for one in Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # closed while it is looked at
            links.append(str(one.readlink()))
    return sum(re.sub(r"\D", "", link) not in local for link in links)


async def until_flat(live: Live) -> None:
    """Until no connection of a client is left: they have reached their age."""
    async with asyncio.timeout(20):
        last = -1
        while (now := descriptors(live)) != last:
            last = now
            await asyncio.sleep(0.5)


def test_nothing_imports_grpcio_before_it_is_asked_for() -> None:
    """Importing it starts threads, and a fork after that hangs: the supervisor and job workers fork."""
    program = """
import sys
import foreseen.cli, foreseen.operate.up, foreseen.proxy.app, foreseen.proxy.worker_app, foreseen.proxy.tools.doctor
import foreseen.proxy.predict.dialects.codecs
assert not {"grpc", "google.protobuf"} & sys.modules.keys(), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
