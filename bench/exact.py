"""Rows through the server are the bits of rows alone: `make verify-exact`.

For fp32 and row-wise int8 of minilm and mpnet (built on request, 440 MB of wheels): every length from 4 to 62 several
times over, in random requests of 1 to 32 padded rows, all sent at once to a model process with two instances; each
answer is compared with the row run alone, all 384 or 768 floats.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
import numpy as np

from foreseen.inference.session import SessionPlan, open_session
from foreseen.models.build.build import build
from foreseen.models.progress import shown
from foreseen.modelspec.manifest import Precision, find
from foreseen.settings import InferenceSettings
from foreseen.types import Row
from tests.inference.test_app import listening, padded
from tests.models_fixture import PACKAGED

PRECISIONS: tuple[Precision, ...] = ("int8-rowwise", "fp32")


async def compare(name: str, precision: Precision, data: Path, times: int) -> tuple[int, int, int]:
    """Rows compared, rows that differ, and runs that the process made of them."""
    manifest = msgspec.structs.replace(find(name, PACKAGED), precisions=(precision,))
    with shown() as say:
        record = build(manifest, data, quick=True, say=say)
    assert record.artifact.precision == precision
    dice = np.random.default_rng(4)
    rows = [dice.integers(1000, 30000, length) for length in dice.permutation(np.tile(np.arange(4, 63), times))]
    requests, at = [], 0
    while at < len(rows):
        requests.append(rows[at : at + int(dice.integers(1, 33))])
        at += len(requests[-1])
    async with listening(InferenceSettings(model=name, data=data, port=0, instances=2)) as client:
        answers = await asyncio.gather(*(client.binary(padded(request)) for request in requests))
        runs = client.served.runs
    together = np.concatenate([answer.outputs[0].array for answer in answers])
    alone = open_session(manifest, data, SessionPlan())
    differ = sum(
        alone.run([Row((row,))])[0][0].tobytes() != embedding.tobytes()
        for row, embedding in zip(rows, together, strict=True)
    )
    alone.close()
    return len(rows), differ, runs


def main() -> None:
    """Print a line per model and precision; status 1 where any bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/exact-data"))
    parser.add_argument("--models", nargs="+", default=["minilm", "mpnet"])
    parser.add_argument("--times", type=int, default=6, help="rows of each length")
    settings = parser.parse_args()
    worst = 0
    for name in settings.models:
        for precision in PRECISIONS:
            rows, differ, runs = asyncio.run(compare(name, precision, settings.data, settings.times))
            print(
                f"{name:<8}{precision:<14}{rows:>5} rows in {runs} runs: {differ} differ from the row alone", flush=True
            )
            worst = max(worst, differ)
    sys.exit(worst > 0)


if __name__ == "__main__":
    main()
