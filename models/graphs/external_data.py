"""Tensors that an ONNX file keeps in another file beside it (torch's default export) → the same tensors inside it.

The path of external data is untrusted: CVE-2022-25882, -2024-27318, -2026-27489 and -34446 exploited it (path
traversal, symlinks, hard links). So only a regular file with one link, below the ONNX file's folder and reached through
real folders, is ever opened, and no more of it is read than the tensor's size.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from onnx import TensorProto, helper

from foreseen.errors import SetupError
from foreseen.models.graphs.onnx_write import LARGEST_BYTES

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in its place must not hang the build


def is_external(tensor: TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == TensorProto.EXTERNAL


def merge(tensors: Iterable[TensorProto], root: Path) -> None:
    """Put the data of external tensors into them. Raises SetupError naming the tensor and what is wrong."""
    total = 0
    for tensor in tensors:
        if not is_external(tensor):
            continue
        try:
            total += _bytes(tensor)
            if total > LARGEST_BYTES:
                raise ValueError("with it the file has more than 2.1 GB, which no ONNX file can have")
            raw = _read(tensor, root)
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise SetupError(f"tensor {tensor.name!r} lies outside of the file: {why}") from None
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = raw


def _read(tensor: TensorProto, root: Path) -> bytes:
    said = {entry.key: entry.value for entry in tensor.external_data}
    size = _bytes(tensor)
    start, length = int(said.get("offset", "0")), int(said.get("length", str(size)))
    if length != size or start < 0:
        raise ValueError(f"its shape needs {size} bytes, the file says {length} from {start}")
    handle = _open(root, said.get("location", ""))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ValueError("not a regular file with one name")
        file.seek(start)
        raw = file.read(size)
    if len(raw) != size:
        raise ValueError("its file ends before it")
    return raw


def _open(root: Path, location: str) -> int:
    """Open a file below `root`, folder after folder, without following a link."""
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise ValueError(f"{location!r} is not a path below the file's own folder")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts[:-1]:
            inner = os.open(part, FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(path.name, FILE, dir_fd=folder)
    finally:
        os.close(folder)


def _bytes(tensor: TensorProto) -> int:
    """The size in bytes for its datatype and shape. Two 4-bit values share a byte."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        raise ValueError("its datatype cannot lie there")
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError("its shape holds a negative number")
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
