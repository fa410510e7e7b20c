"""Metrics of a real system with two workers: exact, bounded and clean, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from foreseen.paths import model_socket
from grafana.make import BOARDS
from tests.live import Live, started, sum_of
from tests.project.test_dashboards import queries
from tests.prometheus import Prometheus, scraping
from tests.questions import ask_fingerprint, ask_minilm, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_91_tenants import hashed, key_of

CLIENTS = 8
RULES = Path(__file__).parent.parent.parent / "grafana" / "prometheus" / "rules"


@pytest.fixture(scope="module")
def watched(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two workers with Triton's names, for the stories of this file."""
    data = tmp_path_factory.mktemp("watched") / "data"
    with started(built, data, "--workers=2", "--triton-metrics", models=["fingerprint"]) as system:
        yield system


def text_of(system: Live) -> str:
    return system.get("/metrics")[2].decode()


def series(exposition: str) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in exposition.splitlines() if not line.startswith("#")}


async def ask_until(system: Live, seeds: range, kill_at: int | None = None) -> Counter[str]:
    """Eight clients ask; a worker is killed when so many answers are in. Answers by status, and broken connections."""
    told: Counter[str] = Counter()
    queue = iter(seeds)
    killed = False

    async def one(client: aiohttp.ClientSession) -> None:
        nonlocal killed
        for seed in queue:
            try:
                async with client.post(system.url + FINGERPRINT, json=ask_fingerprint(numbers(seed % 200))) as reply:
                    await reply.read()
                    told[str(reply.status)] += 1
            except aiohttp.ClientError:
                told["broken"] += 1
            if kill_at is not None and not killed and told["200"] >= kill_at:
                killed = True
                os.kill(system.workers()[0], signal.SIGKILL)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(one(client) for _ in range(CLIENTS)))
    return told


async def test_the_sum_over_results_is_the_answers_received_also_after_kill_9(watched: Live) -> None:
    """A killed worker's counts stay; only what was in flight when it died may differ, and it is at most one request
    per client. Afterwards every scrape, whichever worker answers it, is exact."""
    names = ("foreseen_requests_total", "foreseen_rows_total", "foreseen_request_duration_seconds_count")

    def counts() -> list[float]:
        text = text_of(watched)
        return [sum_of(text, name, {"model": "fingerprint"}) for name in names]

    before = counts()
    assert set(before) == {before[0]}
    told = await ask_until(watched, range(2000), kill_at=700)
    assert told["200"] + told["broken"] == 2000
    assert told["broken"] <= CLIENTS
    killed = counts()
    assert all(0 <= count - was - told["200"] <= told["broken"] for count, was in zip(killed, before, strict=True))
    watched.until("foreseen_workers", lambda value: value == 2)
    assert (await ask_until(watched, range(500)))["200"] == 500
    for _ in range(6):
        assert [count - was for count, was in zip(counts(), killed, strict=True)] == [500, 500, 500]


def test_a_restarted_worker_takes_over_the_files_of_the_killed_one(watched: Live) -> None:
    """Files are named after the worker's number: three kills later there are as many as before."""
    from foreseen.paths import run_folder

    def files() -> set[str]:
        return {path.name for path in (run_folder(watched.data) / "metrics").glob("*.db")}

    before = files()
    for _ in range(3):
        started_at = watched.metric("foreseen_worker_start_time_seconds")
        os.kill(watched.workers()[0], signal.SIGKILL)
        watched.until("foreseen_worker_start_time_seconds", lambda value, was=started_at: value > was)
        watched.until("foreseen_workers", lambda value: value == 2)
    assert files() == before


def test_hostile_paths_and_names_make_no_series(watched: Live) -> None:
    """Paths, model names, versions, methods and stages are data: a thousand of them leave at most the ones that any
    error leaves."""
    watched.post("/v2/models/nope/infer", b"{}")
    watched.post("/v1/models/nope:predict", b"{}")
    watched.post(FINGERPRINT, b"{}")
    before = series(text_of(watched))
    for number in range(300):
        watched.post(f"/v2/models/evil{number}/infer", b"{}")
        watched.post(f"/v1/models/evil{number}:predict", b"{}")
        watched.post(f"/v2/models/fingerprint/versions/{number + 2}/infer", b"{}")
        watched.get(f"/metrics/evil{number}")
        watched.ask("BREW", f"/{number}%22%7D%20", None, None)
    assert {name for name in series(text_of(watched)) - before if 'code="' not in name} == set()
    assert len(series(text_of(watched)) - before) <= 4


def test_promtool_finds_nothing_to_complain_of(watched: Live) -> None:
    """`promtool check metrics` is clean on the proxy and on the model process, which the proxy passes on. Triton's own
    names are left out: it does complain of those."""
    for path in ("/metrics", "/metrics/fingerprint"):
        status, headers, text = watched.get(path)
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        ours = b"".join(line for line in text.splitlines(keepends=True) if b"nv_" not in line)
        assert ours.count(b"# TYPE foreseen_") > 5
        done = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_tritons_names_are_told_with_the_flag(watched: Live) -> None:
    """Requests, hits and computed rows under the names that existing boards read; they agree with ours."""
    text = text_of(watched)
    model = {"model": "fingerprint"}
    good = sum_of(text, "foreseen_requests_total", {**model, "code": "200"})
    assert sum_of(text, "nv_inference_request_success", model) == good
    assert sum_of(text, "nv_cache_num_hits_per_model", model) > 0
    assert "nv_inference_queue_duration_us" in watched.get("/metrics/fingerprint")[2].decode()


def test_stages_sizes_and_state_are_told(watched: Live) -> None:
    """Every step has been timed; entries, batches, lag, near, far, model and build have their numbers."""
    for number in range(20):
        assert watched.post(FINGERPRINT, ask_fingerprint(numbers(90_000 + number)))[0] == 200
    watched.until("foreseen_near_entries", lambda entries: entries >= 10)  # both workers have had their pulse
    watched.until("foreseen_stage_duration_seconds_count", lambda count: count > 0, stage="render")
    text = text_of(watched)
    for stage in ("decode", "prepare", "key", "near", "flight", "far", "model", "keep", "render"):
        assert sum_of(text, "foreseen_stage_duration_seconds_count", {"stage": stage}) > 0, stage
    for name in (
        "foreseen_entry_bytes_count",
        "foreseen_model_request_rows_count",
        "foreseen_model_request_duration_seconds_count",
        "foreseen_near_entries",
        "foreseen_worker_resident_bytes",
        "foreseen_worker_cpu_seconds_total",
        "foreseen_far_memory_bytes",
        "foreseen_far_entries",
    ):
        assert sum_of(text, name, {}) > 0, name
    watched.until("foreseen_loop_lag_seconds_count", lambda count: count > 0)
    assert sum_of(text, "foreseen_model_ready", {"model": "fingerprint"}) == 1
    assert sum_of(text, "foreseen_far_up", {}) == 1
    assert sum_of(text, "foreseen_build_info", {}) == 1


def some_of_everything(system: Live, seeds: range) -> None:
    """Traffic of every kind: hits, misses, partial and equal rows, V1, an observed model, errors."""
    for seed in seeds:
        for _ in range(2):
            assert system.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[0] == 200
        assert system.post(FINGERPRINT, ask_fingerprint(numbers(seed), numbers(-seed), numbers(-seed)))[0] == 200
        assert system.post("/v1/models/fingerprint:predict", {"instances": [numbers(seed)]})[0] == 200
        assert system.post(MINILM, ask_minilm(f"operators watch {seed % 3}"))[0] == 200
        assert system.post(FINGERPRINT, b"{}")[0] == 400
        assert system.post("/v2/models/nope/infer", b"{}")[0] == 404
        job = ask_fingerprint(numbers(850_000 + seed))
        status, headers, _ = system.post(FINGERPRINT, job, {"Prefer": "respond-async"})
        assert status == 202
        status, _, seen = system.ask("GET", headers["location"], None, {"Prefer": "wait=20"})
        assert b"succeeded" in seen


TENANTS = f"""
[tenant.a]
keys = ["{hashed("a")}"]

[tenant.b]
keys = ["{hashed("b")}"]
requests_per_second = 0.001
"""


def some_of_tenants(system: Live, seeds: range) -> None:
    """Misses and hits of one tenant, and requests that another's quota refuses."""
    for seed in seeds:
        for _ in range(2):
            assert system.post(MINILM, ask_minilm(f"tenants watch {seed}"), key_of("a"))[0] == 200
        assert system.post(MINILM, ask_minilm("tenants watch"), key_of("b"))[0] in (200, 429)


SUMS = ("foreseen_requests_total", "foreseen_rows_total", "foreseen_request_duration_seconds_count")


class Sums:
    """What Prometheus has of the three counts of fingerprint, over both proxies, all workers and all results: gains."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self._last = self._now()

    def _now(self) -> list[float]:
        self._prometheus.until_scraped(2)
        return [self._prometheus.query(f'sum({name}{{model="fingerprint"}})')[0] for name in SUMS]

    def gained(self) -> list[float]:
        """Since the last look."""
        before, self._last = self._last, self._now()
        return [now - was for now, was in zip(self._last, before, strict=True)]


def test_every_query_of_every_dashboard_returns_data(built: Path, tmp_path: Path) -> None:
    """A real Prometheus scrapes two real proxies of two workers each, under load, while a worker is killed: the sums
    over results are the answers received, exactly, but for what was in flight in the killed one; and every query of
    every board gives numbers, none NaN, where a third proxy has tenants, audits its hits and has a candidate, which is
    its own model."""
    (tmp_path / "keys.toml").write_text(TENANTS)
    keys = (f"--keys-file={tmp_path / 'keys.toml'}", "--metrics-open", "--audit=100%", "--audit-rows-per-second=1000")
    candidate = f"--candidate=unix:{model_socket(tmp_path / 'tenants', 'minilm')}"
    keys = (*keys, candidate, "--shadow=100%", "--canary=50%")
    with (
        started(built, tmp_path / "data", "--workers=2", "--observe=minilm") as system,
        started(built, tmp_path / "more", "--workers=2", models=["fingerprint"]) as beside,
        started(built, tmp_path / "tenants", *keys, models=["minilm"]) as apart_by_key,
        scraping(system, ["fingerprint", "minilm"], tmp_path, beside=[beside, apart_by_key]) as prometheus,
    ):
        sums = Sums(prometheus)
        told = asyncio.run(ask_until(beside, range(400)))
        assert sums.gained() == [told["200"]] * len(SUMS), "no worker was killed: nothing is apart"
        told = asyncio.run(ask_until(beside, range(1000), kill_at=300))
        apart = [gained - told["200"] for gained in sums.gained()]  # counted by the killed worker, cut off before read
        assert all(0 <= one <= told["broken"] <= CLIENTS for one in apart)
        beside.until("foreseen_workers", lambda value: value == 2)
        told = asyncio.run(ask_until(beside, range(400)))
        assert sums.gained() == [told["200"]] * len(SUMS), "exact again"
        for seeds in (range(1, 20), range(20, 39)):
            some_of_everything(system, seeds)
            some_of_tenants(apart_by_key, seeds)
            prometheus.until_scraped(3)
        empty = {
            (name, query)
            for name in BOARDS
            for query in queries(name)
            if not any(value == value for value in prometheus.query(query))  # NaN is no number
        }
        assert empty == set()
        assert sums.gained() == [2 * 19 * 6] * 3, "six requests a seed, one of them a job, and six rows of the others"


def at_once(rules: Path, folder: Path) -> Path:
    """The alerts as they are, except that they neither wait nor look back for minutes."""
    text = (rules / "alerts.yml").read_text()
    made = folder / "alerts.yml"
    made.write_text(re.sub(r"for: \d+[ms]", "for: 1s", text).replace("[10m]", "[4s]"))
    return made


@pytest.mark.long
def test_alerts_fire_when_valkey_stops_and_a_model_is_killed_and_clear_afterwards(built: Path, tmp_path: Path) -> None:
    """In a real Prometheus, with the rules as they are but for their patience."""
    rules = [RULES / "recording.yml", at_once(RULES, tmp_path)]
    with (
        started(built, tmp_path / "data", models=["fingerprint"]) as system,
        scraping(system, ["fingerprint"], tmp_path, rules=rules) as prometheus,
    ):
        prometheus.until_scraped(2)
        assert prometheus.firing() == set()
        system.signal("far", signal.SIGSTOP)
        prometheus.until(lambda: "ForeseenStoreDown" in prometheus.firing())
        assert system.post(FINGERPRINT, ask_fingerprint(numbers(1)))[0] == 200
        system.signal("far", signal.SIGCONT)
        prometheus.until(lambda: not prometheus.firing())
        system.signal("model:fingerprint", signal.SIGSTOP)
        prometheus.until(lambda: "ForeseenModelDown" in prometheus.firing())
        system.signal("model:fingerprint", signal.SIGCONT)
        prometheus.until(lambda: not prometheus.firing())
        system.signal("model:fingerprint", signal.SIGKILL)
        prometheus.until(lambda: "ForeseenModelRestarted" in prometheus.firing())
        prometheus.until(lambda: not prometheus.firing())
