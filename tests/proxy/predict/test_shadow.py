"""Shadow traffic: live rows go to a candidate as well; answers stay as they are, and what differs is counted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreseen.compare.intervals import interval
from foreseen.errors import SetupError
from foreseen.operate.commands.shadow_command import lines, summary_of
from foreseen.operate.scrape import parse
from foreseen.proxy.canary.candidate import ServerCandidate, address_of, candidate_of
from foreseen.proxy.predict.sampling.samplers import shadow_of
from foreseen.settings import ProxySettings
from foreseen.telemetry.metrics import SHADOW_OUTCOMES, ProxyMetrics
from tests.embedding_servers import EmbeddingStub
from tests.foreign import Foreign, Front, fronted, listening
from tests.questions import fingerprint, numbers
from tests.rerank_servers import RerankStub, each

WRONG_SHARE = 0.03
ALL: dict[str, Any] = {"shadow": "100%", "shadow_rows_per_second": 1000.0}


def counts(front: Front, model: str = "fp") -> dict[str, int]:
    """Rows by outcome, those that there are."""
    shadowed = front.proxy.metrics.shadowed
    found = {one: round(shadowed.labels(model, one)._value.get()) for one in SHADOW_OUTCOMES}
    return {one: rows for one, rows in found.items() if rows}


async def until(wanted: Callable[[], bool]) -> None:
    """Let the event loop run until something is so."""
    async with asyncio.timeout(30):
        while not wanted():  # noqa: ASYNC110 - nothing of it sets an event
            await asyncio.sleep(0.002)


async def settled(front: Front, rows: int, model: str = "fp") -> dict[str, int]:
    """The outcomes, once there are so many."""
    await until(lambda: sum(counts(front, model).values()) >= rows)
    return counts(front, model)


@contextlib.asynccontextmanager
async def shadowed(data: Path, candidate: Foreign, live: Foreign | None = None, **more: Any) -> AsyncIterator[Front]:
    """A proxy in front of an honest server, with a candidate that has been found."""
    live = live or Foreign()
    async with (
        listening(live.application()) as url,
        listening(candidate.application()) as other,
        fronted(url, data, candidate=other, **{"upstream_probe": False, **ALL, **more}) as front,
    ):
        await found(front)
        yield front


async def found(front: Front) -> None:
    """Wait until the candidate is ready."""
    shadow = front.proxy.shadow
    assert shadow is not None
    await until(lambda: (served := shadow.candidate.served) is not None and served.ready)


def wrong_for(share: float) -> Callable[[list[list[int]]], list[list[int]]]:
    """Answers that are wrong for one row in so many, by its content."""
    every = round(1 / share)
    return lambda rows: [[0, 0, 0, 0] if row[0] % every == 0 else fingerprint(row) for row in rows]


async def test_misses_go_to_the_candidate_and_its_answers_to_nobody(tmp_path: Path) -> None:
    """A candidate that is wrong about everything changes no answer; hits are not sent, and nothing of it is kept."""
    candidate = Foreign()
    candidate.answer = lambda rows: [[1, 2, 3, 4] for _ in rows]
    async with shadowed(tmp_path / "d", candidate) as front:
        for _ in range(3):
            for seed in range(5):
                assert (await front.infer(numbers(seed)))[2] == [fingerprint(numbers(seed))]
        assert await settled(front, 5) == {"changed": 5}
        assert [candidate.rows_like(numbers(seed)) for seed in range(5)] == [1] * 5
        for seed in range(5):
            assert (await front.infer(numbers(seed)))[2] == [fingerprint(numbers(seed))]
    assert counts(front) == {"changed": 5}


async def test_hits_are_sent_where_that_is_asked(tmp_path: Path) -> None:
    """Cached replies and near alike."""
    async with shadowed(tmp_path / "d", Foreign(), shadow_hits=True) as front:
        for _ in range(4):
            await front.infer(numbers(1))
        assert await settled(front, 4) == {"equal": 4}


async def test_the_share_of_wrong_rows_is_within_its_interval(tmp_path: Path) -> None:
    """A candidate that is wrong for 3 % of rows, in rounds of other rows; every answer is the live model's."""
    candidate = Foreign()
    candidate.answer = wrong_for(WRONG_SHARE)
    wrong = 0
    async with shadowed(tmp_path / "d", candidate, shadow="50%", shadow_width="0") as front:
        for first in range(0, 1200, 40):
            rows = [numbers(first + at) for at in range(40)]
            answers = await asyncio.gather(*(front.infer(row) for row in rows))
            assert [digests for _, _, digests in answers] == [[fingerprint(row)] for row in rows]
            wrong += sum(row[0] % round(1 / WRONG_SHARE) == 0 for row in rows)
            assert front.proxy.shadow is not None
            await until(lambda: front.proxy.shadow.idle)  # type: ignore[union-attr]
        outcomes = counts(front)
        compared = sum(outcomes[one] for one in ("equal", "changed"))
        assert 480 <= compared <= 720
        low, high = interval(outcomes["changed"], compared, 0.99)
        assert low <= wrong / 1200 <= high
        assert set(outcomes) == {"equal", "changed"}


@pytest.mark.parametrize(
    ("more", "rows"), [({"shadow_rows": 7}, 7), ({"shadow_width": "15%"}, 50)], ids=["budget", "interval"]
)
async def test_it_ends_by_itself(tmp_path: Path, more: dict[str, Any], rows: int) -> None:
    """When its budget is spent, or the interval is narrow enough: the candidate gets no further row."""
    candidate = Foreign()
    async with shadowed(tmp_path / "d", candidate, **more) as front:
        shadow, running = front.proxy.shadow, front.proxy.metrics.shadow_running.labels("fp")
        assert shadow is not None
        assert running._value.get() == 1
        for seed in range(rows):
            await front.infer(numbers(seed))
            await settled(front, seed + 1)
        assert shadow.ended == ("budget" if "shadow_rows" in more else "interval")
        assert running._value.get() == 0
        for seed in range(rows, rows + 10):
            assert (await front.infer(numbers(seed)))[2] == [fingerprint(numbers(seed))]
        assert counts(front) == {"equal": rows}
        assert sum(map(len, candidate.batches)) == rows


async def test_it_ends_where_a_model_has_changed(tmp_path: Path) -> None:
    """What was compared until then is of two models that are no longer both there."""
    candidate = Foreign()
    async with shadowed(tmp_path / "d", candidate) as front:
        await front.infer(numbers(1))
        await settled(front, 1)
        candidate.version = "2"
        await front.infer(numbers(2))
        assert await settled(front, 2) == {"equal": 1, "not-comparable": 1}
        assert front.proxy.shadow is not None
        assert front.proxy.shadow.ended == "model-changed"


async def test_no_answer_waits_for_a_candidate_that_hangs_or_fails(tmp_path: Path) -> None:
    """Held, then failing, then gone: answers come, rows are counted as failed, and memory is bounded."""
    candidate = Foreign()
    async with shadowed(tmp_path / "d", candidate) as front:
        held = candidate.hold()
        for seed in range(120):
            assert (await asyncio.wait_for(front.infer(numbers(seed)), 10))[2] == [fingerprint(numbers(seed))]
        dropped = counts(front)["dropped"]
        assert dropped >= 120 - 64 - 4 - 1
        candidate.lie = lambda reply: {**reply, "outputs": []}
        held.released.set()
        outcomes = await settled(front, 120)
        assert outcomes == {"failed": 120 - dropped, "dropped": dropped}


async def test_a_candidate_of_another_signature_is_not_asked(tmp_path: Path) -> None:
    """Its rows fail, and no answer changes."""
    candidate = Foreign()
    candidate.metadata["outputs"] = [{"name": "other", "datatype": "INT64", "shape": [-1, 4]}]
    live = Foreign()
    async with (
        listening(live.application()) as url,
        listening(candidate.application()) as other,
        fronted(url, tmp_path / "d", candidate=other, upstream_probe=False, **ALL) as front,
    ):
        other_model = front.proxy.candidate
        assert isinstance(other_model, ServerCandidate)
        await until(lambda: "fp" in other_model.found)
        assert (await front.infer(numbers(1)))[2] == [fingerprint(numbers(1))]
        assert await settled(front, 1) == {"failed": 1}
        assert candidate.batches == []


async def test_a_model_that_is_not_cached_is_shadowed_too(tmp_path: Path) -> None:
    """A stateful request goes past the cache; so does its row, to the candidate."""
    candidate = Foreign()
    async with shadowed(tmp_path / "d", candidate) as front:
        sequence = {"parameters": {"sequence_id": 5, "sequence_start": True}}
        status, how, digests = await front.infer(numbers(1), **sequence)
        assert (status, digests) == (200, [fingerprint(numbers(1))])
        assert "bypass" in how
        assert await settled(front, 1) == {"equal": 1}


async def test_embeddings_of_another_name_and_key(tmp_path: Path) -> None:
    """An OpenAI server under --candidate-model and --candidate-key-file: a small difference is close, another vector
    is changed, and the live server's key does not go there."""
    live, candidate = EmbeddingStub(), EmbeddingStub()
    candidate.id, candidate.key, live.key = "other/model", "theirs", "mine"
    keys = {name: tmp_path / name for name in ("mine", "theirs")}
    for name, file in keys.items():
        file.write_text(name)
    candidate.lie = _slightly_off
    async with (
        listening(live.application()) as url,
        listening(candidate.application()) as other,
        fronted(
            url, tmp_path / "d", candidate=other, candidate_model="other/model", candidate_key_file=keys["theirs"],
            upstream_key_file=keys["mine"], upstream_probe=False, **ALL,
        ) as front,
    ):  # fmt: skip
        await found(front)
        (model,) = front.proxy.served
        for text in ("one", "two", "one that is wrong"):
            status, reply = await front.post_to("/v1/embeddings", {"input": text, "model": live.id})
            assert (status, len(reply["data"])) == (200, 1)
        assert await settled(front, 3, model) == {"close": 2, "changed": 1}
        assert [one["model"] for one in candidate.requests] == ["other/model"] * 3


def _slightly_off(reply: dict[str, Any]) -> dict[str, Any]:
    """Vectors whose first number is off by a little; of a text of four words all numbers are negated."""
    for one in reply["data"]:
        made = np.frombuffer(base64.b64decode(one["embedding"]), "<f4").copy()
        made = -made if reply["usage"]["total_tokens"] == 6 else made
        made[0] += 1e-5
        one["embedding"] = base64.b64encode(made.tobytes()).decode()
    return reply


async def test_pairs_are_compared(tmp_path: Path) -> None:
    """A rerank server: a candidate that scores one document otherwise."""
    live, candidate = RerankStub(), RerankStub()
    candidate.scores = lambda query, documents: [
        0.5 if document == "b" else score for document, score in zip(documents, each(query, documents), strict=True)
    ]
    async with (
        listening(live.application()) as url,
        listening(candidate.application()) as other,
        fronted(url, tmp_path / "d", candidate=other, **ALL) as front,
    ):
        await found(front)
        (model,) = front.proxy.served
        await front.until(lambda told: told.get("rows") == "each", model)
        asked = {"query": "q", "documents": ["a", "b", "c"], "model": live.id}
        before = await front.post_to("/v1/rerank", asked)
        outcomes = await settled(front, 3, model)
        assert outcomes == {"equal": 2, "changed": 1}
        assert {one["relevance_score"] for one in before[1]["results"]} == set(each("q", ["a", "b", "c"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shadow": "5%"},
        {"shadow": "5%", "candidate": "m=http://127.0.0.1:1", "upstream": ()},
        {"shadow": "200%", "candidate": "m=http://127.0.0.1:1"},
        {"shadow": "5%", "candidate": "127.0.0.1:1"},
        {"shadow": "5%", "candidate": "m=http://127.0.0.1:1", "shadow_rows": 0},
        {"shadow": "5%", "candidate": "m=http://127.0.0.1:1", "shadow_width": "x"},
        {"shadow": "5%", "candidate": "m=http://127.0.0.1:1", "shadow_rows_per_second": 0.0},
        {"shadow": "5%", "candidate": "m=unix:/x"},
        {"shadow": "5%", "candidate": "http://127.0.0.1:1"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    """With the name of the flag."""
    settings = ProxySettings(**({"upstream": ("http://127.0.0.1:1",)} | wrong))
    with pytest.raises(SetupError, match=r"--candidate|--shadow|--upstream"):
        shadow_of(settings, candidate_of(settings, {}), ProxyMetrics())


def test_addresses_of_candidates() -> None:
    """With the name of a model before them, or without."""
    assert (address_of("m=unix:/a=b").model, address_of("m=unix:/a=b").address) == ("m", "unix:/a=b")
    assert address_of("http://h:1/?a=b").model is None
    for wrong in ("m=", "m", "ftp://h", "=x"):
        with pytest.raises(SetupError, match="--candidate"):
            address_of(wrong)


EXPOSITION = """
foreseen_shadow_rows_total{model="m",outcome="equal"} 900.0
foreseen_shadow_rows_total{model="m",outcome="close"} 70.0
foreseen_shadow_rows_total{model="m",outcome="changed"} 30.0
foreseen_shadow_rows_total{model="m",outcome="failed"} 2.0
foreseen_shadow_running{model="m"} 0.0
foreseen_shadow_compute_seconds_total{model="m",side="live"} 2.0
foreseen_shadow_compute_seconds_total{model="m",side="candidate"} 1.0
foreseen_shadow_cosine_distance_bucket{le="1e-06",model="m"} 600.0
foreseen_shadow_cosine_distance_bucket{le="0.01",model="m"} 970.0
foreseen_shadow_cosine_distance_bucket{le="+Inf",model="m"} 1000.0
foreseen_shadow_cosine_distance_count{model="m"} 1000.0
foreseen_shadow_rows_total{model="n",outcome="dropped"} 3.0
foreseen_shadow_running{model="n"} 2.0
"""


def test_what_is_said_of_each_model() -> None:
    """The share with its interval, whether rows are still sent, compute times, distances."""
    text = lines(summary_of(parse(EXPOSITION)))
    assert "m: 30 of 1,000 rows changed: 3 % (1.79 to 4.68 % at 99 % confidence), ended" in text
    assert "equal bit for bit 900, close 70" in text
    assert "not comparable 0, dropped 0, failed 2" in text
    assert "compute time of a row: 2 ms, of the candidate 1 ms" in text
    assert "1 - cosine: p50 at most 1e-06" in text
    assert "p99" not in text
    assert "n: no row compared yet, 2 workers send rows" in text
    assert "--shadow 5%" in lines({})
