"""A seed → texts of very different lengths, made by a small grammar, so that every machine measures the same rows."""

from __future__ import annotations

import random

OPENINGS = ("please", "could you tell me", "i would like to know", "hello,", "yesterday", "as far as i can see,", "")
ACTORS = (
    "the old engineer",
    "my bank",
    "a small dog",
    "the airline",
    "our neighbour",
    "the night train",
    "she",
    "they",
)
VERBS = ("refused", "repaired", "forgot", "delivered", "explained", "sold", "lost", "painted", "charged", "cancelled")
THINGS = (
    "my card",
    "the green bicycle",
    "two tickets to Paris",
    "an unexpected fee",
    "the quantum computer",
    "a recipe",
)
PLACES = ("in the kitchen", "at the airport", "near the river", "on the second floor", "abroad", "in 1987")
REASONS = ("because it was raining", "although nobody had asked", "so i am angry", "which is wonderful", "for 12.50 €")
JOINTS = (", and then", ". After that", "; meanwhile", ", but", " while")
LONGEST_CLAUSES = 9  # about 150 tokens: real short texts have a long tail


def texts(count: int, seed: int = 1) -> list[str]:
    """`count` different texts of one to nine clauses, from two words upwards."""
    chance = random.Random(seed)  # noqa: S311 - wanted: the same texts everywhere
    made: dict[str, None] = {}
    while len(made) < count:
        clauses = min(1 + int(chance.expovariate(0.7)), LONGEST_CLAUSES)
        made[_joined([_clause(chance) for _ in range(clauses)], chance)] = None
    return list(made)


def _clause(chance: random.Random) -> str:
    parts = [chance.choice(OPENINGS)] if chance.random() < 0.4 else []
    parts += [chance.choice(ACTORS), chance.choice(VERBS)]
    parts += [chance.choice(words) for words in (THINGS, PLACES, REASONS) if chance.random() < 0.6]
    return " ".join(part for part in parts if part)


def _joined(clauses: list[str], chance: random.Random) -> str:
    text = clauses[0]
    for clause in clauses[1:]:
        text += f"{chance.choice(JOINTS)} {clause}"
    return text
