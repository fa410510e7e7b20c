"""Safetensors are read tensor by tensor, in every precision and from shards; a header that lies is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from foreseen.errors import SetupError
from foreseen.models.graphs.hf.weights import open_weights

VALUES = np.array([[1.5, -2.0, 0.25], [3.0, 0.0, -0.5]], np.float32)


def raw(folder: Path, header: dict[str, Any] | bytes, data: bytes = b"", name: str = "model.safetensors") -> Path:
    """A file of that header, whatever it says."""
    said = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(struct.pack("<Q", len(said)) + said + data)
    return folder


def one(dtype: str, data: bytes, shape: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}, "__metadata__": {"format": "pt"}}


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16), ("F64", np.float64)]
)
def test_every_precision_becomes_fp32(tmp_path: Path, dtype: str, kind: Any) -> None:
    data = VALUES.astype(kind).tobytes()
    weights = open_weights(raw(tmp_path / "m", one(dtype, data), data))
    assert weights("w").dtype == np.float32
    assert weights("w").tolist() == VALUES.tolist()


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    """Names under a prefix, old names of norms, and a call for every tensor that is read."""
    read = []
    files = {"a.safetensors": {"bert.x": VALUES}, "b.safetensors": {"bert.LayerNorm.gamma": VALUES[0], "y": VALUES}}
    for file, tensors in files.items():
        save_file(tensors, tmp_path / file)
    listed = {name: file for file, tensors in files.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    whole = open_weights(tmp_path, lambda: read.append(1))
    inner = whole.under("bert.")
    assert sorted(inner) == ["LayerNorm.gamma", "x"]
    assert inner("LayerNorm.weight").tolist() == VALUES[0].tolist()
    assert "y" in whole
    assert "y" not in inner
    assert whole.shape("y") == (2, 3)
    assert len(read) == 1
    with pytest.raises(SetupError, match="hold no tensor"):
        inner("none")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin", 7])
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(SetupError, match=r"index\.json: "):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (one("F32", bytes(24)), bytes(20), "does not lie within the file"),
        (one("F32", bytes(24), (2, 4)), bytes(24), "does not lie within the file"),
        (one("F32", bytes(24), (-2, -3)), bytes(24), "does not lie within the file"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4), "does not lie within the file"),
        (one("F8_E4M3", bytes(6)), bytes(6), "has datatype F8_E4M3"),
        ({"w": {"dtype": "F32"}}, b"", "is not a safetensors file"),
        ({"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}, bytes(4), "is not a safetensors file"),
        (b"[]", b"", "is not a safetensors file"),
        (b"{", b"", "is not a safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, data: bytes, why: str) -> None:
    with pytest.raises(SetupError, match=why):
        open_weights(raw(tmp_path / "m", header, data))("w")


def test_a_file_that_is_shorter_than_its_header_says(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(SetupError, match="its header is longer than the file"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(SetupError, match="is not a safetensors file"):
        open_weights(tmp_path)
