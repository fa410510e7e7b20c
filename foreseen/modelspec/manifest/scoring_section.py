"""`[scoring]` of a manifest: how a model that scores pairs or labels texts answers the rerank, score and classification
APIs. None of it is part of the model's digest: it says what the tensors are, and how a reply is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

_ROWS = "rows"
_FLOATS = ("FP32", "FP16", "FP64", "BF16")
FIRST_NAMES, SECOND_NAMES = ("query", "text"), ("document", "text_pair")
LABEL, SCORE = "label", "score"
"""Outputs of a server's model that answers with labels of its own: BYTES and FP64, `[rows, labels]` each."""


class ScoringSection(Struct, frozen=True, forbid_unknown_fields=True):
    """Use of a model through the rerank, score and classification APIs. A model whose tokenizer makes pairs, or whose
    text inputs are called `query` and `document`, does not need this section."""

    query: str | None = None
    """The client input for the query, or for the only text."""
    document: str | None = None
    """The client input for the document."""
    output: str | None = None
    """The output with the scores, if the model has several."""
    activation: Literal["auto", "none"] = "auto"
    """`auto`: scores are the sigmoid of one label or the softmax of several, unless a request wants raw scores. `none`:
    the model's output is the score."""


class ScoringTensors(NamedTuple):
    """The tensors of a model that scores texts. `second` is None where it takes no pairs."""

    first: str
    second: str | None
    optional: bool
    """Whether the second text may be left out."""
    output: str
    labels: int | None
    """How many scores a row has; None where that differs."""

    @property
    def scores_pairs(self) -> bool:
        """Whether a pair has one score."""
        return self.second is not None and self.labels == 1

    @property
    def labels_texts(self) -> bool:
        """Whether a text alone can be asked."""
        return self.second is None or self.optional


class Tensor(Protocol):
    """A client input or output."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...


def scoring_tensors(section: ScoringSection, inputs: Sequence[Any], outputs: Sequence[Any]) -> ScoringTensors | None:
    """The texts and the scores of a model, by its client inputs and outputs; None where it scores no texts."""
    texts = {one.name: one for one in inputs if one.datatype == "BYTES" and one.shape in ((_ROWS,), (_ROWS, 1))}
    first = section.query or _paired(inputs) or next((name for name in FIRST_NAMES if name in texts), None)
    if first is None and len(texts) == 1:
        (first,) = texts
    if first is None or first not in texts:
        return None
    tokenizer = getattr(texts[first], "tokenizer", None)
    second = section.document or (None if tokenizer is None else tokenizer.pair)
    second = second or next((name for name in SECOND_NAMES if name in texts and name != first), None)
    if (second is not None and second not in texts) or _others(inputs, first, second):
        return None
    found = _scores(section, outputs, paired=second is not None)
    if found is None:
        return None
    return ScoringTensors(first, second, second is not None and bool(getattr(texts[second], "optional", False)), *found)


def scoring_problem(section: ScoringSection, inputs: Sequence[Any], outputs: Sequence[Any]) -> str | None:
    """What is wrong with the section, None where nothing is."""
    if section == ScoringSection():
        return None
    for field, name, known in (
        ("query", section.query, inputs),
        ("document", section.document, inputs),
        ("output", section.output, outputs),
    ):
        if name is not None and name not in [one.name for one in known]:
            return f"scoring.{field}: no tensor of the client's is called {name!r}"
    if scoring_tensors(section, inputs, outputs) is None:
        return "scoring: needs one or two BYTES inputs ['rows'] and one output of scores ['rows', labels]; name them"
    return None


def _paired(inputs: Sequence[Any]) -> str | None:
    """The input whose tokenizer makes pairs."""
    tokenizers = ((one.name, getattr(one, "tokenizer", None)) for one in inputs)
    return next((name for name, step in tokenizers if step is not None and step.pair is not None), None)


def _others(inputs: Sequence[Any], first: str, second: str | None) -> bool:
    """Whether the model needs more than the texts."""
    left = (one for one in inputs if one.name not in (first, second))
    return any(not (getattr(one, "ignore", False) or getattr(one, "optional", False)) for one in left)


def _scores(section: ScoringSection, outputs: Sequence[Any], *, paired: bool) -> tuple[str, int | None] | None:
    """The output of scores, and how many a row has. A text alone has scores where they have labels, or the manifest
    says so: else such an output is an embedding."""
    names = {one.name for one in outputs}
    if names == {LABEL, SCORE} and section.output is None:
        return SCORE, None
    if section.output is None and len(outputs) != 1:
        return None
    found = next(one for one in outputs if section.output in (None, one.name))
    if found.datatype not in _FLOATS or len(found.shape) not in (1, 2) or found.shape[0] != _ROWS:
        return None
    if not (paired or getattr(found, "labels", None) or section != ScoringSection()):
        return None
    width = found.shape[1] if len(found.shape) == 2 else 1
    return found.name, width if isinstance(width, int) else None
