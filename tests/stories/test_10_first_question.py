"""Ask once, the model answers; ask again, the cache does. Real Valkey, real ONNX, real processes."""

from __future__ import annotations

import json
import signal

import http_sf
import numpy as np

from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers

MINILM, FINGERPRINT = "/v2/models/minilm/infer", "/v2/models/fingerprint/infer"


def status_of(headers: dict[str, str]) -> dict[str, object]:
    """The parameters of our member of Cache-Status, parsed as RFC 9211 says."""
    ((member, parameters),) = http_sf.parse(headers["cache-status"].encode(), tltype="list")
    assert str(member) == "foreseen"
    return dict(parameters)


def embedding(body: bytes) -> np.ndarray:
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_first_a_miss_then_a_hit_with_the_identical_body(live: Live) -> None:
    """The second answer comes from near, says how long it lives and how old it is, and its body is the first's."""
    question = ask_minilm("The first question of all.")
    _, first, body = live.post(MINILM, question)
    _, second, again = live.post(MINILM, question)
    assert status_of(first) == {"fwd": status_of(first)["fwd"], "stored": True}
    assert str(status_of(first)["fwd"]) == "miss"
    assert "age" not in first
    hit = status_of(second)
    assert (hit["hit"], str(hit["detail"])) == (True, "near")
    assert 0 < int(str(hit["ttl"])) <= 604800 * 1.1
    assert int(second["age"]) >= 0
    assert body == again
    assert abs(float(np.linalg.norm(embedding(body))) - 1.0) < 1e-5


def test_the_published_similarities_of_the_model_card(live: Live) -> None:
    """The served, quantized model reproduces the similarities that the model's authors publish, within 0.03."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = embedding(live.post(MINILM, ask_minilm(*texts))[2])
    assert np.allclose(vectors[1:] @ vectors[0], [0.6953, 0.9429, 0.2569], atol=0.03)


def test_upper_case_and_extra_spaces_share_an_entry(live: Live) -> None:
    """The key is made of token ids: two texts that the uncased tokenizer cannot tell apart are one question."""
    live.post(MINILM, ask_minilm("one entry for every way of asking"))
    _, headers, _ = live.post(MINILM, ask_minilm("One  entry for EVERY way of asking "))
    assert status_of(headers).get("hit") is True


def test_two_models_with_the_same_words_never_share(live: Live) -> None:
    """Each model answers for itself; the fingerprint proves it."""
    x = numbers(1)
    body = live.post(FINGERPRINT, ask_fingerprint(x))[2]
    assert json.loads(body)["outputs"][0]["data"] == fingerprint(x)
    assert json.loads(body)["outputs"][1]["data"] == [1]


def test_after_a_restart_of_the_proxy_the_first_request_is_a_far_hit(own: Live) -> None:
    """Near is gone, Redis is not: the entry comes from far with the same body and its true age."""
    question = ask_minilm("What survives a restart?")
    body = own.post(MINILM, question)[2]
    before = own.children()["proxy"]
    own.signal("proxy", signal.SIGKILL)
    rows = own.model_metric("minilm", "foreseen_model_rows_total")
    again, headers = b"", {}
    while not again:
        try:
            _, headers, again = own.post(MINILM, question)
        except OSError:
            continue
        if "cache-status" not in headers:
            again = b""
    assert own.children()["proxy"] != before
    assert str(status_of(headers)["detail"]) == "far"
    assert again == body
    assert own.model_metric("minilm", "foreseen_model_rows_total") == rows
