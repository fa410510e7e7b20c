"""Whether a cached answer is the model's own, by what the model declares of its answers."""

from __future__ import annotations

import numpy as np

from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.backend.text_servers.embedding_process import EmbeddingProcess
from foreseen.proxy.predict.observe import TOLERANCE, closeness
from foreseen.types import Prediction


def same_answer(served: ServedModel, known: Prediction, fresh: Prediction, tolerance: float = TOLERANCE) -> bool:
    """Bit for bit where the model declares that (`exact`) and its entries are of one kind of machine; else floats
    within the tolerance. Of an embedding server behind this proxy the cosine decides, as in its probe."""
    if known.outputs == fresh.outputs and known.data == fresh.data:
        return True
    manifest = served.manifest
    if known.outputs != fresh.outputs or (manifest.exact and not manifest.portable and manifest.upstream is None):
        return False
    if isinstance(served.process, EmbeddingProcess):
        return _farthest(known, fresh) <= tolerance
    return closeness(known, fresh, tolerance) != "different"


def _farthest(known: Prediction, fresh: Prediction) -> float:
    """The largest cosine distance of two answers' FP32 outputs; infinite where something else differs."""
    farthest = 0.0
    for output, one, other in zip(known.outputs, known.data, fresh.data, strict=True):
        if one == other:
            continue
        if output.datatype != "FP32":
            return np.inf
        left, right = (np.frombuffer(raw, "<f4").astype(np.float64) for raw in (one, other))
        lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
        distance = 1 - float(left @ right) / lengths if lengths else np.inf
        farthest = max(farthest, distance if distance == distance else np.inf)
    return farthest
