"""The id of a body is found where it is plain, and proved to be the request's own."""

from __future__ import annotations

import pytest

from foreseen.protocol.request_id import WINDOW_BYTES, find_id, is_request_id

REST = b'"inputs":[]}'


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"id":"a-1",' + REST, (7, b"a-1")),
        (b'{"id": "a-1",' + REST, (8, b"a-1")),
        (b'"id":"x"', (6, b"x")),
        (b'{"inputs":[],"id":"x:._/+-9Z"}', (19, b"x:._/+-9Z")),
        (b'{"id":"' + b"y" * 128 + b'"}', (7, b"y" * 128)),
        (b'{"id":"' + b"y" * 129 + b'"}', (0, None)),
        (b'{"id":""}', (0, None)),
        (b'{"id":"a\\u0041"}', (0, None)),
        (b'{"id":"a b"}', (0, None)),
        (b'{"id":17}', (0, None)),
        (b'{"id":"cut', (0, None)),
        (b'{"id"  :"a"}', (0, None)),
        (b"{" + REST, (0, None)),
    ],
)
def test_a_plain_id_is_found_with_its_place(body: bytes, found: tuple[int, bytes | None]) -> None:
    """Letters, digits and a few signs, with at most one space before it; anything else is left where it is."""
    assert find_id(body, None) == found


def test_an_id_is_looked_for_in_the_json_part_and_at_its_beginning() -> None:
    """Not in binary data behind the JSON part, nor beyond the first 4 KiB; a raw request has no JSON part."""
    body = b'{"id":"a-1"}'
    assert find_id(body, len(body)) == (7, b"a-1")
    assert find_id(body, 5) == (0, None)
    assert find_id(body, 6) == (7, b"a-1")
    assert find_id(b'{"id":"a-1"}', 1) == (0, None)
    assert find_id(body, 0) == (0, None)
    for spaces, found in ((WINDOW_BYTES - 5, True), (WINDOW_BYTES - 4, False)):
        late = b" " * spaces + b'"id":"a"'
        assert (find_id(late, None)[1] is not None) == found
        assert (find_id(late, len(late))[1] is not None) == found


@pytest.mark.parametrize("own", [b"a-1", b"0", b"1", b"10", b"00", b"x0"])
def test_the_requests_own_id_is_proved(own: bytes) -> None:
    """Another one in its place is read as the request's; whatever its last character is."""
    for before, after in ((b'{"id":"', b'",' + REST), (b'{"p":{"a":1},"id":"', b'"}')):
        assert is_request_id(before + after, len(before), own, None)
        assert is_request_id(before + after + b"RAW", len(before), own, len(before + after))


@pytest.mark.parametrize("own", [b"0", b"1", b"a0", b"00", b"10", b"a-1"])
def test_an_equal_id_within_is_none_of_the_requests_however_it_ends(own: bytes) -> None:
    """What is put in its place differs from it, so the equal id of the request itself proves nothing."""
    before = b'{"inputs":[{"parameters":{"id":"'
    assert not is_request_id(before + b'"}}],"id":"' + own + b'"}', len(before), own, None)


def test_the_id_of_something_within_is_none_of_the_requests() -> None:
    """An `id` among parameters, or one of two."""
    before = b'{"parameters":{"id":"'
    assert not is_request_id(before + b'"},"inputs":[]}', len(before), b"a-1", None)
    assert not is_request_id(before + b'"},"id":"a-1"}', len(before), b"a-1", None)
