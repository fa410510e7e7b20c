"""Texts cut to a number of tokens that a request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreseen.modelspec.tokens.text_memo import batches


class LongTexts:
    """Cuts texts by the tokenizers of one model. A tokenizer is copied when a request first asks for that."""

    def __init__(self, tokenizers: Mapping[str, Any]) -> None:
        self._tokenizers = tokenizers
        self._copies: dict[str, Any] = {}

    def cut(self, name: str, written: Sequence[str], most: int) -> list[str]:
        """Each text up to the end of its `most`th token, as the tokenizer of the input `name` counts them."""
        copy = self._copies.get(name)
        if copy is None:
            known = self._tokenizers[name]
            copy = type(known).from_str(known.to_str())
            copy.no_truncation()
            self._copies[name] = copy
        made = list(written)
        for some in batches(range(len(written)), [len(text) for text in written]):
            encoded = copy.encode_batch([written[at] for at in some], add_special_tokens=False)
            for at, one in zip(some, encoded, strict=True):
                if len(one.ids) > most:
                    made[at] = made[at][: one.offsets[most - 1][1]]
        return made
