"""Words of other servers and tools that users reported as untrue, tried here. Reports are linked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.foreign import Foreign, Front, fronted, listening
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT
from tests.stories.test_60_start_and_stop import foreseen
from tests.stories.test_81_openai_fuzzed import upload

READY = "/v2/health/ready"


async def until_ready(front: Front, *, ready: bool) -> None:
    async with asyncio.timeout(20):
        while ((await front.status("/v2/models/fp/ready"))[0] == 200) != ready:  # noqa: ASYNC110 - it is looked at, not signalled
            await asyncio.sleep(0.05)


async def test_a_model_that_is_unloaded_is_not_ready(tmp_path: Path) -> None:
    """https://github.com/triton-inference-server/server/issues/7588: ready stayed 200. Here a model's readiness
    says whether a miss would be answered, and the server's, by its documentation, that each has been ready once:
    hits go on. A row asked for meanwhile is the server's to refuse (https://github.com/kserve/kserve/issues/2775)."""
    foreign = Foreign()
    async with listening(foreign.application()) as url, fronted(url, tmp_path) as front:
        await front.until(lambda told: told.get("rows") == "each")
        assert (await front.infer(numbers(1)))[0] == 200
        foreign.ready = False
        await until_ready(front, ready=False)
        assert (await front.infer(numbers(1)))[1].startswith("foreseen;hit")
        assert (await front.infer(numbers(2)))[2] == [fingerprint(numbers(2))]
        foreign.ready = True
        await until_ready(front, ready=True)


async def test_no_model_is_not_ready(tmp_path: Path) -> None:
    """https://github.com/SeldonIO/MLServer/issues/2056: all models of none are ready."""
    foreign = Foreign()
    foreign.listed = []
    async with listening(foreign.application()) as url, fronted(url, tmp_path) as front:
        assert (await front.status(READY))[0] == 503


def test_a_model_is_ready_before_its_first_request(own: Live) -> None:
    """https://github.com/kserve/kserve/issues/1915: ready came with the first request, which waited for ready."""
    assert own.get("/v2/models/minilm/ready")[0] == 200
    assert own.get("/v1/models/minilm")[0] == 200
    assert own.get(READY)[0] == 200


def test_a_purge_that_fails_says_so_by_its_status(own: Live) -> None:
    """https://github.com/getodk/central-backend/issues/1484: status 0, and `null`. What is said of a failure is on
    stderr, what was done on stdout (https://github.com/akamai/cli-purge/issues/15)."""
    failed = foreseen("purge", f"--data={own.data}", "--model=bertha")
    assert failed.returncode != 0
    assert (failed.stdout, "bertha" in failed.stderr) == ("", True)
    done = foreseen("purge", f"--data={own.data}", "--model=fingerprint")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fingerprint" in done.stdout


def test_a_purge_without_a_system_is_none(built: Path, tmp_path: Path) -> None:
    """https://github.com/microsoft/apm/pull/2864 (issue 2853): "Cache cleaned." over what was still there."""
    done = foreseen("purge", f"--data={tmp_path}", "--all")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def statistics(live: Live) -> dict[str, int]:
    """What was counted of one model, flat."""
    (one,) = json.loads(live.get("/v2/models/fingerprint/stats")[2])["model_stats"]
    stages = {name: stage["count"] for name, stage in one["inference_stats"].items()}
    return {"inference": one["inference_count"], "execution": one["execution_count"], **stages}


def test_statistics_add_up_with_hits(own: Live) -> None:
    """https://github.com/triton-inference-server/client/pull/70 and 49: of requests that a cache answers,
    inferences, executions and misses have to be apart, or perf_analyzer's sums are wrong."""
    before, seeds = statistics(own), (1, 1, 1, 2, 2)
    for seed in seeds:
        assert own.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[0] == 200
    grown = {name: count - before[name] for name, count in statistics(own).items()}
    assert (grown["success"], grown["fail"], grown["cache_hit"], grown["cache_miss"]) == (5, 0, 3, 2)
    assert {grown[name] for name in ("inference", "execution", "compute_input", "compute_infer", "compute_output")} == {
        2
    }


def test_every_flag_that_help_names_is_taken() -> None:
    """https://github.com/InternLM/lmdeploy/pull/4809: documented flags that no parser knows; the docs' commands are
    parsed in tests/project. Here the other way: an unknown flag is named, with near ones."""
    command = [sys.executable, "-P", "-m", "foreseen.cli", "up", "--enable-metrics"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "--enable-metrics" in done.stdout + done.stderr


def test_batch_files_as_users_write_them(live: Live) -> None:
    """https://github.com/sgl-project/sglang/issues/1415 (equal `custom_id`s: the batch never ended),
    https://github.com/llm-d/llm-d-batch-gateway/pull/574 (lines at the end that are empty),
    https://github.com/headroomlabs-ai/headroom/pull/2316 (a line that is JSON and no object ended all others)."""
    one = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "zoo"}}
    lines = [one, [1, 2, 3], {**one, "body": "x"}, {**one, "body": {"model": "minilm", "input": "gnu"}}]
    file = upload(live, b"\xef\xbb\xbf" + "\n".join(map(json.dumps, lines)).encode() + b"\n\n\n")
    created = {"input_file_id": file, "endpoint": "/v1/embeddings"}
    status, _, told = live.post("/v1/batches", created, {"Content-Type": "application/json"})
    assert status == 200, told
    name = json.loads(told)["id"]
    live.ask("GET", f"/v2/predictions/{name.removeprefix('batch_')}", None, {"Prefer": "wait=30"})
    batch = json.loads(live.get(f"/v1/batches/{name}")[2])
    assert (batch["status"], batch["request_counts"]["total"]) == ("completed", 4)
    content = live.get(f"/v1/files/{batch['output_file_id']}/content")[2]
    results = [json.loads(line) for line in content.splitlines()]
    assert [one["error"] is None for one in results] == [True, False, False, False]
    assert "custom_id" in results[3]["error"]["message"]
