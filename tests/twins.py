"""Two systems that differ in one thing: one answers by templates, or asks for lone rows in one coroutine, and the other
takes the general way.

They get the same requests, the same purges and the same clock, and have to say the same: status, headers, body, and
what is counted. The model answers from the bytes of a row alone.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from blake3 import blake3
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import Framer, tag_key
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import raw_of
from foreseen.proxy.backend.served import ServedModel, WorkerStats
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.cache.generations import Generations
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.fastpath.responder import Responder
from foreseen.proxy.predict.answer_cache import AnswerCache
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.counting import AccessLog, RequestCounter
from foreseen.proxy.predict.observe import Observer
from foreseen.proxy.predict.pending_request import PendingRequest
from foreseen.proxy.predict.response_bytes import Reply, reply_head
from foreseen.proxy.predict.sampling.hot_inputs import HotInputs
from foreseen.proxy.predict.sampling.row_sampler import HitSamplers, RowSampler
from foreseen.proxy.predict.sampling.sampled_pipeline import pipeline_of
from foreseen.proxy.predict.serve import Server
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import ALL_STEPS, Output, Prediction, RequestOptions, Row, Space, Steps
from tests.doubles import ROOT, Clock, DictFar

_TIMES = re.compile(r"(Server-Timing|Date): [^\r]*\r\n")
_UNCOUNTED = ("foreseen_stage_duration", "start_time", "_sum", "_created", "_bucket")
"""Durations, and which steps were timed: a template takes none of them."""


class HashModel:
    """Answers each row with numbers, and perhaps a text, that only its own bytes decide."""

    bypass_reason = "not-cacheable"
    reachable = ours = True
    process = None

    def __init__(self, manifest: Manifest, assets: Mapping[str, bytes], freshness: Policy, clock: Clock) -> None:
        self.manifest, self.freshness, self.clock = manifest, freshness, clock
        self.framer = Framer(manifest.model)
        self.stats, self.steps = WorkerStats(), cast(Steps, ALL_STEPS)
        self.digest, self.own, self.assets = "d1", Preparer(manifest, assets), assets
        self.rows = 0
        self.error: Callable[[int], Exception] | None = None
        """What so many rows are answered with."""

    @property
    def facts(self) -> Space:
        return self.space()

    def space(self, scope: str = "public") -> Space:
        return Space(scope, self.manifest.name, self.digest)

    def preparer(self) -> Preparer:
        return self.own

    async def refresh(self) -> None:
        """The model says its digest."""

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        self.rows += len(rows)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error(len(rows))
        return [self._answer(row, parameters) for row in rows]

    def _answer(self, row: Row, parameters: bytes) -> Prediction:
        seed = blake3(self.framer.frame(row, parameters) + self.digest.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
        heads, data = [], []
        for spec in self.manifest.model.outputs:
            shape = tuple(int(rng.integers(1, 3)) if isinstance(dim, str) else dim for dim in spec.shape[1:])
            datatype = DATATYPES[spec.datatype]
            array: Any = rng.standard_normal(shape).astype(datatype.dtype) if datatype.kind == "f" else None
            if datatype.kind == "s":
                array = np.array(
                    [
                        f"é{number}".encode() if number % 50 else b"\xff"
                        for number in rng.integers(0, 200, shape).ravel()
                    ],
                    object,
                )
            elif array is None:
                array = rng.integers(0, 100, shape).astype(datatype.dtype)
            heads.append(Output(spec.name, spec.datatype, shape))
            data.append(raw_of(np.asarray(array, datatype.dtype).reshape(shape), datatype))
        now = self.clock()
        return Prediction(tuple(heads), tuple(data), self.digest, now, now + self.freshness.fresh_seconds, 0.25)


class Twin:
    """One of the two."""

    def __init__(
        self, manifest: Manifest, clock: Clock, *, templates: bool, lone: bool = True,
        assets: Mapping[str, bytes] | None = None, freshness: Policy | None = None, observed: bool = False,
        far: bool = False, near_bytes: int = 10**7,
        sample: Callable[[ProxyMetrics], RowSampler] | None = None, hot_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.model = HashModel(manifest, assets or {}, freshness or Policy(1000.0), clock)
        self.metrics = ProxyMetrics()
        self.near = Near(near_bytes)
        self.far = DictFar() if far else None
        tiers = Tiers(root=ROOT, codec=EntryCodec(tag_key(ROOT)), near=self.near, far=self.far,
                      metrics=self.metrics, clock=clock)  # fmt: skip
        served = {manifest.name: cast(ServedModel, self.model)}
        self.samplers = [] if sample is None else [sample(self.metrics)]
        self.hot = HotInputs(hot_bytes, self.near, self.metrics)
        self.pipeline = pipeline_of(
            [*self.samplers, *([self.hot] if hot_bytes else [])], tiers, served, self.metrics, 10_000
        )
        if not lone:
            self.pipeline.lone.suits = lambda _: False  # type: ignore[method-assign]
        self.purges = Generations(None, self.pipeline.forget)
        self.cache = AnswerCache(10**7, self.near, served, self.purges)
        self.server = Server(
            self.pipeline,
            Observer(self.pipeline, self.metrics),
            self.metrics,
            self.cache,
            RequestCounter(self.metrics, served, AccessLog(0.0)),
            observed=frozenset((manifest.name,)) if observed else frozenset(),
            purges=self.purges,
        )
        self.hits = self.requests = 0
        if templates:
            self._count_answers()
        else:
            self.server.templates.answer = lambda *_: None  # type: ignore[method-assign]
        self.responder = Responder(served=served, server=self.server, cache=self.cache, clock=clock)
        HitSamplers(self.samplers).attach(self.responder)

    def _count_answers(self) -> None:
        answer = self.server.templates.answer

        def counted(*asked: Any) -> Any:
            made = answer(*asked)
            self.requests += made is not None
            self.hits += hasattr(made, "rendered")
            return made

        self.server.templates.answer = counted  # type: ignore[method-assign]

    def ask(self, head: RequestHead, body: bytes, raw: bytes | None = None) -> asyncio.Future[str]:
        """The reply. `raw` are the bytes of the whole request, where it may be kept."""
        replied: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def reached(reply: bytes | Reply) -> None:
            replied.set_result(_text(reply))

        reply = self.responder.begin(head, body, reached, raw)
        if not isinstance(reply, PendingRequest):
            reached(reply)
        return replied

    async def ask_by_aiohttp(self, head: RequestHead, body: bytes) -> str:
        return _text(await self.responder.answer(head, body, 0.0, asyncio.get_running_loop().time() + 20))

    def counted(self) -> dict[str, float]:
        self.metrics.flush()
        registry: CollectorRegistry = self.metrics.registry
        counts = {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in registry.collect()
            for sample in family.samples
            if not any(part in sample.name for part in _UNCOUNTED) and sample.value
        }
        stats = self.model.stats
        return counts | {name: getattr(stats, name) for name in ("success", "fail", "cache_hit", "cache_miss", "rows",
                                                                 "computed_rows", "computed_requests")}  # fmt: skip


class Twins:
    """Both, asked alike."""

    def __init__(self, manifest: Manifest, *, templates: bool = False, lone: bool = True, **options: Any) -> None:
        """What the second one does."""
        self.clock, self.asked = Clock(), 0
        self.one = Twin(manifest, self.clock, templates=True, **options)
        self.other = Twin(manifest, self.clock, templates=templates, lone=lone, **options)

    def _alike(self) -> Iterator[Twin]:
        """Both, with the same jitter in the lives of entries."""
        self.asked += 1
        for twin in (self.one, self.other):
            random.seed(self.asked)
            yield twin

    async def ask(self, head: RequestHead, body: bytes, *, by_aiohttp: bool = False) -> str:
        """The reply, which is the same of both."""
        replies = []
        for twin in self._alike():
            asking = twin.ask_by_aiohttp(head, body) if by_aiohttp else twin.ask(head, body)
            replies.append(await asyncio.wait_for(asking, 20))
        assert plain(replies[0]) == plain(replies[1]), f"{body!r}\n{replies[0]}\n{replies[1]}"
        return replies[0]

    async def ask_at_once(self, asked: Sequence[tuple[RequestHead, bytes]]) -> list[str]:
        replies = [await asyncio.gather(*(twin.ask(*one) for one in asked)) for twin in self._alike()]
        assert [*map(plain, replies[0])] == [*map(plain, replies[1])]
        return replies[0]

    def same_counts(self) -> None:
        one, other = self.one.counted(), self.other.counted()
        differ = {name: (one.get(name), other.get(name)) for name in {*one, *other} if one.get(name) != other.get(name)}
        assert not differ, differ
        assert self.one.model.rows == self.other.model.rows


def plain(reply: str) -> str:
    """A reply without what is different of any two."""
    return _TIMES.sub("", reply)


def _text(reply: bytes | Reply) -> str:
    if isinstance(reply, bytes):
        return reply.decode("latin-1")
    return (reply_head(reply.status, reply.lines, len(reply.body)) + reply.body).decode("latin-1")


def small_tokenizer() -> bytes:
    """Whole words of a small vocabulary, lower case, between two special tokens."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{n}" for n in range(50)), "the", "a", ",", "."]
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return str(tokenizer.to_str()).encode()
