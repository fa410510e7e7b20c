"""A fuzzer over HTTP at OpenAI's routes: embeddings, models, files and batches. Bounded, and the same on every run.

No request gets a 5xx, errors have OpenAI's form, and what is answered has a finite vector for each input.
`only-if-cached`, whose 504 a caller asks for, is left out.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import Live

FUZZED = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
WIDTH = 384
OUTPUT = "file-out_"

text = st.text(max_size=12) | st.sampled_from(["", " ", "\0", "\ud800", "a" * 4000, "é", "𝄞", "{", '"', "query"])
number = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**64, 10**30, -0.0])
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
ids = st.lists(st.integers(-1, 40_000), max_size=5)
given_input = text | st.lists(text, max_size=5) | ids | st.lists(ids | text, max_size=3) | value
fields = st.fixed_dictionaries(
    {"model": st.sampled_from(["minilm", "minilm", "fingerprint", "nope", "", "../x"]) | value, "input": given_input},
    optional={
        "encoding_format": st.sampled_from(["float", "base64", "hex", None]) | value,
        "dimensions": st.sampled_from([384, 128, 0, -1, None]) | value,
        "user": value,
        "input_type": st.sampled_from(["query", "passage"]) | value,
        "prompt_name": value,
        "stream": value,
        "\0": value,
    },
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Authorization": st.sampled_from(["Bearer sk-any", "Bearer", "Basic eA==", "Bearer \xff"]),
        "Content-Type": st.sampled_from(
            ["application/json", "text/plain", "multipart/form-data", "a/b; charset=utf-16"]
        ),
        "Cache-Control": st.sampled_from(["no-cache", "max-age=0", "max-age=x", "no-store"]),
        "Prefer": st.sampled_from(["respond-async", "wait=0", "wait=-1", "respond-async, wait=1"]),
        "Idempotency-Key": st.sampled_from(['"a"', "a", '"' + "x" * 300 + '"']),
        "Accept": st.sampled_from(["*/*", "text/html", "application/json;q=0"]),
        "X-Request-Id": st.sampled_from(["a", "a" * 500, "\xfc"]),
    },
)
CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress, "gzip ": gzip.compress, "br": lambda body: body}


def send(
    live: Live, method: str, path: str, body: bytes | None, more: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """One exchange, held against what is true of all of them."""
    status, told, answer = live.ask(method, path, body, more)
    assert status < 500, (status, method, path, body, more, answer[:500])
    if status >= 400 and method != "HEAD":
        error = json.loads(answer)["error"]
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["code"], str)
        assert isinstance(error["type"], str)
    return status, told, answer


def holds_vectors(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """A finite vector for each input, in order."""
    many = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    assert [one["index"] for one in answer["data"]] == list(range(len(many)))
    for one in answer["data"]:
        packed = one["embedding"]
        vector = struct.unpack(f"<{WIDTH}f", base64.b64decode(packed)) if isinstance(packed, str) else packed
        assert len(vector) == WIDTH
        assert all(map(math.isfinite, vector))


@FUZZED
@given(
    fields=fields,
    more=headers,
    coding=st.none() | st.sampled_from(sorted(CODINGS)),
    path=st.sampled_from(["/v1/embeddings", "/openai/v1/embeddings", "/v1/embeddings?a=%00", "/v1/embeddings/"]),
)
def test_embeddings(fields: dict[str, Any], more: dict[str, str], coding: str | None, path: str, live: Live) -> None:
    """Any fields, headers and codings."""
    body = json.dumps(fields).encode()
    if coding is not None:
        body, more = CODINGS[coding](body), {**more, "Content-Encoding": coding}
    status, _, answer = send(live, "POST", path, body, more)
    if status == 200:
        holds_vectors(json.loads(answer), fields)


@FUZZED
@given(fields=fields, at=st.integers(0, 400), cut=st.integers(0, 6), junk=st.binary(max_size=6))
def test_embeddings_by_bytes(fields: dict[str, Any], at: int, cut: int, junk: bytes, live: Live) -> None:
    """Bytes of a body are cut out, and others put in."""
    body = json.dumps(fields).encode()
    at %= len(body) + 1
    send(live, "POST", "/v1/embeddings", body[:at] + junk + body[at + cut :], {"Content-Type": "application/json"})


METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "QUERY", "X"]
one_id = st.sampled_from(
    ["minilm", "nope", "file-" + "0" * 32, "batch_x", OUTPUT + "x", OUTPUT, "batch_", "%00", "%FF", "..%2F", "a" * 5000]
)
routes = st.builds(
    str.__add__,
    st.sampled_from(["/v1", "/openai/v1"]),
    st.sampled_from(["/models", "/files", "/batches"])
    | st.builds("/models/{}".format, one_id)
    | st.builds("/files/{}".format, one_id)
    | st.builds("/files/{}/content".format, one_id)
    | st.builds("/batches/{}".format, one_id)
    | st.builds("/batches/{}/cancel".format, one_id),
)


@FUZZED
@given(method=st.sampled_from(METHODS), path=routes, body=st.none() | st.binary(max_size=40), more=headers)
def test_models_files_and_batches(method: str, path: str, body: bytes | None, more: dict[str, str], live: Live) -> None:
    """Any method at any of the routes, with ids that nothing has."""
    status, _, answer = live.ask(method, path, body, more)
    assert status < 500, (status, method, path, body, more, answer[:500])
    if status >= 400 and method != "HEAD":
        assert json.loads(answer)["error"]


parts = st.lists(
    st.tuples(
        st.sampled_from(
            [
                'name="file"; filename="in.jsonl"',
                'name="purpose"',
                'name="file"',
                "",
                'name="purpose"; filename="x"',
                'name="file"; filename="\xff\n"',
                'filename=""',
                "name=file; filename*=UTF-8''%ff",
            ]
        ),
        st.sampled_from([b"batch", b"fine-tune", b"", b'{"custom_id":"a"}\n', b"\xff\xfe", b"x" * 3000]),
    ),
    max_size=4,
)


@FUZZED
@given(
    parts=parts,
    said=st.sampled_from(["mark", "other", "", '"mark"', "mark; charset=x"]),
    ends=st.sampled_from([b"--mark--\r\n", b"--mark--", b"", b"--mark\r\n"]),
    more=headers,
)
def test_uploads(parts: list[tuple[str, bytes]], said: str, ends: bytes, more: dict[str, str], live: Live) -> None:
    """Forms with parts that are missing, doubled, unnamed, cut short."""
    body = b""
    for disposition, content in parts:
        head = f"--mark\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode("latin-1")
        body += head + content + b"\r\n"
    content_type = f"multipart/form-data; boundary={said}"
    status, _, answer = send(live, "POST", "/v1/files", body + ends, {**more, "Content-Type": content_type})
    if status == 200:
        assert live.ask("DELETE", f"/v1/files/{json.loads(answer)['id']}", None, None)[0] == 200


lines = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "custom_id": st.sampled_from(["a", "b", ""]) | value,
            "method": st.sampled_from(["POST", "GET"]) | value,
            "url": st.sampled_from(["/v1/embeddings", "/v1/files", "/v2/models/minilm/infer", "/metrics"]) | value,
            "body": fields | value,
        },
    )
    | value,
    max_size=3,
)


def upload(live: Live, content: bytes) -> str:
    body = (
        b'--mark\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--mark\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        + content
        + b"\r\n--mark--\r\n"
    )
    status, _, told = live.ask("POST", "/v1/files", body, {"Content-Type": "multipart/form-data; boundary=mark"})
    assert status == 200
    name: str = json.loads(told)["id"]
    return name


@settings(FUZZED, max_examples=60)
@given(
    lines=lines,
    junk=st.binary(max_size=5),
    created=st.fixed_dictionaries(
        {},
        optional={
            "endpoint": st.sampled_from(["/v1/embeddings", "/v1/chat/completions"]) | value,
            "completion_window": value,
            "metadata": st.dictionaries(text, text, max_size=2) | value,
            "input_file_id": value,
        },
    ),
)
def test_batches(lines: list[Any], junk: bytes, created: dict[str, Any], live: Live) -> None:
    """Any lines in the file, any fields of what creates the batch. One that is created ends with a line for each."""
    file = upload(live, b"\n".join(json.dumps(line).encode() for line in lines) + junk)
    body = json.dumps({"input_file_id": file, "endpoint": "/v1/embeddings", **created}).encode()
    status, _, told = send(live, "POST", "/v1/batches", body, {"Content-Type": "application/json"})
    if status == 200:
        name = json.loads(told)["id"]
        live.ask("GET", f"/v2/predictions/{name.removeprefix('batch_')}", None, {"Prefer": "wait=30"})
        _, _, told = send(live, "GET", f"/v1/batches/{name}", None, {})
        batch = json.loads(told)
        assert batch["status"] in ("completed", "failed")
        content = send(live, "GET", f"/v1/files/{batch['output_file_id']}/content", None, {})[2]
        assert len(content.splitlines()) == batch["request_counts"]["total"]
    assert live.ask("DELETE", f"/v1/files/{file}", None, None)[0] == 200
