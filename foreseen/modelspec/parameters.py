"""Request parameters → those that may change an answer, as canonical JSON; and what the others ask for. Pure.

Everything counts that is not known not to: a parameter that a model does not look at costs a second entry, one that it
does look at and that was left out of the key would cost a wrong answer.
"""

from __future__ import annotations

from typing import Any

import orjson

from foreseen.errors import BadRequest
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Lane

SEQUENCE = frozenset(("sequence_id", "sequence_start", "sequence_end"))
"""A model behind an upstream may keep state by these: requests of a sequence are not cached, and they go with them."""
RESERVED = SEQUENCE | {"priority", "timeout", "headers"}
"""Parameters that never change an answer here; `binary_data_output` and `triton_*` are such too."""


def in_sequence(parameters: dict[str, Any]) -> bool:
    """Whether a request is part of a stateful sequence."""
    return any(parameters.get(name) for name in SEQUENCE)


def counting(parameters: dict[str, Any], manifest: Manifest) -> bytes:
    """The parameters that may change the answer as canonical JSON, empty for none. Raises BadRequest."""
    ignored = RESERVED.union(manifest.ignored_parameters, ("binary_data_output",))
    if in_sequence(parameters):
        ignored -= SEQUENCE
    found = {n: v for n, v in parameters.items() if n not in ignored and not n.startswith("triton_")}
    if not found:
        return b""
    try:
        orjson.dumps([found])  # in the request to the model they stand one level deeper; orjson ends at 254
        return orjson.dumps(found, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"parameters: {error}") from None


def lane_of(parameters: dict[str, Any]) -> Lane:
    """Triton's `priority`: 1 is the most urgent, 0 is unset, a higher number waits until nothing else does."""
    value = parameters.get("priority")
    return "background" if type(value) is int and value > 1 else "online"
