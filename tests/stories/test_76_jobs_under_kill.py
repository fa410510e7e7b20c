"""Jobs while workers and the queue's store are killed: the small tier of `make verify-jobs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.verify_jobs import held, verify


@pytest.mark.long
async def test_no_job_is_lost_and_only_poison_is_a_dead_letter(tmp_path: Path) -> None:
    """All killed with `kill -9` every two seconds: one end each, right answers, poison found and nothing else."""
    outcome, system = await verify(tmp_path / "data", jobs=300, poison=1, every=2.0)
    assert len(outcome.accepted) == 300
    assert {what: count for what, count in held(outcome).items() if count} == {}
    assert system.kills["worker"] + system.kills["state"] > 0
