"""A question → where every row's entry is, or why it would be a miss. Asks no model and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foreseen.keys.key import key_of
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.cache.tiers import Tiers, judge
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.types import ANY_AGE, Answer, Explanation, Key, Prediction, Question, Space


async def explain_rows(
    pipeline: Pipeline,
    question: Question,
    former: Sequence[Space],
    was_purged: Callable[[Key], bool] = lambda key: False,
) -> list[Explanation]:
    """One explanation per row. `former` are the model's spaces of before: an entry there makes a miss `new-digest`, or
    `purged` where only the generation differs; so does a key that was purged itself."""
    framer = pipeline.models[question.space.model].framer
    frames = framer.frames(question.rows, question.parameters)
    bypassed = question.options.steps == {"model"}
    return [
        await _row(pipeline, question.space, key, frame, () if bypassed else former, bypassed, was_purged)
        for key, frame in zip(pipeline.keys(question), frames, strict=True)
    ]


async def _row(
    pipeline: Pipeline,
    space: Space,
    key: Key,
    frame: bytes,
    former: Sequence[Space],
    bypassed: bool,
    was_purged: Callable[[Key], bool],
) -> Explanation:
    if bypassed:
        return Explanation(key, frame, "nowhere", "bypassed")
    tiers, policy = pipeline.tiers, pipeline.models[space.model].freshness
    known = tiers.near.peek(key)
    if known is not None and isinstance(judge(known, "near", tiers.clock(), policy, ANY_AGE), Answer):
        return Explanation(key, frame, "near", prediction=known)
    far = await _far_says(tiers, space, key, policy)
    if isinstance(far, Prediction):
        return Explanation(key, frame, "far", prediction=far)
    reason = "expired" if known is not None else far
    if reason == "cold" and was_purged(key):
        reason = "purged"
    elif reason == "cold":
        before = await _known_before(tiers, former, frame, policy)
        if before is not None:
            reason = "purged" if before.digest == space.digest else "new-digest"
    return Explanation(key, frame, "nowhere", reason)


async def _known_before(tiers: Tiers, former: Sequence[Space], frame: bytes, policy: Policy) -> Space | None:
    """The space of before in which the row has an entry."""
    for space in former:
        key = key_of(tiers.space_key(space), frame)
        if tiers.near.peek(key) is not None or isinstance(await _far_says(tiers, space, key, policy), Prediction):
            return space
    return None


async def _far_says(tiers: Tiers, space: Space, key: Key, policy: Policy) -> Prediction | str:
    """The proved entry, or the reason of a miss."""
    looked = await tiers.look_far(space, [key], policy)
    return looked.found[key].prediction if key in looked.found else looked.missing[key].reason
