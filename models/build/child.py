"""A graph and its manifest → loaded and run in a child process, since ONNX Runtime has aborted on a bad artifact.

(Its embedding-layer fusion made one for MiniLM.) A crash of the child is a candidate that lost.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Manifest

CHILD_SECONDS = 180  # mpnet loads in about 4 s; a load that takes this long hangs
CHILD_ROWS = 4


def prove(graph: Path, manifest: Manifest, files: Path) -> None:
    """Load `graph` and run a batch in a child; `files` holds the assets. Raises SetupError with its last line."""
    # -P: Python would import a file of the current directory before our own.
    command = [sys.executable, "-P", "-m", "foreseen.models.build.child", str(graph), str(files)]
    said = msgspec.json.encode(manifest)
    try:
        done = subprocess.run(command, input=said, capture_output=True, timeout=CHILD_SECONDS, check=False)  # noqa: S603 - our own module, paths that the build made
    except subprocess.TimeoutExpired:
        raise SetupError(f"{graph.name}: loading it took more than {CHILD_SECONDS} s") from None
    if done.returncode != 0:
        why = (done.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise SetupError(f"{graph.name}: does not load and run (child exit {done.returncode}): {why}")


def main(graph: str, files: str) -> None:
    """The child's part, the manifest on stdin: exit 0 when the outputs are there, as declared and finite."""
    from foreseen.models.measure.gate import runs_alone
    from foreseen.models.measure.graph_run import GraphSession
    from foreseen.models.measure.samples import samples

    manifest = msgspec.json.decode(sys.stdin.buffer.read(), type=Manifest)
    session = GraphSession(Path(graph), manifest.model, "fp32")
    rows = samples(manifest, Path(files), CHILD_ROWS)
    session.alone(rows)
    if not runs_alone(manifest):
        session.run(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
