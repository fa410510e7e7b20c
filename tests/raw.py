"""Bytes over a socket, and the replies to them: for requests that a client library would refuse to send."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import http_sf

from tests.live import Live

HEADER_LENGTH = "Inference-Header-Content-Length"
MINILM, FINGERPRINT = "/v2/models/minilm/infer", "/v2/models/fingerprint/infer"


@dataclass(frozen=True)
class Reply:
    """One reply as it came. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    protocol: str = "HTTP/1.1"

    @property
    def document(self) -> Any:
        """The JSON part of the body."""
        return json.loads(self.body[: int(self.headers.get(HEADER_LENGTH.lower(), len(self.body)))])

    @property
    def tail(self) -> bytes:
        """The binary tensors behind the JSON part."""
        return self.body[int(self.headers.get(HEADER_LENGTH.lower(), len(self.body))) :]

    @property
    def outputs(self) -> dict[str, Any]:
        return {output["name"]: output for output in self.document["outputs"]}

    @property
    def hit(self) -> bool:
        """Whether our member of Cache-Status, parsed as RFC 9211 says, has `hit`."""
        ((member, parameters),) = http_sf.parse(self.headers["cache-status"].encode(), tltype="list")
        assert str(member) == "foreseen"
        return bool(parameters.get("hit", False))


def ask(
    live: Live, method: str, path: str, body: bytes | Any = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request by the standard library's client, which adds Host, Accept-Encoding: identity and Content-Length."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    try:
        connection.request(method, path, data, dict(headers or {}))
        reply = connection.getresponse()
        return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def post(live: Live, path: str, body: bytes | Any, **headers: str) -> Reply:
    """`post(live, path, body, content_encoding="gzip")`."""
    return ask(live, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def exchange(live: Live, data: bytes, replies: int | None = None, *, head: tuple[int, ...] = ()) -> list[Reply]:
    """Send bytes and read so many replies, or all until the server closes. `head` are those without a body."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(data)
        got: list[Reply] = []
        with connection.makefile("rb") as stream:
            while len(got) != replies and (line := stream.readline()):
                protocol, status, *_ = line.decode().split(" ", 2)
                headers = {k.lower(): v for k, v in http.client.parse_headers(stream).items()}
                length = 0 if len(got) in head else int(headers.get("content-length", "0"))
                got.append(Reply(int(status), headers, stream.read(length), protocol))
        return got


def binary(inputs: list[dict[str, Any]], *raws: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    """A body with binary tensors and the header that says where they begin; inputs without data get their sizes."""
    sizes = iter(raws)
    listed = [
        tensor if "data" in tensor else tensor | {"parameters": {"binary_data_size": len(next(sizes))}}
        for tensor in inputs
    ]
    head = json.dumps({"inputs": listed, **members}).encode()
    return head + b"".join(raws), {HEADER_LENGTH: str(len(head))}
