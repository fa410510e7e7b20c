"""The unmodified tritonclient against a running system: `python triton.py HOST:PORT SCENARIO` prints facts as JSON.

Runs in an environment of its own (`make .venv-tritonclient/installed`), so it imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

TEXTS = ["a text that Triton's client asks", "another, with ümlauts and 電線", "a third one"]
ENCODINGS = [(json_in, json_out) for json_in in (True, False) for json_out in (True, False)]


def text_input(texts: list[str], *, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("text", [len(texts)], "BYTES")
    # JSON data is made of str or bytes, binary of bytes
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], object), binary_data=binary)
    return tensor


def x_input(rows: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("x", list(rows.shape), "INT64")
    tensor.set_data_from_numpy(rows, binary_data=binary)
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
    """Everything that can be asked about a server and a model, with headers and a query as the examples send them."""
    extra = {"headers": {"test": "1"}, "query_params": {"test_1": 1, "test_2": [2, 3]}}
    return {
        "live": client.is_server_live(**extra),
        "ready": client.is_server_ready(**extra),
        "model_ready": [
            client.is_model_ready("minilm", **extra),
            client.is_model_ready("minilm", "1", **extra),
            client.is_model_ready("nobody", **extra),
            client.is_model_ready("minilm", "7", **extra),
        ],
        "server": client.get_server_metadata(**extra),
        "metadata": client.get_model_metadata("minilm", "1", **extra),
        "config": client.get_model_config("fingerprint", **extra),
        "statistics": client.get_inference_statistics("fingerprint", "1", **extra),
        "all_statistics": client.get_inference_statistics(**extra),
        "repository": client.get_model_repository_index(**extra),
    }


def texts(client: triton.InferenceServerClient) -> dict[str, Any]:
    """The same texts in every encoding and compression there is; the first is JSON both ways."""
    answers: list[np.ndarray] = []
    ids: list[str] = []
    for index, (json_in, json_out) in enumerate(ENCODINGS):
        for packed in (None, "gzip", "deflate"):
            for unpacked in (None, "gzip", "deflate"):
                result = client.infer(
                    "minilm",
                    [text_input(TEXTS, binary=not json_in)],
                    outputs=[triton.InferRequestedOutput("embedding", binary_data=not json_out)],
                    request_id=f"{index}-{packed}-{unpacked}",
                    request_compression_algorithm=packed,
                    response_compression_algorithm=unpacked,
                    headers={"x-request-id": "1"},
                    query_params={"test_1": 1},
                )
                answers.append(result.as_numpy("embedding"))
                ids.append(result.get_response()["id"] == f"{index}-{packed}-{unpacked}")
    return {
        "ways": len(answers),
        "equal": all(np.array_equal(one, answers[0]) for one in answers),
        "dtype": str(answers[0].dtype),
        "shape": answers[0].shape,
        "ids": all(ids),
        "embedding": answers[0][0].tolist(),
    }


def fingerprints(client: triton.InferenceServerClient) -> dict[str, Any]:
    """64 rows, selection and encoding of outputs, classification, no rows, no outputs named, greenlets."""
    rows = rows_of(1, 64)
    plain = client.infer("fingerprint", [x_input(rows)], priority=1, timeout=20_000_000)
    wanted = [triton.InferRequestedOutput("seal", binary_data=False), triton.InferRequestedOutput("digest")]
    mixed = client.infer("fingerprint", [x_input(rows, binary=False)], outputs=wanted, model_version="1")
    classes = {
        binary: client.infer(
            "fingerprint",
            [x_input(rows[:2])],
            outputs=[triton.InferRequestedOutput("digest", class_count=3, binary_data=binary)],
        ).as_numpy("digest")
        for binary in (True, False)
    }
    none = [client.infer("fingerprint", [x_input(rows[:0], binary=binary)]) for binary in (True, False)]
    sequence = client.infer("fingerprint", [x_input(rows[:1])], sequence_id=7, sequence_start=True)
    waiting = [client.async_infer("fingerprint", [x_input(rows[i : i + 1])]) for i in range(20)]
    greenlets = [one.get_result().as_numpy("digest")[0].tolist() for one in waiting]
    return {
        "rows": rows.tolist(),
        "digest": plain.as_numpy("digest").tolist(),
        "seal": plain.as_numpy("seal").tolist(),
        "mixed": [output["name"] for output in mixed.get_response()["outputs"]],
        "mixed_equal": bool((mixed.as_numpy("digest") == plain.as_numpy("digest")).all()),
        "mixed_seal": "data" in mixed.get_output("seal"),
        "absent": mixed.as_numpy("embedding") is None,
        "classes": [[item.decode() for item in row] for row in classes[True].tolist()],
        "classes_json": classes[False].tolist(),
        "none": [list(one.as_numpy("digest").shape) for one in none],
        "sequence": sequence.as_numpy("digest")[0].tolist(),
        "greenlets": greenlets,
    }


def errors(client: triton.InferenceServerClient) -> dict[str, Any]:
    """What the client raises, with the status and the words that reach its user."""
    x = x_input(rows_of(2, 1))
    late = text_input(["a text that nobody waits for"], binary=True)
    wide = triton.InferInput("x", [1, 15], "INT64")
    wide.set_data_from_numpy(np.zeros((1, 15), np.int64))
    floats = triton.InferInput("x", [1, 16], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 16), np.float32), binary_data=False)
    shared = triton.InferInput("x", [1, 16], "INT64")
    shared.set_shared_memory("region", 128)
    other = [triton.InferRequestedOutput("nothing")]
    return {
        "unknown model": refused(lambda: client.infer("nobody", [x])),
        "unknown version": refused(lambda: client.infer("fingerprint", [x], model_version="9")),
        "unknown metadata": refused(lambda: client.get_model_metadata("nobody")),
        "unknown output": refused(lambda: client.infer("fingerprint", [x], outputs=other)),
        "wrong shape": refused(lambda: client.infer("fingerprint", [wide])),
        "wrong datatype": refused(lambda: client.infer("fingerprint", [floats])),
        "wrong input": refused(lambda: client.infer("minilm", [x])),
        "shared memory": refused(lambda: client.infer("fingerprint", [shared])),
        "register": refused(lambda: client.register_system_shared_memory("a", "/a", 8)),
        "load": refused(lambda: client.load_model("minilm")),
        "timeout": refused(lambda: client.infer("minilm", [late], timeout=1)),
        "after": client.infer("fingerprint", [x]).as_numpy("seal").tolist(),
    }


def beside(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Row after row that others ask for later at the same time: what the client's own user gets, of all its ways."""
    digests, raised = [], []
    for seed in range(5000, 5120):
        rows = rows_of(seed, 1)
        try:
            if seed % 3 == 0:
                result = client.async_infer("fingerprint", [x_input(rows)]).get_result()
            else:
                result = client.infer("fingerprint", [x_input(rows, binary=seed % 2 == 0)])
            digests.append(result.as_numpy("digest")[0].tolist())
        except InferenceServerException as error:
            raised.append([error.status(), error.message()])
    return {"digests": digests, "raised": raised}


async def many(client: triton_aio.InferenceServerClient) -> dict[str, Any]:
    """200 at once, each another row; then the same row 200 times at once."""
    rows = rows_of(3, 200)
    same = rows_of(4, 1)

    async def ask(one: np.ndarray) -> list[int]:
        return (await client.infer("fingerprint", [x_input(one)])).as_numpy("digest")[0].tolist()

    different = await asyncio.gather(*(ask(rows[i : i + 1]) for i in range(200)))
    equal = await asyncio.gather(*(ask(same) for _ in range(200)))
    return {
        "rows": [*rows.tolist(), same[0].tolist()],
        "digests": [*different, equal[0]],
        "equal": len(set(map(tuple, equal))),
    }


async def aio(client: triton_aio.InferenceServerClient) -> dict[str, Any]:
    """What the asyncio client's own session offers and gets, in every encoding, and what its user sees."""
    answers, replies, texts_ = [], [], [f"{text}, at the same time" for text in TEXTS]
    for json_in, json_out in ENCODINGS:
        for unpacked in (None, "gzip", "deflate"):
            inputs = [text_input(texts_, binary=not json_in)]
            outputs = [triton_aio.InferRequestedOutput("embedding", binary_data=not json_out)]
            result = await client.infer("minilm", inputs, outputs=outputs, response_compression_algorithm=unpacked)
            answers.append(result.as_numpy("embedding"))
            body, length = client.generate_request_body(inputs, outputs=outputs)
            headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
            url = f"{client._url}/v2/models/minilm/infer"
            async with client._stub.post(url, data=body, headers=headers) as reply:
                told = [reply.headers.get(name) for name in ("Inference-Header-Content-Length", "Content-Encoding")]
                content = await reply.read()
                parsed = client.parse_response_body(content, False, told[0] and int(told[0]), told[1])
                answers.append(parsed.as_numpy("embedding"))
                replies.append(
                    {
                        "offered": reply.request_info.headers.get("Accept-Encoding"),
                        "content_type": reply.request_info.headers.get("Content-Type"),
                        "coding": told[1],
                        "cache_status": reply.headers["Cache-Status"],
                    }
                )
    try:
        await client.infer("nobody", [x_input(rows_of(2, 1))])
    except InferenceServerException as error:
        unknown = [error.status(), error.message()]
    return {
        "equal": all(np.array_equal(one, answers[0]) for one in answers),
        "embedding": answers[0][0].tolist(),
        "replies": replies,
        "unknown": unknown,
        "ready": [await client.is_server_ready(), await client.is_model_ready("minilm"), await client.is_server_live()],
        "metadata": (await client.get_model_metadata("minilm"))["name"],
        "config": (await client.get_model_config("minilm"))["name"],
        "repository": len(await client.get_model_repository_index()),
        "statistics": (await client.get_inference_statistics("minilm"))["model_stats"][0]["name"],
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
        with triton.InferenceServerClient(address) as client:
            facts = scenario(client)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
