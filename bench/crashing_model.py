"""The real process of the model `fingerprint`, which ends itself when a row begins with POISON.

python -m bench.crashing_model --data DIR --uds PATH
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from foreseen.inference.app import start
from foreseen.inference.batching.queued import BatchOrder, QueuedRequest
from foreseen.inference.served import LoadedModel
from foreseen.settings import InferenceSettings
from foreseen.types import Row

POISON = 666_666


class CrashingModel(LoadedModel):
    """Ends the process in the middle of a batch that has poison in it."""

    async def open(self) -> None:
        await super().open()
        submit = self.batcher.submit

        def judged(rows: Sequence[Row], order: BatchOrder) -> QueuedRequest:
            if any(row.tensors[0][0] == POISON for row in rows):
                os._exit(70)
            return submit(rows, order)

        self.batcher.submit = judged  # type: ignore[method-assign] # rows come by two ways; both end here


async def serve(settings: InferenceSettings) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    served = CrashingModel(settings)
    runner = await start(settings, served)
    await served.open()
    await stopping.wait()
    await runner.cleanup()
    await served.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--uds", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(InferenceSettings(model="fingerprint", data=options.data, uds=options.uds)))


if __name__ == "__main__":
    main()
