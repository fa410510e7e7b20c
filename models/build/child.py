"""A graph and its manifest → loaded and run in a child process, since ONNX Runtime has aborted on a bad artifact.

(Its embedding-layer fusion made one for MiniLM.) If the child crashes, the candidate is rejected.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import BATCH, Manifest
from foreseen.modelspec.manifest.hints import Samples

CHILD_SECONDS = 180  # mpnet loads in about 4 s; a load that takes this long hangs
CHILD_ROWS = 4
TRIED_ROWS = 4
ERROR_CHARACTERS, REFUSAL_CHARACTERS = 400, 200


def prove(graph: Path, manifest: Manifest, files: Path) -> None:
    """Load `graph` and run a batch in a child; `files` holds the assets. Raises SetupError with its last line."""
    _ask("prove", graph, manifest, files)


def find(graph: Path, manifest: Manifest, files: Path) -> Samples:
    """Hints with which the graph takes random rows. Raises SetupError with the graph's error where none are found."""
    return msgspec.json.decode(_ask("find", graph, manifest, files), type=Samples)


def _ask(verb: str, graph: Path, manifest: Manifest, files: Path) -> bytes:
    # -P: Python would import a file of the current directory before our own.
    command = [sys.executable, "-P", "-m", "foreseen.models.build.child", verb, str(graph), str(files)]
    said = msgspec.json.encode(manifest)
    try:
        done = subprocess.run(command, input=said, capture_output=True, timeout=CHILD_SECONDS, check=False)  # noqa: S603 - our own module, paths that the build made
    except subprocess.TimeoutExpired:
        raise SetupError(f"{graph.name}: loading it took more than {CHILD_SECONDS} s") from None
    if done.returncode != 0:
        why = (done.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise SetupError(f"{graph.name}: does not load and run (child exit {done.returncode}): {why}")
    return done.stdout


def main(verb: str, graph: str, files: str) -> None:
    """The child process, with the manifest on stdin: exits 0 if the outputs are as declared and finite."""
    manifest = msgspec.json.decode(sys.stdin.buffer.read(), type=Manifest)
    try:
        _prove(Path(graph), manifest, Path(files)) if verb == "prove" else _find(Path(graph), manifest, Path(files))
    except Exception as error:  # noqa: BLE001 - whatever it is, its reader wants one line
        raise SystemExit(one_line(error)) from None


def _prove(graph: Path, manifest: Manifest, files: Path) -> None:
    from foreseen.models.measure.gate import runs_alone
    from foreseen.models.measure.graph_run import GraphSession
    from foreseen.models.measure.samples import samples

    session = GraphSession(graph, manifest.model, "fp32")
    rows = samples(manifest, files, CHILD_ROWS)
    session.alone(rows)
    if not runs_alone(manifest):
        session.run(rows)


def _find(graph: Path, manifest: Manifest, files: Path) -> None:
    import numpy as np
    import onnx

    from foreseen.models.inspect.search import found
    from foreseen.models.measure.graph_run import GraphSession
    from foreseen.models.measure.samples import samples

    session = GraphSession(graph, manifest.model, "fp32")

    def tries(one: Manifest) -> str | None:
        try:
            for row in samples(one, files, TRIED_ROWS):
                given = session.outputs(session.feeds([row])).values()
                if not all(np.isfinite(array).all() for array in given if array.dtype.kind == "f"):
                    return "it gives NaN or infinity"
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has no common error class
            return one_line(error)
        return None

    hints, refusal = found(manifest, onnx.load(graph), tries)
    if refusal is not None:
        dims = ", ".join(sorted({d for i in manifest.model.keyed for d in i.shape if isinstance(d, str)} - {BATCH}))
        advice = "say what it takes: --values NAME=LOW,HIGH" + (f" or --dim NAME=SIZE (sizes: {dims})" if dims else "")
        raise SetupError(f"accepts no generated row ({refusal[:REFUSAL_CHARACTERS]}); {advice}")
    sys.stdout.buffer.write(msgspec.json.encode(hints))


def one_line(error: Exception) -> str:
    """What went wrong, without ONNX Runtime's prefixes and source paths."""
    said = " ".join(str(error).split()) or type(error).__name__
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", said)
    said = re.sub(r"/\S+/(\w+\.(cc|h)):\d+ ", "", said)
    said = re.sub(r"(onnxruntime::|\bstatus |const |std::)\S*\([^)]*\)\s*", "", said)
    return said[:ERROR_CHARACTERS]


if __name__ == "__main__":
    main(*sys.argv[1:])
