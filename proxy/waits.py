"""A question's rows that are aloft → its answers, when they have landed or its deadline has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from foreseen.errors import DeadlineExceeded
from foreseen.nouns import Answer, Key
from proxy.flight import Landing


class Wait(NamedTuple):
    """A row that is waited for; `joined` where it was aloft already."""

    landing: Landing
    joined: bool


async def until_landed(waits: Iterable[Wait], deadline: float) -> None:
    """Wait for flights without owning them: a waiter that is cancelled leaves them aloft."""
    pending = [wait.landing for wait in waits if not wait.landing.done()]
    if pending:
        await asyncio.wait(pending, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))


def cut_short(waits: Iterable[Wait], deadline: float) -> bool:
    """Whether a flight that was joined ended at its own deadline while ours is still to come: then we ask again."""
    if asyncio.get_running_loop().time() >= deadline:
        return False
    return any(
        wait.joined and wait.landing.done() and isinstance(wait.landing.exception(), DeadlineExceeded) for wait in waits
    )


def in_order(
    keys: Sequence[Key],
    found: Mapping[Key, Answer],
    waits: Mapping[Key, Wait],
    spare: Callable[[Key], Answer | None],
) -> list[Answer]:
    """One answer per row. A row that the model answered for somebody else's asking, or for an equal row of the same
    batch, is `collapsed`; one that is still aloft gets its spare. Raises what a flight ended with, DeadlineExceeded."""
    answers = []
    asked: set[Key] = set()
    for key in keys:
        answer = found.get(key)
        if answer is None:
            landing, joined = waits[key]
            answer = landing.result() if landing.done() else spare(key)
            if answer is None:
                raise DeadlineExceeded("the answer did not come before the deadline")
            if answer.source == "model" and (joined or key in asked):
                answer = Answer(answer.prediction, "collapsed", answer.stored, answer.trip)
            asked.add(key)
        answers.append(answer)
    return answers
