"""Pairs of texts → the ids and token types of one row each, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foreseen.errors import BadInput
from foreseen.modelspec.manifest import ClientInput
from foreseen.modelspec.normalize import texts
from foreseen.modelspec.tokens.text_memo import TextMemo, batches
from foreseen.types import Array


class PairTokens:
    """The pairs of one client input, whose tokenizer names the second. `dtype` is that of a model input."""

    def __init__(self, spec: ClientInput, tokenizer: Any, memo: TextMemo, dtype: Callable[[str], Any]) -> None:
        assert spec.tokenizer is not None
        assert spec.tokenizer.pair is not None
        self.second = spec.tokenizer.pair
        """The client input that holds the second texts."""
        self._name = spec.name
        self._step = spec.tokenizer
        self._tokenizer = tokenizer
        self._memo = memo
        self._dtype = dtype
        self._whole: Any = None
        """The tokenizer without truncation, copied when a request first names a number of tokens."""

    def columns(self, queries: Array, documents: Array) -> dict[str, list[Array]]:
        """The pair's ids and, where the model takes them, its token types, of every row."""
        firsts, seconds = queries.ravel().tolist(), documents.ravel().tolist()
        pairs = zip(firsts, seconds, strict=True)
        names = [(self._name, b"%d:%b%b" % (len(one), one, two)) for one, two in pairs]
        known = [self._memo.get(name) for name in names]
        new = [at for at, made in enumerate(known) if made is None]
        if new:
            encoded = self._encoded([firsts[at] for at in new], [seconds[at] for at in new])
            for at, made in zip(new, encoded, strict=True):
                known[at] = made
                self._memo.put(names[at], made)
        columns: dict[str, list[Array]] = {}
        for index, name in enumerate((self._step.ids, self._step.types)):
            if name is not None:
                columns[name] = [made[index].astype(self._dtype(name)) for made in known if made is not None]
        return columns

    def cut(self, documents: Array, most: int) -> Array:
        """Documents up to the end of their `most`th token, where a pair could have more."""
        if most >= self._step.max_tokens:
            return documents
        if self._whole is None:
            copy = type(self._tokenizer).from_str(self._tokenizer.to_str())
            copy.no_truncation()
            self._whole = copy
        written = texts(documents.ravel().tolist(), f"inputs.{self.second}")
        for some in batches(range(len(written)), [len(text) for text in written]):
            encoded = self._whole.encode_batch([written[at] for at in some], add_special_tokens=False)
            for at, one in zip(some, encoded, strict=True):
                if len(one.ids) > most:
                    written[at] = written[at][: one.offsets[most - 1][1]]
        made = np.empty(len(written), object)
        made[:] = [text.encode() for text in written]
        return made.reshape(documents.shape)

    def _encoded(self, queries: Sequence[bytes], documents: Sequence[bytes]) -> list[Array]:
        """Ids and token types of every pair, INT64 [2, tokens]. Raises BadInput where a query leaves no room."""
        prompt = self._step.prompt or ""
        firsts = [prompt + text for text in texts(queries, f"inputs.{self._name}")]
        pairs = list(zip(firsts, texts(documents, f"inputs.{self.second}"), strict=True))
        made: list[Array] = []
        try:
            for some in batches(range(len(pairs)), [len(one) + len(two) for one, two in pairs]):
                encoded = self._tokenizer.encode_batch([pairs[at] for at in some])
                made += [np.array([one.ids, one.type_ids], np.int64) for one in encoded]
        except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception; only the cut can fail
            raise BadInput(
                f"inputs.{self._name}: a text is too long: with its second text a row has at most "
                f"{self._step.max_tokens} tokens, and only the second is cut ({error})"
            ) from None
        return made
