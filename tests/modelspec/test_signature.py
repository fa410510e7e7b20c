"""What clients send and get, as a manifest declares it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreseen.errors import SetupError
from foreseen.modelspec.artifact import preparation_digest
from foreseen.modelspec.manifest import load

MODEL = """
name = "m"
version = "1"
title = "t"
precisions = ["fp32"]
[source]
builder = "onnx"
url = "m.onnx"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[[model.inputs]]
name = "x"
datatype = "FP32"
shape = ["rows", 4]
[[model.outputs]]
name = "y"
datatype = "FP32"
shape = ["rows", 2]
"""
ROUNDED = """
[[client.inputs]]
name = "x"
datatype = "FP32"
shape = ["rows", 4]
decimals = 2
"""
OUTPUTS = """
[[client.outputs]]
name = "y"
datatype = "FP32"
shape = ["rows", 2]
"""


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "model.toml").write_text(text)
    return folder / "model.toml"


def test_clients_get_the_models_outputs_where_none_are_listed(tmp_path: Path) -> None:
    """A manifest that only rounds an input says no more than that; it is the same model as one that repeats them."""
    short = load(written(tmp_path / "a", MODEL + ROUNDED))
    long = load(written(tmp_path / "b", MODEL + ROUNDED + OUTPUTS))
    assert short.client == long.client
    assert [one.name for one in short.seen.outputs] == ["y"]
    assert short.seen.inputs[0].decimals == 2
    assert preparation_digest(short, ()) == preparation_digest(long, ())


def test_outputs_that_are_listed_are_the_models(tmp_path: Path) -> None:
    """Another datatype than the graph's is an error that names the output."""
    wrong = OUTPUTS.replace("FP32", "FP64")
    with pytest.raises(SetupError, match=r"client\.outputs\.y"):
        load(written(tmp_path / "a", MODEL + ROUNDED + wrong))
