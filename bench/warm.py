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
import csv
import hashlib
import http.client
import json
import lzma
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foreseen import models
from foreseen.inference.session import SessionPlan, session_options
from foreseen.inference.session_opening import open_session
from foreseen.keys.secret import make_secret
from foreseen.modelspec.artifact import read_file, read_record, read_serving
from foreseen.modelspec.manifest import find
from foreseen.modelspec.rows import stack
from foreseen.paths import make_run_folder, model_socket, redis_socket
from foreseen.protocol import wire, wire_render
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.stores import valkey
from foreseen.warm.run.warmer import preparer_of
from foreseen.warm.write.bulk_redis import BulkRedis
from tests.ports import free_port

PACKAGED = (Path(models.__file__).parent,)
STEP_SECONDS = 300
"""No step of these takes so long; one that does is ended, with a traceback that says where it stood."""
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
FORESEEN = [sys.executable, "-m", "foreseen.cli"]


class System:
    """Valkey, one model process and one proxy, each of which can be stopped by itself."""

    def __init__(self, data: Path, model: str) -> None:
        self.data, self.model = data, model
        make_run_folder(data)
        make_secret(data / "secret")
        self.far = subprocess.Popen(valkey.command(redis_socket(data), 2 << 30), stdout=subprocess.DEVNULL)
        self.inference: subprocess.Popen[bytes] | None = None
        self.proxy: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{free_port()}"

    def start_model(self) -> None:
        path = model_socket(self.data, self.model)
        path.unlink(missing_ok=True)
        command = [*FORESEEN, "inference", f"--model={self.model}", f"--data={self.data}", f"--uds={path}"]
        self.inference = subprocess.Popen([*command, "--log-level=warning"])
        until(lambda: read_serving(self.data, self.model) is not None and self.metric("foreseen_model_rows_total") >= 0)

    def start_proxy(self, *flags: str) -> None:
        port = self.url.rsplit(":", 1)[1]
        command = [*FORESEEN, "proxy", f"--model={self.model}", f"--data={self.data}", f"--port={port}"]
        command += ["--far-budget-ms=2000", *flags]  # thousands of rows a question, on a machine that may be busy
        self.proxy = subprocess.Popen([*command, "--log-level=error"])
        until(lambda: get(f"{self.url}/v2/models/{self.model}/ready"))

    def stop_model(self) -> None:
        assert self.inference is not None
        self.inference.terminate()
        self.inference.wait(60)

    def metric(self, name: str) -> float:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(model_socket(self.data, self.model)))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def flush(self) -> None:
        pipe = self.pipe()
        pipe._ask(b"FLUSHALL")  # noqa: SLF001
        pipe.close()

    def pipe(self) -> BulkRedis:
        return BulkRedis(f"unix://{redis_socket(self.data)}")

    def close(self) -> None:
        for process in (self.proxy, self.inference, self.far):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise


@contextlib.contextmanager
def system(built: Path, model: str) -> Iterator[System]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shutil.copytree(built / "models" / model, data / "models" / model)
        (data / "models" / model / "serving.json").unlink(missing_ok=True)
        running = System(data, model)
        until(redis_socket(data).exists)
        try:
            yield running
        finally:
            running.close()


def until(ready: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.05)
    raise TimeoutError


def get(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)


def warm(data: Path, model: str, *words: str) -> tuple[dict[str, Any], float]:
    """The command's summary, and the wall time of all of it."""
    started = time.perf_counter()
    command = [*FORESEEN, "warm", *words, f"--data={data}", f"--model={model}", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with process.stdout:
            said = process.stdout.read()
    except TimeoutError:
        process.kill()
        raise
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {**json.loads(said), "peak_bytes": used.ru_maxrss * 1024}, time.perf_counter() - started


def bench_import(built: Path, rows: int) -> dict[str, Any]:
    with system(built, "digits") as running:
        running.start_model()
        running.start_proxy()
        file = running.data.parent / "digits.parquet"
        write_digits(running.data, file, rows)
        running.stop_model()
        imports, raws, inner, commands = [], [], [], b""
        for _ in range(3):
            running.flush()
            done, seconds = warm(running.data, "digits", str(file), "--outputs=all")
            assert done["imported"] == rows, done
            imports.append(rows / seconds)
            inner.append(rows / done["seconds"])
            if not commands:
                peak = done["peak_bytes"]
                hits = ask_all(running.url, file)
                commands = mass_insertion(running, rows)
            running.flush()
            raws.append(rows / insert(running, commands, rows))
        ratios = [one / raw for one, raw in zip(imports, raws, strict=True)]
        return {
            "rows": rows,
            "hits_afterwards": hits,
            "import_rows_per_second": round(statistics.median(imports)),
            "import_rows_per_second_without_start": round(statistics.median(inner)),
            "raw_rows_per_second": round(statistics.median(raws)),
            "ratio": round(statistics.median(ratios), 3),
            "peak_bytes": peak,
        }


def write_digits(data: Path, file: Path, rows: int) -> None:
    """Rows that no other equals, and what the model's own session says of them."""
    manifest = find("digits", PACKAGED)
    session = open_session(manifest, data, SessionPlan())
    dice = np.random.default_rng(0)
    serving = read_serving(data, "digits")
    assert serving is not None
    schema = pa.schema(
        [("pixels", pa.list_(pa.float32(), 64)), ("probabilities", pa.list_(pa.float32(), 10))],
        metadata={"foreseen.digest": serving.digest},
    )
    with pq.ParquetWriter(file, schema) as writer:
        for at in range(0, rows, 65536):
            pixels = dice.integers(0, 17, (min(65536, rows - at), 64)).astype(np.float32)
            (answers,) = session._graph.run(None, {"pixels": pixels})  # noqa: SLF001
            columns = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), a.shape[1]) for a in (pixels, answers)]
            writer.write_table(pa.table(columns, schema=schema))
    session.close()


def ask_all(url: str, file: Path) -> int:
    """Every row of the proxy; how many were hits. Its model is gone, so the others would be errors."""
    hits = 0
    for batch in pq.ParquetFile(file).iter_batches(2048):
        pixels = np.asarray(batch.column("pixels").flatten()).reshape(-1, 64)
        given = np.asarray(batch.column("probabilities").flatten())
        body, length = wire_render.render_request([("pixels", "FP32", pixels)], {})
        headers = {"Inference-Header-Content-Length": str(length)}
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/v2/models/digits/infer", body, headers), timeout=60
        ) as reply:
            answer = reply.read()
            cut = int(reply.headers["Inference-Header-Content-Length"])
            assert answer[cut:] == given.tobytes()
            hits += len(pixels) if reply.headers["Cache-Status"].startswith("foreseen;hit") else 0
    return hits


def mass_insertion(running: System, rows: int) -> bytes:
    """What `redis-cli --pipe` would be fed for the same keys and values."""
    pipe, cursor, parts, found = running.pipe(), b"0", [], 0
    while True:
        cursor, keys = pipe._ask(b"SCAN", cursor, b"MATCH", b"fsn1:*", b"COUNT", b"2000")  # type: ignore[misc,assignment] # noqa: SLF001
        values = pipe._ask(b"MGET", *keys) if keys else []  # type: ignore[misc] # noqa: SLF001
        for key, value in zip(keys, values, strict=True):  # type: ignore[arg-type]
            words = (b"SET", key, value, b"PX", b"604800000")
            parts.append(b"*5\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))  # type: ignore[arg-type]
        found += len(keys)
        if cursor == b"0":
            pipe.close()
            assert found == rows, found
            return b"".join(parts)


def insert(running: System, commands: bytes, rows: int) -> float:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(redis_socket(running.data)))
        started = time.perf_counter()
        sender = threading.Thread(target=connection.sendall, args=(commands,))
        sender.start()
        got = 0
        while got < 5 * rows:
            part = connection.recv(1 << 20)
            assert part, "Redis closed the connection"
            got += len(part)
        sender.join()
        return time.perf_counter() - started


def texts(limit: int) -> list[str]:
    """The recorded texts, or made ones with repeats where they are not at hand."""
    path = SHARED / "sgd_user_utterances.csv.xz"
    if path.exists():
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return [row["text"] for row in csv.DictReader(file)][:limit]
    dice = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    return [" ".join(dice.choices(words, k=dice.randint(3, 20))) for _ in range(limit * 4 // 5)] * 2


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


def ask_text(text: str) -> bytes:
    return json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}).encode()


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
        with lzma.open(path, "rt") as file:
            keys = [line.strip() for line in file][1:]
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
            simulated = [key in known or known.add(key) for key in second]  # add gives None
            asked = first[:most]
            table[f"top_{share:.0%}"] = {
                "warmed": len(top),
                "asked_really": round(sum(asked_again(running, asked)) / len(asked), 4),
                "the_same_simulated": round(sum(map(bool, simulated[: len(asked)])) / len(asked), 4),
                "first_5%_simulated": round(sum(map(bool, simulated[: len(first)])) / len(first), 4),
                "all_simulated": round(sum(map(bool, simulated)) / len(second), 4),
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
