"""Sessions over real ONNX graphs: what they load, what they refuse, and that a hung run is stopped."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog
from msgspec import structs
from onnx import ModelProto, TensorProto, helper, numpy_helper

from foreseen.errors import BadInput, ModelFailed, SetupError
from foreseen.inference import gpu, selftest, session, session_opening
from foreseen.inference.processor import processor_family
from foreseen.inference.session import Session, SessionPlan
from foreseen.inference.session_opening import open_session
from foreseen.inference.watchdog import EXIT_HUNG, Watchdog
from foreseen.modelspec.artifact import model_folder, read_record
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature, find
from foreseen.modelspec.manifest.policy import Batching, Gates
from foreseen.modelspec.row_outputs import RowOutputs
from foreseen.settings import InferenceSettings
from foreseen.types import Row
from tests import inference_fixture as tiny
from tests.models_fixture import PACKAGED, built_data

PLAN = SessionPlan()


def opened(settings: InferenceSettings, plan: SessionPlan = PLAN) -> Session:
    return open_session(find(settings.model, settings.model_folders), settings.data, plan)


def ints(*numbers: int) -> Row:
    return Row((np.array(numbers, np.int64),))


def floats(*numbers: float) -> Row:
    return Row((np.array(numbers, np.float32),))


def texts(*items: bytes) -> Row:
    array = np.empty((), object)
    array[()] = items[0]
    return Row((array,))


def test_rows_of_different_lengths_run_as_one_batch(tmp_path: Path) -> None:
    """Rows are padded to the longest, masks are made, and outputs are cut to each row's own size."""
    running = opened(tiny.publish(tmp_path, tiny.WORDS, tiny.words()))
    answers = running.run([ints(1, 2, 3), ints(5), ints(7, 8)])
    assert [int(total) for total, _ in answers] == [6, 5, 15]
    assert [twice.tolist() for _, twice in answers] == [[2, 4, 6], [10], [14, 16]]
    running.close()


def test_strings_are_utf8(tmp_path: Path) -> None:
    """BYTES go to ONNX as strings and come back as bytes; what is no text is the client's to mend."""
    running = opened(tiny.publish(tmp_path, tiny.ECHO, tiny.echo()))
    assert [out[0][()] for out in running.run([texts("grün".encode()), texts(b"")])] == ["grün".encode(), b""]
    with pytest.raises(BadInput, match=r"inputs\.text: ONNX strings are UTF-8"):
        running.run([texts(b"\xff")])
    running.close()


def test_infinity_is_no_answer(tmp_path: Path) -> None:
    """An output that is not finite is refused, whoever it belongs to."""
    running = opened(tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse()))
    assert running.run([floats(4)])[0][0].tolist() == [0.25]
    with pytest.raises(ModelFailed, match=r"outputs\.y: holds NaN or infinity"):
        running.run([floats(4), floats(0)])
    running.close()


def test_a_signature_that_is_not_the_graphs_is_refused(tmp_path: Path) -> None:
    """Names and types are compared before anything runs."""
    wrong = tiny.publish(tmp_path / "a", tiny.INVERSE.replace('"FP32"', '"FP16"', 1), tiny.inverse())
    with pytest.raises(SetupError, match=r"model\.inputs\.x: the graph has tensor\(float\), not tensor\(float16\)"):
        opened(wrong)
    bf16 = tiny.publish(tmp_path / "b", tiny.INVERSE.replace('"FP32"', '"BF16"', 1), tiny.inverse())
    with pytest.raises(SetupError, match="takes no BF16"):
        opened(bf16)


def test_an_artifact_that_was_changed_is_refused(tmp_path: Path) -> None:
    """The graph's bytes are proved by their sha256 and loaded from memory."""
    settings = tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse())
    artifact = read_record(settings.data, "inverse").artifact
    path = model_folder(settings.data, "inverse") / artifact.digest / artifact.graph.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SetupError, match="sha256"):
        opened(settings)


def test_a_graph_that_is_none_is_a_setup_error(tmp_path: Path) -> None:
    """What ONNX Runtime says about a broken graph comes as one line."""
    settings = tiny.publish(tmp_path, tiny.INVERSE, tiny.graph([], [], []))
    with pytest.raises(SetupError, match="cannot load the artifact"):
        opened(settings)


def test_a_missing_gpu_is_a_setup_error(tmp_path: Path) -> None:
    """A provider that this onnxruntime was not built with is named together with the extra that has it; one that
    does not start is no other provider."""
    settings = tiny.publish(tmp_path, tiny.INVERSE, tiny.inverse())
    built = "TensorrtExecutionProvider" in session.ort.get_available_providers()
    with pytest.raises(SetupError, match=r"did not start" if built else r"foreseen\[gpu\]"):
        opened(settings, SessionPlan(provider="tensorrt"))


def test_the_digest_names_the_runtime_unless_portable(tmp_path: Path) -> None:
    """Provider, processor family, runtime and options are part of the model digest of everything but portables."""
    plain = opened(tiny.publish(tmp_path / "a", tiny.INVERSE, tiny.inverse()))
    two = opened(tiny.publish(tmp_path / "b", tiny.INVERSE, tiny.inverse()), SessionPlan(threads=2))
    exact = tiny.INVERSE.replace("[[model.inputs]]", "exact = true\n[[model.inputs]]", 1)
    exact_one = opened(tiny.publish(tmp_path / "c", exact, tiny.inverse()))
    exact_two = opened(tiny.publish(tmp_path / "d", exact, tiny.inverse()), SessionPlan(threads=2))
    portable = opened(tiny.publish(tmp_path / "e", exact.replace("exact", "portable"), tiny.inverse()))
    assert plain.runtime_identity()[0] == "CPUExecutionProvider"
    assert plain.digest != two.digest
    assert exact_one.digest == exact_two.digest
    assert portable.runtime_identity() == ()
    for each in (plain, two, exact_one, exact_two, portable):
        each.close()


def test_nodes_are_counted_per_provider(tmp_path: Path) -> None:
    """A session knows which provider got which node."""
    running = opened(tiny.publish(tmp_path, tiny.WORDS, tiny.words()))
    assert {op for op, _ in running.nodes["CPUExecutionProvider"]} >= {"Mul", "ReduceSum", "Cast"}
    assert repr(running) == "<Session words fp32 on CPUExecutionProvider>"
    running.close()


def test_only_housekeeping_may_fall_back() -> None:
    """Shape arithmetic belongs on the CPU; a MatMulInteger there is a GPU model that is none."""
    nodes = {"CUDAExecutionProvider": [("MatMul", "a")], "CPUExecutionProvider": [("Shape", "s"), ("Gather", "")]}
    assert gpu.unexpected(nodes) == []
    nodes["CPUExecutionProvider"].append(("MatMulInteger", "q"))
    assert gpu.unexpected(nodes) == ["MatMulInteger q"]


def test_fallback_is_refused_or_warned_as_set(tmp_path: Path) -> None:
    """Both name the nodes; here the judgement alone, on a session whose nodes are all on the CPU."""
    running = opened(tiny.publish(tmp_path, tiny.WORDS, tiny.words()))
    with pytest.raises(SetupError, match=r"1 nodes fell back to the CPU, e\.g\. ReduceSum"):
        session_opening._check_fallback(running, SessionPlan(provider="cuda", fallback="refuse"))
    with structlog.testing.capture_logs() as logs:
        session_opening._check_fallback(running, SessionPlan(provider="cuda", fallback="warn"))
    assert [(log["event"], log["count"]) for log in logs] == [("nodes on the CPU", 1)]
    running.close()


def test_warm_up_shapes_stay_within_the_budget() -> None:
    """Powers of two, no batch above what the batcher would make."""
    shapes = list(gpu.buckets(max_rows=4, max_tokens=64, longest=32))
    assert shapes == [(1, 8), (2, 8), (4, 8), (1, 16), (2, 16), (4, 16), (1, 32), (2, 32)]


def test_the_gpus_model_is_its_family(tmp_path: Path) -> None:
    """The kernel driver's word for the device; without a driver just "gpu"."""
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t NVIDIA H100\nIRQ: 1\n")
    assert gpu.device_family(tmp_path) == "NVIDIA H100"
    assert gpu.device_family(tmp_path / "none") == "gpu"


def test_a_processor_family_is_vendor_and_instruction_sets() -> None:
    """What MLAS chooses kernels by, in a fixed order; clock, stepping and core count are not in it."""
    text = "processor : 0\nvendor_id : GenuineIntel\nmodel name : X\nflags : fpu avx512f avx2 amx_int8\n"
    assert processor_family(text).endswith(" GenuineIntel avx2 avx512f amx_int8")
    arm = "processor : 0\nFeatures : fp asimd i8mm asimddp\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    assert processor_family(arm).endswith(" 0x41 0xd40 asimddp i8mm")
    assert processor_family() == processor_family()


def test_the_saturation_probe_is_the_graph_it_says_it_is() -> None:
    """One MatMulInteger with weights of 127, as the docstring of `saturates` tells."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 32])],
        [
            numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w"),
            numpy_helper.from_array(np.uint8(128), "z"),
        ],
    )
    probe = ModelProto.FromString(zlib.decompress(base64.b64decode(session._SATURATION_PROBE)))
    assert probe.graph == graph


def test_products_do_not_saturate_here() -> None:
    """With `session.x64quantprecision` 8-bit products are exact on any processor; it is set where it is needed only."""
    assert session.saturates(guarded=True) is False
    entry = "session.x64quantprecision"
    for precision, needed in (("int8-rowwise", session.saturates(guarded=False)), ("fp32", False)):
        options = session.session_options(precision, 1)
        try:
            guarded = options.get_session_config_entry(entry) == "1"
        except RuntimeError:  # ONNX Runtime's word for "not set"
            guarded = False
        assert guarded == needed


def test_the_self_test_refuses_rows_that_depend_on_each_other(tmp_path: Path) -> None:
    """A model that says exact and is not does not become ready; one that makes no promise is measured."""
    settings = tiny.publish(tmp_path / "a", tiny.CENTRED.format(more="exact = true"), tiny.centred())
    running = opened(settings)
    with pytest.raises(SetupError, match="changes by 2 with its batch-mates"):
        selftest.prove(running, running.manifest)
    running.close()
    plain = opened(tiny.publish(tmp_path / "b", tiny.CENTRED.format(more=""), tiny.centred()))
    proof = selftest.prove(plain, plain.manifest)
    assert (proof.difference, proof.independent) == (2.0, False)
    within = structs.replace(plain.manifest, gates=Gates(max_difference=2.0))
    assert selftest.prove(plain, within).independent
    alone = structs.replace(plain.manifest, batching=Batching(single=True))
    assert selftest.prove(plain, alone).independent
    plain.close()


def test_the_self_test_refuses_a_model_that_cannot_run(tmp_path: Path) -> None:
    """An example that the model cannot answer is no readiness."""
    running = opened(tiny.publish(tmp_path, tiny.INVERSE.replace("x = [4]", "x = [0]"), tiny.inverse()))
    with pytest.raises(SetupError, match="self-test's run failed"):
        selftest.prove(running, running.manifest)
    running.close()


def test_a_warm_up_runs_every_shape() -> None:
    """(rows, length) each, as made-up batches; where rows go together as one row."""

    class Recording:
        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def run(self, rows: Sequence[Row], /) -> list[RowOutputs]:
            self.shapes.append((len(rows), *rows[0].tensors[0].shape))
            return []

    each, together = Recording(), Recording()
    manifest = find("minilm", PACKAGED)
    selftest.warm(each, manifest, [(1, 8), (4, 16)])
    selftest.warm(together, structs.replace(manifest, rows="together"), [(4, 16)])
    assert each.shapes == [(1, 8), (4, 16)]
    assert together.shapes == [(1, 4, 16)]


def test_example_rows_are_the_manifests_or_made_up(tmp_path: Path) -> None:
    """The example where it is in model tensors, made-up rows of every datatype and shape otherwise."""
    settings = tiny.publish(tmp_path, tiny.WORDS, tiny.words())
    words = find("words", settings.model_folders)
    assert [len(row.tensors[0]) for row in selftest.example_rows(words)] == [3, 4, 7, 13, 16]
    fixed = structs.replace(words, example={}, model=signature("FP16", "BOOL", "BYTES", "UINT8"))
    first, second = selftest.example_rows(fixed)
    assert [tensor.dtype.char for tensor in first.tensors] == ["e", "?", "O", "B"]
    assert not np.array_equal(first.tensors[0], second.tensors[0])
    with pytest.raises(SetupError, match=r"example\.ids"):
        selftest.example_rows(structs.replace(words, example={"ids": ["no number"]}))


def signature(*datatypes: str) -> ModelSignature:
    inputs = tuple(ModelInput(f"x{n}", datatype, ("rows", 3)) for n, datatype in enumerate(datatypes))
    return ModelSignature(inputs, (ModelOutput("y", "FP32", ("rows",)),))


def test_rows_that_go_together_are_one_run(tmp_path: Path) -> None:
    """With `rows = "together"` a row is a whole request, whose tensors have a batch axis."""
    running = opened(tiny.publish(tmp_path, tiny.CENTRED.format(more='rows = "together"'), tiny.centred()))
    whole = Row((np.array([[1], [3]], np.float32),))
    assert [out[0].tolist() for out in running.run([whole, whole])] == [[[-1.0], [1.0]]] * 2
    assert selftest.prove(running, running.manifest).difference == 0.0
    running.close()


def test_minilm_proves_itself() -> None:
    """The real model, int8: bit-equal alone and in a batch, and what a run costs is within reason."""
    running = open_session(find("minilm", PACKAGED), built_data(), SessionPlan())
    proof = selftest.prove(running, running.manifest)
    assert proof.difference == 0.0
    assert 2 <= proof.start_tokens <= 256
    running.close()


def test_a_hung_run_is_told_to_stop(tmp_path: Path) -> None:
    """The watchdog ends a real run between two nodes; the session answers the next one."""
    running = opened(tiny.publish(tmp_path, tiny.COUNTED, tiny.counted()), SessionPlan(hung_seconds=0.05))
    with pytest.raises(Exception, match="terminate"):
        running.run([ints(2**62)])
    assert running.run([ints(5)])[0][0].tolist() == [5]
    running.close()


def test_a_run_that_does_not_stop_is_given_up() -> None:
    """First it is told to stop, then the process is given up, once."""
    told, gave_up = [], threading.Event()
    dog = Watchdog(0.01, 0.01, gave_up.set)
    with dog.watch(lambda: told.append("stop")):
        assert repr(dog) == "<Watchdog 0.01 s + 0.01 s, 1 runs>"
        assert gave_up.wait(10)
    dog.close()
    assert told == ["stop"]


@pytest.mark.processes
def test_a_process_with_a_hung_run_ends() -> None:
    """Its supervisor sees a status that is not 0."""
    script = (
        "import threading\nfrom inference.watchdog import Watchdog\n"
        "with Watchdog(0.01, 0.01).watch(lambda: None): threading.Event().wait()"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True, check=False)
    assert ended.returncode == EXIT_HUNG
