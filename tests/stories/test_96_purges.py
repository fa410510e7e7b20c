"""Answers of two workers while things are purged: `python -m tests.chaos.purges` for a million of them."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.purges import Answered, History, Purged, run, violations


async def test_nobody_gets_an_answer_that_is_older_than_a_purge_before_the_question(tmp_path: Path) -> None:
    """15,000 answers, purges of models, of everything and of single rows meanwhile, every answer held against them."""
    history = await run(tmp_path, 15_000, seed=5)
    assert violations(history) == []
    assert history.refused == 0
    assert {purge.row is None for purge in history.purges} == {True, False}
    assert 400 < history.computed < len(history.answers)


def test_the_check_goes_red() -> None:
    """An answer made before a purge, asked for after its acknowledgement; before it, or of another row, is none."""
    purges = [Purged(before=10, acknowledged=5.0, row=None), Purged(before=20, acknowledged=6.0, row=3)]
    fine = [Answered(4.9, 3, 1), Answered(5.0, 3, 11), Answered(7.0, 4, 11), Answered(7.0, 3, 21)]
    assert violations(History(fine, purges)) == []
    for wrong in (Answered(5.0, 4, 10), Answered(6.0, 3, 20), Answered(9.0, 3, 1)):
        assert len(violations(History([*fine, wrong], purges))) == 1
