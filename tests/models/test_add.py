"""One's own ONNX file becomes a model by one command, and a built one travels in a tar that is proved on arrival."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from foreseen.cli import app
from foreseen.errors import SetupError
from foreseen.models.add import add
from foreseen.models.build.build import build
from foreseen.models.build.carry import export, import_
from foreseen.models.progress import SilentProgress
from foreseen.models.report.report import build_full, read
from foreseen.modelspec.artifact import Record, model_folder, read_record
from foreseen.modelspec.manifest import find, load
from tests.models_fixture import PACKAGED

pytestmark = pytest.mark.processes

WEIGHT = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
DIGITS = find("digits", PACKAGED)


def linear(rows: int | str = "N", centred: bool = False) -> ModelProto:
    """`scores` = features·W; `centred` takes the mean of the batch off, which couples its rows."""
    nodes = [helper.make_node("MatMul", ["features", "W"], ["product" if centred else "scores"])]
    if centred:
        nodes += [
            helper.make_node("ReduceMean", ["product", "axis"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["product", "mean"], ["scores"]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(WEIGHT, "W"), numpy_helper.from_array(np.array([0], np.int64), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(path: Path, model: ModelProto) -> Path:
    onnx.save(model, path)
    return path


def test_a_file_becomes_a_manifest_that_builds(tmp_path: Path) -> None:
    """The signature is read, the file is copied beside it and pinned; the original may go."""
    file = saved(tmp_path / "My Scores.onnx", linear())
    path = add(file, None, tmp_path / "mine", tmp_path / "data", SilentProgress())
    file.unlink()
    assert path == tmp_path / "mine" / "my-scores" / "model.toml"
    manifest = find("my-scores", (tmp_path / "mine",))
    (given,), (answered,) = manifest.model.inputs, manifest.model.outputs
    assert (given.name, given.datatype, given.shape) == ("features", "FP32", ("rows", 8))
    assert (answered.name, answered.datatype, answered.shape) == ("scores", "FP32", ("rows", 3))
    assert build(manifest, tmp_path / "data", say=SilentProgress()).row_independent


def test_a_file_that_was_replaced_is_noticed_and_can_be_put_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build of the changed file is an error that says what to do; doing it keeps what was written by hand."""
    mine, data = tmp_path / "mine", tmp_path / "data"
    path = add(saved(tmp_path / "m.onnx", linear()), "m", mine, data, SilentProgress())
    path.write_text(path.read_text("utf-8").replace('title = ""', 'title = "by hand"'), "utf-8")
    flags = ["--models", str(mine), "--data", str(data)]
    for said in ("artifact", "unchanged"):
        app(["models", "build", "m", *flags], result_action="return_value")
        assert said in capsys.readouterr().out
    saved(mine / "m" / "model.onnx", linear(centred=True))
    with pytest.raises(SetupError, match=r"model.onnx was changed.*--replace"):
        app(["models", "build", "m", *flags], result_action="return_value")
    app(
        ["models", "add", str(mine / "m" / "model.onnx"), "--name", "m", "--replace", *flags],
        result_action="return_value",
    )
    assert find("m", (mine,)).title == "by hand"
    before = read_record(data, "m").artifact.digest
    capsys.readouterr()
    with pytest.raises(SetupError, match="batch-mates"):  # what is kept by hand said otherwise, and the gate holds
        app(["models", "build", "m", *flags], result_action="return_value")
    path.write_text(
        path.read_text("utf-8").replace("[gates]\nmax_difference = 0.0", "[batching]\nsingle = true"), "utf-8"
    )
    app(["models", "build", "m", *flags], result_action="return_value")
    assert f"changed: artifact {before[:12]} was in force before" in capsys.readouterr().out


def test_a_replaced_file_of_another_signature_gets_another_manifest(tmp_path: Path) -> None:
    """Without --replace it is refused; with it the old model.toml is kept beside the new one."""
    mine, data = tmp_path / "mine", tmp_path / "data"
    path = add(saved(tmp_path / "m.onnx", linear()), "m", mine, data, SilentProgress())
    before = path.read_text("utf-8")
    other = linear()
    other.graph.output[0].name = other.graph.node[0].output[0] = "logits"
    file = saved(tmp_path / "other.onnx", other)
    with pytest.raises(SetupError, match="--replace"):
        add(file, "m", mine, data, SilentProgress())
    add(file, "m", mine, data, SilentProgress(), replace=True)
    assert [output.name for output in load(path).model.outputs] == ["logits"]
    assert path.with_suffix(".toml.old").read_text("utf-8") == before
    assert build(load(path), data, say=SilentProgress())


def test_rows_that_depend_on_each_other_are_kept_together(tmp_path: Path) -> None:
    """The probe's finding becomes a setting, with the reason beside it: alone, each of them would answer zeros."""
    path = add(
        saved(tmp_path / "c.onnx", linear(centred=True)), "c", tmp_path / "mine", tmp_path / "data", SilentProgress()
    )
    assert "rows change each other's answers" in path.read_text("utf-8")
    manifest = load(path)
    assert manifest.rows == "together"
    assert build(manifest, tmp_path / "data", say=SilentProgress()).row_independent


def test_the_gate_refuses_them_where_the_manifest_batches_all_the_same(tmp_path: Path) -> None:
    path = add(
        saved(tmp_path / "c.onnx", linear(centred=True)), "c", tmp_path / "mine", tmp_path / "data", SilentProgress()
    )
    batched = msgspec.structs.replace(load(path), rows="each")
    with pytest.raises(SetupError, match="batch-mates change an answer by"):
        build(batched, tmp_path / "data", say=SilentProgress())


def test_a_graph_for_one_row_is_run_alone(tmp_path: Path) -> None:
    path = add(
        saved(tmp_path / "one.onnx", linear(rows=1)), "one", tmp_path / "mine", tmp_path / "data", SilentProgress()
    )
    manifest = load(path)
    assert manifest.batching.single
    record, report = build_full(manifest, tmp_path / "data", SilentProgress())
    assert record.row_independent
    assert {timing.rows for timing in report.candidates[0].timings} == {1}


def test_masks_are_known_by_their_usual_names(tmp_path: Path) -> None:
    """A `transformers` export takes what its clients send: the mask trims the rows and is no part of a key; the token
    types are one, since those of a pair of texts are not all zeros."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Add", ["kept", "token_type_ids"], ["same"]),
    ]
    same = helper.make_tensor_value_info("same", TensorProto.INT64, ["batch", "sequence"])
    model = helper.make_model(helper.make_graph(nodes, "g", values, [same]), ir_version=10)
    model.opset_import[0].version = 20
    path = add(saved(tmp_path / "t.onnx", model), "t", tmp_path / "mine", tmp_path / "data", SilentProgress())
    roles = {spec.name: (spec.role, spec.of) for spec in load(path).model.inputs}
    assert roles["attention_mask"] == ("mask", "input_ids")
    assert roles["token_type_ids"] == (None, None)
    trims = {spec.name: spec.trim for spec in load(path).seen.inputs}
    assert trims == {"input_ids": "attention_mask", "attention_mask": None, "token_type_ids": "attention_mask"}
    assert "--tokenizer" in path.read_text("utf-8")


def test_what_does_not_fit_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    fixed = saved(tmp_path / "four.onnx", linear(rows=4))
    with pytest.raises(SetupError, match="batches of exactly 4"):
        add(fixed, "four", tmp_path / "mine", tmp_path / "data", SilentProgress())
    assert not (tmp_path / "mine").exists()
    add(saved(tmp_path / "a.onnx", linear()), "a", tmp_path / "mine", tmp_path / "data", SilentProgress())
    with pytest.raises(SetupError, match="exists already"):
        add(tmp_path / "a.onnx", "a", tmp_path / "mine", tmp_path / "data", SilentProgress())


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's data, with digits built and measured."""
    data = tmp_path_factory.mktemp("there")
    build_full(DIGITS, data, SilentProgress())
    return data


@pytest.fixture
def carried(tmp_path: Path, there: Path) -> Path:
    export(there, "digits", tmp_path / "digits.tar")
    return tmp_path / "digits.tar"


def test_an_artifact_travels_with_its_report(tmp_path: Path, there: Path, carried: Path) -> None:
    record = import_(tmp_path / "here", DIGITS, carried, SilentProgress())
    assert record == read_record(tmp_path / "here", "digits") == read_record(there, "digits")
    assert read(DIGITS, tmp_path / "here", None) == read(DIGITS, there, None)


def repacked(source: Path, target: Path, name: str, change: bytes | tarfile.TarInfo) -> Path:
    """The same tar with one member's bytes or kind changed."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for info in old.getmembers():
            member = old.extractfile(info)
            assert member is not None
            content = member.read()
            if info.name == name and isinstance(change, tarfile.TarInfo):
                new.addfile(change)
                continue
            if info.name == name:
                assert isinstance(change, bytes)
                content = change
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return target


def test_a_carried_artifact_that_was_changed_is_refused(tmp_path: Path, there: Path, carried: Path) -> None:
    """Other bytes, a link in place of the file, a record that points outside, another manifest."""
    link = tarfile.TarInfo("model.onnx")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    record = read_record(there, "digits")
    outside = msgspec.structs.replace(record.artifact.graph, name="../../outside")
    pointing = Record(msgspec.structs.replace(record.artifact, graph=outside))
    for name, change, why in (
        ("model.onnx", b"other", "not the recorded file"),
        ("model.onnx", link, "not a regular file"),
        ("record.json", msgspec.json.encode(pointing), "plain file name"),
        ("record.json", b"{}", "record.json"),
    ):
        changed = repacked(carried, tmp_path / "changed.tar", name, change)
        with pytest.raises(SetupError, match=why):
            import_(tmp_path / "here", DIGITS, changed, SilentProgress())
    other = msgspec.structs.replace(DIGITS, rows="together")
    with pytest.raises(SetupError, match="another manifest"):
        import_(tmp_path / "here", other, carried, SilentProgress())
    assert not model_folder(tmp_path / "here", "digits").exists()


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(SetupError, match=r"no\.tar: cannot be read"):
        import_(tmp_path / "here", DIGITS, tmp_path / "no.tar", SilentProgress())
