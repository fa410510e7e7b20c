"""`bench.warm`: imports of given predictions beside raw mass insertion of the same entries."""

from __future__ import annotations

import socket
import statistics
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.warm_system import PACKAGED, System, system, warm
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.modelspec.artifact import read_serving
from foreseen.modelspec.manifest import find
from foreseen.paths import redis_socket
from foreseen.protocol import wire_render


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
        assert isinstance(keys, list)
        values = pipe._ask(b"MGET", *keys) if keys else []  # noqa: SLF001
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
