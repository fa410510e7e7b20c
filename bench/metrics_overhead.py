"""What counting and logging one hit costs: the calls that a hit makes, and nothing else, in µs.

python -m bench.metrics_overhead            one worker
python -m bench.metrics_overhead several    as each of several workers counts, into shared files
"""

from __future__ import annotations

import os
import sys
import tempfile
import timeit
from collections.abc import Callable

TIMES = 100_000
STAGES = ("decode", "prepare", "key", "near", "render")


def main() -> None:
    several = sys.argv[1:] == ["several"]
    if several:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp()
    from foreseen.logs import configure
    from foreseen.proxy.predict.counting import AccessLog
    from foreseen.telemetry.exposition import use_slot
    from foreseen.telemetry.metrics import ProxyMetrics

    use_slot(0)
    configure("info", "bench")
    metrics = ProxyMetrics()
    metrics.expect(["m"])
    off, sampled = AccessLog(0.0), AccessLog(0.01)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - where the log goes, for the life of this process
    configure("info", "bench")

    def stages() -> None:
        for stage in STAGES:
            metrics.stages.add(stage, 0.00002)

    def counters() -> None:
        metrics.rows.labels("m", "near").inc()
        metrics.saved_seconds.labels("m").inc(0.01)
        metrics.request_seconds.of("m", "hit").add(0.0002)
        metrics.requests.labels("m", "v2", "200").inc()

    parts: dict[str, Callable[[], None]] = {
        "five stages": stages,
        "counters and the latency": counters,
        "access log, off": lambda: off.write("m", "v2", 200, "hit", 1, 0.0002),
        "access log, 1 % of hits": lambda: sampled.write("m", "v2", 200, "hit", 1, 0.0002),
    }
    print(f"{'several workers' if several else 'one worker'}, µs a hit")
    for name, part in parts.items():
        best = min(timeit.repeat(part, number=TIMES, repeat=5)) / TIMES * 1e6
        print(f"  {name:<26}{best:6.2f}")


if __name__ == "__main__":
    main()
