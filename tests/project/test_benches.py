"""Benches say what they measured: their trace repeats as the real one does, and a missed goal fails."""

from __future__ import annotations

import random

import pytest

from bench.antipattern import made_keys, repeats
from bench.interleaved import Figure, end, says, verdict

REAL = {1_000: 0.518, 10_000: 0.749, 33_000: 0.768, 100_000: 0.768}
"""The share of repeats among the first requests of the trace of a product recommendation service."""


def test_the_made_trace_repeats_as_the_real_one() -> None:
    """Within five points, from the first thousand requests to the hundred thousandth."""
    curve = repeats(made_keys(100_000, random.Random(7)))
    assert curve.keys() == REAL.keys()
    assert all(abs(curve[number] - share) < 0.05 for number, share in REAL.items()), curve


def test_a_goal_that_is_missed_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless only figures are wanted. CPU decides where it was measured, the rate else."""
    base = Figure("nginx", [100.0], [1e-3], [2e-3], [20e-6])
    by_cpu = Figure("slow by rate", [10.0], [1e-3], [2e-3], [40e-6])
    by_rate = Figure("slow", [10.0], [1e-3], [2e-3])
    assert verdict([base, by_cpu], "nginx", {"slow by rate": 0.5, "not measured": 9.0})
    assert not verdict([base, by_rate], "nginx", {"slow": 0.5})
    assert says("p99", 1.0, 2.0, "ms", least=False)
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["met", "MISSED", "met"]
    end(met=True, report_only=False)
    end(met=False, report_only=True)
    with pytest.raises(SystemExit) as ended:
        end(met=False, report_only=False)
    assert ended.value.code == 1
