"""Several proxies on one Redis, everybody asks one cold row: one computes it, and one other where that one dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.leasing import run, told


@pytest.mark.parametrize("kill", [False, True])
async def test_a_stampede_on_two_proxies_is_one_row_and_one_more_for_a_killed_leader(
    tmp_path: Path, kill: bool
) -> None:
    """Two proxies of two workers; the killed worker's own requests are lost, everybody else has the right answer."""
    seen, taken_over = await run(tmp_path, requests=400, workers=2, count=2, kill=kill)
    assert not seen.failed, told(seen)
    assert seen.right, told(seen)
    assert seen.model_rows == (2 if kill else 1), told(seen)
    assert taken_over == (1 if kill else 0)
    assert seen.answers.total() + seen.lost == 400
    if not kill:
        assert not seen.lost
