"""One model process is killed again and again; the other three notice nothing; a minute: `make bench-isolation`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.isolation import OTHERS, measure, table


@pytest.mark.long
def test_a_model_that_is_killed_every_two_seconds_leaves_the_others_alone(tmp_path: Path) -> None:
    """Three kills in five seconds: no error on three other models, their latency stays, the killed one comes back."""
    result = measure(tmp_path, 5.0)
    assert result.kills >= 3
    assert result.answered_again
    for model in OTHERS:
        calm, killing = result.calm[model], result.killing[model]
        assert killing.errors == []
        assert len(killing.seconds) > 50
        # A process that starts needs a core of its own for a second, and there are two for all of them.
        assert killing.at(0.5) < 3 * calm.at(0.5) + 5, table(result)
        assert killing.at(0.99) < 10 * calm.at(0.99) + 100, table(result)
