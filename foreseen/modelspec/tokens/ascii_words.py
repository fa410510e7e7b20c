"""Plain ASCII text → token ids, word by word from a table, for tokenizers that take words one by one.

BERT's tokenizer (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`) ends a word at every blank, so the ids of a text
are those of what stands between its blanks, between the special ones at its ends; and printable ASCII has nothing that
its normalization changes but the case. That is what `AsciiWords.of` requires of a tokenizer's own description, and then
compares on texts of its vocabulary. Another tokenizer, a text with any other character, a very long word, an added
token in the text or a text that has to be cut is the tokenizer's own. Source: `tokenizers`, `normalizers/bert.rs` and
`pre_tokenizers/bert.rs`.
"""

from __future__ import annotations

import json
import random
from typing import Any, Protocol

import numpy as np

MAX_WORDS = 32_768
"""In the table; it begins anew where there would be more."""
MAX_WORD_CHARACTERS = 32
MAX_NEW = 2
"""A text with more words that are not in the table is tokenized as a whole: one word alone takes a quarter of that."""
MAX_TEXT_BYTES = 4096
_PROBES = 32
_PUNCTUATION = "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum())


class WholeTexts(Protocol):
    """A tokenizer of the library `tokenizers`."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any: ...
    def to_str(self) -> str: ...
    def get_added_tokens_decoder(self) -> dict[int, Any]: ...


class AsciiWords:
    """The words of one tokenizer. Asked by the event loop and by threads."""

    def __init__(self, tokenizer: WholeTexts, dtype: Any, *, lower: bool, most: int) -> None:
        self._tokenizer, self.dtype, self._lower, self._most = tokenizer, dtype, lower, most
        one, alone = (tokenizer.encode("a", add_special_tokens=with_ends).ids for with_ends in (True, False))
        place = next(at for at in range(len(one)) if one[at : at + len(alone)] == alone)
        self._before, self._after = self._raw(one[:place]), self._raw(one[place + len(alone) :])
        self._added = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values())
        self._words: dict[str, bytes] = {}

    @classmethod
    def of(cls, tokenizer: WholeTexts, dtype: Any, most: int) -> AsciiWords | None:
        """The table of a tokenizer that cuts at `most` tokens; None where it is not of the kind, or does not do what
        the table would."""
        said = json.loads(tokenizer.to_str())
        normalizer, model = said.get("normalizer") or {}, said.get("model") or {}
        kinds = normalizer.get("type"), (said.get("pre_tokenizer") or {}).get("type"), model.get("type")
        if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece") or not normalizer.get("clean_text"):
            return None
        if model.get("max_input_chars_per_word", 0) < MAX_WORD_CHARACTERS or said.get("padding") is not None:
            return None
        if any(not token["content"].strip() or " " in token["content"] for token in said.get("added_tokens", ())):
            return None
        made = cls(tokenizer, dtype, lower=bool(normalizer.get("lowercase")), most=most)
        return made if made._agrees(list(model["vocab"])) else None

    def ids(self, text: bytes) -> bytes | None:
        """The ids of a text, as the bytes of an array; None where it is for the tokenizer itself."""
        if len(text) > MAX_TEXT_BYTES or not text.isascii():
            return None
        plain = text.decode("ascii")
        if not plain.isprintable() or any(added in plain for added in self._added):
            return None
        lower = plain.lower() if self._lower else plain
        words = lower.split()
        get = self._words.get
        found = [get(word) for word in words]
        if None in found:
            if any(len(word) > MAX_WORD_CHARACTERS for word in words):
                return None
            if found.count(None) > MAX_NEW:
                return self._learned(plain, lower, words)
            found = [self._word(word) if known is None else known for word, known in zip(words, found, strict=True)]
        raw = b"".join((self._before, *found, self._after))  # type: ignore[arg-type]
        return raw if len(raw) <= self._most * self.dtype.itemsize else None

    def _word(self, word: str) -> bytes:
        return self._put(word, self._tokenizer.encode(word, add_special_tokens=False).ids)

    def _learned(self, plain: str, lower: str, words: list[str]) -> bytes:
        """The ids of a text as the tokenizer makes them; what each of its words came to is known from now on."""
        encoded, at = self._tokenizer.encode(plain), 0
        placed = [(start, number) for (start, end), number in zip(encoded.offsets, encoded.ids, strict=True) if end]
        if len(placed) + (len(self._before) + len(self._after)) // self.dtype.itemsize < self._most:  # nothing was cut
            tokens = iter(placed)
            start, number = next(tokens, (len(lower), 0))
            for word in words:
                at = lower.index(word, at) + len(word)
                own = []
                while start < at:
                    own.append(number)
                    start, number = next(tokens, (len(lower), 0))
                self._put(word, own)
        return self._raw(encoded.ids)

    def _put(self, word: str, ids: list[int]) -> bytes:
        if len(self._words) >= MAX_WORDS:
            self._words.clear()
        raw = self._words[word] = self._raw(ids)
        return raw

    def _raw(self, ids: list[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()

    def _agrees(self, vocabulary: list[str]) -> bool:
        """Whether the tokenizer does the same with texts of its own words, in both cases, and punctuation."""
        dice = random.Random(0)  # noqa: S311 - probes, the same at each start
        plain = [word for word in vocabulary if word.isascii() and word.isprintable()] or ["a"]
        for _ in range(_PROBES):
            pieces = dice.choices(plain, k=4) + dice.choices(_PUNCTUATION, k=3) + [str(dice.randrange(10**6))]
            dice.shuffle(pieces)
            text = "".join(f"{piece}{' ' * dice.randrange(3)}" for piece in pieces)
            for one in (text, text.title(), text.upper(), text):  # the last ones are of the table
                made = self.ids(one.encode())
                if made is not None and made != self._raw(self._tokenizer.encode(one).ids):
                    return False
        return True
