"""Batch runs against what they could be at best.

    python -m bench.warm --data DATA [--only import,compute,kill,online,trace] [--rows N] [--json FILE]

import   N rows of `digits` predictions from Parquet, the model process stopped: the whole command (interpreter start
         and reading included) beside raw mass insertion of the same keys and values over one connection, in turns;
         then every row is asked of the proxy, which has no model to ask.
compute  50,000 real texts: computed rows against distinct token-id rows, and the command's throughput beside a bare
         ONNX Runtime loop over the distinct rows sorted by length.
kill     the same command killed ten times at random moments; the union of its results.
online   latency of hits, and of misses, while the model is warmed.
trace    the second half of a recorded key stream, replayed on a cache that was warmed with the first half's top keys.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.warm_import import bench_import
from bench.warm_live import bench_online, bench_trace
from bench.warm_system import FORESEEN, PACKAGED, system, texts, warm
from foreseen.inference.session import session_options
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import find
from foreseen.modelspec.rows import stack
from foreseen.protocol import wire
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.warm.run.warmer import preparer_of

STEP_SECONDS = 300
"""No step of these takes so long; one that does is ended, with a traceback that says where it stood."""


def bench_compute(built: Path, limit: int) -> dict[str, Any]:
    with system(built, "minilm") as running:
        listed = texts(limit)
        file = running.data.parent / "texts.parquet"
        pq.write_table(pa.table({"text": listed}), file)
        manifest = find("minilm", PACKAGED)
        running.start_model()
        asked = array_of_json(listed, DATATYPES["BYTES"], (len(listed),), "text")
        rows = preparer_of(manifest, running.data).rows([wire.InputTensor("text", "BYTES", asked)])
        distinct = {row.tensors[0].tobytes(): row for row in rows}
        ordered = sorted(distinct.values(), key=lambda row: len(row.tensors[0]))
        best = 0.0
        bare = bare_loop(running.data, manifest, ordered)
        before = running.metric("foreseen_model_rows_total")
        done, seconds = warm(running.data, "minilm", str(file))
        computed = running.metric("foreseen_model_rows_total") - before
        after = bare_loop(running.data, manifest, ordered)
        best = max(bare, after)
        again, again_seconds = warm(running.data, "minilm", str(file))
        assert again["hit"] == len(listed)
        out = running.data.parent / "out"
        warm(running.data, "minilm", str(file), f"--out={out}")
        running.flush()
        brought, import_seconds = warm(running.data, "minilm", str(out), "--outputs=all")
        assert brought["imported"] == len(distinct)
        return {
            "rows": len(listed),
            "distinct_token_rows": len(distinct),
            "computed": done["computed"],
            "computed_by_the_model_process": int(computed),
            "rows_per_second": round(len(distinct) / seconds),
            "bare_rows_per_second": round(best),
            "ratio": round(len(distinct) / seconds / best, 3),
            "look_up_rows_per_second": round(len(listed) / again_seconds),
            "import_rows_per_second": round(len(listed) / import_seconds),
        }


def bare_loop(data: Path, manifest: Any, ordered: list[Any]) -> float:
    """Rows per second of batches of 32 neighbours in length, padded beforehand."""
    import onnxruntime as ort

    record = read_record(data, manifest.name)
    graph = read_file(data, record.artifact, record.artifact.graph)
    options = session_options(record.artifact.precision, 1)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feeds = [stack(ordered[at : at + 32], manifest.model) for at in range(0, len(ordered), 32)]
    session.run(None, feeds[0])
    started = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return len(ordered) / (time.perf_counter() - started)


def bench_kill(built: Path, limit: int) -> dict[str, Any]:
    with system(built, "minilm") as running:
        listed = texts(limit)
        file, out = running.data.parent / "texts.parquet", running.data.parent / "out"
        pq.write_table(pa.table({"text": listed, "n": list(range(len(listed)))}), file)
        running.start_model()
        words = [f"--data={running.data}", "--model=minilm", "--json", f"--out={out}", "--chunk-rows=512"]
        command = [*FORESEEN, "warm", str(file), *words]
        dice, kills = random.Random(), 0
        before = running.metric("foreseen_model_rows_total")
        while kills < 10:
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0.8, 1.6))
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        computed = running.metric("foreseen_model_rows_total") - before
        stored = [n for part in out.glob("*.parquet") for n in pq.read_table(part).column("n").to_pylist()]
        keys = {k for part in out.glob("*.parquet") for k in pq.read_table(part).column("foreseen.key").to_pylist()}
        return {
            "kills": kills,
            "rows": len(listed),
            "rows_in_results": len(stored),
            "union_complete": sorted(stored) == list(range(len(listed))),
            "rows_counted_by_the_last_run": done["rows"],
            "distinct": len(keys),
            "computed_by_the_model_process": int(computed),
            "computed_twice_per_kill": round((computed - len(keys)) / kills, 1),
        }


def too_long(*_: object) -> None:
    raise TimeoutError(f"no step takes {STEP_SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where digits and minilm are built")
    parser.add_argument("--only", default="import,compute,kill,online,trace")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--replay", type=int, default=1_000_000, help="requests of a trace's first 5 %% really asked")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for model in ("digits", "minilm"):
        if not (asked.data / "models" / model / "record.json").exists():
            subprocess.run([*FORESEEN, "models", "build", model, f"--data={asked.data}"], check=True)
    benches: dict[str, Callable[[], dict[str, Any]]] = {
        "import": lambda: bench_import(asked.data, asked.rows),
        "compute": lambda: bench_compute(asked.data, asked.texts),
        "kill": lambda: bench_kill(asked.data, min(asked.texts, 10_000)),
        "online": lambda: bench_online(asked.data, asked.texts),
        "trace": lambda: bench_trace(asked.data, asked.replay),
    }
    signal.signal(signal.SIGALRM, too_long)
    told = {"cores": os.cpu_count()}
    for name in asked.only.split(","):
        signal.alarm(STEP_SECONDS)
        told[name] = benches[name]()  # type: ignore[assignment]
        print(name, json.dumps(told[name], indent=1), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
