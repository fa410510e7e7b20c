"""What clients ask of freshness, and what they are told, over HTTP: V2 and V1 alike."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.live import Live, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, status_of

V1 = "/v1/models/fingerprint:predict"


def ask(live: Live, *seeds: int, control: str | None = None, timeout: int = 0) -> tuple[int, dict[str, str], bytes]:
    body = ask_fingerprint(*(numbers(seed) for seed in seeds)) | {"parameters": {"timeout": timeout}}
    return live.post(FINGERPRINT, body, {} if control is None else {"Cache-Control": control})


def ask_v1(live: Live, seed: int, control: str) -> tuple[int, dict[str, str], bytes]:
    return live.post(V1, {"instances": [numbers(seed)]}, {"Cache-Control": control})


def right(answer: tuple[int, dict[str, str], bytes], seed: int) -> bool:
    return answer[0] == 200 and json.loads(answer[2])["outputs"][0]["data"] == fingerprint(numbers(seed))


def test_no_cache_is_a_request_s_own_wish(live: Live) -> None:
    """`fwd=request`, and what it computed is the next one's hit."""
    for _ in range(2):
        answer = ask(live, 570_001, control="no-cache")
        assert right(answer, 570_001)
        assert answer[1]["cache-status"] == "foreseen;fwd=request"
        assert "age" not in answer[1]
    assert status_of(ask(live, 570_001)[1])["hit"]
    assert ask_v1(live, 570_001, "No-Cache")[1]["cache-status"] == "foreseen;fwd=request"


def test_only_if_cached_is_a_hit_or_504(live: Live) -> None:
    """Not known: 504 `not_cached` without Cache-Status, on V2 and V1, also where one row of two is; known: a hit."""
    for status, headers, body in (
        ask(live, 570_010, control="only-if-cached"),
        ask_v1(live, 570_010, "only-if-cached"),
    ):
        assert (status, json.loads(body)["code"]) == (504, "not_cached")
        assert "cache-status" not in headers
    ask(live, 570_010)
    assert right(ask(live, 570_010, control="only-if-cached"), 570_010)
    assert ask_v1(live, 570_010, "only-if-cached")[0] == 200
    assert ask(live, 570_010, 570_011, control="only-if-cached")[0] == 504


def test_no_store_leaves_nothing_behind(live: Live) -> None:
    """A miss that is not `stored`, and afterwards nobody has it; what others keep it may read."""
    told = status_of(ask(live, 570_020, control="no-store")[1])
    assert (str(told["fwd"]), "stored" in told) == ("miss", False)
    assert ask(live, 570_020, control="only-if-cached")[0] == 504
    ask(live, 570_020)
    assert status_of(ask(live, 570_020, control="no-store")[1])["hit"]
    assert status_of(ask(live, 570_020, control="no-store, no-cache")[1])["fwd"] == "request"


def test_max_age_and_min_fresh(live: Live) -> None:
    """max-age=0 and a min-fresh beyond every life are misses; generous ones are hits; nonsense is ignored."""
    ask(live, 570_030)
    for control in ("max-age=0", "min-fresh=999999999"):
        assert str(status_of(ask(live, 570_030, control=control)[1])["fwd"]) == "miss"
    for control in ("max-age=3600", "min-fresh=1, max-stale", "max-age=never", "max-age=-1", "=", "no-cachet", '"'):
        assert status_of(ask(live, 570_030, control=control)[1])["hit"]


def test_a_soft_ttl_answers_stale_and_refreshes_behind_the_answer(built: Path, tmp_path: Path) -> None:
    """Everything is stale at once here: hit with a negative ttl, a refresh that nobody waits for; and the operator lets
    no client decide."""
    flags = ("--soft-ttl-seconds=0", "--ignore-client-cache-control")
    with started(built, tmp_path / "data", *flags, models=("fingerprint",)) as live:
        ask(live, 1)
        before = live.model_metric("fingerprint", "foreseen_model_rows_total")
        answer = ask(live, 1, control="no-cache")
        told = status_of(answer[1])
        assert right(answer, 1)
        assert told["hit"]
        assert int(str(told["ttl"])) < 0
        assert str(told["detail"]) == "stale-while-revalidate"
        assert int(answer[1]["age"]) >= 0
        while live.model_metric("fingerprint", "foreseen_model_rows_total") == before:
            pass
        assert live.metric("foreseen_rows_total", result="stale") == 1
        assert live.metric("foreseen_request_duration_seconds_count", result="stale") == 1


def test_a_stopped_model_s_old_answers_are_better_than_none(built: Path, tmp_path: Path) -> None:
    """Everything expires at once here. The model stops: old answers as stale-if-error, 504 for what nobody knows, both
    at the deadline; it goes on: fresh answers."""
    with started(built, tmp_path / "data", "--ttl-seconds=0", models=("fingerprint",)) as live:
        ask(live, 1)
        assert str(status_of(ask(live, 1)[1])["fwd"]) == "miss"
        live.signal("model:fingerprint", signal.SIGSTOP)
        answer = ask(live, 1, timeout=200_000)
        told = status_of(answer[1])
        assert right(answer, 1)
        assert told["hit"]
        assert str(told["detail"]) == "stale-if-error"
        assert ask(live, 2, timeout=200_000)[0] == 504
        assert ask(live, 1, timeout=200_000, control="stale-if-error=0")[0] == 504
        live.signal("model:fingerprint", signal.SIGCONT)
        answer = ask(live, 2)
        assert right(answer, 2)
        assert str(status_of(answer[1])["fwd"]) == "miss"
