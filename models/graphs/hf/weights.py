"""The tensors of `model.safetensors`, of one file or of shards, read one at a time through memory maps.

Source of the format: https://github.com/huggingface/safetensors (8 bytes length, a JSON header, then the data). Read
here, since safetensors' numpy side has no bfloat16 and copies what a memory map need not copy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.types import Array

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
LENGTH = struct.Struct("<Q")
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""What checkpoints from TensorFlow call a norm's parameters; `transformers` renames them on loading."""


class Place(Struct, frozen=True):
    """Location of a tensor: file, offset, size."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""


class Weights:
    """Name → FP32 array. Raises SetupError that names the tensor or the file."""

    def __init__(self, places: dict[str, Place], prefix: str = "", advance: Callable[[], None] = lambda: None) -> None:
        self._places = places
        self._prefix = prefix
        self._advance = advance

    def __call__(self, name: str) -> Array:
        place = self._find(name)
        if place is None:
            raise SetupError(f"the weights hold no tensor {self._prefix}{name!r}")
        self._advance()
        if math.prod(place.shape) == 0:
            return np.zeros(place.shape, np.float32)
        stored = np.memmap(place.file, DTYPES[place.dtype], "r", place.start, place.shape)
        return np.asarray(stored, np.float32)  # FP32 stays the map: nothing is copied

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._places if name.startswith(self._prefix))

    def shape(self, name: str) -> tuple[int, ...]:
        place = self._find(name)
        if place is None:
            raise SetupError(f"the weights hold no tensor {self._prefix}{name!r}")
        return place.shape

    def under(self, prefix: str) -> Weights:
        """The tensors whose names start with `prefix`, without the prefix."""
        return Weights(self._places, self._prefix + prefix, self._advance)

    def _find(self, name: str) -> Place | None:
        found = self._places.get(self._prefix + name)
        if found is None:
            for now, old in OLD_NAMES.items():
                if name.endswith(now):
                    return self._places.get(self._prefix + name.removesuffix(now) + old)
        return found


def open_weights(folder: Path, advance: Callable[[], None] = lambda: None) -> Weights:
    """The weights of a folder, whole or in shards; `advance` is called for every tensor that is read."""
    if (folder / ONE_FILE).is_file():
        return Weights(_places(folder / ONE_FILE), advance=advance)
    if not (folder / INDEX).is_file():
        raise SetupError(
            f"{folder}: holds no {ONE_FILE}; a pickled pytorch_model.bin is never opened: "
            "load the model once with transformers and save_pretrained() it"
        )
    places: dict[str, Place] = {}
    for name in shards(folder):
        places |= _places(folder / name)
    return Weights(places, advance=advance)


def shards(folder: Path) -> list[str]:
    """The files that the index lists, without folders in their names."""
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Any])
        names = sorted(set(index["weight_map"].values()))
    except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
        raise SetupError(f"{INDEX}: has no weight_map of tensor names to files") from None
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise SetupError(f"{INDEX}: {name!r} is not a plain name of a safetensors file")
    return names


def _places(file: Path) -> dict[str, Place]:
    """The header of one file, checked against its size."""
    size = file.stat().st_size if file.is_file() else 0
    try:
        with file.open("rb") as opened:
            (length,) = LENGTH.unpack(opened.read(LENGTH.size))
            if length > min(LARGEST_HEADER_BYTES, size):
                raise SetupError(f"{file.name}: its header is longer than the file")
            header = msgspec.json.decode(opened.read(length), type=dict[str, dict[str, Any]])
        header.pop("__metadata__", None)
        data = LENGTH.size + length
        return {name: _place(file, name, said, data, size) for name, said in header.items()}
    except OSError as error:
        raise SetupError(f"{file}: {error.strerror}") from None
    except (struct.error, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{file.name}: is not a safetensors file: {error}") from None


def _place(file: Path, name: str, said: dict[str, Any], data: int, size: int) -> Place:
    dtype, shape = str(said["dtype"]), tuple(int(dim) for dim in said["shape"])
    begin, end = (int(offset) for offset in said["data_offsets"])
    if dtype not in DTYPES:
        raise SetupError(f"{file.name}: tensor {name!r} has datatype {dtype}; {', '.join(DTYPES)} can be read")
    fits = 0 <= begin <= end <= size - data and min(shape, default=0) >= 0
    if not fits or end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise SetupError(f"{file.name}: tensor {name!r} does not lie within the file")
    return Place(file, dtype, shape, data + begin)
