"""Batch files as other tools write them: what each becomes, row by row, before any model is asked."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from foreseen.errors import BadInput, SetupError
from foreseen.modelspec.manifest import (
    ClientInput,
    ClientOutput,
    ClientSignature,
    Manifest,
    ModelInput,
    ModelOutput,
    ModelSignature,
)
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_json
from foreseen.tenants.tenant import PUBLIC
from foreseen.warm.plan import Plan
from foreseen.warm.read.arrow import decoded
from foreseen.warm.read.files import check_columns, files_of
from foreseen.warm.read.keys import given_of
from foreseen.warm.read.reader import chunks
from foreseen.warm.run.command import FIRST_ROWS
from foreseen.warm.run.resolve import check_types, wanted_columns
from foreseen.warm.run.seen_keys import SeenKeys

ROWS = "rows"


def plan(*inputs: ClientInput) -> Plan:
    """A model of these inputs and one output."""
    model = ModelSignature(
        tuple(ModelInput(i.name, i.datatype, i.shape) for i in inputs), (ModelOutput("y", "FP32", (ROWS,)),)
    )
    seen = ClientSignature(inputs, (ClientOutput("y", "FP32", (ROWS,)),))
    return Plan(manifest=Manifest("m", model, client=seen), scope=PUBLIC, digest="ab" * 32)


TEXT = plan(ClientInput("text", "BYTES", (ROWS,)))
NUMBER = plan(ClientInput("x", "INT64", (ROWS,)))
PAIR = plan(ClientInput("x", "FP32", (ROWS, 2)))
MISSING = plan(ClientInput("x", "FP32", (ROWS, 2), nonfinite=True))
SCALE = plan(ClientInput("x", "FP32", (ROWS,), nonfinite=True))
TRUTH = plan(ClientInput("x", "BOOL", (ROWS,)))


def read(named: Path | str, of: Plan, rows: int = 1000, start: int = 0) -> tuple[list[Any], dict[int, str]]:
    """Values of the good rows, and the reasons of the others by their row number."""
    values: list[Any] = []
    reasons: dict[int, str] = {}
    for file in files_of([str(named)]):
        wanted = wanted_columns(file, of)
        check_columns(file, list(wanted) if file.columns is not None and file.rows != 0 else [])
        for chunk in chunks(file, of.manifest, wanted, start, rows):
            bad: dict[int, str] = {}
            for given in given_of(chunk.batch, of.manifest, {}, bad):
                values += given.tensors[0].array.tolist()
            reasons |= {chunk.line(index): why for index, why in bad.items()}
    return values, reasons


def refused(named: Path | str, of: Plan = TEXT) -> str:
    with pytest.raises(SetupError) as error:
        read(named, of)
    assert "\n" not in str(error.value)
    return str(error.value)


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def stream(path: Path, *batches: pa.RecordBatch) -> Path:
    with pa.ipc.new_stream(str(path), batches[0].schema) as out:
        for batch in batches:
            out.write_batch(batch)
    return path


# Arrow types


def nested(kind: pa.DataType) -> pa.Array:
    return pa.array([["a", "b"], ["c"], None], pa.list_(kind))


ENCODINGS: dict[str, tuple[pa.Array, list[Any]]] = {
    "dictionary": (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
    "dictionary of views": (
        pa.DictionaryArray.from_arrays(pa.array([1, None], pa.int8()), pa.array(["a", "b"], pa.string_view())),
        ["b", None],
    ),
    "string_view": (pa.array(["a", None, "c" * 40], pa.string_view()), ["a", None, "c" * 40]),
    "binary_view": (pa.array([b"a", None], pa.binary_view()), [b"a", None]),
    "runs": (pc.run_end_encode(pa.array([1, 1, 2])), [1, 1, 2]),
    "list of dictionaries": (nested(pa.dictionary(pa.int8(), pa.string())), [["a", "b"], ["c"], None]),
    "list of views": (nested(pa.string_view()), [["a", "b"], ["c"], None]),
    "list_view": (pa.array([[1, 2], [3], None], pa.list_view(pa.int64())), [[1, 2], [3], None]),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())), [True, False]),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", None])), ["[1]", None]),
    "tensor": (
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
        ),
        [[1, 2], None],
    ),
    "permuted tensor": (
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0]),
            pa.array([[0, 1, 2, 3, 4, 5]], pa.list_(pa.int32(), 6)),
        ),
        [[[0, 3], [1, 4], [2, 5]]],
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_of_arrow_are_the_values_that_they_stand_for(name: str) -> None:
    """Also of a slice; what comes out is of a type that everything else understands."""
    column, values = ENCODINGS[name]
    assert decoded(column).to_pylist() == values
    assert decoded(column.slice(1)).to_pylist() == values[1:]
    assert decoded(decoded(column)) is not column or decoded(column) is column


def test_batches_with_dictionaries_of_their_own(tmp_path: Path) -> None:
    """An Arrow stream may replace a dictionary between batches; rows of both are one chunk."""
    first = pa.record_batch({"text": pa.array(["a", "b"]).dictionary_encode()})
    second = pa.record_batch({"text": pa.array(["c", None, "b"]).dictionary_encode()})
    values, reasons = read(stream(tmp_path / "a.arrows", first, second), TEXT)
    assert values == [b"a", b"b", b"c", b"b"]
    assert reasons == {3: "text: is null"}


def test_numbers_of_another_arrow_type(tmp_path: Path) -> None:
    """Decimals without a fraction, truth values, floats that are whole; what is not exact rejects its row."""
    for values, wanted, rejected in [
        ([Decimal("1.00"), Decimal("2.00"), None], [1, 2], {2}),
        ([Decimal("1.00"), Decimal("2.50")], [1], {1}),
        ([True, False, None], [1, 0], {2}),
        ([1.0, 1.5, None], [1], {1, 2}),
        (pa.array([2**64 - 1, 7], pa.uint64()), [7], {0}),
    ]:
        got, reasons = read(table(tmp_path / "n.parquet", x=values), NUMBER)
        assert (got, set(reasons)) == (wanted, rejected)
    lists = [[Decimal("1.5"), Decimal(2)], [Decimal("0.1"), None]]
    assert read(table(tmp_path / "l.parquet", x=lists), PAIR)[0] == [[1.5, 2.0]]


def test_a_tensor_type_says_its_shape(tmp_path: Path) -> None:
    """[8, 2] flat in memory is no [2, 8]."""
    spec = plan(ClientInput("x", "INT64", (ROWS, 2, 3)))
    for shape, good in ([2, 3], 1), ([3, 2], 0):
        column = pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int64(), shape), pa.array([[1, 2, 3, 4, 5, 6]], pa.list_(pa.int64(), 6))
        )
        values, reasons = read(table(tmp_path / "t.parquet", x=column), spec)
        assert (len(values), len(reasons)) == (good, 1 - good)


@pytest.mark.parametrize("values", [[1, 2], [[1.5]], [None, None], [{"a": 1}], pa.array([0], pa.timestamp("ns"))])
def test_what_does_not_fit_rejects_its_rows(tmp_path: Path, values: Any) -> None:
    """One file of many of another type costs its own rows only; where no file can fit the run is refused at once."""
    table(tmp_path / "parts/a.parquet", text=values)
    table(tmp_path / "parts/b.parquet", text=["fine"])
    got, reasons = read(tmp_path / "parts", TEXT)
    assert (got, len(reasons)) == ([b"fine"], len(values))
    check_types(files_of([str(tmp_path / "parts")]), TEXT)
    alone = files_of([str(tmp_path / "parts/a.parquet")])
    if values != [None, None]:
        with pytest.raises(SetupError, match=r"column 'text' (holds|is nested)"):
            check_types(alone, TEXT)


# Missing values


def test_missing_values_are_nan_where_the_input_takes_them(tmp_path: Path) -> None:
    """Parquet nulls, empty and NaN cells, JSON null: the same rows; an input that takes none rejects them."""
    table(tmp_path / "a.parquet", x_0=[None, 1.0], x_1=[2.0, None])
    table(tmp_path / "b.parquet", x=[[None, 2.0], [1.0, float("nan")]])
    (tmp_path / "c.csv").write_text("x_0,x_1\n,2\n1,NaN\n")
    (tmp_path / "d.csv").write_text('x\n"[null, 2]"\n"[1, nan]"\n')
    (tmp_path / "e.jsonl").write_text('{"x": [null, 2]}\n{"x_0": 1, "x_1": null}\n')
    np.savez(tmp_path / "f.npz", x=np.array([[np.nan, 2], [1, np.nan]]))
    for name in "a.parquet", "b.parquet", "c.csv", "d.csv", "e.jsonl", "f.npz":
        values, reasons = read(tmp_path / name, MISSING)
        assert np.isnan([values[0][0], values[1][1]]).all(), name
        assert (values[0][1], values[1][0], reasons) == (2.0, 1.0, {}), name
        if name != "f.npz":  # floats that are NaN already reach preparation, which refuses them
            assert 0 in read(tmp_path / name, PAIR)[1], name
    assert read(table(tmp_path / "g.parquet", x=[None, [1.0, 2.0]]), MISSING) == ([[1.0, 2.0]], {0: "x: is null"})


def test_words_for_missing_and_infinite(tmp_path: Path) -> None:
    """As pandas, R, Excel and PostgreSQL write them."""
    words = ["", "NA", "nan", "NULL", "None", "#N/A", "\\N", "<NA>"]
    (tmp_path / "a.csv").write_text(
        "id,x\n" + "".join(f"1,{word}\n" for word in [*words, "inf", "-Infinity", "-", "x"])
    )
    values, reasons = read(tmp_path / "a.csv", SCALE)
    assert np.isnan(values[: len(words)]).all()
    assert values[len(words) :] == [float("inf"), float("-inf")]
    assert set(reasons) == {10, 11}


def test_numbers_and_truth_as_tools_spell_them(tmp_path: Path) -> None:
    """+1, .5, 1., 007 and True are no JSON, and are what they look like."""
    (tmp_path / "a.csv").write_text("x\n+1\n007\n 8\n1e2\n0\n-0\n1.5\n1_0\n0x1\n")
    assert read(tmp_path / "a.csv", NUMBER) == (
        [1, 7, 8, 100, 0, 0],
        {6: "x.data[0]: does not fit INT64 exactly", 7: "x: is not a number", 8: "x: is not a number"},
    )
    (tmp_path / "b.csv").write_text("x\nTrue\nFALSE\nt\ntrue\n1\n")
    assert read(tmp_path / "b.csv", TRUTH)[0] == [True, False, True, True]


def test_json_null_among_floats() -> None:
    """NaN where nulls are let in, and only among floats; a number that overflows is refused as before."""
    fp32, int64 = DATATYPES["FP32"], DATATYPES["INT64"]
    assert np.isnan(array_of_json([None, 1], fp32, (2,), "x", missing=True)).tolist() == [True, False]
    for data, datatype, missing in [([None], fp32, False), ([None], int64, True), ([1e300], fp32, True)]:
        with pytest.raises(BadInput):
            array_of_json(data, datatype, (1,), "x", missing=missing)


# Text files


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress, lambda raw: raw], ids=str)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.bz2", "a.jsonl.xz"])
def test_compression_is_what_the_bytes_say(tmp_path: Path, packed: Callable[[bytes], bytes], name: str) -> None:
    """Whatever the name: a browser stores `.csv.gz` decompressed, a server `.csv` compressed."""
    text = b"text\na\nb\n" if "csv" in name else b'{"text": "a"}\n{"text": "b"}\n'
    (tmp_path / name).write_bytes(packed(text))
    assert read(tmp_path / name, TEXT)[0] == [b"a", b"b"]


def test_zstandard_of_several_frames(tmp_path: Path) -> None:
    """All frames are read, and a frame that is cut off is no end of the file."""
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (b"text\na\n", b"b\n" * 3000)]
    (tmp_path / "a.csv.zst").write_bytes(b"".join(frames))
    assert len(read(tmp_path / "a.csv.zst", TEXT)[0]) == 3001
    (tmp_path / "b.csv.zst").write_bytes(frames[0] + frames[1][:-6])
    assert "b.csv.zst: " in refused(tmp_path / "b.csv.zst")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Before CSV and JSON Lines, also in the middle where `cat` has joined files; UTF-16 is said by its name."""
    mark = codecs.BOM_UTF8
    (tmp_path / "a.csv").write_bytes(mark + b"text\na\n")
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "a"}\n' + mark + b'{"text": "b"}\n\x1e{"text": "c"}\n')
    assert read(tmp_path / "a.csv", TEXT) == ([b"a"], {})
    assert read(tmp_path / "b.jsonl", TEXT) == ([b"a", b"b", b"c"], {})
    for name, text in (("c.csv", "text\na\n"), ("d.jsonl", '{"text": "a"}')):
        for encoding, said in (("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16 without")):
            (tmp_path / name).write_text(text, encoding)
            assert f"{name}: is {said}" in refused(tmp_path / name)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """Before the header, between rows, at the end; an empty text is quoted and is a row. Resuming counts them."""
    (tmp_path / "a.csv").write_text('\n\ntext\na\n\n""\n\r\nb\n\n')
    (tmp_path / "b.jsonl").write_text('\n\n{"text": "a"}\n\n{"text": ""}\n \n{"text": "b"}\n\n')
    for name in "a.csv", "b.jsonl":
        assert read(tmp_path / name, TEXT) == ([b"a", b"", b"b"], {})
        assert read(tmp_path / name, TEXT, rows=1) == ([b"a", b"", b"b"], {})
    assert read(tmp_path / "a.csv", TEXT, start=2)[0] == [b"", b"b"]


def test_a_cell_may_be_long_in_any_row(tmp_path: Path) -> None:
    """Python's csv stops at 131,072 characters by default: a picture as a JSON list has more."""
    (tmp_path / "a.csv").write_text("text\n" + "w " * 100_000 + "\nshort\n" + "v " * 100_000 + "\n")
    assert [len(text) for text in read(tmp_path / "a.csv", TEXT)[0]] == [200_000, 5, 200_000]


BAD_QUOTES = {
    "text behind a quote": ('"a" tail,1\nb,2\n', ["b"], {0: "line 2: a quote does not match"}),
    "never closed": ('"a,1\nb,2\nc,3\n', ["b", "c"], {0: "line 2: a quote does not match"}),
    "closed by the next": ('"a,1\n"b",2\n"c\nd",3\n', ["b", "c\nd"], {0: "line 2: a quote does not match"}),
    "behind a line break": (
        '"a\nb" tail,1\nc,2\n',
        ["c"],
        {0: "line 2: a quote does not match", 1: "line 3: is the rest of a cell"},
    ),
    "inside an unquoted cell": ('a "b" c,1\n', ['a "b" c'], {}),
    "too few cells": ("a\nb,2\n", ["b"], {0: "has 1 cells, the header has 2"}),
}


@pytest.mark.parametrize("name", BAD_QUOTES)
def test_a_quote_that_does_not_match_rejects_its_line(tmp_path: Path, name: str) -> None:
    """By number; the lines that it swallowed are read again, and resuming anywhere reads the same rows."""
    text, good, reasons = BAD_QUOTES[name]
    (tmp_path / "a.csv").write_text("text,id\n" + text)
    got, why = read(tmp_path / "a.csv", TEXT, rows=1)
    assert [text.decode() for text in got] == good
    assert {row: why[row][: len(said)] for row, said in reasons.items()} == reasons
    assert len(why) == len(reasons)
    assert read(tmp_path / "a.csv", TEXT, start=1)[0] == (got if 0 in why else got[1:])


def test_delimiters_as_spreadsheets_write_them(tmp_path: Path) -> None:
    """`sep=;`, semicolons, tabs in a .csv; a quoted header with one in it is one column."""
    for text in "sep=;\r\nid;text\r\n1;a,b\r\n", "id;text\n1;a,b\n", 'id\ttext\n1\t"a,b"\n', "id|text\n1|a,b\n":
        (tmp_path / "a.csv").write_text(text)
        assert read(tmp_path / "a.csv", TEXT)[0] == [b"a,b"], text
    (tmp_path / "b.csv").write_text('"a;text"\nx;y\n')
    assert "the file has a;text" in refused(tmp_path / "b.csv")


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    """One line that names file and column, where it is one that is read."""
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    names = pa.schema([("text", pa.string()), ("text", pa.string())])
    stream(tmp_path / "b.arrow", pa.record_batch([pa.array(["a"]), pa.array(["b"])], schema=names))
    for name in "a.csv", "b.arrow":
        assert refused(tmp_path / name) == f"{tmp_path / name}: has 2 columns called 'text'; rename all but one of them"
    (tmp_path / "c.csv").write_text("id,id,text,,\n1,2,a,,\n")
    assert read(tmp_path / "c.csv", TEXT)[0] == [b"a"]


def test_members_of_json_lines_may_be_elements(tmp_path: Path) -> None:
    """x_0 and x_1 are x, as columns of other files are; a line that lacks one is rejected, as is one without any."""
    lines = ['{"x_0": 1, "x_1": 2}', '{"x": [3, 4]}', '{"x_0": 1}', '{"y": 1}', "[1]", "{", '{"x": [1, 2, 3]}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    values, reasons = read(tmp_path / "a.jsonl", PAIR)
    assert values == [[1, 2], [3, 4]]
    assert reasons[2] == "has no member 'x_1'"
    assert reasons[3] == "has no member 'x'; its members are y"
    assert set(reasons) == {2, 3, 4, 5, 6}
    (tmp_path / "b.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n')
    assert refused(tmp_path / "b.jsonl").endswith("no column for 'text'; the file has q; give --map COLUMN=text")
    (tmp_path / "c.jsonl").write_text("nonsense\n[]\n")
    assert read(tmp_path / "c.jsonl", TEXT)[0] == []


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_one_document_is_no_json_lines(tmp_path: Path, name: str) -> None:
    """An array, and an object over several lines, are refused by what they are; lines in a .json are read."""
    for text, said in [
        ('[{"text": "a"}]', "is a JSON array"),
        ('[\n {"text": "a"}\n]', "is a JSON array"),
        ('{\n "text": "a"\n}', "is one JSON document over several lines"),
        ('{"text":\n "a"}', "is one JSON document over several lines"),
        ('\x1e{\n "text": "a"\n}', "is one JSON document over several lines"),
    ]:
        (tmp_path / name).write_text(text)
        assert said in refused(tmp_path / name)
    (tmp_path / name).write_text('{"text": "a"}\n{"text": "b"}')
    assert read(tmp_path / name, TEXT)[0] == [b"a", b"b"]


# Archives


def test_arrays_that_nobody_needs_are_left_alone(tmp_path: Path) -> None:
    """Objects, scalars and other lengths beside the input's; an input may be in column order, big-endian, of text."""
    objects = np.array([{"a": 1}, None], object)
    np.savez(tmp_path / "a.npz", x=np.array([[1, 2], [3, 4]], order="F"), n=np.array(2), labels=objects, z=np.zeros(7))
    assert read(tmp_path / "a.npz", PAIR)[0] == [[1, 2], [3, 4]]
    assert read(tmp_path / "a.npz", PAIR, rows=1, start=1)[0] == [[3, 4]]
    np.savez_compressed(tmp_path / "b.npz", x=np.array([[1, 2]], ">f8"))
    assert read(tmp_path / "b.npz", PAIR)[0] == [[1, 2]]
    np.savez(tmp_path / "c.npz", text=np.array(["a", "bé"]))
    assert read(tmp_path / "c.npz", TEXT)[0] == [b"a", "bé".encode()]


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    """Each by name, before the run begins."""
    two = plan(ClientInput("x", "INT64", (ROWS,)), ClientInput("y", "INT64", (ROWS,)))
    for said, arrays in {
        "array 'x' holds Python objects": {"x": np.array([1, None], object), "y": np.zeros(2)},
        "array 'x' is a scalar": {"x": np.array(1), "y": np.zeros(1)},
        "array 'x' holds complex128": {"x": np.zeros(2, complex), "y": np.zeros(2)},
        "different numbers of rows ('x' 2, 'y' 3)": {"x": np.zeros(2), "y": np.zeros(3)},
    }.items():
        np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        assert said in refused(tmp_path / "a.npz", two)


# Names and folders


def test_hidden_parts_of_folders_are_left_out(tmp_path: Path) -> None:
    """As Spark, Hive and pyarrow.dataset do: uncommitted parts, logs of Delta and Hudi, checkpoints of Jupyter."""
    top = tmp_path / "_mine" / ".data"  # the user's own folder may be called so
    table(top / "part-0.parquet", text=["good"])
    for name in (
        "_temporary/0/task_1/part-0.parquet",
        ".hoodie/m.parquet",
        "_delta_log/00.checkpoint.parquet",
        "lang=en/.ipynb_checkpoints/a.parquet",
        "_c=1/a.parquet",
        ".part-0.parquet",
        "_metadata.parquet",
    ):
        table(top / name, text=["bad"])
    for name in top, top / "*.parquet", top / "**/*.parquet":
        assert read(name, TEXT)[0] == [b"good"], name
    assert read(top / "_temporary/0", TEXT)[0] == [b"bad"]
    assert read(top / "_delta_log/*.parquet", TEXT)[0] == [b"bad"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Parts may lie on another disk; a link to a folder that it lies in does not lead round."""
    table(tmp_path / "elsewhere" / "p.parquet", text=["there"])
    table(tmp_path / "data" / "a.parquet", text=["here"])
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(".")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    assert sorted(read(tmp_path / "data", TEXT)[0]) == [b"here", b"there"]


def test_columns_of_hive_paths(tmp_path: Path) -> None:
    """lang=en/ is a column; its value is unquoted, its null is one, and the file's own column comes first."""
    table(tmp_path / "x=007/text=a%20b/p.parquet", id=[1, 2])
    table(tmp_path / "x=8/text=__HIVE_DEFAULT_PARTITION__/p.parquet", id=[1])
    table(tmp_path / "x=9/text=no/p.parquet", text=["own"])
    (tmp_path / "x=1" / "text=j").mkdir(parents=True)
    (tmp_path / "x=1" / "text=j" / "p.jsonl").write_text('{"id": 1}\n{"text": "mine"}\n')
    (tmp_path / "x=1" / "text=j" / "p.csv").write_text("id\n1\n")
    assert sorted(read(tmp_path / "x=007", TEXT)[0]) == [b"a b", b"a b"]
    assert read(tmp_path / "x=8", TEXT) == ([], {0: "text: is null"})
    assert read(tmp_path / "x=9", TEXT)[0] == [b"own"]
    assert read(tmp_path / "x=1" / "text=j" / "p.csv", TEXT)[0] == [b"j"]
    assert read(tmp_path / "x=007", NUMBER)[0] == [7, 7]
    assert read(tmp_path / "x=1" / "text=j" / "p.jsonl", NUMBER)[0] == [1, 1]


def test_parts_without_rows(tmp_path: Path) -> None:
    """Zero rows of a folder, with or without columns; a run of nothing else is refused."""
    table(tmp_path / "a.parquet", text=pa.array([], pa.string()))
    pq.write_table(pa.table({}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").touch()
    (tmp_path / "d.csv").write_text("text\n")
    (tmp_path / "e.jsonl").write_text("\n\n")
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(b""))
    assert "holds no rows" in refused(tmp_path)
    table(tmp_path / "z.parquet", text=["a"])
    assert read(tmp_path, TEXT)[0] == [b"a"]


def test_names_as_tools_give_them(tmp_path: Path) -> None:
    """A file that exists is no glob; endings of pandas, Spark, DuckDB, Arrow; Parquet and Arrow without an ending."""
    (tmp_path / "data[1].csv").write_text("text\na\n")
    (tmp_path / "what?.csv").write_text("text\na\n")
    (tmp_path / "part-0000.json").write_text('{"text": "a"}\n')
    (tmp_path / "TABLE.CSV").write_text("text\na\n")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "df.parquet.gzip", compression="gzip")
    table(tmp_path / "part-0.snappy.parquet", text=["a"])
    table(tmp_path / "20241201_0_abc", text=["a"])
    table(tmp_path / "folder[2]" / "p.parquet", text=["a"])
    for path in tmp_path.iterdir():
        assert read(path, TEXT)[0] == [b"a"], path
    table(tmp_path / "spark.parquet" / "part-0.parquet", text=["b"])
    assert read(tmp_path / "sp*.parquet", TEXT)[0] == [b"b"]
    assert "is Parquet by its first bytes" in refused(table(tmp_path / "wrong.csv", text=["a"]))


def test_a_json_beside_data_describes_it(tmp_path: Path) -> None:
    """dataset_info.json of Hugging Face and Iceberg's metadata are no rows; alone, .json files are."""
    stream(tmp_path / "data-00000-of-00001.arrow", pa.record_batch({"text": ["a"]}))
    (tmp_path / "dataset_info.json").write_text('{\n "features": {}\n}')
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "v1.metadata.json").write_text('{"format-version": 2}')
    assert read(tmp_path, TEXT)[0] == [b"a"]


# Counts


def test_rows_are_estimated_where_only_reading_tells(tmp_path: Path) -> None:
    """Within a factor of 1.5 by the first 256 KiB, also compressed and for lines of several rows."""
    lines = [f'{{"text": "row {i} {"w" * (i % 50)}"}}\n' for i in range(30_000)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    (tmp_path / "a.csv").write_text("text\n" + "".join(f'"row\n{i} {"w" * (i % 50)}"\n' for i in range(30_000)))
    request = {"inputs": [{"name": "text", "shape": [10], "datatype": "BYTES", "data": ["some text"] * 10}]}
    (tmp_path / "b.jsonl").write_text((json.dumps(request) + "\n") * 3000)
    for file in files_of([str(tmp_path)]):
        assert file.rows is None
        assert file.estimate is not None
        assert 20_000 < file.estimate < 45_000, file


def test_the_first_chunk_is_small(tmp_path: Path) -> None:
    """So that a rate is known at once; places go on from it, in every format."""
    texts = [f"t{i}" for i in range(1500)]
    table(tmp_path / "a.parquet", text=texts)
    (tmp_path / "b.csv").write_text("text\n" + "\n".join(texts))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for file in files_of([str(tmp_path)]):
        cuts = [(c.start, c.stop) for c in chunks(file, TEXT.manifest, wanted_columns(file, TEXT), 0, 900, FIRST_ROWS)]
        assert cuts == [(0, 512), (512, 1412), (1412, 1500)], file.url


def test_equal_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a chunk and over chunks; an estimate once there are too many keys."""
    seen = SeenKeys()
    assert seen.again([b"a" * 32, b"", b"b" * 32, b"a" * 32]) == 1
    assert seen.again([b"b" * 32, b"c" * 32]) == 1
    monkeypatch.setattr("foreseen.warm.run.seen_keys.MOST_KEYS", 1000)
    many, dice = SeenKeys(), np.random.default_rng(0)
    keys = [dice.bytes(32) for _ in range(20_000)]
    first = sum(many.again(keys[at : at + 500]) for at in range(0, 20_000, 500))
    again = sum(many.again(keys[at : at + 500]) for at in range(0, 20_000, 500))
    assert first == 0
    assert abs(again - 20_000) < 3000


def test_cells_that_are_not_utf_8_reject_their_rows(tmp_path: Path) -> None:
    """Latin-1, as older spreadsheets write it: taken as bytes it would be a row that no client ever asks. A column that
    is not read may be as it is; rows around it are read."""
    (tmp_path / "a.csv").write_bytes("n,text\né,a\n2,café\n3,b\n".encode("latin-1"))
    assert read(tmp_path / "a.csv", TEXT) == ([b"a", b"b"], {1: "text: is not UTF-8"})


def test_a_number_wider_than_a_double_is_named(tmp_path: Path) -> None:
    """NumPy's longdouble is no datatype of any model; the file is whole."""
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2), np.longdouble))
    with pytest.raises(SetupError, match="save it as float64"):
        read(tmp_path / "a.npz", PAIR)


def test_a_comma_behind_every_line_is_named(tmp_path: Path) -> None:
    """The elements of a JSON array, copied without its brackets."""
    (tmp_path / "a.jsonl").write_text('{"text":"a"},\n{"text":"b"},\n')
    with pytest.raises(SetupError, match="comma behind"):
        read(tmp_path / "a.jsonl", TEXT)
