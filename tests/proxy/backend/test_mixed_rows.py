"""Whole requests that wait with rows for an upstream, as when its probe has just ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from foreseen.types import RequestOptions, Row
from tests.foreign import Foreign, fronted, listening
from tests.questions import fingerprint, numbers


async def test_each_gets_its_own_answer(tmp_path: Path) -> None:
    """A row, and two whole requests of one shape: no answer is another's, and none is missing."""
    one, two, three = (np.array(numbers(seed), np.int64) for seed in (1, 2, 3))
    rows = [Row((one,)), Row((two[None, :],)), Row((three[None, :],))]
    async with (
        listening(Foreign().application()) as url,
        fronted(url, tmp_path / "data", upstream_probe=False) as front,
    ):
        assert (await front.infer(numbers(9)))[2] == [fingerprint(numbers(9))]
        served = front.proxy.served["fp"]
        options = RequestOptions(asyncio.get_running_loop().time() + 20)
        answers = await served.process.predict(rows, b"", options)
        found = [np.frombuffer(answer.data[0], np.int64).tolist() for answer in answers]
        assert found == [fingerprint(numbers(seed)) for seed in (1, 2, 3)]
        assert [served.takes(row) for row in rows] == [False, True, True], "not probed: requests stay whole"
