"""Every wire fact of the Open Inference Protocol and its extensions that breaks a real client when it is wrong."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import http_sf
import ml_dtypes
import numpy as np
import pytest

from foreseen.errors import BadInput, BadRequest, TooLarge
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.protocol.wire import parse_raw, parse_request
from foreseen.protocol.wire_render import OutputTensor, render_response
from foreseen.types import WantedOutput
from foreseen.web.bodies import inflated
from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.raw import FINGERPRINT, HEADER_LENGTH, MINILM, Reply, ask, binary, exchange, post

X = {"name": "x", "shape": [1, 16], "datatype": "INT64"}


def tensor(datatype: str, shape: list[int], data: Any, name: str = "x") -> bytes:
    """A JSON body of one input, for the tests without a socket."""
    return json.dumps({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}).encode()


def array(body: bytes, header_length: int | None = None) -> np.ndarray:
    return parse_request(body, header_length).inputs[0].array


def digests(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.body
    return reply.outputs["digest"]["data"]


def refused(reply: Reply, status: int, code: str) -> str:
    """The message of an error that is exactly what the contract says an error is."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["server"] == "foreseen"
    assert set(reply.document) == {"error", "code"}
    assert reply.document["code"] == code
    return reply.document["error"]


# 1.1 Paths


def test_server_metadata_has_two_addresses(live: Live) -> None:
    """`/v2` and `/v2/` are one: the OpenAPI file writes the latter."""
    told = ask(live, "GET", "/v2")
    assert ask(live, "GET", "/v2/").body == told.body
    assert told.document["name"] == "foreseen"
    assert {"binary_tensor_data", "classification", "model_configuration", "statistics"} <= set(
        told.document["extensions"]
    )


def test_health_bodies_name_both_words(live: Live) -> None:
    """Readiness says `ready` and `live`, since the specification prints one and KServe serves the other."""
    assert ask(live, "GET", "/v2/health/ready").document == {"ready": True, "live": True}
    assert ask(live, "GET", "/v2/health/live").document["live"] is True


def test_percent_encoded_model_names_are_decoded(live: Live) -> None:
    """Clients send names through `quote()`, so `%66ingerprint` is fingerprint, and `%2F` stays part of a name."""
    x = numbers(2001)
    assert digests(post(live, "/v2/models/%66ingerprint/infer", ask_fingerprint(x))) == fingerprint(x)
    unknown = ask(live, "GET", "/v2/models/team%2Fmodel")
    assert refused(unknown, 404, "unknown_model") == "Request for unknown model: 'team/model' is not found"


def test_versions_are_integers(live: Live) -> None:
    """perf_analyzer reads versions with `stoll`, and asking with the version is the same as asking without."""
    (version,) = ask(live, "GET", "/v2/models/fingerprint").document["versions"]
    assert re.fullmatch("[0-9]+", version)
    question = ask_fingerprint(numbers(2002))
    plain = post(live, FINGERPRINT, question)
    assert post(live, f"/v2/models/fingerprint/versions/{version}/infer", question).body == plain.body
    for suffix in ("", "/ready", "/config", "/stats"):
        assert ask(live, "GET", f"/v2/models/fingerprint/versions/{version}{suffix}").status == 200
        assert ask(live, "GET", f"/v2/models/fingerprint{suffix}").status == 200


def test_an_unknown_model_or_version_is_404_with_the_words_that_clients_assert(live: Live) -> None:
    """Two of Triton's example clients assert how the message starts."""
    for reply in (
        post(live, "/v2/models/nobody/infer", ask_fingerprint(numbers(2003))),
        ask(live, "GET", "/v2/models/nobody"),
        ask(live, "GET", "/v2/models/nobody/config"),
        ask(live, "GET", "/v2/models/nobody/stats"),
        ask(live, "GET", "/v2/models/nobody/ready"),
        post(live, "/v1/models/nobody:predict", {"instances": []}),
    ):
        assert refused(reply, 404, "unknown_model").startswith("Request for unknown model: 'nobody' is not found")
    reply = post(live, "/v2/models/fingerprint/versions/9/infer", ask_fingerprint(numbers(2003)))
    assert refused(reply, 404, "unknown_model").startswith("Request for unknown model: 'fingerprint'")


@pytest.mark.parametrize("query", ["?test_1=1&test_2=2", "?", "?a&=&b==", "?%ff%00"])
def test_query_strings_are_ignored(live: Live, query: str) -> None:
    """The example clients add a query to every call; it changes nothing, not even the entry."""
    question = ask_fingerprint(numbers(2004))
    plain = post(live, FINGERPRINT, question)
    asked = post(live, FINGERPRINT + query, question)
    assert asked.body == plain.body
    assert asked.hit
    assert ask(live, "GET", "/v2/models/fingerprint" + query).status == 200


def test_what_is_left_out_answers_404_as_json(live: Live) -> None:
    """Generate, shared memory, tracing and logging, and every other path, are a 404 with `error`."""
    for method, path in (
        ("POST", "/v2/models/minilm/generate"),
        ("POST", "/v2/models/minilm/generate_stream"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/repository/models/minilm/load"),
        ("GET", "/v2/models/minilm/"),
        ("GET", "/favicon.ico"),
    ):
        refused(ask(live, method, path, b"{}" if method == "POST" else None), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", FINGERPRINT, {"POST", "QUERY"}),
        ("DELETE", FINGERPRINT, {"POST", "QUERY"}),
        ("OPTIONS", FINGERPRINT, {"POST", "QUERY"}),
        ("PUT", "/v1/models/fingerprint:predict", {"POST", "QUERY"}),
        ("GET", "/v1/models/fingerprint/versions/1:predict", {"POST", "QUERY"}),
        ("POST", "/v2", {"GET", "HEAD"}),
        ("POST", "/v2/models/minilm", {"GET", "HEAD"}),
        ("PATCH", "/metrics", {"GET", "HEAD"}),
        ("GET", "/v2/repository/index", {"POST"}),
    ],
)
def test_another_method_is_405_and_says_which_are_allowed(
    live: Live, method: str, path: str, allowed: set[str]
) -> None:
    """RFC 9110 wants `Allow` in a 405."""
    reply = ask(live, method, path)
    refused(reply, 405, "method_not_allowed")
    assert {word.strip() for word in reply.headers["allow"].split(",")} == allowed


def test_query_is_post(live: Live) -> None:
    """The safe method QUERY asks what POST asks, for the same entry."""
    question = ask_fingerprint(numbers(2005))
    first = post(live, FINGERPRINT, question)
    second = ask(live, "QUERY", FINGERPRINT, question)
    assert (second.status, second.hit, second.body) == (200, True, first.body)


def test_head_is_get_without_a_body(live: Live) -> None:
    """HEAD has the headers of GET, its Content-Length too, and the connection is good for the next request."""
    request = b"HEAD /v2 HTTP/1.1\r\nHost: a\r\n\r\nGET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    head, get = exchange(live, request, head=(0,))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(get.body))


# 1.2 Bodies


def test_unknown_members_are_ignored(live: Live) -> None:
    """KServe and Triton's examples send `model_name`; nobody's extra member is an error or part of the key."""
    x = numbers(2006)
    first = post(live, FINGERPRINT, ask_fingerprint(x))
    question = ask_fingerprint(x)
    question["inputs"][0]["comment"] = {"a": [1]}
    again = post(live, FINGERPRINT, {**question, "model_name": "other", "more": [{}]})
    assert (again.body, again.hit) == (first.body, True)


def test_an_empty_id_is_no_id_and_an_id_is_echoed(live: Live) -> None:
    """perf_analyzer sends `"id": ""`; a given id comes back, and neither is part of the key."""
    question = ask_fingerprint(numbers(2007))
    first = post(live, FINGERPRINT, question)
    assert "id" not in first.document
    assert post(live, FINGERPRINT, {**question, "id": ""}).body == first.body
    assert post(live, FINGERPRINT, {**question, "id": None}).body == first.body
    for one in ("42", "é \u2028", "0b1e0f4c-5f8e-4b1c-8a51-2d3c3a0f9f55"):
        echoed = post(live, FINGERPRINT, {**question, "id": one})
        assert (echoed.document["id"], echoed.hit) == (one, True)
        assert {k: v for k, v in echoed.document.items() if k != "id"} == first.document


def test_a_response_has_what_clients_insist_on(live: Live) -> None:
    """`model_name`, an integer version as a string, and of each output name, datatype, shape and data."""
    told = post(live, FINGERPRINT, ask_fingerprint(numbers(2008))).document
    assert (told["model_name"], told["model_version"]) == ("fingerprint", "1")
    assert [(o["name"], o["datatype"], o["shape"]) for o in told["outputs"]] == [
        ("digest", "INT64", [1, 4]),
        ("seal", "INT64", [1, 1]),
    ]
    assert all("parameters" not in output for output in told["outputs"]), "the C++ client then wants a binary size"


def test_data_comes_flat_and_may_go_flat_or_nested(live: Live) -> None:
    """Triton's C++ client sizes its buffers by the outer list, so data is flat; requests may nest, for one entry."""
    rows = [numbers(2009), numbers(2010)]
    flat = post(live, FINGERPRINT, ask_fingerprint(*rows))
    assert digests(flat) == fingerprint(rows[0]) + fingerprint(rows[1])
    nested = {"inputs": [{**X, "shape": [2, 16], "data": rows}]}
    again = post(live, FINGERPRINT, nested)
    assert (again.body, again.hit) == (flat.body, True)


@pytest.mark.parametrize("wrong", [[[1] * 8, [1] * 8], [[1] * 15], [[[1]] * 16], [1] * 15, [1] * 17, [[1] * 16] * 2])
def test_data_that_is_not_what_the_shape_says_is_refused(live: Live, wrong: list[Any]) -> None:
    """A count or a nesting that disagrees with the shape is a 400 that names the input."""
    message = refused(post(live, FINGERPRINT, {"inputs": [{**X, "data": wrong}]}), 400, "bad_input")
    assert message.startswith("inputs[0].data")


def test_model_metadata(live: Live) -> None:
    """Open dimensions are -1, the platform is one of the specification's list, text is BYTES, one a row [-1, 1]."""
    told = ask(live, "GET", "/v2/models/minilm").document
    assert (told["name"], told["platform"]) == ("minilm", "onnx_onnxv1")
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    assert ask(live, "GET", "/v2/models/fingerprint").document["inputs"][0]["shape"] == [-1, 16]


def test_an_integer_may_be_spelled_as_a_float(live: Live) -> None:
    """JavaScript and Go print 1.0 as 1 and C++ 1 as 1.0: the same number is the same entry, another is refused."""
    first = post(live, FINGERPRINT, ask_fingerprint(list(range(16))))
    again = post(live, FINGERPRINT, {"inputs": [{**X, "data": [float(i) for i in range(16)]}]})
    assert (again.body, again.hit) == (first.body, True)
    for number in (1.5, 2**63, -(2**63) - 1, 2.0**53 + 2, 1e300, True, None, "1"):
        refused(post(live, FINGERPRINT, {"inputs": [{**X, "data": [number] * 16}]}), 400, "bad_input")


# 1.3 Datatypes


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("BYTES", "BF16", "BOOL")])
def test_every_number_survives_the_wire(name: str) -> None:
    """The extremes of every datatype, as binary and as JSON, come out as they went in."""
    datatype = DATATYPES[name]
    limits = np.iinfo(datatype.dtype) if datatype.kind == "i" else np.finfo(datatype.dtype)  # type: ignore[arg-type]
    values = np.array([limits.min, 0, 1, limits.max], datatype.dtype)
    body, headers = binary([{"name": "x", "shape": [4], "datatype": name}], values.tobytes())
    assert array(body, int(headers[HEADER_LENGTH])).tobytes() == values.tobytes()
    raw, _ = render_response("m", "1", None, [OutputTensor("y", name, (4,), values.tobytes(), binary=False)])
    printed = json.loads(raw)["outputs"][0]["data"]
    assert array(tensor(name, [4], printed)).tobytes() == values.tobytes()


def test_fp16_and_bf16_travel_as_two_bytes_or_as_numbers() -> None:
    """FP16 in JSON is taken leniently, both go out as binary, and as JSON numbers only if asked for JSON."""
    for name, dtype in (("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        values = np.array([0.5, -2.0, 100.0], dtype)
        assert (array(tensor(name, [3], [0.5, -2, 1e2])) == values).all()
        body, length = render_response("m", "1", None, [OutputTensor("y", name, (3,), values.tobytes(), binary=True)])
        assert body[length:] == values.tobytes()
        body, _ = render_response("m", "1", None, [OutputTensor("y", name, (3,), values.tobytes(), binary=False)])
        assert json.loads(body)["outputs"][0]["data"] == [0.5, -2.0, 100.0]
    with pytest.raises(BadInput, match="overflows FP16"):
        array(tensor("FP16", [1], [70000.0]))


def test_bool_is_a_byte_of_0_or_1() -> None:
    """As JSON `true` and `false` only; another byte, which NumPy would keep as it is, is refused."""
    assert array(tensor("BOOL", [2], [True, False])).tolist() == [True, False]
    body, headers = binary([{"name": "x", "shape": [2], "datatype": "BOOL"}], b"\x01\x00")
    assert array(body, int(headers[HEADER_LENGTH])).tolist() == [True, False]
    with pytest.raises(BadInput, match="BOOL byte"):
        array(body[:-1] + b"\x02", int(headers[HEADER_LENGTH]))
    with pytest.raises(BadInput, match="true and false"):
        array(tensor("BOOL", [1], [1]))


def test_bytes_elements_stand_behind_four_bytes_of_length(live: Live) -> None:
    """A JSON string and its length-prefixed UTF-8 are one element, of one entry."""
    text = "Wire, draht, filo, 電線 \U0001f50c"
    first = post(live, MINILM, ask_minilm(text))
    raw = len(text.encode()).to_bytes(4, "little") + text.encode()
    body, headers = binary([{"name": "text", "shape": [1], "datatype": "BYTES"}], raw)
    again = ask(live, "POST", MINILM, body, headers)
    assert (again.hit, again.body) == (True, first.body)
    for wrong in (raw[:-1], raw + b"\0", b"\xff\xff\xff\xff", raw[:3], b""):
        body, headers = binary([{"name": "text", "shape": [1], "datatype": "BYTES"}], wrong)
        refused(ask(live, "POST", MINILM, body, headers), 400, "bad_input")


def test_text_that_is_not_utf_8_is_refused_in_both_directions(live: Live) -> None:
    """Never mojibake: as input to a text model a 400, as output wanted as JSON a 400, as binary it is fine."""
    body, headers = binary([{"name": "text", "shape": [1], "datatype": "BYTES"}], b"\x02\0\0\0\xff\xfe")
    assert "UTF-8" in refused(ask(live, "POST", MINILM, body, headers), 400, "bad_input")
    raw = b"\x01\0\0\0\xff"
    with pytest.raises(BadRequest, match="UTF-8"):
        render_response("m", "1", None, [OutputTensor("y", "BYTES", (1,), raw, binary=False)])
    body, length = render_response("m", "1", None, [OutputTensor("y", "BYTES", (1,), raw, binary=True)])
    assert body[length:] == raw


# 1.4 Binary tensors


def test_binary_and_json_are_one_question(live: Live) -> None:
    """The encoding is not part of the key: the second way of asking is a hit with the same numbers."""
    x = numbers(2011)
    first = post(live, FINGERPRINT, ask_fingerprint(x))
    body, headers = binary([X], struct.pack("<16q", *x), parameters={"binary_data_output": True})
    again = ask(live, "POST", FINGERPRINT, body, headers)
    assert (first.hit, again.hit) == (False, True)
    assert again.headers["content-type"] == "application/octet-stream"
    sizes = [output["parameters"]["binary_data_size"] for output in again.document["outputs"]]
    assert sizes == [32, 8]
    assert "data" not in again.outputs["digest"]
    assert list(struct.unpack("<4qq", again.tail)) == [*fingerprint(x), 1]


def test_which_outputs_and_how_is_the_askers_choice(live: Live) -> None:
    """The flag of an output wins over that of the request; selection keeps the order that was asked for."""
    question = ask_fingerprint(numbers(2012))
    wanted = [{"name": "seal"}, {"name": "digest", "parameters": {"binary_data": False}}]
    mixed = post(live, FINGERPRINT, {**question, "outputs": wanted, "parameters": {"binary_data_output": True}})
    assert list(mixed.outputs) == ["seal", "digest"]
    assert mixed.tail == (1).to_bytes(8, "little")
    assert digests(mixed) == fingerprint(numbers(2012))
    one = post(live, FINGERPRINT, {**question, "outputs": [{"name": "seal"}]})
    assert (list(one.outputs), one.hit) == (["seal"], True)
    assert (one.headers["content-type"], HEADER_LENGTH.lower() in one.headers) == ("application/json", False)
    assert list(post(live, FINGERPRINT, {**question, "outputs": []}).outputs) == ["digest", "seal"]
    message = refused(post(live, FINGERPRINT, {**question, "outputs": [{"name": "no"}]}), 400, "bad_request")
    assert message.startswith("outputs.no")


def test_the_header_length_may_stand_on_a_body_that_is_all_json(live: Live) -> None:
    """The C++ client always sends it."""
    body = json.dumps(ask_fingerprint(numbers(2013))).encode()
    assert digests(ask(live, "POST", FINGERPRINT, body, {HEADER_LENGTH: str(len(body))})) == fingerprint(numbers(2013))


def test_the_header_length_counts_decoded_bytes(live: Live) -> None:
    """tritonclient compresses JSON and tensors as one blob; the number is of the bytes inside."""
    x = numbers(2014)
    body, headers = binary([X], struct.pack("<16q", *x))
    for coding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        reply = ask(live, "POST", FINGERPRINT, packed, headers | {"Content-Encoding": coding})
        assert digests(reply) == fingerprint(x)


@pytest.mark.parametrize("length", ["-1", "+5", "1e2", "0x10", "abc", "", "5,5", "9" * 12, "9" * 13, "1", "٣"])
def test_a_header_length_that_is_none_is_refused(live: Live, length: str) -> None:
    """Also one behind the end of the body, and one that cuts the JSON."""
    body = json.dumps(ask_fingerprint(numbers(2015))).encode()
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}{HEADER_LENGTH}: {length}\r\n\r\n".encode() + body
    (reply,) = exchange(live, request)
    refused(reply, 400, "bad_request")


def test_a_header_that_is_given_twice_is_refused(live: Live) -> None:
    """Two readers could take different ones, of the length as of the coding."""
    body = json.dumps(ask_fingerprint(numbers(2016))).encode()
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    twice = f"{HEADER_LENGTH}: {len(body)}\r\n{HEADER_LENGTH}: 5\r\n\r\n"
    (reply,) = exchange(live, (head + twice).encode() + body)
    refused(reply, 400, "bad_request")
    twice = "Content-Encoding: identity\r\nContent-Encoding: br\r\n\r\n"
    (reply,) = exchange(live, (head + twice).encode() + body)
    refused(reply, 415, "unsupported_coding")


def test_json_and_binary_inputs_mix_in_one_request() -> None:
    """Triton's example client does so on purpose; tensors follow in the order of the inputs that are binary."""
    body, headers = binary(
        [
            {"name": "a", "shape": [2], "datatype": "INT32"},
            {"name": "b", "shape": [1], "datatype": "FP32", "data": [1.5]},
            {"name": "c", "shape": [2], "datatype": "BYTES"},
        ],
        struct.pack("<2i", 7, -7),
        b"\x01\0\0\0a\0\0\0\0",
    )
    inputs = parse_request(body, int(headers[HEADER_LENGTH])).inputs
    assert [(t.name, t.array.tolist()) for t in inputs] == [("a", [7, -7]), ("b", [1.5]), ("c", [b"a", b""])]


def test_a_binary_size_may_be_left_out(live: Live) -> None:
    """It follows from the shape, as OpenVINO's server allows."""
    x = numbers(2017)
    head = json.dumps({"inputs": [X]}).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    assert digests(ask(live, "POST", FINGERPRINT, head + struct.pack("<16q", *x), headers)) == fingerprint(x)


@pytest.mark.parametrize("raw", [b"", b"\0" * 127, b"\0" * 129, b"\0" * 256])
def test_binary_data_of_another_size_is_refused(live: Live, raw: bytes) -> None:
    """Too few or too many bytes for the shape, and bytes behind the last tensor."""
    body, headers = binary([X], raw)
    refused(ask(live, "POST", FINGERPRINT, body, headers), 400, "bad_input")
    body, headers = binary([X], b"\0" * 128)
    refused(ask(live, "POST", FINGERPRINT, body + b"\0", headers), 400, "bad_request")


def test_raw_binary_is_the_one_inputs_bytes(live: Live) -> None:
    """A header length of 0 makes the whole body the input, and all outputs come back binary."""
    rows = [numbers(2018), numbers(2019)]
    reply = ask(live, "POST", FINGERPRINT, struct.pack("<32q", *rows[0], *rows[1]), {HEADER_LENGTH: "0"})
    assert reply.outputs["digest"]["shape"] == [2, 4]
    assert list(struct.unpack("<8q", reply.tail[:64])) == fingerprint(rows[0]) + fingerprint(rows[1])
    text = ask(live, "POST", MINILM, b"raw text is one element", {HEADER_LENGTH: "0"})
    assert text.outputs["embedding"]["shape"] == [1, 384]
    assert post(live, MINILM, ask_minilm("raw text is one element")).hit
    refused(ask(live, "POST", FINGERPRINT, b"\0" * 127, {HEADER_LENGTH: "0"}), 400, "bad_input")
    with pytest.raises(BadRequest, match="cannot hold"):
        parse_raw(b"", "x", "FP32", [-1, -1])


def test_no_rows_are_an_answer(live: Live) -> None:
    """A batch of none is 200 with empty outputs of the right shape, whatever the encoding, and claims no hit."""
    empty = {**X, "shape": [0, 16]}
    as_json = post(live, FINGERPRINT, {"inputs": [{**empty, "data": []}]})
    assert [o["shape"] for o in as_json.document["outputs"]] == [[0, 4], [0, 1]]
    assert [o["data"] for o in as_json.document["outputs"]] == [[], []]
    body, headers = binary([empty], b"", parameters={"binary_data_output": True})
    as_binary = ask(live, "POST", FINGERPRINT, body, headers)
    assert [o["parameters"] for o in as_binary.document["outputs"]] == [{"binary_data_size": 0}] * 2
    assert as_binary.tail == b""
    assert "cache-status" not in as_json.headers
    assert post(live, MINILM, ask_minilm()).outputs["embedding"]["shape"] == [0, 384]


def test_a_request_asks_for_binary_where_it_says_so() -> None:
    """The parsed wish: flags by output and by request; anything but true or false is refused."""
    asked = json.loads(tensor("INT64", [0], []))
    wanted = [{"name": "y", "parameters": {"binary_data": True, "classification": 3}}, {"name": "z"}]
    request = parse_request(json.dumps({**asked, "outputs": wanted}).encode(), None)
    assert request.outputs == (WantedOutput("y", True, 3), WantedOutput("z"))
    for wrong in (1, "true", []):
        with pytest.raises(BadRequest, match="true or false"):
            parse_request(json.dumps({**asked, "parameters": {"binary_data_output": wrong}}).encode(), None)


# 1.5 Other extensions


def test_classification_is_made_of_the_cached_tensor(live: Live) -> None:
    """The n best as BYTES "value:index" of shape [rows, n], from the entry that the plain question made."""
    x = numbers(2020)
    digest = digests(post(live, FINGERPRINT, ask_fingerprint(x)))
    question = ask_fingerprint(x) | {"outputs": [{"name": "digest", "parameters": {"classification": 2}}]}
    reply = post(live, FINGERPRINT, question)
    best = sorted(range(4), key=lambda at: -digest[at])[:2]
    assert reply.hit
    assert reply.outputs["digest"] == {
        "name": "digest",
        "datatype": "BYTES",
        "shape": [1, 2],
        "data": [f"{digest[at]}:{at}" for at in best],
    }
    question["outputs"][0]["parameters"]["classification"] = 100
    assert post(live, FINGERPRINT, question).outputs["digest"]["shape"] == [1, 4]


def test_classification_prints_floats_as_triton_does(live: Live) -> None:
    """Six decimals, `std::to_string`."""
    question = ask_minilm("six decimals") | {"outputs": [{"name": "embedding", "parameters": {"classification": 3}}]}
    data = post(live, MINILM, question).outputs["embedding"]["data"]
    assert all(re.fullmatch(r"-?\d\.\d{6}:\d+", one) for one in data)
    assert len(data) == 3


def test_the_classes_of_no_rows_are_none(live: Live) -> None:
    """Nothing to rank is not an error."""
    question = {
        "inputs": [{**X, "shape": [0, 16], "data": []}],
        "outputs": [{"name": "digest", "parameters": {"classification": 2}}],
    }
    reply = post(live, FINGERPRINT, question)
    assert reply.outputs["digest"] == {"name": "digest", "datatype": "BYTES", "shape": [0, 2], "data": []}


def test_parameters_that_change_nothing_are_not_in_the_key(live: Live) -> None:
    """Priority, timeout and what Triton reserves share the entry; an unknown one, which may matter, does not."""
    question = ask_fingerprint(numbers(2021))
    first = post(live, FINGERPRINT, question)
    for name, value in (("priority", 3), ("timeout", 20_000_000), ("triton_final", True), ("headers", "x")):
        again = post(live, FINGERPRINT, {**question, "parameters": {name: value}})
        assert (name, again.hit, again.body) == (name, True, first.body)
    assert not post(live, FINGERPRINT, {**question, "parameters": {"temperature": 0.5}}).hit
    assert post(live, FINGERPRINT, {**question, "parameters": {"temperature": 0.5}}).hit


def test_a_sequence_is_never_served_from_the_cache(live: Live) -> None:
    """`sequence_id` makes a request stateful."""
    question = {**ask_fingerprint(numbers(2022)), "parameters": {"sequence_id": 5, "sequence_start": True}}
    for _ in range(2):
        reply = post(live, FINGERPRINT, question)
        assert digests(reply) == fingerprint(numbers(2022))
        assert reply.headers["cache-status"] == "foreseen;fwd=bypass;detail=sequence"


def test_parameters_nested_too_deep_for_the_model_are_refused(live: Live) -> None:
    """The request to the model holds them one level deeper than the client's: no depth in between may be a 5xx."""
    answered = []
    for depth in (3, *range(248, 258), 900):
        deep = "[" * depth + "]" * depth
        body = '{"parameters": {"deep": ' + deep + "}, " + json.dumps(ask_fingerprint(numbers(2023)))[1:]
        reply = post(live, FINGERPRINT, body.encode())
        answered.append(reply.status)
        assert reply.status == 200 or refused(reply, 400, "bad_request").startswith("parameters")
    assert sorted(answered) == answered


def test_config_is_what_perf_analyzer_strips_the_batch_by(live: Live) -> None:
    """`max_batch_size` above 0 with dims that leave the first dimension out, and Triton's names of datatypes."""
    told = ask(live, "GET", "/v2/models/fingerprint/config").document
    assert told["max_batch_size"] > 0
    assert told["input"] == [{"name": "x", "data_type": "TYPE_INT64", "dims": [16]}]
    assert [output["dims"] for output in told["output"]] == [[4], [1]]
    told = ask(live, "GET", "/v2/models/minilm/config").document
    assert told["input"][0]["data_type"] == "TYPE_STRING"
    assert told["response_cache"] == {"enable": True}


@pytest.mark.parametrize("model", ["minilm", "fingerprint"])
def test_config_and_metadata_agree(live: Live, model: str) -> None:
    """What perf_analyzer takes the shape of a row from: dims are the metadata's shape without the batch; no input has
    rows of no dimension, which Triton's clients cannot send."""
    config = ask(live, "GET", f"/v2/models/{model}/config").document
    metadata = ask(live, "GET", f"/v2/models/{model}").document
    for mine, theirs in (("input", "inputs"), ("output", "outputs")):
        dims = {tensor["name"]: tensor["dims"] for tensor in config[mine]}
        assert dims == {tensor["name"]: tensor["shape"][1:] for tensor in metadata[theirs]}
    assert all(tensor["dims"] for tensor in config["input"])


def test_texts_of_one_column_are_the_same_question(live: Live) -> None:
    """Shape [N, 1], as config and metadata have it, finds what shape [N] has stored, and the other way round."""
    for stored, asked in (([2], [2, 1]), ([2, 1], [2])):
        texts = [f"as Triton's clients send it {stored} {number}" for number in range(2)]
        tensors = [{"name": "text", "datatype": "BYTES", "shape": shape, "data": texts} for shape in (stored, asked)]
        first, second = (post(live, "/v2/models/minilm/infer", {"inputs": [tensor]}) for tensor in tensors)
        assert (first.status, second.status) == (200, 200)
        assert second.headers["cache-status"].startswith("foreseen;hit")
        assert first.document["outputs"] == second.document["outputs"]
    wide = {"name": "text", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}
    refused(post(live, "/v2/models/minilm/infer", {"inputs": [wide]}), 400, "bad_input")


def test_compute_counts_are_equal(live: Live) -> None:
    """perf_analyzer ends with "compute counts must be the same" where they are not; the model's process, too."""
    post(live, FINGERPRINT, ask_fingerprint(numbers(2025)))
    model = ask(live, "GET", "/v2/models/fingerprint/stats").document["model_stats"][0]["inference_stats"]
    assert len({model[f"compute_{part}"]["count"] for part in ("input", "infer", "output")}) == 1
    assert model["compute_infer"]["count"] > 0


def test_statistics_count_hits_as_triton_does(live: Live) -> None:
    """`success` includes hits, `inference_count` does not; one model or all of them have the same form."""

    def stats() -> dict[str, Any]:
        return ask(live, "GET", "/v2/models/fingerprint/stats").document["model_stats"][0]

    question = ask_fingerprint(numbers(2024))
    before = stats()
    post(live, FINGERPRINT, question)
    missed = stats()
    post(live, FINGERPRINT, question)
    after = stats()

    def rise(first: dict[str, Any], second: dict[str, Any]) -> list[int]:
        parts = [(s["inference_stats"], s["inference_count"]) for s in (first, second)]
        return [
            *(parts[1][0][part]["count"] - parts[0][0][part]["count"] for part in ("success", "cache_hit")),
            parts[1][0]["cache_miss"]["count"] - parts[0][0]["cache_miss"]["count"],
            parts[1][1] - parts[0][1],
        ]

    assert (rise(before, missed), rise(missed, after)) == ([1, 0, 1, 1], [1, 1, 0, 0])
    kinds = "success fail queue compute_input compute_infer compute_output cache_hit cache_miss"
    assert set(after["inference_stats"]) == set(kinds.split())
    assert all(set(one) == {"count", "ns"} for one in after["inference_stats"].values())
    everyone = ask(live, "GET", "/v2/models/stats").document["model_stats"]
    assert [one["name"] for one in everyone] == ["minilm", "fingerprint"]


def test_the_lists_of_models(live: Live) -> None:
    """KServe's list, Triton's repository index and V1's list name the same models."""
    names = ["minilm", "fingerprint"]
    assert ask(live, "GET", "/v2/models").document == {"models": names}
    listed = ask(live, "GET", "/v1/models").document
    assert (listed["models"], [one["id"] for one in listed["data"]]) == (names, names)
    index = post(live, "/v2/repository/index", {}).document
    assert [(one["name"], one["version"], one["state"]) for one in index] == [(name, "1", "READY") for name in names]


# Compression


def test_deflate_is_the_zlib_container(live: Live) -> None:
    """As HTTP says; the bare stream that some clients send under that name is understood too."""
    body = json.dumps(ask_fingerprint(numbers(2025))).encode()
    bare = zlib.compressobj(wbits=-15)
    for packed in (zlib.compress(body), bare.compress(body) + bare.flush()):
        assert digests(post(live, FINGERPRINT, packed, content_encoding="deflate")) == fingerprint(numbers(2025))


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "deflate,gzip", "aes128gcm"])
def test_another_coding_is_415_and_says_which_are_understood(live: Live, coding: str) -> None:
    """RFC 9110 section 12.5.3; nothing is taken for text that was not decoded."""
    body = json.dumps(ask_fingerprint(numbers(2026))).encode()
    reply = post(live, FINGERPRINT, body, content_encoding=coding)
    refused(reply, 415, "unsupported_coding")
    assert reply.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("coding", ["x-gzip", "X-GZip", "GZIP"])
def test_gzip_by_its_other_name(live: Live, coding: str) -> None:
    """RFC 9110 section 8.4.1.3: x-gzip is gzip; names of codings have no case."""
    body = gzip.compress(json.dumps(ask_fingerprint(numbers(2028))).encode())
    assert digests(post(live, FINGERPRINT, body, content_encoding=coding)) == fingerprint(numbers(2028))


def test_a_damaged_compressed_body_is_refused(live: Live) -> None:
    """Cut off anywhere, also in the checksum behind the data; a flipped bit; not compressed at all; more behind."""
    body = json.dumps(ask_fingerprint(numbers(2027))).encode()
    packed = gzip.compress(body)
    flipped = bytearray(packed)
    flipped[-5] ^= 1
    for wrong in (packed[:-1], packed[:-8], packed[:40], packed[:5], bytes(flipped), body, packed + b"more", b""):
        refused(post(live, FINGERPRINT, wrong, content_encoding="gzip"), 400, "bad_request")
    packed = zlib.compress(body)
    for wrong in (packed[:-1], packed[:-4], packed[:40], packed + packed):
        refused(post(live, FINGERPRINT, wrong, content_encoding="deflate"), 400, "bad_request")


def test_inflating_is_bounded_whatever_the_form() -> None:
    """By the decoded size to the byte, over all members of a gzip body, and by the number of members."""
    text = b"foreseen" * 1000
    for coding, packed in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text))):
        assert inflated(packed, coding, len(text)) == text
        with pytest.raises(TooLarge):
            inflated(packed, coding, len(text) - 1)
    members = gzip.compress(text[:4000]) + gzip.compress(b"") + gzip.compress(text[4000:])
    assert inflated(members, "gzip", len(text)) == text
    with pytest.raises(TooLarge):
        inflated(members, "gzip", len(text) - 1)
    with pytest.raises(BadRequest, match="more data follows"):
        inflated(gzip.compress(b"") * 100_000, "gzip", len(text))


def test_a_bomb_is_413(live: Live) -> None:
    """72 MB in 70 kB: refused at the limit, which is on the decoded size, and the proxy stays what it was."""
    packer = zlib.compressobj(wbits=31)
    spaces = b" " * 2**20
    bomb = b"".join(packer.compress(spaces) for _ in range(72)) + packer.flush()
    assert len(bomb) < 100_000
    assert "67108864" in refused(post(live, FINGERPRINT, bomb, content_encoding="gzip"), 413, "too_large")


def test_replies_are_compressed_only_where_asked(live: Live) -> None:
    """Whatever a client offers, a reply that it cannot read, br or zstd, never comes."""
    question = ask_minilm("only what was asked for")
    plain = post(live, MINILM, question)
    assert "content-encoding" not in plain.headers
    inflate = {"gzip": gzip.decompress, "deflate": zlib.decompress}
    for offered in ("gzip", "deflate", "gzip, deflate", "gzip, deflate, br, zstd", "br", "zstd", "*", "", "gzip;q=0"):
        reply = post(live, MINILM, question, accept_encoding=offered)
        coding = reply.headers.get("content-encoding", "identity")
        assert coding == "identity" or coding in offered
        assert coding in ("identity", *inflate)
        assert inflate.get(coding, bytes)(reply.body) == plain.body


# 1.6 Limits and HTTP itself


def test_a_larger_body_is_413_before_it_is_read(live: Live) -> None:
    """A Content-Length above the limit is refused though not a byte of the body has come; chunks at the limit."""
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\n"
    (reply,) = exchange(live, f"{head}Content-Length: {2**26 + 1}\r\n\r\n".encode(), 1)
    assert "67108864" in refused(reply, 413, "too_large")
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    (reply,) = exchange(live, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 65, 1)
    refused(reply, 413, "too_large")


@pytest.fixture(scope="module")
def impatient(built: Path) -> Iterator[Live]:
    """A system that waits a quarter of a second for a body."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started(built, Path(folder) / "data", "--body-seconds=0.25", models=("fingerprint",)) as system,
    ):
        yield system


def test_a_slow_body_is_408(impatient: Live) -> None:
    """A body that stops coming holds a connection only so long; the reply says so and the connection closes."""
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
    (reply,) = exchange(impatient, head.encode() + b"{", 1)
    assert "0.25 seconds" in refused(reply, 408, "body_timeout")
    assert reply.headers["connection"] == "close"


def test_a_caller_that_hangs_up_in_its_body_is_not_our_error(live: Live) -> None:
    """It is counted as a bad request of the caller's, not as a 500."""

    def counted(code: str) -> float:
        return live.metric("foreseen_requests_total", model="fingerprint", code=code)

    before, failures = counted("400"), counted("500")
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    assert (counted("400"), counted("500")) == (before + 1, failures)


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    """Good and bad ones, each with its own answer, on one connection."""
    rows = [numbers(2030 + i) for i in range(5)]

    def request(body: bytes, *more: str) -> bytes:
        lines = [f"POST {FINGERPRINT} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *more, "", ""]
        return "\r\n".join(lines).encode() + body

    good = [request(json.dumps(ask_fingerprint(x)).encode()) for x in rows]
    wrong, unread = request(b"[]"), request(b'{"inputs"', "Content-Encoding: br")
    replies = exchange(live, good[0] + wrong + good[1] + unread + b"".join(good[2:]), 7)
    assert [reply.status for reply in replies] == [200, 400, 200, 415, 200, 200, 200]
    assert [digests(reply) for reply in replies if reply.status == 200] == [fingerprint(x) for x in rows]


def test_http_1_0_is_answered_and_closed(live: Live) -> None:
    """Old probes and `ab` speak it."""
    body = json.dumps(ask_fingerprint(numbers(2040))).encode()
    request = f"POST {FINGERPRINT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    (reply,) = exchange(live, request)
    assert reply.protocol == "HTTP/1.0"
    assert digests(reply) == fingerprint(numbers(2040))


def test_a_chunked_body_is_a_body(live: Live) -> None:
    """Clients that stream do not know the length."""
    body = json.dumps(ask_fingerprint(numbers(2041))).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 50]), body[i : i + 50]) for i in range(0, len(body), 50))
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    (reply,) = exchange(live, head.encode() + chunks + b"0\r\n\r\n")
    assert digests(reply) == fingerprint(numbers(2041))


def test_expect_100_continue(live: Live) -> None:
    """curl waits for it with a larger body."""
    body = json.dumps(ask_fingerprint(numbers(2042))).encode()
    head = f"POST {FINGERPRINT} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    going, reply = exchange(live, head.encode() + body, 2)
    assert going.status == 100
    assert digests(reply) == fingerprint(numbers(2042))


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"\0\1\2\3\r\n\r\n",
        b"FETCH /v2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/fingerprint/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_same_words_as_everything_else(live: Live, request_: bytes) -> None:
    """aiohttp's own text would repeat the request and tell its version; the connection closes, for it is lost."""
    (reply, *_) = exchange(live, request_)
    assert refused(reply, 400, "bad_request") == "the request is not valid HTTP"


def test_a_path_that_is_too_long_is_431(live: Live) -> None:
    """Within the line that holds it; aiohttp's own text would repeat a part of it."""
    (reply, *_) = exchange(live, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert "aaa" not in refused(reply, 431, "head_too_large")


# What the cache says


def test_a_hits_body_is_the_misss(live: Live) -> None:
    """Byte for byte, as JSON and as binary, with and without an id, for every selection of outputs."""
    for number, extra in enumerate(
        (
            {},
            {"id": "same"},
            {"parameters": {"binary_data_output": True}},
            {"outputs": [{"name": "seal", "parameters": {"binary_data": True}}, {"name": "digest"}]},
        )
    ):
        question = {**ask_fingerprint(numbers(2050 + number), numbers(2060 + number)), **extra}
        first, second = (post(live, FINGERPRINT, question) for _ in range(2))
        assert (first.hit, second.hit) == (False, True)
        assert first.body == second.body
        assert first.headers.get(HEADER_LENGTH.lower()) == second.headers.get(HEADER_LENGTH.lower())
        text = {**ask_minilm(f"text number {number}"), **{k: v for k, v in extra.items() if k != "outputs"}}
        first, second = (post(live, MINILM, text) for _ in range(2))
        assert (first.hit, second.hit, first.body) == (False, True, second.body)


def test_cache_status_age_and_server_timing_are_well_formed(live: Live) -> None:
    """RFC 9211 and RFC 9111; Server-Timing's syntax (W3C) is that of a structured list too."""
    question = ask_fingerprint(numbers(2070))
    missed, *hits = (post(live, FINGERPRINT, question) for _ in range(3))
    unseen = b" \t\n\t " + json.dumps(question).encode()  # bytes before and between data that no template has
    hits.append(post(live, FINGERPRINT, unseen))
    ((_, told),) = http_sf.parse(missed.headers["cache-status"].encode(), tltype="list")
    assert {name: str(value) for name, value in told.items()} == {"fwd": "miss", "stored": "True"}
    assert "age" not in missed.headers
    for hit in hits:
        ((_, told),) = http_sf.parse(hit.headers["cache-status"].encode(), tltype="list")
        assert (set(told), str(told["detail"])) == ({"hit", "ttl", "detail"}, "near")
        assert (type(told["ttl"]), told["ttl"] > 0) == (int, True)
        assert int(hit.headers["age"]) >= 0
    for reply, steps in (
        (missed, {"decode", "prepare", "answer", "far", "model"}),
        (hits[-1], {"decode", "prepare", "answer"}),
    ):
        listed = http_sf.parse(reply.headers["server-timing"].encode(), tltype="list")
        assert {str(name) for name, _ in listed} == steps
        assert all(float(parameters["dur"]) >= 0 for _, parameters in listed)
    ((way, parameters),) = http_sf.parse(hits[1].headers["server-timing"].encode(), tltype="list")
    assert (str(way), parameters) == ("shortcut", {})  # its body is known: nothing is measured


def test_part_of_a_batch_is_said_as_a_fraction(live: Live) -> None:
    """`hit` stands only where every row is one; otherwise the count of those that were."""
    post(live, FINGERPRINT, ask_fingerprint(numbers(2080)))
    reply = post(live, FINGERPRINT, ask_fingerprint(*(numbers(2080 + i) for i in range(4))))
    ((_, told),) = http_sf.parse(reply.headers["cache-status"].encode(), tltype="list")
    assert (str(told["fwd"]), told["detail"], "hit" in told) == ("partial", "1/4", False)


def test_errors_claim_nothing_about_the_cache(live: Live) -> None:
    """No Cache-Status, no Age on what is not an answer."""
    reply = post(live, FINGERPRINT, b"{}")
    assert not {"cache-status", "age", "server-timing"} & set(reply.headers)


# 1.9 V1


def test_v1_rows_and_columns_share_the_entries_of_v2(live: Live) -> None:
    """Whichever protocol asks first, the other's question is a hit; several outputs are named, one is not."""
    x = numbers(2090)
    post(live, FINGERPRINT, ask_fingerprint(x))
    path = "/v1/models/fingerprint:predict"
    for question in ({"instances": [x]}, {"instances": [{"x": x}]}):
        reply = post(live, path, question)
        assert (reply.document, reply.hit) == ({"predictions": [{"digest": fingerprint(x), "seal": [1]}]}, True)
    for question in ({"inputs": [x]}, {"inputs": {"x": [x]}}):
        assert post(live, path, question).document == {"outputs": {"digest": [fingerprint(x)], "seal": [[1]]}}
    text = post(live, MINILM, ask_minilm("one for both")).outputs["embedding"]["data"]
    for instance in ("one for both", {"b64": "b25lIGZvciBib3Ro"}, {"text": "one for both"}):
        reply = post(live, "/v1/models/minilm:predict", {"instances": [instance]})
        assert (reply.document, reply.hit) == ({"predictions": [text]}, True)


def test_v1_status_is_kserves_and_tensorflows_at_once(live: Live) -> None:
    """They live at the same address."""
    told = ask(live, "GET", "/v1/models/minilm").document
    assert (told["name"], told["ready"]) == ("minilm", True)
    assert told["model_version_status"][0]["state"] == "AVAILABLE"
    assert ask(live, "GET", "/").document == {"status": "alive"}


def test_requested_bytes_come_back_as_they_are() -> None:
    """Elements of the BYTES datatype keep their length, also 0, through a binary reply."""
    values = np.array([b"", b"a", bytes(range(256))], object)
    raw = raw_of(values, DATATYPES["BYTES"])
    body, length = render_response("m", "1", "i", [OutputTensor("y", "BYTES", (3,), raw, binary=True)])
    assert length is not None
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    body, headers = binary([{"name": "x", "shape": [3], "datatype": "BYTES"}], raw)
    assert array(body, int(headers[HEADER_LENGTH])).tolist() == values.tolist()
