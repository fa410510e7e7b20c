"""`foreseen audit`: what is said of each model."""

from __future__ import annotations

from pathlib import Path

import orjson

from foreseen.operate.commands.audit_command import lines, noted, summary_of
from foreseen.operate.scrape import parse

EXPOSITION = """
foreseen_workers 2.0
foreseen_audit_rows_total{model="minilm",outcome="equal"} 48312.0
foreseen_audit_rows_total{model="minilm",outcome="different"} 0.0
foreseen_audit_rows_total{model="minilm",outcome="dropped"} 31.0
foreseen_audit_distinct_keys{model="minilm"} 12044.0
foreseen_audit_rows_total{model="other",outcome="equal"} 99.0
foreseen_audit_rows_total{model="other",outcome="different"} 1.0
foreseen_audit_rows_total{model="other",outcome="not-comparable"} 7.0
foreseen_audit_model_unrepeatable{model="other"} 1.0
"""


def test_what_is_said_of_each_model(tmp_path: Path) -> None:
    """The bound, distinct keys beside it, the keys that differ, and that a model is not repeatable."""
    entry = {"at": 1, "model": "other", "digest": "d", "key": "ab" * 8}
    (tmp_path / "audit-differences.jsonl").write_bytes(orjson.dumps(entry) + b'\n{"cut')
    summary = summary_of(parse(EXPOSITION), noted(tmp_path))
    text = lines(summary)
    assert "minilm: 0 of 48,312 audited hits differ: at most 0.0062 % at 95 % confidence" in text
    assert "at most 12,044 distinct keys" in text  # of two workers
    assert "not comparable 0, dropped 31, failed 0" in text
    assert "other: 1 of 100 audited hits differ: at most 4.7 %" in text
    assert "abababababababab" in text
    assert "not repeatable" in text
    assert summary["other"]["keys"] == ["ab" * 8]
    assert summary["minilm"]["repeatable"]


def test_without_an_audit_it_says_how_to_start_one(tmp_path: Path) -> None:
    """And there is no file to read."""
    assert "--audit 0.1%" in lines(summary_of(parse("foreseen_workers 1.0\n"), noted(tmp_path)))
