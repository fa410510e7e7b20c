"""Batches of fixed shapes: a row's bits depend on the row alone, whoever shares its batch, through server and build."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from foreseen.inference.batching.queued import BatchLimits, BatchOrder, QueuedRequest
from foreseen.inference.batching.waiting import Lanes
from foreseen.inference.session import SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.models.build.build import build
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.shaping import Shaped, chosen, decide, kept
from foreseen.models.progress import SilentProgress
from foreseen.models.report.report import build_full
from foreseen.modelspec.artifact import preparation_digest, read_record, write_record
from foreseen.modelspec.manifest import find, load
from foreseen.modelspec.manifest.policy import Batching
from foreseen.modelspec.shapes import RAGGED, SINGLE, Shapes, batches, open_dimension
from foreseen.types import Row
from tests import inference_fixture as tiny
from tests.inference.test_app import listening
from tests.models_fixture import PACKAGED
from tests.signatures import manifest_text

FIXED = Shapes("fixed", (8, 16, 32), (4, 2, 1))
CHANCE = np.random.default_rng(8)
TABLE = CHANCE.standard_normal((50, 64)).astype(np.float32)
WEIGHT = CHANCE.standard_normal((64, 48)).astype(np.float32)

POOLED = manifest_text(
    "pooled",
    [("ids", "INT64", ["rows", "tokens"]), ("mask", "FP32", ["rows", "tokens"], 'role = "mask"\nof = "ids"')],
    [("y", "FP32", ["rows", 48]), ("kept", "FP32", ["rows", "tokens"])],
    tables='[source]\nbuilder = "onnx"\nurl = "model.onnx"\nsha256 = "SHA"\n[batching]',
)


def pooled() -> tiny.ModelProto:
    """The sum of what is not masked, which is what exporters write for a mean: its bits depend on the padding."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Unsqueeze", ["mask", "two"], ["m"]),
        helper.make_node("Mul", ["e", "m"], ["em"]),
        helper.make_node("ReduceSum", ["em", "one"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["s", "W"], ["y"]),
        helper.make_node("Add", ["mask", "mask"], ["kept"]),
    ]
    ids, mask = tiny.info("ids", TensorProto.INT64, "b", "t"), tiny.info("mask", TensorProto.FLOAT, "b", "t")
    outputs = [tiny.info("y", TensorProto.FLOAT, "b", 48), tiny.info("kept", TensorProto.FLOAT, "b", "t")]
    return tiny.graph(nodes, [ids, mask], outputs, table=TABLE, W=WEIGHT, one=np.array([1]), two=np.array([2]))


def manifest(folder: Path, batching: str, more: str = "") -> Path:
    """A folder with the graph and its manifest."""
    import hashlib

    place = folder / "mine" / "pooled"
    place.mkdir(parents=True, exist_ok=True)
    content = pooled().SerializeToString()
    (place / "model.onnx").write_bytes(content)
    text = POOLED.replace("SHA", hashlib.sha256(content).hexdigest()) + batching + "\n" + more
    (place / "model.toml").write_text(text)
    return place / "model.toml"


ROWS = [Row((CHANCE.integers(0, 50, n),)) for n in (3, 8, 9, 5, 20, 8, 31, 16, 1, 7, 33, 70, 12)]


def test_a_rows_shape_is_a_function_of_the_row_alone() -> None:
    """The smallest length that holds it, and that length's number of rows; beyond the set the next power of two."""
    assert [FIXED.length(n) for n in (1, 8, 9, 16, 17, 32, 33, 64, 65)] == [8, 8, 16, 16, 32, 32, 64, 64, 128]
    assert [FIXED.count(n) for n in (8, 16, 32, 64)] == [4, 2, 1, 1]
    assert Shapes("fixed", (), (8,)).count(1) == 8


def test_rows_run_with_those_of_their_shape(tmp_path: Path) -> None:
    """Every batch holds rows of one length, at most as many as it has; order is kept by the places."""
    one = load(manifest(tmp_path, 'shapes = "fixed"'))
    parts = batches(ROWS, one, FIXED)
    assert sorted(at for places, _, _ in parts for at in places) == list(range(len(ROWS)))
    for places, length, count in parts:
        assert len(places) <= count
        assert {FIXED.length(len(ROWS[at].tensors[0])) for at in places} == {length}


@pytest.mark.parametrize("shapes", [FIXED, Shapes("fixed", (64, 128), (8, 8))])
def test_no_company_changes_a_bit_in_fixed_shapes(tmp_path: Path, shapes: Shapes) -> None:
    """Alone, in any order, with any batch-mates. The same rows in ragged batches differ: the test can fail."""
    one = load(manifest(tmp_path, 'shapes = "fixed"'))
    session = GraphSession(tmp_path / "mine" / "pooled" / "model.onnx", one.model, "fp32")
    fixed = session.in_shapes(one, shapes)
    alone = [fixed.run([row])[0] for row in ROWS]
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(ROWS))[: 2 + seed % 11]
        for at, outputs in zip(order, fixed.run([ROWS[i] for i in order]), strict=True):
            assert [a.tobytes() for a in outputs] == [a.tobytes() for a in alone[at]]
            assert outputs[1].shape == ROWS[at].tensors[0].shape  # cut to its own length
    ragged = [session.run([row])[0] for row in ROWS]
    together = session.run(ROWS)
    assert any(a[0].tobytes() != b[0].tobytes() for a, b in zip(ragged, together, strict=True))


def test_rows_of_one_size_have_a_number_of_rows_only(tmp_path: Path) -> None:
    digits = find("digits", PACKAGED)
    assert open_dimension(digits) is None
    rows = [Row((np.full(64, n, np.float32),)) for n in range(7)]
    assert batches(rows, digits, Shapes("fixed", (), (3,))) == [([0, 1, 2], 1, 3), ([3, 4, 5], 1, 3), ([6], 1, 3)]


@pytest.mark.processes
def test_the_build_writes_the_set_and_the_server_runs_it(tmp_path: Path) -> None:
    """`shapes = "fixed"`: exact where ragged batches are not; through the process, by many at once, 0 bits differ."""
    path = manifest(tmp_path, 'shapes = "fixed"\nlengths = [8, 32]\nfixed_rows = 4')
    record = build(load(path), tmp_path / "data", say=SilentProgress())
    assert record.shapes == Shapes("fixed", (8, 32), (4, 4))
    assert record.row_independent
    session = open_session(load(path), tmp_path / "data", SessionPlan())
    alone = [session.run([row])[0][0].tobytes() for row in ROWS[:9]]
    together = [outputs[0].tobytes() for outputs in session.run(ROWS[:9])]
    session.close()
    assert together == alone


@pytest.mark.processes
async def test_many_at_once_get_the_bits_of_the_row_alone(tmp_path: Path) -> None:
    path = manifest(tmp_path, 'shapes = "fixed"\nlengths = [8, 32]\nfixed_rows = 4')
    build(load(path), tmp_path / "data", say=SilentProgress())
    settings = tiny.InferenceSettings(
        model="pooled", data=tmp_path / "data", models=path.parent.parent, port=0, instances=2
    )
    async with listening(settings) as client:
        ids = [row.tensors[0] for row in ROWS[:9]]
        ask = [client.binary({"ids": ("INT64", one[None])}) for one in ids]
        alone = [(await asked).outputs[0].array.tobytes() for asked in ask]
        again = await asyncio.gather(*(client.binary({"ids": ("INT64", one[None])}) for one in ids * 4))
        assert [reply.outputs[0].array.tobytes() for reply in again] == alone * 4
        assert client.served.row_independent


@pytest.mark.processes
def test_a_fixed_set_is_part_of_the_digest_and_no_other_kind_is(tmp_path: Path) -> None:
    """Another set may give other bits. Models of ragged batches keep the digests, hence the entries, that they have."""
    path = manifest(tmp_path, 'shapes = "fixed"\nfixed_rows = 2')
    record = build(load(path), tmp_path / "data", say=SilentProgress())
    seen = {}
    for shapes in (RAGGED, SINGLE, FIXED, Shapes("fixed", (8, 16), (4, 2))):
        write_record(tmp_path / "data", replace(record, shapes=shapes))
        assert read_record(tmp_path / "data", "pooled").shapes == shapes
        session = open_session(load(path), tmp_path / "data", SessionPlan())
        seen[shapes] = session.digest
        session.close()
    assert seen[RAGGED] == seen[SINGLE]
    assert len(set(seen.values())) == 3


def test_another_choice_of_shapes_is_another_build(tmp_path: Path) -> None:
    """`up` builds anew where the manifest's shapes have changed; `single` is what `single = true` always was."""
    one = load(manifest(tmp_path, ""))
    digests = {
        kind: preparation_digest(replace(one, batching=replace(one.batching, shapes=kind)), ())
        for kind in ("ragged", "fixed", "auto", "single")
    }
    assert len(set(digests.values())) == 4
    assert digests["single"] == preparation_digest(replace(one, batching=Batching(single=True)), ())


@pytest.mark.processes
def test_auto_takes_the_fastest_that_is_exact(tmp_path: Path) -> None:
    """Ragged batches of this graph change bits, so they are not taken however fast they are; the report says why."""
    one = load(manifest(tmp_path, 'shapes = "auto"'))
    record, report = build_full(one, tmp_path / "data", SilentProgress())
    (candidate,) = report.candidates
    figures = {shaped.shapes.kind: shaped for shaped in candidate.shaped}
    assert set(figures) == {"ragged", "fixed", "single"}
    assert not figures["ragged"].is_exact
    assert figures["fixed"].is_exact
    assert record.shapes.kind in ("fixed", "single")
    assert "fp32 ragged" in (tmp_path / "data" / "models" / "pooled" / "report.txt").read_text("utf-8")


def test_the_choice_between_measured_kinds() -> None:
    """The fastest of the exact; within 5 % the simpler; none exact is every row alone."""
    ragged, fixed, single = RAGGED, Shapes("fixed", (8,), (4,)), SINGLE
    for speeds, exact, wanted in (
        ((100, 90, 50), (0.0, 0.0, 0.0), ragged),
        ((100, 104, 50), (0.0, 0.0, 0.0), ragged),
        ((100, 120, 50), (0.0, 0.0, 0.0), fixed),
        ((100, 90, 50), (1e-6, 0.0, 0.0), fixed),
        ((100, 90, 50), (1e-6, 1e-6, 0.0), single),
    ):
        found = [Shaped(s, d, v) for s, v, d in zip((ragged, fixed, single), speeds, exact, strict=True)]
        assert chosen(found) == wanted


def test_lengths_come_from_the_cost() -> None:
    """Where a run costs the same whatever its length, one length is enough; where it costs by the token, most stay."""
    assert kept(dict.fromkeys((8, 16, 32, 64), 1.0)) == (64,)
    assert kept({8: 1.0, 16: 2.0, 32: 4.0, 64: 8.0}) == (8, 16, 32, 64)
    assert kept({8: 1.0, 16: 1.05, 32: 4.0}) == (16, 32)


def test_a_model_of_several_open_sizes_says_why_it_has_no_set(tmp_path: Path) -> None:
    """A picture's height and width: no length is a row's own. `auto` goes on with what is left."""
    one = load(manifest(tmp_path, 'shapes = "auto"'))
    signature = replace(one.model, inputs=(replace(one.model.inputs[0], shape=("rows", "h", "w")),))
    with pytest.raises(ValueError, match="several dimensions"):
        open_dimension(replace(one, model=signature))
    assert decide is not None


def test_a_queue_of_fixed_shapes_makes_batches_of_one_length() -> None:
    """The most urgent row and those of its length, up to that shape's number; no neighbours."""
    lanes = Lanes(BatchLimits(max_rows=32, count=FIXED.count))
    loop = asyncio.new_event_loop()
    lengths = [8, 16, 8, 8, 8, 8, 16, 32, 32]
    asked = QueuedRequest(loop.create_future(), BatchOrder(10.0), len(lengths), 0.0)
    lanes.add(asked, [Row((np.zeros(1),))] * len(lengths), lengths)
    taken = []
    while batch := lanes.take(0.0, lambda: None).batch:
        taken.append([item.length for item in batch])
    loop.close()
    assert sorted(taken) == sorted([[8] * 4, [8], [16] * 2, [32], [32]])
