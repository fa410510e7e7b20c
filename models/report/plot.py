"""Candidates → a plot: how fast each is against how well it agrees, and its throughput by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foreseen.models.report.study import Candidate

REFUSED, PASSED = "#c44e52", "#4c72b0"


def draw(name: str, candidates: Sequence[Candidate], path: Path) -> None:
    """Write an SVG to `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for candidate in candidates:
        if candidate.speedup is None or candidate.figures.agreement is None:
            continue
        agreement = candidate.figures.agreement * 100
        left.scatter(candidate.speedup, agreement, color=PASSED if candidate.passed else REFUSED)
        left.annotate(candidate.precision, (candidate.speedup, agreement), (5, 4), textcoords="offset points")
        batch = max(timing.rows for timing in candidate.timings)
        cells = [timing for timing in candidate.timings if timing.rows == batch]
        lengths = [str(timing.tokens) if timing.tokens else "one size" for timing in cells]
        rates = [timing.rows_per_second for timing in cells]
        right.plot(lengths, rates, marker="o", label=candidate.precision, linestyle="-" if candidate.passed else ":")
        right.set(title=f"throughput in batches of {batch}", xlabel="tokens", ylabel="rows/s, one thread", yscale="log")
    left.set(
        title=f"{name}: red does not pass its gates", xlabel="speed against fp32, 1×64 tokens", ylabel="agreement %"
    )
    left.margins(0.3, 0.1)  # room for the names
    right.legend()
    figure.savefig(path, metadata={"Date": None})
