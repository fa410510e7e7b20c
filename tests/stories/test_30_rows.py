"""Row by row: a batch asks the model only for what nobody knows, in one request, and keeps its order."""

from __future__ import annotations

import json
import random

from tests.live import Live
from tests.questions import ask_fingerprint, ask_minilm, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM, embedding, status_of

WORDS = "the cache answers what a model has and asks only for new rows of every batch".split()  # noqa: SIM905


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of 3 to 40 words that no other test asks."""
    rng = random.Random(seed)
    return [f"{seed} {n} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for n in range(count)]


def test_sixty_four_rows_of_which_forty_eight_are_known(live: Live) -> None:
    """The model's row counter rises by 16, and the answers equal those of 64 single requests bit for bit."""
    texts = sentences(64, 30)
    known = [text for n, text in enumerate(texts) if n % 4]
    live.post(MINILM, ask_minilm(*known))
    rows = live.model_metric("minilm", "foreseen_model_rows_total")
    _, headers, body = live.post(MINILM, ask_minilm(*texts))
    assert live.model_metric("minilm", "foreseen_model_rows_total") - rows == 16
    assert str(status_of(headers)["fwd"]) == "partial"
    assert status_of(headers)["detail"] == "48/64"
    together = embedding(body)
    for n, text in enumerate(texts):
        assert embedding(live.post(MINILM, ask_minilm(text))[2]).tobytes() == together[n].tobytes()


def test_rows_computed_alone_and_in_a_batch_are_the_same_bits(live: Live) -> None:
    """Nothing of a row's answer comes from its batch-mates: each text alone first, then 32 new ones in a batch,
    then the same 32 straight from the model process."""
    alone = sentences(32, 31)
    singles = [embedding(live.post(MINILM, ask_minilm(text))[2])[0].tobytes() for text in alone]
    # trailing spaces do not change the tokens, so this batch would hit; other batch-mates force a mixed request
    mixed = [text for pair in zip(alone, sentences(32, 32), strict=True) for text in pair]
    together = embedding(live.post(MINILM, ask_minilm(*mixed))[2])
    assert [together[2 * n].tobytes() for n in range(32)] == singles


def test_equal_rows_within_a_batch_are_asked_once_and_order_is_kept(live: Live) -> None:
    """Ten rows of three kinds: three rows computed, every answer in its place."""
    kinds = [numbers(300 + n) for n in range(3)]
    order = [0, 1, 2, 2, 1, 0, 0, 0, 2, 1]
    rows = live.model_metric("fingerprint", "foreseen_model_rows_total")
    _, headers, body = live.post(FINGERPRINT, ask_fingerprint(*(kinds[k] for k in order)))
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") - rows == 3
    flat = json.loads(body)["outputs"][0]["data"]
    assert [flat[4 * n : 4 * n + 4] for n in range(10)] == [fingerprint(kinds[k]) for k in order]
    assert str(status_of(headers)["fwd"]) == "miss"


def test_every_row_is_counted_once(live: Live) -> None:
    """`foreseen_rows_total` over all results rises by exactly the rows that were asked."""
    before = live.metric("foreseen_rows_total", model="fingerprint")
    for _ in range(2):
        live.post(FINGERPRINT, ask_fingerprint(*(numbers(400 + n % 5) for n in range(20))))
    assert live.metric("foreseen_rows_total", model="fingerprint") - before == 40
    assert live.metric("foreseen_rows_total", model="fingerprint", result="collapsed") >= 15


def test_zero_rows_are_answered_with_nothing(live: Live) -> None:
    """200 with empty outputs; nothing is keyed or counted."""
    before = live.metric("foreseen_rows_total", model="fingerprint")
    status, headers, body = live.post(FINGERPRINT, ask_fingerprint())
    assert status == 200
    assert json.loads(body)["outputs"][0] == {"name": "digest", "datatype": "INT64", "shape": [0, 4], "data": []}
    assert "cache-status" not in headers
    assert live.metric("foreseen_rows_total", model="fingerprint") == before


def test_a_request_above_every_batch_limit_is_split_never_refused(live: Live) -> None:
    """A thousand new rows in one request: all answered, all right, each computed once."""
    rows = [numbers(10_000 + n) for n in range(1000)]
    before = live.model_metric("fingerprint", "foreseen_model_rows_total")
    status, _, body = live.post(FINGERPRINT, ask_fingerprint(*rows))
    assert status == 200
    flat = json.loads(body)["outputs"][0]["data"]
    assert [flat[4 * n : 4 * n + 4] for n in range(1000)] == [fingerprint(row) for row in rows]
    assert live.model_metric("fingerprint", "foreseen_model_rows_total") - before == 1000
