"""The unmodified tritonclient.grpc against a running system: `python triton_grpc.py HOST:PORT SCENARIO` prints JSON.

Runs in an environment of its own (`make .venv-tritonclient/installed`), so it imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

TEXTS = ["a text that Triton's gRPC client asks", "another, with ümlauts and 電線", "a third one of gRPC"]


def text_input(texts: list[str]) -> triton.InferInput:
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object))
    return tensor


def x_input(rows: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("x", list(rows.shape), "INT64")
    tensor.set_data_from_numpy(rows)
    return tensor


def rows_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**62), 2**62, (count, 16), np.int64)


def refused(call: Callable[[], Any]) -> list[str | None]:
    """Status and message of the client's own exception."""
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return [None, "nothing was raised"]


def about(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Everything that can be asked about a server and a model, with metadata as the examples send them."""
    extra = {"headers": {"test": "1"}}
    return {
        "live": client.is_server_live(**extra),
        "ready": client.is_server_ready(**extra),
        "model_ready": [
            client.is_model_ready("minilm", **extra),
            client.is_model_ready("minilm", "1", **extra),
            client.is_model_ready("nobody", **extra),
            client.is_model_ready("minilm", "7", **extra),
        ],
        "server": client.get_server_metadata(as_json=True, **extra),
        "metadata": client.get_model_metadata("minilm", "1", as_json=True, **extra),
        "config": client.get_model_config("fingerprint", as_json=True, **extra)["config"],
        "statistics": client.get_inference_statistics("fingerprint", "1", as_json=True, **extra),
        "all_statistics": client.get_inference_statistics(as_json=True, **extra),
        "repository": client.get_model_repository_index(as_json=True, **extra),
    }


def texts(client: triton.InferenceServerClient) -> dict[str, Any]:
    """The same texts by every way to ask: compressed, with an id, in the background, with a deadline."""
    answers, ids = [], []
    for coding in (None, "gzip", "deflate"):
        for request_id in ("", "a", "ä" * 200):
            result = client.infer(
                "minilm",
                [text_input(TEXTS)],
                outputs=[triton.InferRequestedOutput("embedding")],
                request_id=request_id,
                compression_algorithm=coding,
                client_timeout=30,
                headers={"x-request-id": "1"},
            )
            answers.append(result.as_numpy("embedding"))
            ids.append(result.get_response().id == request_id)
    done: queue.Queue[Any] = queue.Queue()
    client.async_infer("minilm", [text_input(TEXTS)], lambda result, error: done.put((result, error)))
    result, error = done.get(timeout=30)
    answers.append(result.as_numpy("embedding"))
    return {
        "error": error,
        "equal": all(np.array_equal(one, answers[0]) for one in answers),
        "ids": all(ids),
        "shape": answers[0].shape,
        "embedding": answers[0][0].tolist(),
    }


def fingerprints(client: triton.InferenceServerClient) -> dict[str, Any]:
    """64 rows, selection of outputs, classification, no rows, a sequence."""
    rows = rows_of(1, 64)
    plain = client.infer("fingerprint", [x_input(rows)], priority=1, timeout=20_000_000)
    wanted = [triton.InferRequestedOutput("seal"), triton.InferRequestedOutput("digest")]
    chosen = client.infer("fingerprint", [x_input(rows)], outputs=wanted, model_version="1")
    ranked = client.infer(
        "fingerprint", [x_input(rows[:2])], outputs=[triton.InferRequestedOutput("digest", class_count=3)]
    )
    sequence = client.infer("fingerprint", [x_input(rows[:1])], sequence_id=7, sequence_start=True)
    return {
        "rows": rows.tolist(),
        "digest": plain.as_numpy("digest").tolist(),
        "chosen": [output.name for output in chosen.get_response().outputs],
        "chosen_equal": bool((chosen.as_numpy("digest") == plain.as_numpy("digest")).all()),
        "classes": [[item.decode() for item in row] for row in ranked.as_numpy("digest").tolist()],
        "none": list(client.infer("fingerprint", [x_input(rows[:0])]).as_numpy("digest").shape),
        "sequence": sequence.as_numpy("digest")[0].tolist(),
    }


def errors(client: triton.InferenceServerClient) -> dict[str, Any]:
    """What the client raises, with the status and the words that reach its user."""
    x = x_input(rows_of(2, 1))
    wide = triton.InferInput("x", [1, 15], "INT64")
    wide.set_data_from_numpy(np.zeros((1, 15), np.int64))
    shared = triton.InferInput("x", [1, 16], "INT64")
    shared.set_shared_memory("region", 128)
    late = text_input(["a text that has no time"])
    return {
        "unknown model": refused(lambda: client.infer("nobody", [x])),
        "unknown version": refused(lambda: client.infer("fingerprint", [x], model_version="9")),
        "unknown metadata": refused(lambda: client.get_model_metadata("nobody")),
        "unknown output": refused(
            lambda: client.infer("fingerprint", [x], outputs=[triton.InferRequestedOutput("nothing")])
        ),
        "wrong shape": refused(lambda: client.infer("fingerprint", [wide])),
        "shared memory": refused(lambda: client.infer("fingerprint", [shared])),
        "register": refused(lambda: client.register_system_shared_memory("a", "/a", 8)),
        "load": refused(lambda: client.load_model("minilm")),
        "timeout": refused(lambda: client.infer("minilm", [late], timeout=1)),
        "deadline": refused(lambda: client.infer("minilm", [late], client_timeout=1e-6)),
        "after": client.infer("fingerprint", [x]).as_numpy("digest").tolist(),
    }


def stream(client: triton.InferenceServerClient) -> dict[str, Any]:
    """100 requests of one stream without waiting, one of them wrong: what the callback gets, in order."""
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    rows = rows_of(3, 100)
    for at in range(100):
        model = "nobody" if at == 50 else "fingerprint"
        client.async_stream_infer(model, [x_input(rows[at : at + 1])], request_id=str(at))
    answers = [got.get(timeout=30) for _ in range(100)]
    client.stop_stream()
    return {
        "rows": rows.tolist(),
        "ids": [None if error else result.get_response().id for result, error in answers],
        "digests": [None if error else result.as_numpy("digest")[0].tolist() for result, error in answers],
        "error": str(answers[50][1]),
    }


def beside(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Calls one after another until the caller's standard input ends: how many, and what was raised."""
    import threading

    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    raised, count, rows = [], 0, rows_of(5, 200)
    while not over.is_set():
        try:
            at = count % 200
            result = client.infer("fingerprint", [x_input(rows[at : at + 1])], client_timeout=20)
            assert result.as_numpy("digest").shape == (1, 4)
        except InferenceServerException as error:
            raised.append([error.status(), error.message()])
        count += 1
        if count == 1:
            print("asking", flush=True)
    return {"count": count, "raised": raised}


async def aio(client: triton_aio.InferenceServerClient) -> dict[str, Any]:
    """The asyncio client: 200 calls at once, 200 equal ones, a stream, and what is refused."""
    rows, same = rows_of(3, 200), rows_of(4, 1)

    async def ask(one: np.ndarray) -> list[int]:
        return (await client.infer("fingerprint", [x_input(one)])).as_numpy("digest")[0].tolist()

    different = await asyncio.gather(*(ask(rows[i : i + 1]) for i in range(200)))
    equal = await asyncio.gather(*(ask(same) for _ in range(200)))

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for at in range(20):
            yield {"model_name": "fingerprint", "inputs": [x_input(rows[at : at + 1])], "request_id": str(at)}

    streamed = [
        (error, result.as_numpy("digest")[0].tolist()) async for result, error in client.stream_infer(requests())
    ]
    try:
        await client.infer("nobody", [x_input(same)])
    except InferenceServerException as error:
        unknown = [error.status(), error.message()]
    return {
        "rows": [*rows.tolist(), same[0].tolist()],
        "digests": [*different, equal[0]],
        "equal": len(set(map(tuple, equal))),
        "streamed": [digest for _, digest in streamed],
        "stream_errors": [str(error) for error, _ in streamed if error],
        "unknown": unknown,
        "ready": [await client.is_server_ready(), await client.is_model_ready("minilm"), await client.is_server_live()],
        "metadata": (await client.get_model_metadata("minilm")).name,
        "config": (await client.get_model_config("minilm")).config.name,
    }


def main() -> None:
    address, name = sys.argv[1:]
    scenario = globals()[name]
    if asyncio.iscoroutinefunction(scenario):

        async def run() -> Any:
            async with triton_aio.InferenceServerClient(address) as client:
                return await scenario(client)

        facts = asyncio.run(run())
    else:
        options = [("grpc.lb_policy_name", "pick_first")]
        with triton.InferenceServerClient(address, channel_args=options) as client:
            facts = scenario(client)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
