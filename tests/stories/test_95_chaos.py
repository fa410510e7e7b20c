"""Everything fails once, at random instants under load: `make chaos` for ten minutes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import Happened, Line, bounds, judged, measure, table
from tests.chaos.load import Asked

SECONDS = 45.0


@pytest.mark.long
def test_every_fault_once_under_load(tmp_path: Path) -> None:
    """Twenty-three faults of far, the network, the state store, the model and the workers: no wrong answer, no error
    outside of what a killed process had in flight, and each is recovered from."""
    result = measure(tmp_path, SECONDS, seed=7)
    assert sum(line.wrong for line in result.lines) == 0, table(result)
    assert sum(line.errors for line in result.lines) <= 1, table(result)
    assert len(result.lines) > 15
    assert max(seconds for line in result.lines for seconds in line.recovery) < 20, table(result)
    assert sum(line.requests for line in result.lines) > 1000


def test_the_judge_tells_wrong_answers_from_what_was_in_flight() -> None:
    """A wrong answer, an error and a slow recovery each break a bound; a killed worker's own connections do not."""
    killed = Happened("worker_killed", "worker", True, 10.0, 10.0, 11.0, 12.0)
    late = Happened("far_stopped", "far", False, 20.0, 21.0, 24.0, 24.0)
    fine = [Asked(float(at), at + 0.01, "ok", False, "") for at in range(10)]
    broken = [Asked(10.0, 10.1, "broken", False, "") for _ in range(3)]
    lines = judged([*fine, *broken, Asked(22.0, 22.1, "wrong", True, "")], [killed, late], clients=2)
    by_kind = {line.kind: line for line in lines}
    assert (by_kind["worker_killed"].in_flight, by_kind["worker_killed"].errors) == (2, 1)
    assert by_kind["far_stopped"].wrong == 1
    said = bounds(lines, load_seconds=1.0)
    assert len(said) == 3
    assert bounds([Line("calm", requests=10), Line("model_killed", recovery=[1.9])], load_seconds=1.0) == []
