"""A model that is changed while it is asked: warm after the switch and the rollback, refused outside of its budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreseen.modelspec.artifact import read_record
from tests.handover import KEPT_BYTES, changed_system, measured

pytestmark = [pytest.mark.processes, pytest.mark.long]


async def test_a_handover_under_load_keeps_the_cache_warm(tmp_path: Path) -> None:
    """No request fails, no answer is of the wrong model, hits stay where they were, also after the rollback; a cold
    switch of the same model loses them."""
    with changed_system(tmp_path, "fingerprint") as system:
        outcome = await measured(system, seconds=3.0, settle=2.0)
    report = "\n".join(outcome.lines())
    assert not outcome.failures, report
    assert (outcome.strange, outcome.late) == (0, 0), report
    assert outcome.ratio >= 0.95, report
    assert outcome.rollback_ratio >= 0.95, report
    assert outcome.cold.hits < outcome.after.hits, report


async def test_the_hottest_rows_need_no_file(tmp_path: Path) -> None:
    """The same, with the rows that the two workers keep themselves."""
    with changed_system(tmp_path, "fingerprint", 2, f"--keep-hot-inputs={KEPT_BYTES}") as system:
        outcome = await measured(system, seconds=3.0, settle=4.0, rows="--hottest=100000")
    report = "\n".join(outcome.lines())
    assert not outcome.failures, report
    assert (outcome.strange, outcome.late) == (0, 0), report
    assert outcome.ratio >= 0.95, report
    assert outcome.cold.hits < outcome.after.hits, report


async def test_outside_of_the_budget_nothing_changes(tmp_path: Path) -> None:
    """The candidate's seal differs in every row: refused at 1 %. The record, the process and the digest stay, and no
    process or socket of the candidate is left. A rollback has nothing to take back."""
    with changed_system(tmp_path, "fingerprint", workers=1) as system:
        before, children = await system.digests(), system.live.children()
        status, said = await system.handover("--json", max_changed="1%")
        assert status == 1, said
        document = json.loads(said.splitlines()[0] if said.startswith("{") else said[said.index("{") :].splitlines()[0])
        assert document["changed"]["share"] == 1.0
        assert not document["inside"]
        rows = document["rows"]
        assert system.live.metric("foreseen_handover_rows_total", model="fingerprint", outcome="changed") == rows
        assert read_record(system.live.data, "fingerprint") == system.first
        assert (await system.digests(), system.live.children()) == (before, children)
        assert not list((system.live.data / "run").glob("*candidate*"))
        status, said = await system.rollback()
        assert status == 1
        assert "nothing to roll back" in said
