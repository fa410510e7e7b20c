"""Request parameters → those that may change an answer, as canonical JSON; and what the others ask for. Pure.

Every parameter counts unless it is known not to matter: an irrelevant parameter in the key costs a second entry, a
relevant one missing from the key would cause a wrong answer.
"""

from __future__ import annotations

from typing import Any

from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.members import NO_MEMBERS, RequestMembers, canonical
from foreseen.types import Lane

SEQUENCE = frozenset(("sequence_id", "sequence_start", "sequence_end"))
"""A model behind an upstream may keep state by these: requests of a sequence are not cached, and they go with them."""
SCHEDULING = frozenset(("priority", "timeout"))
ENCODING = frozenset(("binary_data_output",))
RESERVED = SEQUENCE | SCHEDULING | ENCODING | {"headers"}
"""Parameters that never change an answer of our own model processes; `triton_*` are such too."""
RESERVED_BY_OTHERS = SEQUENCE | SCHEDULING | ENCODING
"""The same of a server behind `--upstream`: it may look at every other one."""


def in_sequence(parameters: dict[str, Any]) -> bool:
    """Whether a request is part of a stateful sequence."""
    return any(parameters.get(name) for name in SEQUENCE)


def counting(parameters: dict[str, Any], manifest: Manifest, members: RequestMembers = NO_MEMBERS) -> bytes:
    """What may change the answer beside the tensors as canonical JSON, empty for none. Raises BadRequest.

    The answer of an upstream server (`manifest.upstream`) may depend on any of `members`, except those of an input that
    is never sent to it. Our own model processes ignore all of them.
    """
    others = manifest.upstream is not None
    ignored = (RESERVED_BY_OTHERS if others else RESERVED).union(manifest.ignored_parameters)
    if in_sequence(parameters):
        ignored -= SEQUENCE
    found = {n: v for n, v in parameters.items() if n not in ignored and (others or not n.startswith("triton_"))}
    if not others:
        return canonical(RequestMembers(found))
    dropped = {spec.name for spec in manifest.seen.inputs if spec.ignore}
    inputs = {name: more for name, more in members.inputs.items() if name not in dropped}
    return canonical(RequestMembers(found, members.top, inputs, members.outputs))


def lane_of(parameters: dict[str, Any]) -> Lane:
    """Triton's `priority`: 1 is the most urgent, 0 is unset, a higher number waits until nothing else does."""
    value = parameters.get("priority")
    return "background" if type(value) is int and value > 1 else "online"
