"""Headers that say how a ticket is asked for: read as their texts have it, and never more than was said."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from foreseen.proxy.jobs.ticket_options import LONGEST_WAIT_SECONDS, Prefer


def prefer(*lines: str) -> tuple[bool, float | None]:
    read = Prefer(make_mocked_request("POST", "/", CIMultiDict([("Prefer", line) for line in lines])))
    return read.respond_async, read.wait


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["respond-async"], (True, None)),
        (["Respond-Async"], (True, None)),
        (["respond-async, wait=10"], (True, 10.0)),
        (["wait=10", "respond-async"], (True, 10.0)),
        (['wait="10" ; foo=bar ,, respond-async;x'], (True, 10.0)),
        (["wait = 3"], (False, 3.0)),
        (["wait=5, wait=20"], (False, 5.0)),
        (["wait=999999"], (False, LONGEST_WAIT_SECONDS)),
        (["wait=-1"], (False, None)),
        (["wait=1e3"], (False, None)),
        (["wait=9999999999"], (False, None)),
        (["wait"], (False, None)),
        (["return=minimal, handling=lenient"], (False, None)),
        (["respond-synchronously"], (False, None)),
        (["x-respond-async"], (False, None)),
        (["respond-async-later"], (False, None)),
        (["respond-async=no"], (False, None)),
        (['foo="a, respond-async"'], (False, None)),
        (['foo; x="a, respond-async"'], (False, None)),
        (['foo="a\\", respond-async, b"'], (False, None)),
        (['foo="never ends, respond-async'], (False, None)),
        (['"respond-async"'], (False, None)),
        ([""], (False, None)),
    ],
)
def test_prefer_is_read_as_rfc_7240_has_it(lines: list[str], wanted: tuple[bool, float | None]) -> None:
    """Several headers are one list, the first of two counts, quotes hold commas, names are whole and in any case."""
    assert prefer(*lines) == wanted


@given(st.text(alphabet='respond-async,;="\\ wait0', max_size=60))
def test_whatever_is_sent_is_read_in_time(text: str) -> None:
    """No preference takes the reader apart."""
    assert prefer(text)[1] is None or prefer(text)[1] >= 0
