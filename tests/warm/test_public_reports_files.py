"""Files as users of other readers reported them unreadable, or read wrongly without a word. Reports are linked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from tests.warm.test_warm_files import MISSING, NUMBER, PAIR, SCALE, TEXT, read, refused


def test_a_quoted_header_behind_a_byte_order_mark(tmp_path: Path) -> None:
    """https://github.com/pandas-dev/pandas/issues/13497: the mark, or the quote, stayed in the first column's name."""
    (tmp_path / "a.csv").write_bytes('\ufeff"text","n"\r\n"a",1\r\n"b, c",2\r\n'.encode())
    assert read(tmp_path / "a.csv", TEXT) == ([b"a", b"b, c"], {})


def test_utf_16_is_said(tmp_path: Path) -> None:
    """https://github.com/pandas-dev/pandas/issues/26446: its mark became a column."""
    (tmp_path / "a.csv").write_text("text\nfoo\n", "utf-16")
    assert "UTF-16" in refused(tmp_path / "a.csv")


def test_lists_whose_element_has_another_name(tmp_path: Path) -> None:
    """https://github.com/mjakubowski84/parquet4s/issues/184 and https://github.com/NVIDIA/cudf-spark/pull/8224:
    lists of older writers were null or an error."""
    table = pa.table({"x": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.field("array", pa.float32())))})
    pq.write_table(table, tmp_path / "a.parquet", use_compliant_nested_type=False)
    assert read(tmp_path / "a.parquet", PAIR) == ([[1.0, 2.0], [3.0, 4.0]], {})


def test_timestamps_of_twelve_bytes(tmp_path: Path) -> None:
    """https://github.com/apache/datafusion/issues/7958: INT96, as older Spark writes it. Beside the inputs it is in
    nobody's way; as an input it is no number, and its rows are rejected with the reason."""
    when = pa.array([-62_125_747_200_000_000, 1_577_836_800_000_000], pa.timestamp("us"))
    table = pa.table({"text": ["a", "b"], "x": when})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert read(tmp_path / "a.parquet", TEXT) == ([b"a", b"b"], {})
    values, reasons = read(tmp_path / "a.parquet", NUMBER)
    assert values == []
    assert len(reasons) == 2
    assert all("timestamp" in why for why in reasons.values())


def test_pages_of_version_2_with_empty_lists(tmp_path: Path) -> None:
    """https://github.com/duckdb/duckdb/issues/19697: an empty value in such a page was taken for a broken file."""
    table = pa.table({"text": ["", "b", ""], "x": pa.array([[], [1.0, 2.0], []], pa.list_(pa.float32()))})
    options: dict[str, Any] = {"data_page_version": "2.0", "version": "2.6", "use_dictionary": False}
    pq.write_table(table, tmp_path / "a.parquet", column_encoding={"text": "DELTA_BYTE_ARRAY"}, **options)
    assert read(tmp_path / "a.parquet", TEXT) == ([b"", b"b", b""], {})
    values, reasons = read(tmp_path / "a.parquet", PAIR)
    assert (values, sorted(reasons)) == ([[1.0, 2.0]], [0, 2])


def test_words_that_are_no_json(tmp_path: Path) -> None:
    """https://github.com/pandas-dev/pandas/issues/30716: Python's json writes NaN and Infinity; where an input
    takes such numbers they are read, elsewhere the line is rejected, and the file goes on."""
    lines = [{"x": [1.0, float("nan")]}, {"x": [float("inf"), 2.0]}, {"x": [3.0, 4.0]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values, reasons = read(tmp_path / "a.jsonl", PAIR)
    assert values == [[3.0, 4.0]]
    assert len(reasons) == 2


def test_null_for_what_is_no_number(tmp_path: Path) -> None:
    """https://github.com/pola-rs/polars/issues/21950: NaN is written as null; it comes back as NaN where that is
    taken."""
    (tmp_path / "a.jsonl").write_text('{"x":1.5}\n{"x":null}\n')
    values, reasons = read(tmp_path / "a.jsonl", SCALE)
    assert (values[0], values[1] != values[1], reasons) == (1.5, True, {})


def test_lines_that_are_no_objects(tmp_path: Path) -> None:
    """https://github.com/pandas-dev/pandas/issues/37100: a series' lines are bare numbers. Each is rejected with
    the reason."""
    (tmp_path / "a.jsonl").write_text("1\n2\n3\n")
    values, reasons = read(tmp_path / "a.jsonl", NUMBER)
    assert (values, sorted(reasons)) == ([], [0, 1, 2])
    assert all("is neither a V2 request nor an object of inputs" in why for why in reasons.values())


@pytest.mark.parametrize("packed", ["uncompressed", "lz4", "zstd"])
def test_feather_files_and_streams(packed: str, tmp_path: Path) -> None:
    """https://github.com/apache/arrow-rs/issues/286 (compressed files read as if they were not) and
    https://github.com/apache/arrow/issues/43174 (streams, as Hugging Face's data sets keep them)."""
    table = pa.table({"text": ["a", "b"]})
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"), compression=packed)
    options = pa.ipc.IpcWriteOptions(compression=None if packed == "uncompressed" else packed)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema, options=options) as stream:
        stream.write_table(table)
    for name in ("a.feather", "b.arrow"):
        assert read(tmp_path / name, TEXT) == ([b"a", b"b"], {})


def test_kinds_that_change_in_the_middle(tmp_path: Path) -> None:
    """https://github.com/duckdb/duckdb/issues/7448: a column that is null for thousands of lines is no number for
    that."""
    lines = ['{"text":null}'] * 3000 + ['{"text":"PressureError"}', '{"text":7}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    values, reasons = read(tmp_path / "a.jsonl", TEXT)
    assert values == [b"PressureError"]
    assert len(reasons) == 3001


def test_missing_pairs_in_a_column_of_lists(tmp_path: Path) -> None:
    """https://github.com/duckdb/duckdb/issues/17126: a nullable column whose null is a word of its own."""
    table = pa.table({"x": pa.array([None, [1.0, None], [1.0, 2.0]], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    values, reasons = read(tmp_path / "a.parquet", PAIR)
    assert (values, sorted(reasons)) == ([[1.0, 2.0]], [0, 1])
    taken, _ = read(tmp_path / "a.parquet", MISSING)
    assert [1.0, 2.0] in taken
