"""What one process costs a request, measured: the proxy's and Redis' CPU for answers of near, of far and of the model.

Rows of a pool that near holds; the same rows at a proxy without near; rows never asked before. One core for the
servers, one for the load, as in every benchmark. The CPU of a process moves far less with other work than rates do.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import urllib.request
from pathlib import Path

from bench.fleet import Costs
from bench.interleaved import awake, wrk
from bench.overhead import MODEL, cpu_seconds, serving
from bench.wrk_scripts import script
from tests.live import sum_of
from tests.models_fixture import built_data
from tests.ports import free_port

POOL = 2000
_PARTS = (
    '{"inputs":[{"name":"x","shape":[1,16],"datatype":"INT64","data":[',
    f",{str(list(range(2, 17)))[1:-1]}]}}]}}",
)
FROM_POOL = f"""local n = 0
request = function() n = n % {POOL} + 1
  return wrk.format(nil, nil, nil, '{_PARTS[0]}' .. n .. '{_PARTS[1]}') end"""
NEVER_SEEN = f"""local n = os.time() % 50000 * 1000000
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{_PARTS[0]}' .. n .. '{_PARTS[1]}') end"""
PROTOCOL_BYTES = 80
"""Of one key in a command and its reply, about."""
ROUNDS, SECONDS, CONNECTIONS = 3, 1, 32


def far_pid(parent: int) -> int:
    """The embedded Valkey of `foreseen up` that is far."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    named = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return next(int(pid) for pid, words in named.items() if "far.sock" in words)


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return sum_of(reply.read().decode(), name, {})


def measured() -> Costs:
    """The costs on this machine, medians of rounds."""
    with awake(), tempfile.TemporaryDirectory(prefix="fsn") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        data = folder / "d"
        data.mkdir()
        (data / "models").symlink_to(built_data("fingerprint") / "models")
        _, system = running.enter_context(serving(["up", f"--data={data}"], free_port()))
        redis = far_pid(system)
        proxy = ["proxy", f"--data={data}", "--state=none", "--access-log-hits=0", "--lease-ms=inf"]
        near = running.enter_context(serving(proxy, free_port()))
        far = running.enter_context(serving([*proxy, "--near-bytes=0", "--reply-cache-bytes=0"], free_port()))
        pool, fresh = script(folder, "pool", b"", FROM_POOL), script(folder, "fresh", b"", NEVER_SEEN)

        def once(where: tuple[str, int], path: Path) -> tuple[float, float]:
            """CPU of the proxy and of Redis for a request, in µs."""
            url, pid = where
            before = cpu_seconds(pid), cpu_seconds(redis)
            requests = wrk(url + MODEL, path, connections=CONNECTIONS, seconds=SECONDS)[0] * SECONDS
            after = cpu_seconds(pid), cpu_seconds(redis)
            return tuple(1e6 * (late - early) / requests for late, early in zip(after, before, strict=True))  # type: ignore[return-value]

        once(near, pool)
        once(near, pool)
        rounds = [(once(near, pool), once(far, pool), once(near, fresh)) for _ in range(ROUNDS)]
        of_near, of_far, of_miss = (
            [statistics.median(one[at][side] for one in rounds) for side in (0, 1)] for at in (0, 1, 2)
        )
        entries = metric(near[0], "foreseen_entry_bytes_sum") / metric(near[0], "foreseen_entry_bytes_count")
    return Costs(
        near_micros=round(of_near[0], 1),
        far_micros=round(of_far[0], 1),
        miss_micros=round(of_miss[0], 1),
        redis_get_micros=round(of_far[1], 2),
        redis_set_micros=round(max(0.1, of_miss[1] - of_far[1]), 2),
        entry_bytes=round(entries + PROTOCOL_BYTES),
    )
