"""`[openai]` of a manifest: how a model answers OpenAI's embeddings API. None of it is part of the model's digest.

Prompts are put before the text, ahead of the tokenizer, so rows and keys carry them. Aliases and Matryoshka sizes are
applied when a reply is rendered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

_ROWS = "rows"
_FLOATS = ("FP32", "FP16")
MAX_NAME = 256
MAX_PROMPT_CHARACTERS = 4096


class OpenAISection(Struct, frozen=True, forbid_unknown_fields=True):
    """Use of a model through OpenAI's embeddings API. A model with one BYTES input `[rows]` and one FP32 or FP16 output
    `[rows, d]` does not need this section."""

    input: str | None = None
    """The client input for the texts, if the model has several."""
    output: str | None = None
    """The output with the embeddings, if the model has several."""
    aliases: tuple[str, ...] = ()
    """More names that requests may give the model, such as `BAAI/bge-m3`."""
    matryoshka: tuple[int, ...] = ()
    """Sizes allowed for `dimensions`: the embedding is cut and divided by its L2 norm. Only for models trained for it
    (Matryoshka representation learning)."""
    accept_ids: bool = False
    """Accept token ids as `input`. They must be ids of the model's own tokenizer, including special tokens."""
    prompts: dict[str, str] = {}
    """`input_type` or `prompt_name` → the prompt put before every text."""


class EmbeddingTensors(NamedTuple):
    """The tensors of a model that embeds texts."""

    input: str
    output: str


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...


def embedding_tensors(
    section: OpenAISection, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]
) -> EmbeddingTensors | None:
    """The text input and the embedding output; None where the model does not embed texts."""
    if (section.input is None and len(inputs) != 1) or (section.output is None and len(outputs) != 1):
        return None
    text = next((one for one in inputs if section.input in (None, one.name)), None)
    vector = next((one for one in outputs if section.output in (None, one.name)), None)
    if text is None or vector is None or text.datatype != "BYTES" or text.shape not in ((_ROWS,), (_ROWS, 1)):
        return None
    if vector.datatype not in _FLOATS or len(vector.shape) != 2:
        return None
    return EmbeddingTensors(text.name, vector.name)


def openai_problem(section: OpenAISection, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]) -> str | None:
    """What is wrong with the section, None where nothing is."""
    if section == OpenAISection():
        return None
    if any(not name or len(name) > MAX_NAME or not name.isprintable() for name in section.aliases):
        return f"openai.aliases: a name has 1 to {MAX_NAME} printable characters"
    if section == OpenAISection(aliases=section.aliases):  # any model may have more names
        return None
    if section.input is not None and section.input not in [one.name for one in inputs]:
        return f"openai.input: no client input is called {section.input!r}"
    if section.output is not None and section.output not in [one.name for one in outputs]:
        return f"openai.output: no output is called {section.output!r}"
    tensors = embedding_tensors(section, inputs, outputs)
    if tensors is None:
        return "openai: needs one BYTES input ['rows'] and one FP32 or FP16 output ['rows', d]; name them"
    if any(not name or len(text) > MAX_PROMPT_CHARACTERS for name, text in section.prompts.items()):
        return f"openai.prompts: a prompt has a name and at most {MAX_PROMPT_CHARACTERS} characters"
    width = next(one for one in outputs if one.name == tensors.output).shape[1]
    most = width if isinstance(width, int) else math.inf
    if any(not 0 < size <= most for size in section.matryoshka):
        return f"openai.matryoshka: a size is between 1 and {most}, the embedding's own"
    return None
