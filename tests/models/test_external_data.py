"""ONNX files whose data lie beside them (torch's default export) are taken; nothing else is ever opened for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from foreseen.errors import SetupError
from foreseen.models.add import add
from foreseen.models.build.build import build
from foreseen.models.graphs import external_data, onnx_file
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import load

WEIGHT = np.random.default_rng(1).standard_normal((8, 300)).astype(np.float32)


def linear() -> ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 300])]
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    graph = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(WEIGHT, "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def beside(folder: Path, location: str = "model.onnx.data") -> Path:
    """The file as exporters write it: its data in a second one."""
    path = folder / "model.onnx"
    onnx.save_model(linear(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def claiming(folder: Path, **said: str) -> Path:
    """A file that says of its data what it likes."""
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.processes
def test_data_beside_the_file_become_part_of_it(tmp_path: Path) -> None:
    """`models add` writes one file; the original and its data may go."""
    path = beside(tmp_path)
    assert numpy_helper.to_array(onnx_file.read(path).graph.initializer[0]).tobytes() == WEIGHT.tobytes()
    written = add(path, "m", tmp_path / "mine", tmp_path / "data", SilentProgress())
    for file in tmp_path.glob("model.onnx*"):
        file.unlink()
    assert sorted(p.name for p in written.parent.iterdir()) == ["model.onnx", "model.toml"]
    assert build(load(written), tmp_path / "data", say=SilentProgress()).row_independent


def test_data_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "w.bin").write_bytes(b"1234" + WEIGHT.tobytes())
    read = onnx_file.read(claiming(tmp_path, location="deep/er/w.bin", offset="4"))
    assert read.graph.initializer[0].raw_data == WEIGHT.tobytes()
    assert not external_data.is_external(read.graph.initializer[0])


@pytest.mark.parametrize("location", ["", "../w.bin", "/etc/passwd", "a/../../w.bin", "a\\w.bin", "none.bin", "."])
def test_no_place_outside_of_the_folder_is_opened(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "inner" / "a").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"model\.onnx: tensor 'W' lies outside of the file: "):
        onnx_file.read(claiming(tmp_path / "inner", location=location))


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    """A symlink to the data, a folder that is one, a file with two names, a pipe."""
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.bin").symlink_to(tmp_path / "w.bin")
    (root / "folder").symlink_to(tmp_path)
    (root / "hard.bin").hardlink_to(tmp_path / "w.bin")
    os.mkfifo(root / "pipe.bin")
    for location in ("link.bin", "folder/w.bin", "hard.bin", "pipe.bin"):
        with pytest.raises(SetupError, match="lies outside of the file"):
            onnx_file.read(claiming(root, location=location))


@pytest.mark.parametrize(
    "said",
    [{"length": "4"}, {"offset": "-4"}, {"offset": "8"}, {"length": "x"}, {"length": str(1 << 60)}],
)
def test_no_more_is_read_than_the_tensor_has(tmp_path: Path, said: dict[str, str]) -> None:
    """A length that is not the shape's, a place before the file or past its end."""
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(SetupError, match="tensor 'W' lies outside of the file"):
        onnx_file.read(claiming(tmp_path, location="w.bin", **said))


def test_a_shape_that_no_file_can_hold_is_refused_unread(tmp_path: Path) -> None:
    """Its size is known before anything is opened."""
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 40])
    tensor.external_data.add(key="location", value="none.bin")
    with pytest.raises(SetupError, match="'huge' lies outside of the file: with it the file has more than"):
        external_data.merge([tensor], tmp_path)
