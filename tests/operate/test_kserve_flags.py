"""KServe appends flags of its own to a transformer's command: they mean the proxy's."""

from __future__ import annotations

import pytest

from foreseen.cli import app
from foreseen.settings.kserve import transformer_flags

APPENDED = ["--model_name", "m", "--predictor_host", "m-predictor.ns", "--http_port", "8080", "--workers", "2"]


@pytest.mark.parametrize("separate", [True, False])
def test_the_four_flags_are_the_proxys(*, separate: bool) -> None:
    pairs = [f"{name}={value}" for name, value in zip(APPENDED[::2], APPENDED[1::2], strict=True)]
    words = transformer_flags("proxy", ["--host=0.0.0.0", *(APPENDED if separate else pairs)])
    assert words == ["--host=0.0.0.0", "--model=m", "--upstream=http://m-predictor.ns", "--port=8080"]
    app.parse_args(["proxy", *words], exit_on_error=False, print_error=False)


def test_what_is_given_as_our_own_flag_wins() -> None:
    """The name of a model at its server is not always the InferenceService's."""
    words = transformer_flags("proxy", ["--model=BAAI/bge-m3", *APPENDED])
    assert words == ["--model=BAAI/bge-m3", "--upstream=http://m-predictor.ns", "--port=8080"]


def test_a_scheme_is_kept_and_a_collocated_port_too() -> None:
    assert transformer_flags("proxy", ["--predictor_host=https://h"]) == ["--upstream=https://h"]
    assert transformer_flags("proxy", ["--predictor_host=localhost:8081"]) == ["--upstream=http://localhost:8081"]


def test_other_commands_and_other_flags_are_as_they_were() -> None:
    assert transformer_flags("up", ["--workers", "2"]) == ["--workers", "2"]
    assert transformer_flags("proxy", ["--port", "1", "--model", "m"]) == ["--port", "1", "--model", "m"]
