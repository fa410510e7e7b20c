"""Signatures of small models as the text of their `model.toml`: one line a tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence

Spec = tuple[str, str, Sequence[object]] | tuple[str, str, Sequence[object], str]
"""Name, datatype, shape, and further lines of TOML."""


def signature(inputs: Sequence[Spec], outputs: Sequence[Spec], part: str = "model") -> str:
    """`[[model.inputs]]` and `[[model.outputs]]`, or those of `client`."""
    return "".join(
        f'[[{part}.{side}]]\nname = "{name}"\ndatatype = "{datatype}"\nshape = {json.dumps(shape)}\n{"".join(more)}\n'
        for side, specs in (("inputs", inputs), ("outputs", outputs))
        for name, datatype, shape, *more in specs
    )


def manifest_text(
    name: str, inputs: Sequence[Spec], outputs: Sequence[Spec], *, top: str = "", tables: str = ""
) -> str:  # fmt: skip
    """A whole `model.toml`: `top` are lines before the signature, `tables` what follows it."""
    return f'name = "{name}"\n{top}\n{signature(inputs, outputs)}{tables}\n'
