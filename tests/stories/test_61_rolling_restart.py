"""A system that is renewed while it is asked: workers, a model's build, a manifest; nobody's request is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from foreseen.paths import state_socket
from foreseen.stores.state import connect_state
from tests.live import Live, started
from tests.questions import ask_fingerprint, numbers
from tests.rolling import DRAIN_SECONDS, PATH, roll, seal_in, told


async def test_restarts_builds_and_edits_under_load_lose_no_request(built: Path, tmp_path: Path) -> None:
    """SIGHUP, `models build` from elsewhere, another manifest and SIGHUP: no failed request, no answer of an old model
    once the new one is in force everywhere, no entry under another build's digest."""
    models = tmp_path / "models"
    seal_in(models, 1)
    flags = ("--workers=2", f"--drain-seconds={DRAIN_SECONDS}", f"--models={models}")
    with started(built, tmp_path / "data", *flags, models=("fingerprint",)) as live:
        rolling = await roll(live, models, ("restart", "build", "edit"))
        misfiled = await rolling.misfiled()
    seen, report = rolling.load.seen, told(rolling, misfiled)
    assert not seen.failures, report
    assert (seen.wrong, rolling.late_answers(), misfiled) == (0, 0, 0), report
    assert {seal for _, _, seal in seen.answers} == {1, 2, 3}
    assert seen.hits
    assert seen.closed


async def registered(live: Live) -> set[int]:
    """Process ids of the workers that purges wait for."""
    state = connect_state(f"unix://{state_socket(live.data)}")
    try:
        return {int(name.split("/")[1]) for name in await state.workers()}
    finally:
        await state.close()


def test_a_killed_worker_is_replaced_and_a_broken_manifest_replaces_nobody(built: Path, tmp_path: Path) -> None:
    """SIGHUP with a manifest that cannot be read: all goes on as it was. kill -9: another process in its place."""
    models = tmp_path / "models"
    seal_in(models, 1)
    flags = ("--workers=2", f"--models={models}")
    with started(built, tmp_path / "data", *flags, models=("fingerprint",)) as live:
        first, second = live.workers()
        end = time.monotonic() + 30
        while not {first, second} <= asyncio.run(registered(live)):  # both have read their manifests
            assert time.monotonic() < end
        (models / "fingerprint" / "model.toml").write_text("name = ")
        live.process.send_signal(signal.SIGHUP)
        for seed in range(50):
            assert live.post(PATH, ask_fingerprint(numbers(seed)))[0] == 200
        assert set(live.workers()) == {first, second}
        seal_in(models, 1)
        os.kill(first, signal.SIGKILL)
        end = time.monotonic() + 30
        while len(workers := set(live.workers())) < 2 or first in workers:
            assert time.monotonic() < end
        assert second in workers


def test_a_worker_that_stood_still_is_not_ready_for_a_while(own: Live) -> None:
    """SIGSTOP for more than a second: afterwards it answers, says that it is no place to send requests to, and
    recovers by itself."""
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1.4)  # what a stall is, is a matter of time
    os.kill(worker, signal.SIGCONT)
    assert own.get("/v2/health/ready")[0] == 503
    assert own.post(PATH, ask_fingerprint(numbers(1)))[0] == 200
    end = time.monotonic() + 30
    while own.get("/v2/health/ready")[0] != 200:
        assert time.monotonic() < end
