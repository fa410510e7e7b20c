"""Quotas on a running system: what is refused by every way and in every dialect's form, what usage says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import Live, started
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.quotas import measured
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_91_tenants import hashed, key_of

SECONDS = 20
LIMITS = {
    "asks": "requests_per_second = 0.001",
    "rows": "rows_per_second = 0.001",
    "day": "model_seconds_per_day = 1e-9",
    "free": "",
}


@pytest.fixture(scope="module")
def limited(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One worker, with tenants whose quotas let in one request, one row, one computed row, and anything."""
    folder = tmp_path_factory.mktemp("quotas")
    tables = (
        f'[tenant.{name}]\nkeys = ["{hashed(name)}"]\nscope = "public"\n{limit}\n' for name, limit in LIMITS.items()
    )
    (folder / "keys.toml").write_text("".join(tables))
    with started(
        built, folder / "data", f"--keys-file={folder / 'keys.toml'}", "--job-workers=0", "--metrics-open"
    ) as system:
        yield system


def usage(live: Live, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "foreseen", "usage", "--data", str(live.data), "--json", *flags]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)["usage"]
    return {(one["tenant"], one["model"]): one for one in found}


def test_hits_cost_requests_by_every_way(limited: Live) -> None:
    """The second request is refused, whether aiohttp reads it, its head is known, or all of its bytes; a tenant without
    limits is answered."""
    question = ask_fingerprint(numbers(930_001))
    for _ in range(4):
        assert limited.post(FINGERPRINT, question, key_of("free"))[0] == 200
    statuses = [limited.post(FINGERPRINT, question, key_of("asks"))[0] for _ in range(5)]
    assert statuses == [200, 429, 429, 429, 429]
    assert limited.post(FINGERPRINT.replace("/infer", "/explain"), question, key_of("asks"))[0] == 429
    assert limited.post(FINGERPRINT, question, key_of("free"))[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (FINGERPRINT, ask_fingerprint(numbers(930_002))),
        ("/v1/models/fingerprint:predict", {"instances": [{"x": numbers(930_002)}]}),
        (MINILM, ask_minilm("a text of quotas")),
        ("/v1/embeddings", {"model": "minilm", "input": "a text of quotas"}),
    ],
)
def test_a_refusal_has_the_form_of_its_dialect(limited: Live, path: str, body: Any) -> None:
    """429, the code, and when to come again; rows are refused after they are decoded, and before the cache."""
    limited.post(FINGERPRINT, ask_fingerprint(numbers(930_003)), key_of("rows"))  # the first row of all
    status, headers, reply = limited.post(path, body, key_of("rows"))
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    error = json.loads(reply)
    assert "quota_exceeded" in (
        error.get("code"),
        *(error["error"].values() if isinstance(error["error"], dict) else ()),
    )


def test_misses_cost_model_seconds_and_hits_do_not(limited: Live) -> None:
    """Once the day's seconds are used up, only what the cache has is answered, near or far; tickets are refused."""
    first, other = ask_fingerprint(numbers(930_010)), ask_fingerprint(numbers(930_011))
    assert limited.post(FINGERPRINT, first, key_of("day"))[0] == 200
    assert limited.post(FINGERPRINT, other, key_of("day"))[0] == 429
    assert [limited.post(FINGERPRINT, first, key_of("day"))[0] for _ in range(3)] == [200] * 3
    status, headers, _ = limited.post(FINGERPRINT, other, {**key_of("day"), "Prefer": "respond-async"})
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 86_400
    assert limited.post(FINGERPRINT, other, key_of("free"))[0] == 200
    assert limited.post(FINGERPRINT, other, key_of("day"))[0] == 200


@pytest.mark.long
async def test_a_limit_holds_for_all_workers_of_all_proxies_together(tmp_path: Path) -> None:
    """Two proxies of two workers on one state store, which is killed: the limit is one, and goes on to be near it.
    `make verify-quotas` measures it over a minute."""
    found = await measured(tmp_path, 8.0, 4.0, workers=2, count=2)
    assert found.refused == 0
    assert 0.3 < found.reconciled < 1.5
    assert 0 < found.away <= 2


def test_usage_is_kept_and_refusals_are_counted(limited: Live) -> None:
    """By tenant and model: requests, rows, hits, seconds; the supervisor's own are nobody's."""
    question = ask_fingerprint(numbers(930_020))
    before = usage(limited).get(("free", "fingerprint"), {"requests": 0, "hits": 0})
    for _ in range(10):
        limited.post(FINGERPRINT, question, key_of("free"))
    deadline = time.monotonic() + SECONDS
    while (now := usage(limited).get(("free", "fingerprint"), before))["requests"] < before["requests"] + 10:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    assert now["hits"] >= before["hits"] + 9
    assert now["model_seconds"] > 0
    assert now["saved_seconds"] > 0
    everything = usage(limited)
    assert {tenant for tenant, _ in everything} <= set(LIMITS)
    assert set(usage(limited, "--tenant", "free", "--since", "1h")) == {key for key in everything if key[0] == "free"}
    assert limited.metric("foreseen_tenant_refused_total", tenant="asks", limit="requests") >= 4
    assert limited.metric("foreseen_quota_reports_total", result="ok") >= 1
