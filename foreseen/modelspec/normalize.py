"""Declared normalization of one client input: array → array, element by element, before the key and before the model.

Each step is declared in the manifest and documented in `docs/normalization.md` with when it is safe. None of them is on
by default: merging inputs is a decision about a model, not about a cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from foreseen.errors import BadInput
from foreseen.modelspec.manifest import ClientInput
from foreseen.protocol.datatypes import DATATYPES, Datatype
from foreseen.protocol.tensors import rounded
from foreseen.types import Array

Step = Callable[[Array], Array]


def cast(array: Array, given: Datatype, wanted: Datatype, field: str) -> Array:
    """Another numeric datatype, where every value fits: integers exactly, floats finitely. Raises BadInput."""
    if given.kind not in "if" or wanted.kind not in "if":
        raise BadInput(f"{field}.datatype: {given.name} cannot be cast to {wanted.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        made = rounded(array, wanted)
        if wanted.kind == "f":
            lost = np.isfinite(array.astype(np.float64)) & ~np.isfinite(made.astype(np.float64))
        elif given.kind == "f":
            whole = array.astype(np.float64)
            low, high = (float(bound) for bound in _bounds(wanted))
            lost = ~(np.isfinite(whole) & (whole >= low) & (whole < high + 1.0) & (np.trunc(whole) == whole))
        else:
            lost = (made < 0) != (array < 0)
            lost |= made.astype(array.dtype) != array
    if lost.any():
        raise BadInput(f"{field}.data: a {given.name} value does not fit {wanted.name}")
    return made


def steps_of(spec: ClientInput) -> list[Step]:
    """The declared steps of an input, in their fixed order."""
    datatype = DATATYPES[spec.datatype]
    return _text_steps(spec) if datatype.kind == "s" else _number_steps(spec, datatype)


def _number_steps(spec: ClientInput, datatype: Datatype) -> list[Step]:
    steps: list[Step] = []
    if datatype.kind == "f":
        steps.append(_one_nan if spec.nonfinite else _finite(f"inputs.{spec.name}"))
    if spec.ignore_columns:
        steps.append(lambda array: _blank(array, spec.ignore_columns, f"inputs.{spec.name}"))
    if spec.clip is not None:
        low, high = (np.asarray(bound).astype(datatype.dtype) for bound in spec.clip)
        steps.append(lambda array: np.clip(array, low, high))
    if spec.decimals is not None:
        decimals = spec.decimals
        steps.append(lambda array: np.round(array.astype(np.float64), decimals).astype(datatype.dtype))
    if spec.step is not None:
        step = spec.step
        steps.append(lambda array: (np.round(array.astype(np.float64) / step) * step).astype(datatype.dtype))
    if spec.zero:
        steps.append(lambda array: array + array.dtype.type(0))  # IEEE 754: -0.0 + 0.0 is 0.0
    return steps


def _finite(field: str) -> Step:
    def check(array: Array) -> Array:
        if not np.isfinite(array).all():
            raise BadInput(f"{field}.data: holds NaN or infinity (or JSON null), which this input does not allow")
        return array

    return check


def _one_nan(array: Array) -> Array:
    """Every NaN as the one quiet pattern: many bit patterns are one value."""
    missing = np.isnan(array)
    return np.where(missing, array.dtype.type(np.nan), array) if missing.any() else array


def _blank(array: Array, columns: tuple[int, ...], field: str) -> Array:
    if array.ndim < 2 or any(not -array.shape[-1] <= column < array.shape[-1] for column in columns):
        raise BadInput(f"{field}.shape: has no columns {list(columns)}, which are to be ignored")
    made = array.copy()
    made[..., list(columns)] = 0
    return made


def _bounds(datatype: Datatype) -> tuple[int, int]:
    info = np.iinfo(datatype.dtype.str)
    return int(info.min), int(info.max)


def _text_steps(spec: ClientInput) -> list[Step]:
    changes: list[Callable[[str], str]] = []
    if spec.unicode is not None:
        form = spec.unicode
        changes.append(lambda text: unicodedata.normalize(form, text))
    if spec.case is not None:
        changes.append({"lower": str.lower, "upper": str.upper, "fold": str.casefold}[spec.case])
    if spec.space is not None:
        changes.append(str.strip if spec.space == "strip" else lambda text: " ".join(text.split()))
    if not changes:
        return []

    def change(array: Array) -> Array:
        made = np.empty(array.size, object)
        for index, text in enumerate(texts(array.ravel(), f"inputs.{spec.name}")):
            for one in changes:
                text = one(text)
            made[index] = text.encode()
        return made.reshape(array.shape)

    return [change]


def texts(given: Iterable[bytes], field: str) -> list[str]:
    """The elements of a BYTES tensor as text. Raises BadInput where they are not UTF-8."""
    try:
        return [item.decode() for item in given]
    except UnicodeDecodeError:
        raise BadInput(f"{field}.data: is not UTF-8 text") from None
