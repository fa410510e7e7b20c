"""`models add` cannot be fooled: how rows may be run and cached is found by experiment, whatever a graph declares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from foreseen.errors import SetupError
from foreseen.models.add import add
from foreseen.models.build.build import build
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import equal_samples, samples
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.manifest import Manifest, Precision, load
from foreseen.modelspec.row_outputs import split_outputs

pytestmark = pytest.mark.processes

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
CHANCE = np.random.default_rng(5)
WEIGHT = CHANCE.standard_normal((4, 3)).astype(np.float32)
TABLE = CHANCE.standard_normal((50, 3)).astype(np.float32)

node = helper.make_node
Ends = dict[str, tuple[int, Sequence[int | str | None] | None]]


def graph(
    nodes: list[NodeProto],
    inputs: Ends,
    outputs: Ends,
    **constants: Any,
) -> ModelProto:
    """A model of those nodes; constants are arrays or lists of INT64."""
    ends = [[helper.make_tensor_value_info(name, *end) for name, end in side.items()] for side in (inputs, outputs)]
    arrays = {
        name: np.asarray(value, None if isinstance(value, np.ndarray) else np.int64)
        for name, value in constants.items()
    }
    known = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(nodes, "g", *ends, known), opset_imports=opsets, ir_version=9)


def vector(nodes: list[NodeProto], **constants: Any) -> ModelProto:
    """`x` FP32 [N, 4] → `y` FP32 [N, 4]."""
    return graph(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, **constants)


def added(tmp_path: Path, model: ModelProto, **options: Any) -> Manifest:
    """The manifest that `models add` writes; what it describes builds."""
    file = tmp_path / "file.onnx"
    onnx.save(model, file)
    manifest = load(add(file, "m", tmp_path / "mine", tmp_path / "data", SilentProgress(), **options))
    build(manifest, tmp_path / "data", say=SilentProgress())
    return manifest


COUPLED = {
    "softmax over the rows": vector([node("Softmax", ["x"], ["y"], axis=0)]),
    "centred by the batch's mean": vector(
        [node("ReduceMean", ["x", "zero"], ["m"]), node("Sub", ["x", "m"], ["y"])], zero=[0]
    ),
    "a running sum": vector([node("CumSum", ["x", "zero"], ["y"])], zero=np.array(0)),
    "the batch's largest as a scale": vector(
        [node("ReduceMax", ["x", "zero"], ["m"]), node("Div", ["x", "m"], ["y"])], zero=[0]
    ),
    "attention over the rows": vector(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0]),
            node("MatMul", ["x", "t"], ["s"]),
            node("Softmax", ["s"], ["a"], axis=-1),
            node("MatMul", ["a", "x"], ["y"]),
        ]
    ),
    "the number of rows": vector(
        [
            node("Shape", ["x"], ["s"], start=0, end=1),
            node("Cast", ["s"], ["n"], to=FLOAT),
            node("Div", ["x", "n"], ["y"]),
        ]
    ),
    "a weak pull of the batch": vector(
        [node("ReduceSum", ["x", "zero"], ["m"]), node("Mul", ["m", "little"], ["w"]), node("Add", ["x", "w"], ["y"])],
        zero=[0],
        little=np.array(1e-5, np.float32),
    ),
    "only batch-mates above 20 count": vector(
        [
            node("ReduceMax", ["x", "zero"], ["m"]),
            node("Sub", ["m", "twenty"], ["over"]),
            node("Relu", ["over"], ["r"]),
            node("Add", ["x", "r"], ["y"]),
        ],
        zero=[0],
        twenty=np.array(20, np.float32),
    ),
    "the first row is a query": vector(
        [node("Gather", ["x", "first"], ["q"], axis=0), node("Mul", ["x", "q"], ["y"])], first=[0]
    ),
    "ranks among the rows": graph(
        [node("TopK", ["x", "one"], ["v", "i"], axis=0), node("Add", ["x", "v"], ["y"])],
        {"x": (FLOAT, ["N", 4])},
        {"y": (FLOAT, ["N", 4])},
        one=[1],
    ),
}


@pytest.mark.parametrize("kind", COUPLED)
def test_rows_that_change_each_other_are_kept_together(tmp_path: Path, kind: str) -> None:
    """Run one by one they would answer other numbers than the graph gives for the request, with 200."""
    manifest = added(tmp_path, COUPLED[kind])
    assert (manifest.rows, manifest.cacheable) == ("together", True)


def test_a_time_axis_in_the_place_of_the_batch_is_found(tmp_path: Path) -> None:
    """A time-major LSTM: its first axis is open like a batch, but each step starts from the last one's state."""
    weights = {"W": (1, 12, 4), "R": (1, 12, 3)}
    arrays = {name: CHANCE.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    nodes = [node("LSTM", ["x", "W", "R"], ["all", "h", "c"], hidden_size=3), node("Squeeze", ["all", "one"], ["y"])]
    model = graph(nodes, {"x": (FLOAT, ["seq", "batch", 4])}, {"y": (FLOAT, ["seq", "batch", 3])}, one=[1], **arrays)
    assert added(tmp_path, model).rows == "together"


def test_a_gallery_beside_the_queries_is_no_batch(tmp_path: Path) -> None:
    """Two inputs whose first axes have different names and sizes: queries and what they are compared with."""
    nodes = [node("Transpose", ["gallery"], ["t"], perm=[1, 0]), node("MatMul", ["query", "t"], ["y"])]
    ends = {"query": (FLOAT, ["Q", 4]), "gallery": (FLOAT, ["G", 4])}
    manifest = added(tmp_path, graph(nodes, ends, {"y": (FLOAT, ["Q", "G"])}))
    assert manifest.rows == "together"


@pytest.mark.parametrize(
    "nodes",
    [
        [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])],
        [node("RandomUniformLike", ["x"], ["r"], seed=3.0), node("Add", ["x", "r"], ["y"])],
        [node("Sigmoid", ["x"], ["p"]), node("Bernoulli", ["p"], ["y"])],
        [node("Dropout", ["x", "half", "yes"], ["y"])],
    ],
)
def test_a_random_model_is_not_cached(tmp_path: Path, nodes: list[NodeProto]) -> None:
    """Also with a seed, which starts a session's sequence and not each run's."""
    model = vector(nodes, half=np.array(0.5, np.float32), yes=np.array(True))
    assert not added(tmp_path, model).cacheable


def test_rows_of_open_size_without_a_mask_run_unpadded(tmp_path: Path) -> None:
    """Padding is summed up like numbers; rows of one size do not change each other, so each is cached by itself."""
    nodes = [node("Exp", ["x"], ["e"]), node("ReduceSum", ["e", "one"], ["y"], keepdims=0)]
    manifest = added(tmp_path, graph(nodes, {"x": (FLOAT, ["N", "T"])}, {"y": (FLOAT, ["N"])}, one=[1]))
    assert (manifest.rows, manifest.batching.single) == ("each", True)


def test_an_output_as_long_as_the_padded_input_runs_alone(tmp_path: Path) -> None:
    """[N, 3, 8, W] → [N, W/2, 3]: padding changes the shape of the answer, which is no traceback."""
    nodes = [
        node("AveragePool", ["x"], ["a"], kernel_shape=[8, 2], strides=[8, 2]),
        node("Squeeze", ["a", "two"], ["b"]),
        node("Transpose", ["b"], ["y"], perm=[0, 2, 1]),
    ]
    model = graph(nodes, {"x": (FLOAT, ["N", 3, 8, "W"])}, {"y": (FLOAT, ["N", "T", 3])}, two=[2])
    manifest = added(tmp_path, model)
    assert (manifest.rows, manifest.batching.single) == ("each", True)


def test_rows_that_stand_alone_are_batched(tmp_path: Path) -> None:
    """The probe is no reason to refuse what is right; here with an output that says 1 although it is the rows."""
    nodes = [node("MatMul", ["x", "W"], ["y"])]
    manifest = added(tmp_path, graph(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, [1, 3])}, W=WEIGHT))
    assert (manifest.rows, manifest.batching.single, manifest.cacheable) == ("each", False, True)


def test_sizes_that_inputs_share_are_drawn_together(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["E", "tokens"], ["e"]),
        node("Add", ["e", "extra"], ["s"]),
        node("ReduceMax", ["s", "one"], ["y"], keepdims=0),
    ]
    ends = {"tokens": (INT64, ["N", "T"]), "extra": (FLOAT, ["N", "T", 3])}
    manifest = added(tmp_path, graph(nodes, ends, {"y": (FLOAT, ["N", 3])}, one=[1], E=TABLE))
    assert manifest.samples.values["tokens"] == (0, 50)  # the table's rows
    for row in samples(manifest, tmp_path, 20):
        assert row.tensors[0].shape[0] == row.tensors[1].shape[0]


def test_sizes_that_a_graph_takes_are_found(tmp_path: Path) -> None:
    """A reshape that takes multiples of 32 only; and several such sizes, so that padding can be measured."""
    nodes = [
        node("Reshape", ["x", "s"], ["r"]),
        node("ReduceMax", ["r", "two"], ["m"], keepdims=0),
        node("ReduceMax", ["m", "one"], ["y"], keepdims=0),
    ]
    model = graph(nodes, {"x": (FLOAT, ["N", "T"])}, {"y": (FLOAT, ["N"])}, s=[0, -1, 32], one=[1], two=[2])
    sizes = added(tmp_path, model).samples.sizes["T"]
    assert len(sizes) > 1
    assert all(size % 32 == 0 for size in sizes)


def test_a_size_that_is_not_found_is_asked_for(tmp_path: Path) -> None:
    """One true line that names the dimension; with `--dim` the same graph is added."""
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("ReduceMax", ["r", "one"], ["y"], keepdims=0)]
    model = graph(nodes, {"x": (FLOAT, ["N", "T"])}, {"y": (FLOAT, ["N", 7])}, s=[-1, 211, 7], one=[1])
    with pytest.raises(SetupError, match=r"--dim NAME=SIZE \(sizes: T\)") as refused:
        added(tmp_path, model)
    assert "\n" not in str(refused.value)
    assert added(tmp_path, model, dims=("T=1477",)).samples.sizes == {"T": (1477,)}


@pytest.mark.parametrize("shape", [["N"], ["N", 1], ["N", "words"]])
def test_strings_of_every_shape_are_asked(tmp_path: Path, shape: list[str | int]) -> None:
    """A column [N, 1] is how pipelines with text columns take it; the categories that the graph knows are tried."""
    encoder = node(
        "LabelEncoder", ["sex"], ["y"], domain="ai.onnx.ml", keys_strings=["male", "female"], values_floats=[0.0, 1.0]
    )
    manifest = added(tmp_path, graph([encoder], {"sex": (STRING, shape)}, {"y": (FLOAT, shape)}))
    assert manifest.samples.texts["sex"] == ("male", "female")


def test_text_that_is_a_number_is_found(tmp_path: Path) -> None:
    """A graph that reads numbers out of strings refuses words."""
    manifest = added(
        tmp_path, graph([node("Cast", ["t"], ["y"], to=FLOAT)], {"t": (STRING, ["N", 1])}, {"y": (FLOAT, ["N", 1])})
    )
    assert all(float(text) for text in manifest.samples.texts["t"])


def test_a_label_by_its_name_may_come_first(tmp_path: Path) -> None:
    """Every classifier trained on names gives `label` first; strings are compared as strings."""
    nodes = [
        node("MatMul", ["x", "W"], ["p"]),
        node("ArgMax", ["p"], ["i"], axis=1, keepdims=0),
        node(
            "LabelEncoder", ["i"], ["label"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=["a", "b", "c"]
        ),
    ]
    model = graph(nodes, {"x": (FLOAT, ["N", 4])}, {"label": (STRING, ["N"]), "p": (FLOAT, ["N", 3])}, W=WEIGHT)
    manifest = added(tmp_path, model)
    assert (manifest.rows, manifest.batching.single) == ("each", False)


WHOLE = {
    "a state whose second axis is the batch": (
        [node("ReduceSum", ["x", "one"], ["sum"]), node("Add", ["state", "sum"], ["next"])],
        {"x": (FLOAT, ["batch", "samples"]), "state": (FLOAT, [2, "batch", 1])},
        {"sum": (FLOAT, ["batch", 1]), "next": (FLOAT, [2, "batch", 1])},
    ),
    "a scalar": (
        [node("Mul", ["x", "rate"], ["y"])],
        {"x": (FLOAT, ["batch", 4]), "rate": (FLOAT, [])},
        {"y": (FLOAT, ["batch", 4])},
    ),
    "an output without rows": (
        [node("Identity", ["x"], ["y"]), node("Identity", ["one"], ["classes"])],
        {"x": (FLOAT, ["N", 4])},
        {"y": (FLOAT, ["N", 4]), "classes": (INT64, [1])},
    ),
    "a time-major output": (
        [node("Reshape", ["x", "s"], ["r"]), node("Transpose", ["r"], ["y"], perm=[1, 0, 2])],
        {"x": (FLOAT, ["N", 20])},
        {"y": (FLOAT, [5, "N", 4])},
    ),
    "the batch is square": (
        [node("MatMul", ["edges", "x"], ["y"])],
        {"x": (FLOAT, ["N", 4]), "edges": (FLOAT, ["N", "N"])},
        {"y": (FLOAT, ["N", 4])},
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_has_no_axis_of_rows_is_asked_as_it_was_sent(tmp_path: Path, kind: str) -> None:
    """The manifest says why; requests go whole, and are cached whole."""
    nodes, inputs, outputs = WHOLE[kind]
    manifest = added(tmp_path, graph(nodes, inputs, outputs, one=[1], s=[-1, 5, 4]))
    assert manifest.rows == "together"
    assert "as it was sent" in (tmp_path / "mine" / "m" / "model.toml").read_text("utf-8")


def test_one_row_may_give_any_number_of_boxes(tmp_path: Path) -> None:
    """An output that declares one row but gives as many as it finds: its first axis is no batch."""
    nodes = [
        node("Greater", ["x", "zero"], ["g"]),
        node("NonZero", ["g"], ["where"]),
        node("Transpose", ["where"], ["boxes"], perm=[1, 0]),
    ]
    model = graph(nodes, {"x": (FLOAT, [1, 4])}, {"boxes": (INT64, [1, 2])}, zero=np.array(0, np.float32))
    assert added(tmp_path, model).rows == "together"


def test_names_of_sizes_are_not_believed(tmp_path: Path) -> None:
    """An output that is named as long as its input but is half of it: no answer is cut to a size it does not have."""
    nodes = [node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])]
    manifest = added(tmp_path, graph(nodes, {"x": (FLOAT, ["N", 2, "T"])}, {"y": (FLOAT, ["N", 2, "T"])}))
    assert manifest.model.outputs[0].shape[2] != "T"


def test_no_trick_changes_an_answer(tmp_path: Path) -> None:
    """What was added as rows that stand alone gives each row, in any company, the bits of the row alone."""
    nodes = [node("MatMul", ["x", "W"], ["y"])]
    manifest = added(tmp_path, graph(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 3])}, W=WEIGHT))
    session = GraphSession(tmp_path / "mine" / "m" / "model.onnx", manifest.model, "fp32")
    rows = equal_samples(manifest, 9, seed=4)
    together = split_outputs(session.outputs(session.feeds(rows)), rows, manifest.model)
    assert [out[0].tobytes() for out in together] == [session.run([row])[0][0].tobytes() for row in rows]


def test_bf16_is_refused_in_words(tmp_path: Path) -> None:
    model = graph(
        [node("Cast", ["x"], ["y"], to=FLOAT)], {"x": (TensorProto.BFLOAT16, ["N", 4])}, {"y": (FLOAT, ["N", 4])}
    )
    with pytest.raises(SetupError, match="the input 'x' is BF16"):
        added(tmp_path, model)


def test_a_map_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """`zipmap` of skl2onnx: a sequence of maps in the place of a tensor."""
    zipped = node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    model = vector([zipped])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    model.graph.output[0].type.CopyFrom(kind)
    with pytest.raises(SetupError, match=r"the output 'y' is a sequence: .*'zipmap': False"):
        added(tmp_path, model)


def encoder() -> ModelProto:
    """Ids and their mask → the sum of what is not masked."""
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"]),
        node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        node("Unsqueeze", ["m", "two"], ["m3"]),
        node("Mul", ["e", "m3"], ["em"]),
        node("ReduceSum", ["em", "one"], ["y"], keepdims=0),
    ]
    ends = {name: (INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")}
    return graph(nodes, ends, {"y": (FLOAT, ["batch", 3])}, one=[1], two=[2], E=TABLE)


def test_the_hint_to_take_text_is_right(tmp_path: Path) -> None:
    """What the written comment says, followed literally: the same file with its tokenizer takes text."""
    vocabulary = {"[UNK]": 0, "good": 1, "morning": 2}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        "added_tokens": [],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    added(tmp_path, encoder())
    assert "models add FILE --tokenizer tokenizer.json" in (tmp_path / "mine" / "m" / "model.toml").read_text("utf-8")
    (tmp_path / "text").mkdir()
    manifest = added(tmp_path / "text", encoder(), tokenizer=tmp_path / "tokenizer.json")
    assert [(spec.name, spec.datatype) for spec in manifest.seen.inputs] == [("text", "BYTES")]


def test_the_hint_to_batch_all_the_same_is_right(tmp_path: Path) -> None:
    """What is written beside `single`: with a tolerance in its place the model builds."""
    manifest = added(tmp_path, encoder())
    assert manifest.batching.single
    path = tmp_path / "mine" / "m" / "model.toml"
    text = path.read_text("utf-8")
    assert "[gates] max_difference = 1e-5, and remove `single`" in text
    path.write_text(text.replace("single = true\n", "") + "[gates]\nmax_difference = 1e-5\n")
    assert build(load(path), tmp_path / "data", say=SilentProgress()).row_independent


def test_every_precision_that_is_named_can_be_taken(tmp_path: Path) -> None:
    """The comment on candidates names them; each is one that a manifest may list."""
    added(tmp_path, encoder())
    path = tmp_path / "mine" / "m" / "model.toml"
    text = path.read_text("utf-8")
    for precision in set(get_args(Precision)) - {"fp32"}:
        assert precision in text
        path.write_text(text.replace('["fp32"]', f'["{precision}"]'))
        assert load(path).precisions == (precision,)


def test_the_folder_may_be_moved(tmp_path: Path) -> None:
    """The graph lies beside model.toml and is read relative to it, wherever the program runs."""
    added(tmp_path, vector([node("Relu", ["x"], ["y"])]))
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    manifest = load(tmp_path / "elsewhere" / "m" / "model.toml")
    assert build(replace(manifest, version="2"), tmp_path / "other-data", say=SilentProgress()).row_independent
