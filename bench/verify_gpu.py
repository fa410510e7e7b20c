"""minilm and mpnet on a GPU, in one script of under eight minutes: `make verify-gpu`. It runs on a CPU too, smaller.

For each model and kind of shapes (ragged, fixed, fixed with CUDA graphs): milliseconds of a batch and rows per second
at batches of 1 to 64, how many rows differ from the row alone, and whether another process gives the same bits. Then
end to end through `foreseen up`: a hit, a miss, 64 clients.

Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from msgspec import Struct
from msgspec.structs import replace

from bench.exact import Case, written
from foreseen.errors import SetupError
from foreseen.inference.session import Session, SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.models.build.build import build
from foreseen.models.measure.graph_run import measure_on
from foreseen.models.progress import shown
from foreseen.modelspec.artifact import read_record, write_record
from foreseen.modelspec.manifest import Manifest, Precision, find
from foreseen.modelspec.shapes import RAGGED, Shapes
from foreseen.types import Row
from tests.live import fresh

LENGTHS = (16, 64, 256)
SECONDS = 480.0


def kinds(cuda: bool) -> list[tuple[str, bool]]:
    """Kind of shapes, and whether runs are captured."""
    return [("ragged", False), ("fixed", False)] + ([("fixed", True)] if cuda else [])


def opened(manifest: Manifest, data: Path, plan: SessionPlan, kind: str, rows: int) -> Session:
    """The built model in those shapes; the record on disk stays as it is for others."""
    record = read_record(data, manifest.name)
    shapes = RAGGED if kind == "ragged" else Shapes("fixed", LENGTHS, (rows,) * len(LENGTHS))
    write_record(data, replace(record, shapes=shapes))
    try:
        return open_session(manifest, data, plan)
    finally:
        write_record(data, record)


def measured(session: Session, sizes: Sequence[int], repeats: int) -> list[str]:
    """A line for each batch size: milliseconds and rows per second at 64 tokens."""
    lines = []
    for size in sizes:
        rows = [Row((np.random.default_rng(at).integers(1000, 30000, 60),)) for at in range(size)]
        session.run(rows)
        session.run(rows)
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            session.run(rows)
            taken.append(time.perf_counter() - began)
        middle = sorted(taken)[repeats // 2]
        lines.append(f"batch {size:>2}: {middle * 1e3:8.2f} ms {size / middle:9.0f} rows/s")
    return lines


def differing(session: Session, count: int) -> tuple[int, int, list[bytes]]:
    """Rows of random lengths in random batches against the row alone: compared, differing, and the bits alone."""
    dice = np.random.default_rng(3)
    rows = [Row((dice.integers(1000, 30000, int(length)),)) for length in dice.integers(4, 200, count)]
    alone = [session.run([row])[0][0].tobytes() for row in rows]
    differ = 0
    for _ in range(2):
        order = dice.permutation(count)
        for at in range(0, count, 16):
            places = order[at : at + 16]
            together = session.run([rows[i] for i in places])
            differ += sum(out[0].tobytes() != alone[i] for i, out in zip(places, together, strict=True))
    return 2 * count, differ, alone


def _digest(bits: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(bits)).hexdigest()


def bits_of_a_new_process(name: str, data: Path, provider: str, kind: str, rows: int, count: int) -> str:
    """The digest of the bits of the same rows, computed by a process of its own: as after a kill and a restart."""
    command = [sys.executable, "-m", "bench.verify_gpu", "--bits", name, kind, str(rows), str(count)]
    command += ["--data", str(data), "--provider", provider]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    return said.splitlines()[-1]  # logs stand before it


def end_to_end(data: Path, provider: str, scale: Scale) -> list[str]:
    """A hit, a miss and 64 clients through `foreseen up`, in milliseconds and requests per second."""
    models, seconds = _models("minilm", scale, data), scale.client_seconds
    with fresh(data, "--model=minilm", f"--models={models}", f"--provider={provider}") as system:

        def ask(text: str) -> float:
            began = time.perf_counter()
            one = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
            status, _, body = system.post("/v2/models/minilm/infer", {"inputs": [one]})
            assert status == 200, body
            return time.perf_counter() - began

        misses = sorted(ask(f"a new text, number {n}") for n in range(20))
        hits = sorted(ask("a new text, number 0") for _ in range(50))

        async def clients() -> int:
            async def one(number: int) -> int:
                asked, until = 0, time.perf_counter() + seconds
                while time.perf_counter() < until:
                    await asyncio.to_thread(ask, f"client {number} asks for text {asked}")
                    asked += 1
                return asked

            return sum(await asyncio.gather(*(one(number) for number in range(64))))

        rate = asyncio.run(clients()) / seconds
    return [f"miss {misses[10] * 1e3:.2f} ms, hit {hits[25] * 1e3:.2f} ms, 64 clients {rate:.0f} new texts/s"]


class Scale(Struct, frozen=True):
    """How much is asked."""

    models: tuple[str, ...]
    precision: Precision
    batches: tuple[int, ...]
    repeats: int
    rows: int
    """That are compared."""
    fixed_rows: int
    client_seconds: float


ON_GPU = Scale(("minilm", "mpnet"), "fp16", (1, 2, 4, 8, 16, 32, 64), 21, 128, 32, 10.0)
ON_CPU = Scale(("minilm",), "fp32", (1, 4), 3, 16, 2, 3.0)


def measure_kind(name: str, manifest: Manifest, data: Path, plan: SessionPlan, kind: str, scale: Scale) -> int:
    """Print the lines of one model and kind; how many of its promises are broken."""
    session = opened(manifest, data, plan, kind, scale.fixed_rows)
    compared, differ, alone = differing(session, scale.rows)
    how = f"{name} {kind}{' with CUDA graphs' if session.graphs is not None else ''} on {session.provider}"
    print(f"{how}: {differ} of {compared} rows differ from the row alone")
    print("\n".join(f"    {line}" for line in measured(session, scale.batches, scale.repeats)), flush=True)
    session.close()
    again = bits_of_a_new_process(name, data, plan.provider, kind, scale.fixed_rows, scale.rows) == _digest(alone)
    print(f"    another process gives {'the same bits' if again else 'OTHER BITS'}", flush=True)
    return (kind == "fixed" and differ > 0) + (not again)


def main() -> None:
    """Print the table; status 1 where fixed shapes or another process change a bit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=["cpu", "cuda"])
    parser.add_argument("--data", type=Path, default=Path("build/gpu-data"))
    parser.add_argument("--bits", nargs=4, metavar=("MODEL", "KIND", "ROWS", "COUNT"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    provider: Literal["cpu", "cuda"] = settings.provider or ("cuda" if there else "cpu")
    scale = ON_GPU if provider == "cuda" else ON_CPU
    plan = SessionPlan(provider=provider)
    if settings.bits:
        name, kind, rows, count = settings.bits
        session = opened(_built(name, scale, settings.data, provider), settings.data, plan, kind, int(rows))
        print(_digest(differing(session, int(count))[2]))
        session.close()
        return
    wrong, until = 0, time.monotonic() + SECONDS
    for name in scale.models:
        manifest = _built(name, scale, settings.data, provider)
        for kind, graphs in kinds(provider == "cuda"):
            if time.monotonic() > until:
                print(f"{name}: out of time before {kind}")
                break
            wrong += measure_kind(name, manifest, settings.data, replace(plan, cuda_graphs=graphs), kind, scale)
    print("\n".join(end_to_end(settings.data, provider, scale)))
    sys.exit(wrong > 0)


def _models(name: str, scale: Scale, data: Path) -> Path:
    """The folder of a manifest that promises nothing, since the bits are what is measured."""
    return written(Case(name, scale.precision, "reduce-sum", "ragged", 1), data / "manifests", scale.fixed_rows)


def _built(name: str, scale: Scale, data: Path, provider: Literal["cpu", "cuda"]) -> Manifest:
    """The model in force, built where it is missing, measured on the device where it is served."""
    manifest = find(name, (_models(name, scale, data),))
    try:
        read_record(data, name)
    except SetupError:
        measure_on(provider)
        with shown() as say:
            build(manifest, data, quick=True, say=say)
    return manifest


if __name__ == "__main__":
    main()
