"""What a worker's pulse says of its event loop."""

from __future__ import annotations

import asyncio
import time

from foreseen.proxy.admin.heartbeat import RECOVERY_SECONDS, Heartbeat
from foreseen.telemetry.metrics import ProxyMetrics
from tests.doubles import ScriptedModel, pipeline


async def test_a_late_event_loop_is_stalled_before_and_after_it_wakes() -> None:
    """More than a second late: at once, also where the pulse has not had its turn yet, and for a while afterwards."""
    heartbeat = Heartbeat(pipeline(ScriptedModel()), {}, ProxyMetrics(), breaker_open=lambda: False, far_state=None)
    assert not heartbeat.stalled
    beating = asyncio.create_task(heartbeat.beat())
    await asyncio.sleep(0)
    assert not heartbeat.stalled
    heartbeat._due -= 2.0
    assert heartbeat.stalled
    while heartbeat._stalled_until == 0.0:  # noqa: ASYNC110 - its next beat
        await asyncio.sleep(0.01)
    assert heartbeat.stalled
    assert time.monotonic() < heartbeat._stalled_until <= time.monotonic() + RECOVERY_SECONDS
    beating.cancel()
