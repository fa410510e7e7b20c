"""What aiokafka logs: once in a while, and the cause of a lost connection is kept."""

from __future__ import annotations

import logging

from foreseen.proxy.kafka.client import ClientLog

LINE = "OffsetCommit failed on partition %s with offset %s: %s"


def record(level: int, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", level, __file__, 1, message, args, None)


def test_lines_that_differ_in_numbers_pass_once() -> None:
    log = ClientLog()
    assert log.filter(record(logging.ERROR, LINE, 0, 4, "Unknown"))
    assert not log.filter(record(logging.ERROR, LINE, 1, 5, "Unknown"))
    assert log.filter(record(logging.ERROR, LINE, 1, 5, "Refused"))


def test_the_last_cause_is_kept_even_of_a_line_that_does_not_pass() -> None:
    log = ClientLog()
    for node in (1, 2):
        log.filter(record(logging.ERROR, "Unable connect to node with id %s: %s\nmore", node, "refused"))
    log.filter(record(logging.ERROR, "Unable to update metadata from %s", [1]))
    assert log.last == "Unable connect to node with id 2: refused"
