"""ONNX files through `models add`, `models build`, `foreseen up` and V2, each answer beside ONNX Runtime's own.

python -m tests.onnx_files FILE…     # a line for each: how it is run, how many rows were asked, how many differ
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.inference.session import aligned
from foreseen.models.add import add
from foreseen.models.build.build import build
from foreseen.models.measure.samples import equal_samples
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import Manifest, find
from foreseen.modelspec.rows import stack, whole_row
from foreseen.protocol import wire, wire_render
from foreseen.types import Array, Row
from foreseen.web.http import BINARY, HEADER_LENGTH
from tests.live import Live, fresh

COUNTS = (1, 3, 1, 2)
"""Rows of the requests; the third is the first again, which is answered from the cache where the model is cached."""


class Outcome(Struct, frozen=True):
    """What became of one file."""

    name: str
    how: str
    """`by the row`, `one row at a time`, `whole requests`, each perhaps `, not cached`; or the refusal."""
    rows: int = 0
    """Answers that were compared."""
    differ: int = 0
    hits: int = 0


def outcomes(files: Mapping[str, Path], folder: Path, data: Path) -> list[Outcome]:
    """Add, build and serve every file, by name. What is refused is refused in one line."""
    found: dict[str, Outcome] = {}
    for name, file in files.items():
        try:
            add(file, name, folder, data, SilentProgress())
            build(find(name, (folder,)), data, say=SilentProgress())
        except SetupError as error:
            said = str(error).splitlines()
            if len(said) != 1:
                raise AssertionError(f"{name}: not one line: {said}") from None
            found[name] = Outcome(name, f"refused: {error}")
    served = [name for name in files if name not in found]
    if served:
        with fresh(data, f"--models={folder}", *(f"--model={name}" for name in served)) as system:
            for name in served:
                found[name] = compared(system, find(name, (folder,)), files[name])
    return [found[name] for name in files]


def compared(system: Live, manifest: Manifest, file: Path) -> Outcome:
    """Ask over V2; every row's answer must be the bits that ONNX Runtime gives that row alone, on one thread as here:
    a sum over many trees is cut by the number of threads, so its bits depend on it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rows = differ = hits = 0
    for at, count in enumerate(COUNTS):
        asked = equal_samples(manifest, count, seed=at % 2)
        asked = asked if manifest.model.has_rows else asked[:1]
        answer, status = _ask(system, manifest, asked)
        hits += "hit" in status
        for wanted, got in zip(_wanted(session, manifest, asked), _cut(manifest, answer, len(asked)), strict=True):
            rows += 1
            differ += any(a.shape != b.shape or a.tolist() != b.tolist() for a, b in zip(wanted, got, strict=True))
    return Outcome(manifest.name, _how(manifest), rows, differ, hits)


def _how(manifest: Manifest) -> str:
    together = manifest.rows == "together"
    how = "whole requests" if together else "one row at a time" if manifest.batching.single else "by the row"
    return how if manifest.cacheable else f"{how}, not cached"


def _ask(system: Live, manifest: Manifest, rows: Sequence[Row]) -> tuple[dict[str, Array], str]:
    feeds = _feeds(manifest, rows)
    tensors = [(i.name, i.datatype, feeds[i.name]) for i in manifest.seen.inputs]
    body, length = wire_render.render_request(tensors, {}, "x")
    headers = {HEADER_LENGTH: str(length), "Content-Type": BINARY}
    status, replied, content = system.post(f"/v2/models/{manifest.name}/infer", body, headers)
    assert status == 200, content[:300]
    reply = wire.parse_response(content, int(replied[HEADER_LENGTH.lower()]))
    return {output.name: output.array for output in reply.outputs}, replied.get("cache-status", "")


def _feeds(manifest: Manifest, rows: Sequence[Row]) -> dict[str, Array]:
    if manifest.model.has_rows:
        return stack(rows, manifest.model)
    keyed = {spec.name: tensor for spec, tensor in zip(manifest.model.keyed, rows[0].tensors, strict=True)}
    whole = whole_row(keyed, manifest.model)
    return {spec.name: tensor for spec, tensor in zip(manifest.model.inputs, whole.tensors, strict=True)}


def _wanted(session: onnxruntime.InferenceSession, manifest: Manifest, rows: Sequence[Row]) -> Iterator[list[Array]]:
    """What ONNX Runtime gives: each row alone, or the request as it is where rows belong together."""
    names = [output.name for output in manifest.model.outputs]
    together = manifest.rows == "together"
    for one in [rows] if together else [[row] for row in rows]:
        feeds = {name: _text(array) for name, array in _feeds(manifest, one).items()}
        arrays = [_bytes(array) for array in session.run(names, feeds)]
        yield arrays if together else [array[0, ...] for array in arrays]


def _cut(manifest: Manifest, answer: Mapping[str, Array], count: int) -> Iterator[list[Array]]:
    arrays = [answer[output.name] for output in manifest.model.outputs]
    if manifest.rows == "together":
        yield arrays
        return
    for at in range(count):
        yield [array[at, ...] for array in arrays]


def _text(array: Array) -> Array:
    return aligned(array) if array.dtype != object else np.vectorize(bytes.decode, otypes=[object])(array)


def _bytes(array: Array) -> Array:
    return array if array.dtype != object else np.vectorize(str.encode, otypes=[object])(array)


def main(files: Sequence[str]) -> int:
    """Print a line for each file; 1 where an answer differs."""
    worst = 0
    with tempfile.TemporaryDirectory() as place:
        named = {f"{at}-{Path(file).stem}".replace(".", "-"): Path(file) for at, file in enumerate(files)}
        for outcome in outcomes(named, Path(place) / "models", Path(place) / "data"):
            print(f"{outcome.name:<40} {outcome.rows:>3} asked {outcome.differ:>3} differ  {outcome.how}")
            worst = max(worst, outcome.differ)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
