"""KServe's InferenceGRPCClient against a running system: `python grpc_clients.py HOST:PORT` prints facts as JSON.

Runs in an environment of its own, so it imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def main(address: str) -> None:
    client = InferenceGRPCClient(address, timeout=30)
    texts = InferInput("text", [2, 1], "BYTES")
    texts.set_data_from_numpy(np.array([["a cat"], ["a dog"]], object), binary_data=False)
    raw = InferInput("text", [2, 1], "BYTES")
    raw.set_data_from_numpy(np.array([["a cat"], ["a dog"]], object), binary_data=True)
    answers = []
    for tensor in (texts, raw):
        reply = await client.infer(InferRequest("minilm", [tensor], request_id="7"))
        answers.append(reply.outputs[0].as_numpy().tolist())
    try:
        await client.infer(InferRequest("none", [texts]))
        refused = ""
    except Exception as error:  # noqa: BLE001 - what a user of the client sees
        refused = str(error)
    print(
        json.dumps(
            {
                "live": await client.is_server_live(),
                "ready": await client.is_server_ready(),
                "model_ready": await client.is_model_ready("minilm"),
                "equal": answers[0] == answers[1],
                "shape": np.shape(answers[0]),
                "refused": refused,
            }
        )
    )
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
