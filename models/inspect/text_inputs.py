"""A graph that takes token ids → a manifest whose clients send padded ids with their mask, or text.

`transformers` exports take `input_ids` and an `attention_mask` of the same shape. The mask marks the end of a row; the
padding behind it is cut off before the key and before the model, so that padded and unpadded ids share an entry.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace
from onnx import ModelProto

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import (
    BATCH,
    ClientInput,
    ClientOutput,
    ClientSignature,
    Manifest,
    ModelInput,
    Tokenizer,
)

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
"""Their names in `transformers` exports."""
MAX_TOKENS = 256
"""The limit on tokens where neither the tokenizer nor the graph has one."""


class Text(Struct, frozen=True):
    """A tokenizer beside the graph, in the place of ids."""

    tokenizer: Tokenizer

    def of(self, manifest: Manifest) -> Manifest:
        """The manifest that takes text: mask and token types derive from the ids."""
        roles = {MASK: "mask", TYPES: "zeros"}
        ids = _shape(manifest, IDS)
        inputs = tuple(
            replace(spec, role=roles[spec.name], of=IDS) if spec.name in roles and spec.shape == ids else spec
            for spec in manifest.model.inputs
        )
        return replace(manifest, model=replace(manifest.model, inputs=inputs))


def taking_text(model: ModelProto, tokenizer: Path, folder: Path) -> Text:
    """Copy the tokenizer into the model's folder. Raises SetupError for a graph without ids or another file."""
    if IDS not in {value.name for value in model.graph.input}:
        raise SetupError(f"--tokenizer: the graph has no input {IDS!r} to put ids into")
    try:
        written = json.loads(tokenizer.read_bytes())
        from tokenizers import Tokenizer as Loaded

        Loaded.from_file(str(tokenizer))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise SetupError(f"--tokenizer {tokenizer}: is not a tokenizer.json ({str(error)[:100]})") from None
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    limits = [n for n in (_truncation(written), _positions(model)) if n]
    return Text(Tokenizer(ids=IDS, max_tokens=min(limits, default=MAX_TOKENS)))


def _truncation(written: object) -> int:
    truncation = written.get("truncation") if isinstance(written, dict) else None
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    return length if isinstance(length, int) else 0


def _positions(model: ModelProto) -> int:
    """Rows of the table of positions, less the two that RoBERTa's start with."""
    sizes = [t.dims[0] for t in model.graph.initializer if re.search(r"position_embeddings?\b", t.name) and t.dims]
    return min((int(size) - size % 8 for size in sizes if size > 1), default=0)


def with_mask(manifest: Manifest) -> Manifest:
    """Where the graph takes ids and their mask, clients send both; the mask trims every input of the ids' shape."""
    ids = _shape(manifest, IDS)
    if ids is None or manifest.rows == "together" or ids != _shape(manifest, MASK) or len(ids) != 2:
        return manifest
    if not isinstance(ids[1], str):
        return manifest
    inputs = tuple(replace(spec, role="mask", of=IDS) if spec.name == MASK else spec for spec in manifest.model.inputs)
    clients = tuple(ClientInput(s.name, s.datatype, s.shape, trim=_trim(s, ids[1])) for s in manifest.model.inputs)
    outputs = tuple(ClientOutput(o.name, o.datatype, o.shape) for o in manifest.model.outputs)
    return replace(manifest, model=replace(manifest.model, inputs=inputs), client=ClientSignature(clients, outputs))


def _trim(spec: ModelInput, tokens: str) -> str | None:
    return MASK if spec.name != MASK and spec.shape[1:2] == (tokens,) else None


def clients_of(manifest: Manifest, text: Text | None) -> Manifest:
    """The finished manifest: with text in the place of ids; rows that belong together come as they are."""
    if text is not None:
        outputs = tuple(ClientOutput(o.name, o.datatype, o.shape) for o in manifest.model.outputs)
        others = tuple(
            ClientInput(s.name, s.datatype, s.shape) for s in manifest.model.keyed if s.name != text.tokenizer.ids
        )
        first = ClientInput("text", "BYTES", (BATCH,), tokenizer=text.tokenizer)
        return replace(manifest, client=ClientSignature((first, *others), outputs))
    if manifest.rows == "together":
        plain = tuple(replace(spec, role=None, of=None) for spec in manifest.model.inputs)
        return replace(manifest, model=replace(manifest.model, inputs=plain), client=None)
    return manifest


def _shape(manifest: Manifest, name: str) -> tuple[int | str, ...] | None:
    return next((spec.shape for spec in manifest.model.inputs if spec.name == name), None)
