"""Inputs that a weaker identity would take for one another: never an answer of the other's."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np
import xxhash

from foreseen.keys.entry import EntryCodec
from foreseen.keys.key import Framer, tag_key
from foreseen.modelspec.artifact import read_file, read_record
from foreseen.modelspec.manifest import ModelInput, ModelOutput, ModelSignature, find
from foreseen.modelspec.prepare import Preparer
from foreseen.paths import model_socket
from foreseen.protocol.wire import parse_response
from foreseen.protocol.wire_render import render_request
from foreseen.proxy.cache.freshness import Policy
from foreseen.proxy.cache.near import Near
from foreseen.proxy.cache.tiers import Tiers
from foreseen.proxy.predict.pipeline import Pipeline
from foreseen.telemetry.metrics import ProxyMetrics
from foreseen.types import Output, Prediction, Question, RequestOptions, Row, Space
from foreseen.web.http import HEADER_LENGTH
from tests.collisions import chosen_pair, second_preimage, seeded_pair
from tests.doubles import ROOT, DictFar, Limits
from tests.live import Live
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, MINILM
from tests.stories.test_30_rows import sentences
from tests.stories.test_40_many_at_once import session

TENSORS = ModelSignature((ModelInput("x", "FP32", ("rows", "n")),), (ModelOutput("sha", "UINT8", ("rows", 32)),))


class Hashing:
    """A model whose answer is the SHA-256 of its row: a crossed answer is provable."""

    framer = Framer(TENSORS)
    freshness = Policy(1000.0)
    ours = True

    def __init__(self) -> None:
        self.rows = 0

    async def predict(self, rows: Sequence[Row], parameters: bytes, options: RequestOptions) -> list[Prediction]:
        self.rows += len(rows)
        await asyncio.sleep(0)  # give another question the chance to join a flight that is not its own
        now = time.time()
        return [
            Prediction((Output("sha", "UINT8", (32,)),), (sha(row.tensors[0]),), "d", now, now, 0.1) for row in rows
        ]


def sha(tensor: np.ndarray) -> bytes:
    return hashlib.sha256(tensor.tobytes()).digest()


def story(model: Hashing, far: DictFar) -> Pipeline:
    metrics = ProxyMetrics()
    tiers = Tiers(
        root=ROOT, codec=EntryCodec(tag_key(ROOT)), near=Near(10**8), far=far, metrics=metrics, limits=Limits()
    )
    return Pipeline(tiers, {"m": model}, metrics, 1000)


async def ask(one: Pipeline, *tensors: np.ndarray) -> list[bytes]:
    options = RequestOptions(asyncio.get_running_loop().time() + 20)
    answers = await one.answer(Question(Space("public", "m", "d"), tuple(Row((t.ravel(),)) for t in tensors), options))
    return [answer.prediction.data[0] for answer in answers]


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Colliding pairs: chosen, second preimage of a given tensor, and one that collides under a secret seed."""
    picture = np.random.default_rng(9).standard_normal(3 * 224 * 224).astype(np.float32)
    one, two = chosen_pair(picture)
    third, fourth = seeded_pair(picture)
    return [(one, two), (picture, second_preimage(picture)), (third, fourth)]


def test_the_recipes_really_collide() -> None:
    """All tensors are finite and differ; XXH3-64 and -128 are equal, or equal under some of a few thousand seeds."""
    (a, b), (c, d), (e, f) = pairs()
    for one, other in ((a, b), (c, d), (e, f)):
        assert np.isfinite(one).all()
        assert np.isfinite(other).all()
        assert one.tobytes() != other.tobytes()
    for one, other in ((a, b), (c, d)):
        assert xxhash.xxh3_64_digest(one.tobytes()) == xxhash.xxh3_64_digest(other.tobytes())
        assert xxhash.xxh3_128_digest(one.tobytes()) == xxhash.xxh3_128_digest(other.tobytes())
    left, right = e.tobytes()[:1024], f.tobytes()[:1024]
    rng = random.Random(3)
    hits = 0
    for _ in range(4000):
        seed = rng.getrandbits(64)
        hits += xxhash.xxh3_64_digest(left, seed) == xxhash.xxh3_64_digest(right, seed)
    assert hits > 20


def test_colliding_bodies_are_never_crossed_on_the_fast_path(live: Live) -> None:
    """Raw requests whose bodies XXH3 takes for one another, in turns and again and again on one connection: whatever
    is remembered of them, each gets its own rows' answers."""
    numbers_of = np.random.default_rng(12).integers(-(2**40), 2**40, 64 * 16).view(np.float32)
    tensors = [*chosen_pair(numbers_of), numbers_of, second_preimage(numbers_of), *seeded_pair(numbers_of)]
    bodies = [tensor.tobytes() for tensor in tensors]
    assert xxhash.xxh3_64_digest(bodies[0]) == xxhash.xxh3_64_digest(bodies[1])
    assert xxhash.xxh3_64_digest(bodies[2]) == xxhash.xxh3_64_digest(bodies[3])
    wanted = [[fingerprint(row) for row in np.frombuffer(body, "<i8").reshape(-1, 16).tolist()] for body in bodies]
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    seen = set()
    try:
        for turn in range(10):
            for body, rows in list(zip(bodies, wanted, strict=True))[:: -1 if turn % 2 else 1]:
                connection.request("POST", FINGERPRINT, body, {HEADER_LENGTH: "0"})
                reply = connection.getresponse()
                told, length = reply.read(), int(reply.headers[HEADER_LENGTH])
                digest, _ = parse_response(told, length).outputs
                assert digest.array.tolist() == rows, turn
                seen.add(reply.headers["Server-Timing"].split(",")[0].split(";")[0])
    finally:
        connection.close()
    assert {"replay", "shortcut"} <= seen


async def test_colliding_tensors_never_share_near_far_or_flight() -> None:
    """One after the other, at once, in one batch, and from another proxy: four roads, no crossed answer."""
    for one, other in pairs():
        model, far = Hashing(), DictFar()
        first = story(model, far)
        assert await ask(first, one) == [sha(one)]
        assert await ask(first, other) == [sha(other)]
        assert await ask(first, one, other, one) == [sha(one), sha(other), sha(one)]
        assert model.rows == 2
        await first.close(5)
        assert await ask(story(model, far), other, one) == [sha(other), sha(one)]
        assert model.rows == 2
        together = story(model, DictFar())
        assert await asyncio.gather(ask(together, one), ask(together, other)) == [[sha(one)], [sha(other)]]
        assert model.rows == 4


async def test_large_bodies_that_differ_in_one_number_never_share() -> None:
    """60 kB and 6 MB: one float of many differs, at either end or in the middle."""
    for count in (15_000, 1_500_000):
        base = np.arange(count, dtype=np.float32)
        changed = [base.copy() for _ in range(3)]
        for copy, at in zip(changed, (0, count // 2, count - 1), strict=True):
            copy[at] += 1.0
        model = Hashing()
        one = story(model, DictFar())
        for tensor in (base, *changed):
            assert await ask(one, tensor) == [sha(tensor)]
        assert model.rows == 4


def test_sixty_kilobyte_bodies_over_the_wire(live: Live) -> None:
    """Two different 60 kB and 6 MB JSON bodies: every row is its own."""
    for count in (200, 20_000):
        rows = [numbers(200_000 + n) for n in range(count)]
        changed = [*rows[:-1], [*rows[-1][:-1], 5]]
        for body in (rows, changed):
            flat = json.loads(live.post(FINGERPRINT, ask_fingerprint(*body))[2])["outputs"][0]["data"]
            assert flat[-4:] == fingerprint(body[-1])
            assert flat[:4] == fingerprint(body[0])


async def test_reshaped_tensors_with_equal_bytes_never_share() -> None:
    """[6], [2,3] and [3,2] of one buffer are three questions: rows of different lengths have different frames."""
    model = Hashing()
    one = story(model, DictFar())
    buffer = np.arange(6, dtype=np.float32)
    await ask(one, buffer)
    await ask(one, *buffer.reshape(2, 3))
    await ask(one, *buffer.reshape(3, 2))
    assert model.rows == 1 + 2 + 3


async def test_twenty_thousand_random_requests_are_bit_identical_fresh_and_from_cache(live: Live, built: Path) -> None:
    """Texts and numbers in random batches, JSON and binary: every answer equals what the model said alone, and what
    the model process says when it is asked again directly, in other batches."""
    rng = random.Random(20_000)
    texts, rows = sentences(600, 90), [numbers(900_000 + n) for n in range(2000)]
    async with session() as client:
        alone = await _embeddings_alone(client, live, texts)

        async def check_texts() -> None:
            picked = rng.choices(range(len(texts)), k=rng.choice((1, 1, 2, 5)))
            body, length = render_request(
                [("text", "BYTES", np.array([texts[n].encode() for n in picked], object))], {}
            )
            answered = await _binary(client, live.url + MINILM, body, length)
            assert [row.tobytes() for row in answered] == [alone[n] for n in picked]

        async def check_numbers() -> None:
            picked = [rows[n] for n in rng.choices(range(len(rows)), k=rng.choice((1, 1, 3, 8)))]
            async with client.post(live.url + FINGERPRINT, json=ask_fingerprint(*picked)) as reply:
                flat = (await reply.json())["outputs"][0]["data"]
            assert flat == [value for row in picked for value in fingerprint(row)]

        async def one_client() -> None:
            for _ in range(20_000 // 16):
                await (check_texts() if rng.random() < 0.3 else check_numbers())

        await asyncio.gather(*(one_client() for _ in range(16)))
    fresh = await _embeddings_direct(live, built, texts, rng)
    assert fresh == alone


async def _embeddings_alone(client: aiohttp.ClientSession, live: Live, texts: list[str]) -> list[bytes]:
    answers = []
    for text in texts:
        body, length = render_request([("text", "BYTES", np.array([text.encode()], object))], {})
        answers.append((await _binary(client, live.url + MINILM, body, length))[0].tobytes())
    return answers


async def _binary(client: aiohttp.ClientSession, url: str, body: bytes, length: int) -> np.ndarray:
    headers = {"Inference-Header-Content-Length": str(length)}
    async with client.post(url, data=body, headers=headers) as reply:
        response = parse_response(await reply.read(), int(reply.headers["Inference-Header-Content-Length"]))
    return response.outputs[0].array


async def _embeddings_direct(live: Live, built: Path, texts: list[str], rng: random.Random) -> list[bytes]:
    """From the model process itself, padded, in random batches of neighbours that nobody chose."""
    from foreseen import models

    manifest = find("minilm", (Path(models.__file__).parent,))
    artifact = read_record(built, "minilm").artifact
    preparer = Preparer(manifest, {file.name: read_file(built, artifact, file) for file in artifact.assets})
    order = list(range(len(texts)))
    rng.shuffle(order)
    found: dict[int, bytes] = {}
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(model_socket(live.data, "minilm")))) as client:
        for at in range(0, len(order), 24):
            batch = order[at : at + 24]
            ids = [preparer_ids(preparer, texts[n]) for n in batch]
            padded = np.zeros((len(ids), max(map(len, ids))), np.int64)
            mask = np.zeros_like(padded)
            for i, row in enumerate(ids):
                padded[i, : len(row)], mask[i, : len(row)] = row, 1
            body, length = render_request([("input_ids", "INT64", padded), ("attention_mask", "INT64", mask)], {})
            for n, vector in zip(batch, await _binary(client, f"http://model{MINILM}", body, length), strict=True):
                found[n] = vector.tobytes()
    return [found[n] for n in range(len(texts))]


def preparer_ids(preparer: Preparer, text: str) -> np.ndarray:
    from foreseen.protocol.wire import InputTensor

    (row,) = preparer.rows([InputTensor("text", "BYTES", np.array([text.encode()], object))])
    return row.tensors[0]
