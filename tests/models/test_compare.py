"""Two models' answers to the rows of a file: real artifacts, each in its own process, and a server by its URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from foreseen.compare.report import ChangeBudget
from foreseen.errors import SetupError
from foreseen.models.add import add
from foreseen.models.build.build import build, build_candidate
from foreseen.models.change.artifacts import artifact_of, server_of
from foreseen.models.change.candidate import candidate
from foreseen.models.change.compare import CompareOptions, batches
from foreseen.models.change.compare import add as add_batch
from foreseen.models.change.side import AskedSide, artifact_side, server_side
from foreseen.models.commands import app
from foreseen.models.progress import SilentProgress
from foreseen.modelspec.artifact import read_record
from foreseen.modelspec.manifest import find
from foreseen.types import Array
from foreseen.warm.read.files import files_of

pytestmark = pytest.mark.processes

WRONG_OF_100 = 3
NAME = "sign"


def sign(wrong_of_100: int) -> ModelProto:
    """`scores` of two classes: the sign of the row's first number, but for rows whose second number modulo 100 is
    below `wrong_of_100`: there the classes are exchanged."""
    numbers: dict[str, Array] = {
        "0": np.array([0], np.int64),
        "1": np.array([1], np.int64),
        "hundred": np.array([100], np.float32),
    }
    numbers |= {"wrong": np.array([wrong_of_100], np.float32), "none": np.array([0], np.float32)}
    nodes = [
        helper.make_node("Gather", ["x", "0"], ["first"], axis=1),
        helper.make_node("Gather", ["x", "1"], ["second"], axis=1),
        helper.make_node("Mod", ["second", "hundred"], ["rest"], fmod=1),
        helper.make_node("Less", ["rest", "wrong"], ["is_wrong"]),
        helper.make_node("Neg", ["first"], ["opposite"]),
        helper.make_node("Where", ["is_wrong", "opposite", "first"], ["score"]),
        helper.make_node("Neg", ["score"], ["other"]),
        helper.make_node("Concat", ["score", "other"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Built:
    """Both artifacts of the model: the right one is in force."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.mine = folder, folder / "data", folder / "mine"
        for wrong, replace in ((0, False), (WRONG_OF_100, True)):
            onnx.save(sign(wrong), folder / "model.onnx")
            add(folder / "model.onnx", NAME, self.mine, self.data, SilentProgress(), replace=replace)
            manifest = find(NAME, (self.mine,))
            make = build_candidate if replace else build
            self.wrong = make(manifest, self.data, say=SilentProgress()).artifact.digest

    def rows(self, seed: int, count: int = 1500) -> Path:
        """A file of rows, three in a hundred of which the wrong model gets wrong on average."""
        dice, file = np.random.default_rng(seed), self.folder / f"rows-{seed}.jsonl"
        x = np.stack([dice.uniform(0.5, 2.0, count) * dice.choice([-1, 1], count), dice.integers(0, 10**4, count)], 1)
        file.write_text("".join(json.dumps({"x": row}) + "\n" for row in x.astype(np.float32).tolist()))
        return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def sides(built: Built) -> Iterator[list[AskedSide]]:
    """Both artifacts in processes of their own; the wrong one asked as a server by its metadata alone."""
    folders = (built.mine,)
    with ExitStack() as stack:
        found: list[AskedSide] = []
        for text in (NAME, built.wrong[:12]):
            chosen = artifact_of(text, NAME, built.data, folders, SilentProgress())
            address = stack.enter_context(candidate(chosen, built.data, built.mine))
            ask = server_side(address, NAME, "server", built.data, {}) if found else None
            found.append(ask or artifact_side(chosen.manifest, address, chosen.label, built.data, {}))
            stack.callback(found[-1].close)
        yield found


def test_a_model_that_is_wrong_for_three_per_cent_is_refused(built: Built, sides: list[AskedSide]) -> None:
    """20 of 20 times at a budget of 1 %, and the stated interval holds the true share each time."""
    options = CompareOptions(labels=("scores",))
    for seed in range(20):
        comparison = options.comparison(*(side.manifest for side in sides))
        for batch in batches(files_of([str(built.rows(seed))]), [side.plan for side in sides]):
            add_batch(comparison, *(side.answers(batch) for side in sides))
        report = comparison.report()
        assert (report.rows, report.failed_old, report.failed_new) == (1500, 0, 0)
        assert report.changed.low <= WRONG_OF_100 / 100 <= report.changed.high
        assert ChangeBudget(0.01).reasons(report)


def called(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    return int(ended.value.code or 0)


def test_the_command_line(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of the budget the status is 1; JSON stands alone on stdout; the plot is drawn; inside it is 0."""
    plot, file = built.folder / "plot.svg", str(built.rows(99, 400))
    flags = ["--file", file, "--data", str(built.data), "--models", str(built.mine), "--label-output", "scores"]
    asked = ["compare", NAME, built.wrong[:12], *flags, "--max-changed"]
    assert called(*asked, "1%", "--json", "--plot", str(plot)) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["inside"]
    assert document["rows"] == 400
    assert document["changed"]["count"] == document["label"]["count"] > 4
    assert plot.read_text().startswith("<svg")
    assert called(*asked, "10%") == 0
    assert "inside the budget" in capsys.readouterr().out


def test_a_candidate_is_built_beside_the_artifact_in_force(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    """`build --candidate` prints the digest for a handover; the record in force stays."""
    before = read_record(built.data, NAME)
    assert called("build", NAME, "--candidate", "--data", str(built.data), "--models", str(built.mine)) == 0
    assert f"foreseen models handover {NAME} --to {built.wrong[:12]}" in capsys.readouterr().out
    assert read_record(built.data, NAME) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sign:abcdef", "no artifact"),
        ("nothing", "is neither a precision nor a digest"),
        ("sign:abc", "is neither a precision nor a digest"),
        ("unknown:fp32", "is neither a precision nor a digest"),
    ],
)
def test_what_names_nothing_is_one_line(built: Built, text: str, why: str) -> None:
    """A misspelt precision or digest is refused before any process starts."""
    with pytest.raises(SetupError, match=why):
        artifact_of(text, NAME, built.data, (built.mine,), SilentProgress())


def test_what_names_an_artifact_or_a_server(built: Built) -> None:
    """Model, precision, digest with and without the model, and URLs with and without a model's path."""
    current = read_record(built.data, NAME).artifact.digest
    names = (NAME, f"{NAME}:{current[:8]}", current[:12])
    found = [artifact_of(text, None, built.data, (built.mine,), SilentProgress()).record for text in names]
    assert {one.artifact.digest for one in found} == {current}
    assert server_of(NAME) is None
    for text, address, model in (
        ("http://host:1/v2/models/other", "http://host:1", "other"),
        ("http://host:1/base", "http://host:1/base", None),
        ("unix:/run/m.sock", "unix:/run/m.sock", None),
    ):
        server = server_of(text)
        assert server is not None
        assert (server.address, server.model) == (address, model)
