"""JSON Lines of a batch: what each line asks is the bytes that it is; what is wrong with one is its own."""

from __future__ import annotations

import pytest

from foreseen.errors import BadRequest, TooLarge
from foreseen.proxy.jobs.jsonl import MAX_LINE_BYTES, MAX_NAME, BadLine, RequestLine, lines_of


def test_both_spellings_ask_what_their_bytes_ask() -> None:
    """The V2 request itself, or one in an envelope; numbers are not read and written again."""
    plain = b'{"custom_id": "a", "model": "m", "inputs": [1.0, -0.0, 1e0]}'
    wrapped = b'{"custom_id": "b", "method": "POST", "url": "/v1/models/m:predict", "body": {"instances":[1.0, 1e0]}}'
    versioned = b'{"url": "/v2/models/m%20n/versions/3/infer", "body": {}}'
    assert lines_of(b"\r\n".join((plain, b"", wrapped, versioned)) + b"\n", 3) == [
        RequestLine("a", "m", None, "v2", plain),
        RequestLine("b", "m", None, "v1", b'{"instances":[1.0, 1e0]}'),
        RequestLine(None, "m n", "3", "v2", b"{}"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"no json",
        b"[1]",
        b"{}",
        b'{"model": 1}',
        b'{"custom_id": 1, "model": "m"}',
        b'{"custom_id": "%s", "model": "m"}' % (b"x" * (MAX_NAME + 1)),
        b'{"url": "/v2/models/m/config", "body": {}}',
        b'{"url": "http://elsewhere/v2/models/m/infer", "body": {}}',
        b'{"url": "/v2/models/m/infer"}',
        b'{"url": "/v2/models/m/infer", "method": "GET", "body": {}}',
        b'{"model": "m", "model',
        b'\xff\xfe{"model": "m"}',
    ],
)
def test_a_bad_line_is_its_own_error_and_no_others(text: bytes) -> None:
    """The lines around it are read."""
    before, bad, after = lines_of(b'{"model": "m"}\n' + text + b'\n{"model": "n"}', 10)
    assert isinstance(before, RequestLine)
    assert isinstance(after, RequestLine)
    assert isinstance(bad, BadLine)
    assert isinstance(bad.error, BadRequest)


def test_a_name_that_comes_twice_is_the_second_ones_error() -> None:
    """Who reads results by name must not find two."""
    first, second = lines_of(b'{"custom_id": "a", "model": "m"}\n{"custom_id": "a", "model": "m"}', 10)
    assert isinstance(first, RequestLine)
    assert isinstance(second, BadLine)
    assert second.custom_id == "a"


def test_a_batch_is_bounded_and_not_empty() -> None:
    """Also in blank lines, which cost memory before they are seen to be blank."""
    assert len(lines_of(b'{"model": "m"}\n' * 3, 3)) == 3
    for body in (b'{"model": "m"}\n' * 4, b"\n" * 1000):
        with pytest.raises(TooLarge):
            lines_of(body, 3)
    for body in (b"", b"\n \r\n"):
        with pytest.raises(BadRequest):
            lines_of(body, 3)


def test_a_line_is_bounded() -> None:
    """What is too long is that line's error and no other's; lines are parts of the body and not copies of it."""
    body = b'{"model": "m"}\n{"model": "m", "id": "' + b"a" * MAX_LINE_BYTES + b'"}\n \x0b{"model": "n"}\x0c\n'
    before, long, after = lines_of(body, 10)
    assert isinstance(before, RequestLine)
    assert isinstance(before.body, memoryview)
    assert before.body.obj is body
    assert isinstance(long, BadLine)
    assert isinstance(long.error, TooLarge)
    assert isinstance(after, RequestLine)
    assert after.body == b'{"model": "n"}'


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    """Editors on Windows begin a file with one; within a file it is a mistake of its line."""
    mark, line = b"\xef\xbb\xbf", b'{"model": "m", "inputs": []}\n'
    marked, plain = lines_of(mark + line, 9), lines_of(line, 9)
    assert isinstance(marked[0], RequestLine)
    assert isinstance(plain[0], RequestLine)
    assert bytes(marked[0].body) == bytes(plain[0].body)
    assert isinstance(lines_of(line + mark + line, 9)[1], BadLine)
