"""Explains a request row by row: which tier holds the entry, or why the row would be a miss. Asks no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from foreseen.keys.key import key_of
from foreseen.proxy.backend.served import ServedModel
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.cache.look_result import judge
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects import codecs
from foreseen.proxy.predict.dialects.decode import prepared
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.proxy.predict.serve import Server
from foreseen.types import ANY_AGE, Answer, Explanation, Key, Prediction, Question, RequestOptions, Space, Steps
from foreseen.web.heavy import on_loop_bytes


async def explain_request(server: Server, served: ServedModel, head: RequestHead, body: bytes) -> list[Explanation]:
    """One explanation per row of a request. Raises BadRequest or BadInput, ModelUnavailable."""
    preparer, size = served.preparer(), len(body)
    decoded = await server.heavy.run(lambda: codecs.decode(head, body, served), size)
    limit = on_loop_bytes(preparer.heavy)
    _, rows = await server.heavy.run(lambda: prepared(decoded, preparer), size, limit)
    space = server.space(served, head.tenant.scope)
    steps: Steps = frozenset(("model",)) if decoded.sequence else served.steps
    deadline = asyncio.get_running_loop().time() + head.seconds
    question = Question(space, rows, RequestOptions(deadline, steps=steps), decoded.parameters)
    former = [server.in_generation(Space(space.scope, space.model, digest)) for digest in served.former]
    before = server.purges.formerly(space.scope, space.model, space.digest)
    former += [Space(space.scope, space.model, space.digest, generation) for generation in before]
    return await explain_rows(server.pipeline, question, former, server.purges.was_purged)


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
