"""A public suite of well- and ill-formed JSON documents as bodies: never a 5xx, malformed ones never a 2xx."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import Live
from tests.questions import ask_fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT

SUITE = Path(__file__).parent.parent / "json_suite" / "parsing.json"
DOCUMENTS: dict[str, bytes] = {
    **{name: text.encode("utf-8", "surrogatepass") for name, text in json.loads(SUITE.read_text()).items()},
    "n_structure_100000_opening_arrays": b"[" * 100_000,
    "n_structure_open_array_object": b'[{"":' * 50_000,
}
TENSOR = b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"INT64","data":'
GOOD = json.dumps(ask_fingerprint(numbers(71))).encode()

Place = Callable[[bytes], bytes]
PLACES: dict[str, Place] = {
    "the whole body": lambda document: document,
    "an unknown member": lambda document: GOOD[:-1] + b', "unknown": ' + document + b"}",
    "an input's data": lambda document: (
        b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"INT64","data":' + document + b"}]}"
    ),
    "V1 instances": lambda document: b'{"instances":' + document + b"}",
    "parameters": lambda document: GOOD[:-1] + b', "parameters": {"p": ' + document + b"}}",
}


@pytest.fixture(scope="module")
def connection(live: Live) -> Iterator[http.client.HTTPConnection]:
    one = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    yield one
    one.close()


def test_the_suite_is_all_there() -> None:
    """Several hundred documents of all three kinds."""
    kinds = {kind: sum(name.startswith(kind) for name in DOCUMENTS) for kind in "yni"}
    assert len(DOCUMENTS) == sum(kinds.values()) > 300
    assert min(kinds.values()) > 30


@pytest.mark.parametrize("place", PLACES)
def test_every_document_in_every_place(connection: http.client.HTTPConnection, place: str) -> None:
    """Well-formed documents are accepted where any value may stand, ill-formed ones are 400 everywhere."""
    path = "/v1/models/fingerprint:predict" if place.startswith("V1") else FINGERPRINT
    for name, document in DOCUMENTS.items():
        connection.request("POST", path, PLACES[place](document))
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status < 500, (place, name)
        assert reply.getheader("Content-Type") == "application/json", (place, name)
        if name.startswith("n_"):
            assert (reply.status, set(json.loads(body))) == (400, {"error", "code"}), (place, name)
        elif name.startswith("y_") and place == "an unknown member":
            # Members given twice are well-formed JSON and not a question that two readers understand alike.
            assert reply.status == (400 if "duplicated_key" in name else 200), (place, name)
        elif place == "the whole body":
            assert reply.status == 400, (place, name)
