"""Ids word by word are the tokenizer's own, for every text that the table answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.tokens import ascii_words
from foreseen.modelspec.tokens.ascii_words import AsciiWords
from tests.models_fixture import built_data
from tests.twins import small_tokenizer

INT64 = np.dtype("<i8")
MOST = 24


def minilm() -> Tokenizer:
    data = built_data("minilm")
    record = read_record(data, "minilm")
    file = next(one for one in record.artifact.assets if one.name == "tokenizer.json")
    tokenizer = Tokenizer.from_str(read_file(data, record.artifact, file).decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return minilm()


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> AsciiWords:
    made = AsciiWords.of(tokenizer, INT64, MOST)
    assert made is not None
    return made


PIECES = st.one_of(
    st.sampled_from(["the", "Playing", "unaffable", "don't", "e-mail", "3.14", "[MASK]", "[sep]", "x" * 40, "é", "\t",
                     "a\x00b", "##ing", "U.S.A.", "...", "hello", "ＡＢ", "\u200b", ""]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6),
)  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.sampled_from([" ", "  ", ""]))
def test_the_ids_are_the_tokenizers_own(tokenizer: Tokenizer, words: AsciiWords, pieces: list[str], blank: str) -> None:
    """Any text, known words and unknown ones, asked twice: once while the table learns and once of the table."""
    text = blank.join(pieces)
    wanted = np.array(tokenizer.encode(text).ids, INT64).tobytes()
    for _ in range(2):
        made = words.ids(text.encode())
        assert made is None or made == wanted


def test_ordinary_text_is_answered_by_the_table(tokenizer: Tokenizer, words: AsciiWords) -> None:
    """Many words at once, few, none; upper case is the same word."""
    dice = random.Random(1)
    plain = [word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()]
    for count in (1, 2, 3, 12):
        text = " ".join(dice.choices(plain, k=count))
        for one in (text, text.upper(), text.title(), f" {text}  "):
            assert words.ids(one.encode()) == np.array(tokenizer.encode(one).ids, INT64).tobytes()
    assert words.ids(b"") == np.array(tokenizer.encode("").ids, INT64).tobytes()


@pytest.mark.parametrize("text", ["é", "a\tb", "a\x7fb", "see [MASK] here", "word " * MOST, "x" * 33, "a\u00a0b"])
def test_what_is_not_plain_is_the_tokenizers(words: AsciiWords, text: str) -> None:
    """Other characters, added tokens, what has to be cut, very long words."""
    made = words.ids(text.encode())
    assert made is None or text == "word " * MOST
    if made is not None:
        assert made == np.array(minilm().encode(text).ids, INT64).tobytes()


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    """It begins anew, and answers are the same."""
    monkeypatch.setattr(ascii_words, "MAX_WORDS", 20)
    words = AsciiWords(tokenizer, INT64, lower=True, most=MOST)
    for number in range(200):
        text = f"the {number} word {number + 1}"
        assert words.ids(text.encode()) == np.array(tokenizer.encode(text).ids, INT64).tobytes()
        assert len(words._words) <= 20


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["normalizer"].update(type="Lowercase"),
        lambda said: said["normalizer"].update(clean_text=False),
        lambda said: said["pre_tokenizer"].update(type="Whitespace"),
        lambda said: said["model"].update(max_input_chars_per_word=10),
        lambda said: said["added_tokens"][0].update(content="two words"),
        lambda said: said.update(pre_tokenizer=None),
    ],
)
def test_tokenizers_of_another_kind_have_no_table(change) -> None:  # type: ignore[no-untyped-def]
    """Whatever their description says otherwise."""
    said = json.loads(minilm().to_str())
    change(said)
    try:
        other = Tokenizer.from_str(json.dumps(said))
    except Exception:  # noqa: BLE001 - the library refuses it, too
        return
    assert AsciiWords.of(other, INT64, MOST) is None


def test_a_tokenizer_that_does_otherwise_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description is of the kind, and its ids are not: the probes find it."""
    said = json.loads(minilm().to_str())
    said["normalizer"]["lowercase"] = False
    cased = Tokenizer.from_str(json.dumps(said))
    assert AsciiWords.of(cased, INT64, MOST) is not None
    wrong = AsciiWords(cased, INT64, lower=True, most=MOST)
    assert not wrong._agrees(list(said["model"]["vocab"]))


def test_small_tokenizers_of_tests_have_none(tmp_path: Path) -> None:
    """Whole words behind `Whitespace` end at punctuation, too; they are not of the kind."""
    assert AsciiWords.of(Tokenizer.from_str(small_tokenizer().decode()), INT64, MOST) is None
