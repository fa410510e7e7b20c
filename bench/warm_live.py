"""`bench.warm`: latency while the model is warmed, and a recorded key stream on a warmed cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.warm_system import FORESEEN, SHARED, System, ask_text, system, texts, until, warm
from foreseen.protocol import wire_render


def bench_online(built: Path, limit: int) -> dict[str, Any]:
    """Latency of one client's hits and misses while nothing else runs, and while the same proxy's model is warmed,
    directly and through the proxy; in turns, so that other work on the machine hits all alike."""
    told: dict[str, Any] = {}
    with system(built, "minilm") as running:
        listed = texts(limit)
        running.start_model()
        running.start_proxy()
        hot = ask_text(listed[0])
        latencies(running, [hot] * 500)
        taken: dict[str, list[tuple[list[float], list[float]]]] = {"alone": [], "direct": [], "url": []}
        for turn in range(3):
            for way, found in taken.items():
                with warming(running, way, [f"{turn} {way} {text}" for text in listed]):
                    new = [ask_text(f"new {turn} {way} {i}") for i in range(60)]
                    found.append((latencies(running, [hot] * 3000), latencies(running, new)))
        for way, found in taken.items():
            hits, misses = zip(*found, strict=True)
            told[way] = {
                "hit_p50_ms": milliseconds(statistics.median(np.percentile(one, 50) for one in hits)),
                "hit_p99_ms": milliseconds(statistics.median(np.percentile(one, 99) for one in hits)),
                "hit_p99_ms_of_each_turn": [milliseconds(np.percentile(one, 99)) for one in hits],
                "miss_p50_ms": milliseconds(np.percentile(np.concatenate(misses), 50)),
                "miss_max_ms": milliseconds(max(map(max, misses))),
            }
    return told


@contextlib.contextmanager
def warming(running: System, way: str, listed: list[str]) -> Iterator[None]:
    """A run over new texts that is under way inside, directly or through the proxy; none for "alone"."""
    if way == "alone":
        yield
        return
    file = running.data.parent / "online.parquet"
    pq.write_table(pa.table({"text": listed}), file)
    words = ["warm", str(file), f"--data={running.data}", "--model=minilm", "--json"]
    words += [f"--url={running.url}"] if way == "url" else []
    before = running.metric("foreseen_model_rows_total")
    process = subprocess.Popen([*FORESEEN, *words], stdout=subprocess.DEVNULL)
    try:
        until(lambda: running.metric("foreseen_model_rows_total") > before + 100)
        yield
        assert process.poll() is None, "it was through too early"
    finally:
        process.kill()
        process.wait()


def milliseconds(seconds: float) -> float:
    return round(float(seconds) * 1000, 3)


def latencies(running: System, bodies: list[bytes]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", int(running.url.rsplit(":", 1)[1]), timeout=30)
    taken = []
    for body in bodies:
        started = time.perf_counter()
        connection.request("POST", f"/v2/models/{running.model}/infer", body)
        reply = connection.getresponse()
        reply.read()
        taken.append(time.perf_counter() - started)
        assert reply.status == 200
    connection.close()
    return taken


def bench_trace(built: Path, most: int) -> dict[str, Any]:
    """Yesterday's top keys warmed, today replayed. The first 5 % (or --replay of them) are really asked, one by one, of
    a proxy over rows of `digits` (near off, so that every level starts from what was warmed); all is simulated too."""
    path = SHARED / "scarab_recs_keys.csv.xz"
    if path.exists():
        with lzma.open(path, "rt") as recorded:
            keys = [line.strip() for line in recorded][1:]
    else:
        keys = [str(int(n)) for n in np.random.default_rng(0).zipf(1.2, 400_000)]
    half = len(keys) // 2
    counts = Counter(keys[:half])
    ranked, second = [key for key, _ in counts.most_common()], keys[half:]
    first = second[: half // 20]
    table: dict[str, Any] = {
        "requests": len(keys),
        "distinct_in_first_half": len(ranked),
        "asked_really": min(most, len(first)),
    }
    with system(built, "digits") as running:
        running.start_model()
        running.start_proxy("--near-bytes=0", "--reply-cache-bytes=0")
        for share in (0.0, 0.01, 0.05, 0.20, 1.0):
            top = ranked[: round(len(ranked) * share)]
            running.flush()
            if top:
                file = running.data.parent / "top.parquet"
                rows = np.concatenate([pixels_of(key) for key in top])
                column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 64)
                pq.write_table(pa.table({"pixels": column}), file)
                done, _ = warm(running.data, "digits", str(file))
                assert done["computed"] == len(top), done
            known = set(top)
            simulated = []
            for key in second:
                simulated.append(key in known)
                known.add(key)
            asked = first[:most]
            table[f"top_{share:.0%}"] = {
                "warmed": len(top),
                "asked_really": round(sum(asked_again(running, asked)) / len(asked), 4),
                "the_same_simulated": round(sum(simulated[: len(asked)]) / len(asked), 4),
                "first_5%_simulated": round(sum(simulated[: len(first)]) / len(first), 4),
                "all_simulated": round(sum(simulated) / len(second), 4),
            }
    return table


def pixels_of(key: str) -> np.ndarray[Any, Any]:
    """A row of `digits` that stands for a key."""
    raw = np.frombuffer(hashlib.blake2b(key.encode()).digest(), np.uint8)
    return (raw % 17).astype(np.float32)[None, :]


def asked_again(running: System, keys: list[str]) -> Iterator[bool]:
    """Which of these the proxy had, asked one by one."""
    connection = http.client.HTTPConnection("127.0.0.1", int(running.url.rsplit(":", 1)[1]), timeout=60)
    for key in keys:
        body, length = wire_render.render_request([("pixels", "FP32", pixels_of(key))], {})
        headers = {"Inference-Header-Content-Length": str(length)}
        connection.request("POST", "/v2/models/digits/infer", body, headers)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200
        yield reply.headers["Cache-Status"].startswith("foreseen;hit")
    connection.close()
