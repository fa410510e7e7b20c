"""What is answered by a template is what the normal path answers, byte by byte, and counts alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.wire_render import render_request
from foreseen.proxy.cache.freshness import Policy, control_of
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.dialects.body_templates import BodyTemplate, Hole
from foreseen.tenants.tenant import PUBLIC_TENANT
from foreseen.types import Owner, Scope
from tests.twins import Twins, small_tokenizer

V2, V1, OPENAI = (
    RequestHead("m", None, "v2", PUBLIC_TENANT),
    RequestHead("m", None, "v1", PUBLIC_TENANT),
    RequestHead("", None, "openai", PUBLIC_TENANT),
)


def model(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> Manifest:
    """A manifest whose model sees what clients send, without the declared steps."""
    plain = ("name", "datatype", "shape")
    seen = [{key: one[key] for key in plain} for one in inputs if not one.get("ignore")]
    document = {
        "name": "m",
        "client": {"inputs": inputs, "outputs": outputs},
        "model": {"inputs": seen, "outputs": [{key: one[key] for key in plain} for one in outputs]},
        **more,
    }
    return msgspec.convert(document, Manifest)


def tensor(name: str, datatype: str, *shape: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": ["rows", *shape], **more}


NUMBERS = model([tensor("x", "INT64", 3)], [tensor("y", "FP32", 4)])
FLOATS = model(
    [tensor("x", "FP32", 2, decimals=1, zero=True), tensor("w", "UINT8"), tensor("skip", "INT32", ignore=True)],
    [tensor("y", "FP32", 2), tensor("n", "INT64"), tensor("b", "BOOL", 2)],
)
TEXTS_OUT = model([tensor("x", "INT16", 2, 2)], [tensor("label", "BYTES"), tensor("y", "FP64", 1)])
OPEN_OUT = model([tensor("x", "INT64", 2)], [tensor("y", "FP32", "n")])
TEXT = msgspec.convert(
    {
        "name": "m",
        "client": {
            "inputs": [tensor("text", "BYTES", tokenizer={"ids": "ids", "file": "t.json", "max_tokens": 16})],
            "outputs": [tensor("embedding", "FP32", 8)],
        },
        "model": {
            "inputs": [tensor("ids", "INT64", "tokens"), tensor("mask", "INT64", "tokens", role="mask", of="ids")],
            "outputs": [tensor("embedding", "FP32", 8)],
        },
        "openai": {"prompts": {"query": "the "}},
    },
    Manifest,
)
MODELS = {"numbers": NUMBERS, "floats": FLOATS, "texts-out": TEXTS_OUT, "open-out": OPEN_OUT, "text": TEXT}


def twins(name: str, **options: Any) -> Twins:
    return Twins(MODELS[name], assets={"t.json": small_tokenizer()} if name == "text" else {}, **options)


class Dice:
    """Bodies of a model: rows of a small pool, in all the ways in which clients ask for them."""

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self.rng, self.manifest = random.Random(seed), manifest
        self.dialects: list[Callable[[int], tuple[RequestHead, bytes]]] = [self.v2, self.v2, self.v2, self.v1]
        if manifest is TEXT:
            self.dialects.append(self.openai)
        else:
            self.dialects += [self.binary, self.raw]

    def body(self) -> tuple[RequestHead, bytes]:
        rng = self.rng
        head, body = rng.choice(self.dialects)(rng.choice([1, 1, 2, 3]))
        if rng.random() < 0.25:
            body = self.mutated(body)
            if head.header_length is not None:
                head = msgspec.structs.replace(
                    head, header_length=max(0, head.header_length + rng.choice([0, 0, 1, -1]))
                )
        return head, body

    def mutated(self, body: bytes) -> bytes:
        changed, rng = bytearray(body), self.rng
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randint(0, 2)] = bytes(
                rng.choices(b'[]{}",:0123456789.-e \\ntu', k=rng.randint(0, 2))
            )
        return bytes(changed)

    def values(self, spec: Any) -> Any:
        """One row of an input."""
        rng, kind = self.rng, DATATYPES[spec.datatype].kind
        if kind == "s":
            return " ".join(rng.choices(["Word1", "word2", "the", ",", "é", "\\", '"'], k=rng.randint(0, 3)))
        shape = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
        number: Any = rng.choice([0, 1, 2]) if kind == "i" else rng.choice([0.0, -0.0, 0.04, 1, 1.5, 2.25])
        if not shape:
            return number
        return np.full(shape, number).tolist() if kind == "i" else [number] * shape[0]

    def columns(self, rows: int) -> dict[str, list[Any]]:
        given = [one for one in self.manifest.seen.inputs if not one.ignore or self.rng.random() < 0.5]
        return {spec.name: [self.values(spec) for _ in range(rows)] for spec in given}

    def written(self, document: Any) -> bytes:
        if self.rng.random() < 0.7:
            return orjson.dumps(document)
        import json

        return json.dumps(document, ensure_ascii=self.rng.random() < 0.5, indent=self.rng.choice([None, 1])).encode()

    def v2(self, rows: int) -> tuple[RequestHead, bytes]:
        rng, specs = self.rng, {spec.name: spec for spec in self.manifest.seen.inputs}
        document: dict[str, Any] = {}
        if rng.random() < 0.4:
            document["id"] = rng.choice(["a", "b-1", "é", "x" * 40])
        if rng.random() < 0.4:
            parameters = {"timeout": rng.choice([0, 10**9, 10**9 + rng.randrange(9), -1, 1.5, 10**17])}
            document["parameters"] = rng.choice(
                [parameters, {"own": 1, **parameters}, {"priority": rng.choice([0, 2])}]
            )
        if rng.random() < 0.3:
            names = [one.name for one in self.manifest.seen.outputs]
            some = [{"name": one} for one in rng.sample(names, rng.randint(1, len(names)))]
            if rng.random() < 0.4:
                some[0]["parameters"] = rng.choice([{"binary_data": True}, {"classification": 1}])
            document["outputs"] = some
        inputs = []
        for name, column in self.columns(rows).items():
            shape = [rows, *(dim for dim in specs[name].shape[1:])]
            data = column if rng.random() < 0.5 else np.array(column, object).ravel().tolist()
            inputs.append({"name": name, "shape": shape, "datatype": specs[name].datatype, "data": data})
        document["inputs"] = inputs
        members = list(document.items())
        if rng.random() < 0.3:
            rng.shuffle(members)
        return V2, self.written(dict(members))

    def v1(self, rows: int) -> tuple[RequestHead, bytes]:
        columns = self.columns(rows)
        if len(columns) == 1 and self.rng.random() < 0.7:
            (only,) = columns.values()
            return V1, self.written({self.rng.choice(["instances", "inputs"]): only})
        if self.rng.random() < 0.5:
            return V1, self.written({"inputs": columns})
        return V1, self.written(
            {"instances": [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]}
        )

    def openai(self, rows: int) -> tuple[RequestHead, bytes]:
        (texts,) = self.columns(rows).values()
        document = {"input": texts if rows > 1 else self.rng.choice([texts, texts[0]]), "model": "m"}
        if self.rng.random() < 0.6:
            document["encoding_format"] = self.rng.choice(["float", "base64"])
        if self.rng.random() < 0.2:
            document["prompt_name"] = "query"
        return OPENAI, self.written(document)

    def _tensors(self, rows: int) -> list[tuple[str, str, Any]]:
        specs = {spec.name: spec for spec in self.manifest.seen.inputs}
        return [(name, specs[name].datatype, np.array(column, DATATYPES[specs[name].datatype].dtype))
                for name, column in self.columns(rows).items()]  # fmt: skip

    def binary(self, rows: int) -> tuple[RequestHead, bytes]:
        own = self.rng.choice([None, "a", "b-1"])
        body, length = render_request(self._tensors(rows), {}, own)
        return msgspec.structs.replace(V2, header_length=length), body

    def raw(self, rows: int) -> tuple[RequestHead, bytes]:
        return msgspec.structs.replace(V2, header_length=0), b"".join(
            one.tobytes() for _, _, one in self._tensors(rows)
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
async def test_templates_and_the_normal_way_say_the_same(name: str, seed: int) -> None:
    """Two thousand bodies in every dialect and spelling, a quarter of them mutated; a new digest, a forgotten entry, a
    purge of everything, another preparation and time that passes in between; read by aiohttp and not."""
    both, dice = twins(name, freshness=Policy(50.0)), Dice(MODELS[name], seed)
    for step in range(2000):
        head, body = dice.body()
        if step % 37 == 0:
            both.clock.now += dice.rng.choice([0.3, 1.0, 7.0])
        if step % 301 == 300:
            change = dice.rng.randrange(5)
            for twin in (both.one, both.other):
                if change == 0:
                    twin.model.digest = f"d{step}"
                elif change == 1:
                    await twin.pipeline.forget(None)
                elif change == 2:
                    await twin.pipeline.forget(
                        dict.fromkeys([*twin.near._small, *twin.near._main][::2], both.clock.now)
                    )
                elif change == 3:
                    twin.model.own = Preparer(MODELS[name], twin.model.assets)
                else:
                    twin.model.steps = frozenset(("model",)) if len(twin.model.steps) > 1 else both.one.model.steps
            if change == 4:
                await both.ask(head, body)
                for twin in (both.one, both.other):
                    twin.model.steps = frozenset(("near", "far", "model", "keep"))
        await both.ask(head, body, by_aiohttp=step % 5 == 0)
    both.same_counts()
    assert both.one.hits > 50, "the test would prove nothing"
    assert both.one.requests > both.one.hits


@pytest.mark.parametrize("name", MODELS)
async def test_observed_models_are_never_answered_by_a_template(name: str) -> None:
    """Their rows are asked anew each time."""
    both, dice = twins(name, observed=True), Dice(MODELS[name], 9)
    for _ in range(200):
        await both.ask(*dice.body())
    both.same_counts()
    assert both.one.hits == both.one.requests == 0


@pytest.mark.parametrize("name", ["numbers", "text"])
async def test_requests_at_once_are_answered_alike(name: str) -> None:
    """Fifty at a time, of which some wait for the flights of others; with far behind near."""
    both, dice = twins(name, far=True), Dice(MODELS[name], 4)
    for _ in range(40):
        await both.ask_at_once([dice.body() for _ in range(50)])
    both.same_counts()
    assert both.one.hits > 100


@pytest.mark.parametrize("directive", ["no-cache", "no-store", "only-if-cached", "max-age=0", "min-fresh=100000"])
async def test_cache_control_goes_the_normal_way(directive: str) -> None:
    """A request that asks for more than its rows is not answered by a template."""
    both, dice = twins("numbers"), Dice(NUMBERS, 5)
    for _ in range(300):
        head, body = dice.body()
        await both.ask(head, body)
        hits = both.one.hits
        await both.ask(msgspec.structs.replace(head, control=control_of(directive)), body)
        assert both.one.hits == hits
    both.same_counts()
    assert both.one.hits


async def test_a_purge_that_is_not_known_goes_past_the_cache() -> None:
    """As on the normal path: nothing is answered while it cannot be known what was purged."""
    both, dice = twins("numbers"), Dice(NUMBERS, 6)
    for _ in range(200):
        await both.ask(*dice.body())
    for twin in (both.one, both.other):
        twin.purges.of = lambda *_: None  # type: ignore[method-assign]
    hits = both.one.hits
    for _ in range(100):
        await both.ask(*dice.body())
    both.same_counts()
    assert both.one.hits == hits


def asked(*rows: int, **more: Any) -> bytes:
    data = [number for row in rows for number in (row, 1, 1)]
    return orjson.dumps({"inputs": [{"name": "x", "shape": [len(rows), 3], "datatype": "INT64", "data": data}], **more})


async def test_a_second_body_is_answered_by_the_template_of_the_first() -> None:
    """Known rows in a body never seen: no decoding; at its second time the body is known itself."""
    both = twins("numbers")
    await both.ask(V2, asked(1))
    await both.ask(V2, asked(2))
    await both.ask(V2, asked(3, 4))
    reply = await both.ask(V2, asked(4, 3))
    assert "Server-Timing: template\r\n" in reply
    assert "detail=near" in reply
    assert "Server-Timing: template\r\n" in await both.ask(V2, asked(4, 3))
    assert "Server-Timing: shortcut\r\n" in await both.ask(V2, asked(4, 3))


async def test_two_spellings_of_one_beginning_take_turns() -> None:
    """One beginning is a part of the other: each body is answered by its own template, whichever came before it."""
    both, tight = twins("numbers"), b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"INT64","data":[%d,2,3]}]}'
    spaced = tight.replace(b'"data":', b'"data": ').replace(b"}]}", b" } ] }")
    for body in (*[tight % number for number in range(20)], tight % 30, spaced % 31):
        await both.ask(V2, body)
    for number in range(10):
        for body in (tight % number, spaced % (10 + number)):
            assert "Server-Timing: template\r\n" in await both.ask(V2, body.replace(b",2,3]", b", 2,3]"))
    both.same_counts()


async def test_a_whole_request_is_replayed_as_soon_as_without_templates() -> None:
    """Computed, a hit with which its body is kept, a hit with which the request is kept, then answered by its bytes."""
    both, raw = twins("numbers"), b"POST / HTTP/1.1\r\n\r\n" + asked(2)
    await both.ask(V2, asked(1))
    for twin in (both.one, both.other):
        kept = []
        for _ in range(4):
            kept.append(twin.responder.repeat(raw) is not None)
            await twin.ask(V2, asked(2), raw)
        assert kept == [False, False, False, True]
    assert both.one.hits == 1


@pytest.mark.parametrize(
    "other",
    [{"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, {"parameters": {"own": 1}}, {"id": "é"},
     {"parameters": {"timeout": -1}}, {"parameters": {"timeout": True}}, {"parameters": {"timeout": 1e3}}],
)  # fmt: skip
async def test_whatever_else_a_body_says_is_part_of_its_template(other: dict[str, Any]) -> None:
    """No member but the data, `id` and a plain `timeout` may differ."""
    both = twins("numbers")
    for row in (1, 2, 1, 2):
        await both.ask(V2, asked(row, parameters={"timeout": 5_000_000}))
        await both.ask(V2, asked(row))
    hits = both.one.hits
    await both.ask(V2, asked(1, **other))
    assert both.one.hits == hits
    both.same_counts()


async def test_a_binary_body_has_as_many_rows_as_its_shape_says() -> None:
    """Bytes of more rows than its JSON says, or of fewer, are refused as without templates, known rows or not."""
    both = twins("numbers")
    body, length = render_request([("x", "INT64", np.ones((2, 3), np.int64))], {}, None)
    head, row = msgspec.structs.replace(V2, header_length=length), np.ones(3, np.int64).tobytes()
    assert " 200 " in await both.ask(head, body)
    assert "Server-Timing: template\r\n" in await both.ask(head, body)
    for tail in (row, row * 3, row * 4, row * 2 + b"\0", b""):
        assert " 400 " in await both.ask(head, body[:length] + tail), len(tail)


async def test_another_timeout_is_another_request_of_the_same_template() -> None:
    """It is read and judged, and is no part of the key."""
    both = twins("numbers")
    for microseconds in range(5_000_000, 5_000_010):
        await both.ask(V2, asked(1, parameters={"timeout": microseconds}))
    assert both.one.hits == 9
    assert (await both.ask(V2, asked(2, parameters={"timeout": 0}))).startswith("HTTP/1.1 200")


async def test_what_a_head_makes_of_a_body_is_part_of_its_template() -> None:
    """The same bytes under another protocol are another body."""
    both = twins("numbers")
    body = orjson.dumps(
        {"instances": [[1, 1, 1]], "inputs": [{"name": "x", "shape": [1, 3], "datatype": "INT64", "data": [1, 1, 1]}]}
    )
    for _ in range(3):
        assert "200" in (await both.ask(V2, body)).partition("\r\n")[0]
        assert "400" in (await both.ask(V1, body)).partition("\r\n")[0]


async def test_bodies_that_differ_in_more_than_data_make_few_templates() -> None:
    """A member that is never the same twice: attempts are rationed, and memory is bounded."""
    both = twins("numbers")
    for number in range(500):
        await both.ask(V2, asked(1, parameters={"own": 1, f"triton_{number}": number}))
    made = sum(len(kept.listed) for kept in both.one.cache.memory.templates.values())
    assert made <= 16
    memory = both.one.cache.memory
    assert memory._template_bytes == sum(kept.size for kept in memory.templates.values())
    assert memory._template_bytes * 16 <= memory.capacity_bytes
    both.one.cache.close()
    assert (memory.bytes, len(memory.templates)) == (0, 0)


async def test_tenants_share_no_template_and_no_row() -> None:
    """Two scopes ask the same bodies: each has its rows computed, and its templates made, for itself."""
    both = twins("numbers")
    others = msgspec.structs.replace(PUBLIC_TENANT, name="other", scope=Scope("other"), owner=Owner("other"), seed=7)
    other = msgspec.structs.replace(V2, tenant=others)
    for head in (V2, other, V2, other):
        rows, hits = both.one.model.rows, both.one.hits
        await both.ask(head, asked(1))
        await both.ask(head, asked(2))
        if both.one.model.rows > rows:
            assert both.one.model.rows == rows + 2
            assert both.one.hits == hits
    assert both.one.model.rows == 4
    starts = [start for start, _ in both.one.cache.memory.templates]
    assert len(starts) == len(set(starts)) == 2
    both.same_counts()


async def test_a_model_that_may_not_be_cached_any_more_is_asked() -> None:
    """Its rows are not independent, it says now: what near has of it is not answered."""
    both = twins("numbers")
    for row in (1, 2, 3):
        await both.ask(V2, asked(row))
    rows, hits = both.one.model.rows, both.one.hits
    for twin in (both.one, both.other):
        twin.model.steps = frozenset(("model",))
    assert "fwd=bypass" in await both.ask(V2, asked(2, 3))
    assert "fwd=bypass" in await both.ask(V2, asked(3))
    assert (both.one.model.rows, both.one.hits) == (rows + 3, hits)


async def test_a_template_is_of_one_preparation() -> None:
    """Under another one nothing is cut by it; the next body makes a template anew."""
    both = twins("numbers")
    for row in (1, 2, 3):
        await both.ask(V2, asked(row))
    (before,) = [one for kept in both.one.cache.memory.templates.values() for one in kept.listed]
    cut = both.one.requests
    for twin in (both.one, both.other):
        twin.model.own = Preparer(NUMBERS, {})
    await both.ask(V2, asked(4))
    assert both.one.requests == cut
    (after,) = [one for kept in both.one.cache.memory.templates.values() for one in kept.listed]
    assert after is not before


def test_an_id_that_was_cut_out_elsewhere_is_of_another_template() -> None:
    """Its place among the bytes that are the same is part of the template."""
    text = b'{"id":"","inputs":[{"data":[1]}],"own":""}'
    hole = Hole(text.index(b"[1]"), text.index(b"[1]") + 3, 0)
    template, other = BodyTemplate(text, [hole], 7), text.replace(b"[1]", b"[22,3]")
    assert template.slices(other, 7) == [b"[22,3]"]
    assert template.slices(other, len(other) - 2) is None
    assert template.slices(other, None) is None
    last = BodyTemplate(text, [hole], len(text) - 2)
    assert last.slices(other, len(other) - 2) == [b"[22,3]"]
    assert last.slices(other, 7) is None
    assert BodyTemplate(text, [hole], None).slices(other, 7) is None
    assert BodyTemplate(text, [hole], None).slices(other[:20], None) is None
