"""A seal → the integer-exact oracle graph: digest = x·M mod 2⁶⁴ with M[i][j] = (2i+3)^(j+1), and the seal itself.

It reveals every crossed, stale or truncated answer. INT64 arithmetic wraps, so no batch can change a bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.models.graphs.graph import Graph
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Array

COLUMNS = 16
DIGESTS = 4


def matrix() -> Array:
    """M, INT64 [16, 4]. The largest entry is 33^4, so M itself does not wrap; products do."""
    return np.array([[(2 * i + 3) ** (j + 1) for j in range(DIGESTS)] for i in range(COLUMNS)], np.int64)


def make(manifest: Manifest, folder: Path) -> ModelProto:
    """`x` INT64 [rows, 16] → `digest` INT64 [rows, 4] and `seal` INT64 [rows, 1]."""
    del folder  # nothing is fetched
    seal = manifest.source.options.get("seal") if manifest.source else None
    if not isinstance(seal, int) or not -(2**63) <= seal < 2**63:
        raise SetupError(f"model {manifest.name!r}: source.options.seal must be an integer of 64 bits")
    graph = Graph()
    graph.add("MatMul", "x", graph.constant("M", matrix()), name="digest")
    rows = graph.add("Shape", "x", start=0, end=1)
    shape = graph.add("Concat", rows, graph.numbers(1), axis=0)
    graph.add("Expand", graph.constant("version", np.array(seal, np.int64)), shape, name="seal")
    return graph.model(manifest.model)
