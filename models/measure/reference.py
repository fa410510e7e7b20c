"""A model's answers compared with a file of known ones: `reference.npz`, made where the original model runs.

It holds arrays by name: what clients send (`text`, or `query` and `document`, as an array of strings) or what the graph
takes (`input_ids`, `attention_mask`), and one or more of the outputs, a row for each.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foreseen.errors import ForeseenError, SetupError
from foreseen.models.measure.graph_run import GraphSession
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.modelspec.rows import split
from foreseen.protocol.datatypes import BY_DTYPE, DATATYPES
from foreseen.protocol.wire import InputTensor
from foreseen.types import Array, Row

NAME = "reference.npz"
TOLERANCE = 1e-4
"""Largest allowed difference for numbers up to 1; for larger ones it is relative to the largest."""


def compare(session: GraphSession, manifest: Manifest, files: Path, reference: Path) -> float:
    """The largest difference of any element. Raises SetupError where it is above 1e-4 or the file does not fit."""
    arrays, rows = _read(reference), rows_of(manifest, files, reference)
    wanted = {spec.name: at for at, spec in enumerate(manifest.model.outputs) if spec.name in arrays}
    if not wanted or not rows:
        names = ", ".join(spec.name for spec in manifest.model.outputs)
        raise SetupError(f"{reference.name}: holds no rows of an output ({names})")
    answered = session.alone(rows)
    return max(_difference(reference.name, name, arrays[name], answered, at) for name, at in wanted.items())


def rows_of(manifest: Manifest, files: Path, reference: Path) -> list[Row]:
    """The file's inputs as rows. `files` holds the tokenizer. Raises SetupError where they do not fit."""
    try:
        return _rows(manifest, files, _read(reference))
    except ForeseenError as error:
        raise SetupError(f"{reference.name}: {error}") from None


def _difference(file: str, name: str, known: Array, answered: Sequence[RowOutputs], at: int) -> float:
    if len(known) != len(answered):
        raise SetupError(f"{file}: {name} has {len(known)} rows, the inputs have {len(answered)}")
    if not np.isfinite(known).all():
        raise SetupError(f"{file}: {name} holds NaN or infinity")
    largest, scale = 0.0, max(1.0, float(np.abs(known).max(initial=0.0)))
    for row, outputs in zip(known, answered, strict=True):
        made = np.asarray(outputs[at], np.float64)
        own = row[tuple(slice(0, size) for size in made.shape)] if row.ndim == made.ndim else row
        if own.shape != made.shape:
            raise SetupError(f"{file}: {name} has rows of shape {list(row.shape)}, the model gives {list(made.shape)}")
        largest = max(largest, float(np.abs(own - made).max(initial=0.0)))
    if not largest <= TOLERANCE * scale:
        raise SetupError(f"{file}: {name} differs by {largest:.3g}; at most {TOLERANCE * scale:.3g} is allowed")
    return largest


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as loaded:  # numpy refuses objects, which would be pickles
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise SetupError(f"{path}: cannot be read as an .npz file: {error}") from None


def _rows(manifest: Manifest, files: Path, arrays: Mapping[str, Array]) -> list[Row]:
    """The file's inputs as rows: what clients send, prepared, or the graph's own tensors."""
    names = [spec.name for spec in manifest.seen.inputs]
    if all(name in arrays for name in names):
        steps = {spec.tokenizer.file for spec in manifest.seen.inputs if spec.tokenizer is not None}
        preparer = Preparer(manifest, {step: (files / step).read_bytes() for step in steps})
        return list(preparer.rows([_sent(name, arrays[name]) for name in names]))
    own = {spec.name: DATATYPES[spec.datatype].dtype for spec in manifest.model.inputs if spec.name in arrays}
    if not own:
        raise SetupError(f"holds no inputs; {', '.join(names)} or {', '.join(s.name for s in manifest.model.inputs)}")
    return split({name: arrays[name].astype(dtype) for name, dtype in own.items()}, manifest.model)


def _sent(name: str, array: Array) -> InputTensor:
    if array.dtype.kind in "US":
        texts = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
        return InputTensor(name, "BYTES", np.array(texts, object).reshape(array.shape))
    if array.dtype not in BY_DTYPE:
        raise SetupError(f"{name}: has datatype {array.dtype}")
    return InputTensor(name, BY_DTYPE[array.dtype].name, array)
