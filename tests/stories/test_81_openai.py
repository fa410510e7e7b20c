"""OpenAI's embeddings API against the running system: one row for all encodings, the fast path, tickets and batches."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import struct
import uuid
from typing import Any

import numpy as np

from tests.live import Live
from tests.questions import ask_minilm

texts = (f"a text of the OpenAI story {number}" for number in itertools.count())
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-any"}


def embed(live: Live, given: Any, **fields: Any) -> tuple[int, dict[str, str], Any]:
    headers = {**HEADERS, **fields.pop("headers", {})}
    status, told, body = live.post("/v1/embeddings", {"model": "minilm", "input": given, **fields}, headers)
    return status, told, json.loads(body)


def float32(values: Any) -> bytes:
    return np.array(values, np.float32).tobytes()


def test_one_text_in_five_encodings_is_one_row(live: Live) -> None:
    """V2 JSON, V2 binary, V1, OpenAI float and base64: the model computes once, and the bits are the same."""
    text = next(texts)
    before = live.model_metric("minilm", "foreseen_model_rows_total")
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "text",
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": 4 + len(text)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    packed = head + struct.pack("<I", len(text)) + text.encode()
    v2 = json.loads(live.post("/v2/models/minilm/infer", ask_minilm(text))[2])["outputs"][0]["data"]
    binary = live.post(
        "/v2/models/minilm/infer",
        packed,
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    v1 = json.loads(live.post("/v1/models/minilm:predict", {"instances": [text]})[2])["predictions"][0]
    plain = embed(live, text)[2]["data"][0]["embedding"]
    coded = base64.b64decode(embed(live, [text], encoding_format="base64")[2]["data"][0]["embedding"])
    length = int(binary[1]["inference-header-content-length"])
    assert {float32(v2), binary[2][length:], float32(v1), float32(plain), coded} == {float32(v2)}
    assert live.model_metric("minilm", "foreseen_model_rows_total") - before == 1


def test_usage_counts_token_ids_on_hit_and_miss(live: Live) -> None:
    """Special tokens included: "hello world" is four ids, and a text is at least two."""
    for _ in range(3):
        assert embed(live, "hello world")[2]["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert embed(live, ["hello world", ""])[2]["usage"]["prompt_tokens"] == 6


def test_a_credential_keeps_no_request_off_the_fast_path(live: Live) -> None:
    """The same bytes with `Authorization` are answered from the reply cache; another credential is another head."""
    text = next(texts)
    body = json.dumps({"model": "minilm", "input": text}).encode()
    timings = []
    for _ in range(5):
        _, told, answer = live.post("/v1/embeddings", body, HEADERS)
        timings.append(told["server-timing"])
    assert "shortcut" in timings[-1]
    other = live.post("/v1/embeddings", body, {**HEADERS, "Authorization": "Bearer sk-other"})
    assert other[2] == answer


def test_a_known_request_is_answered_by_its_bytes(live: Live) -> None:
    """On one connection: what comes again byte by byte, credential and all, is a replay."""
    body = json.dumps({"model": "minilm", "input": next(texts)}).encode()
    connection, replies, timings = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60), set(), []
    for _ in range(6):
        connection.request("POST", "/v1/embeddings", body, HEADERS)
        reply = connection.getresponse()
        replies.add(reply.read())
        timings.append(reply.headers["Server-Timing"])
    connection.close()
    assert len(replies) == 1
    assert timings[-1].startswith("replay")


def test_a_ticket_renders_what_was_asked(live: Live) -> None:
    """`Prefer: respond-async` gives a ticket whose result is the reply's body, byte for byte."""
    text = next(texts)
    status, told, ticket = embed(live, text, encoding_format="base64", headers={"Prefer": "respond-async"})
    assert status == 202
    status, _, result = live.ask("GET", f"{told['location']}/result", None, {"Prefer": "wait=30"})
    assert status == 200
    assert json.loads(result) == embed(live, text, encoding_format="base64")[2]
    assert ticket["model"] == "minilm"


def form(fields: dict[str, str], file: bytes) -> tuple[bytes, dict[str, str]]:
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    parts.append(f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n')
    body = "".join(parts).encode() + file + f"\r\n--{mark}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={mark}"}


def test_openais_own_batch_files_work(live: Live) -> None:
    """Upload, create, poll, fetch: each line has its answer or its error, in order."""
    lines = [
        {"custom_id": f"n{at}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": text}}
        for at, text in enumerate(itertools.islice(texts, 3))
    ]
    lines.append({**lines[0], "custom_id": "bad", "body": {"model": "nope", "input": "a"}})
    content = "\n".join(map(json.dumps, lines)).encode()
    status, _, told = live.post("/v1/files", *form({"purpose": "batch"}, content))
    file = json.loads(told)
    assert (status, file["object"], file["bytes"]) == (200, "file", len(content))
    assert live.get(f"/v1/files/{file['id']}/content")[2] == content
    created = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    status, _, told = live.post("/v1/batches", created, {"Content-Type": "application/json"})
    batch = json.loads(told)
    assert (status, batch["object"], batch["input_file_id"]) == (200, "batch", file["id"])
    live.ask("GET", f"/v2/predictions/{batch['id'].removeprefix('batch_')}", None, {"Prefer": "wait=30"})
    done = json.loads(live.get(f"/v1/batches/{batch['id']}")[2])
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 4, "completed": 3, "failed": 1})
    results = [json.loads(line) for line in live.get(f"/v1/files/{done['output_file_id']}/content")[2].splitlines()]
    assert [one["custom_id"] for one in results] == ["n0", "n1", "n2", "bad"]
    assert [len(one["response"]["body"]["data"][0]["embedding"]) for one in results[:3]] == [384] * 3
    assert results[3]["error"]["code"] == "unknown_model"
    assert live.ask("DELETE", f"/v1/files/{file['id']}", None, None)[0] == 200
    status, _, told = live.get(f"/v1/files/{file['id']}")
    assert (status, json.loads(told)["error"]["code"]) == (404, "not_found")
