"""Whatever lies in Redis is proved before it is an answer: swapped, cut, flipped and foreign values are misses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from foreseen.paths import redis_socket
from foreseen.stores.commands import PREFIX
from tests.live import Live, started
from tests.questions import ask_fingerprint, fingerprint, numbers
from tests.stories.test_10_first_question import FINGERPRINT, status_of


@pytest.fixture(scope="module")
def nearless(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A system without a near tier: every hit comes from Redis."""
    with started(built, tmp_path_factory.mktemp("proof") / "d", "--near-bytes=0", models=["fingerprint"]) as system:
        yield system


@pytest.fixture
def redis(nearless: Live) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(redis_socket(nearless.data)), protocol=2) as client:
        yield client


def stored(nearless: Live, redis: Redis, seed: int) -> bytes:
    """Ask once; the Redis key under which the entry then lies."""
    before = set(redis.scan_iter(PREFIX + b"*"))
    nearless.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
    puts = nearless.metric("foreseen_far_duration_seconds_count", op="put")
    while not (new := set(redis.scan_iter(PREFIX + b"*")) - before):
        assert nearless.metric("foreseen_far_duration_seconds_count", op="put") >= puts
    (key,) = new
    return key


def digest_of(body: bytes) -> list[int]:
    return list(json.loads(body)["outputs"][0]["data"])


def test_two_redis_values_swapped_by_hand(nearless: Live, redis: Redis) -> None:
    """Right answers, the verify counter rises by two, and both entries are healed."""
    one, other = stored(nearless, redis, 1), stored(nearless, redis, 2)
    values = redis.mget(one, other)
    redis.mset({one: values[1], other: values[0]})
    before = nearless.metric("foreseen_verify_failed_total", reason="identity")
    for seed in (1, 2):
        assert digest_of(nearless.post(FINGERPRINT, ask_fingerprint(numbers(seed)))[2]) == fingerprint(numbers(seed))
    assert nearless.metric("foreseen_verify_failed_total", reason="identity") - before == 2
    for key in (one, other):
        while redis.get(key) in values[::-1] and redis.get(key) != values[[one, other].index(key)]:
            pass  # stores run behind the answer's back
    for seed in (1, 2):
        _, headers, _ = nearless.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
        assert str(status_of(headers)["detail"]) == "far"


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "truncated": ("tag", lambda value: value[:-20]),
    "emptied": ("length", lambda value: b""),
    "grown": ("tag", lambda value: value + b"\x00"),
    "bit-flipped answer": ("tag", lambda value: value[:-20] + bytes([value[-20] ^ 1]) + value[-19:]),
    "bit-flipped age": ("tag", lambda value: value[:40] + bytes([value[40] ^ 1]) + value[41:]),
    "another format": ("format", lambda value: b"FSE0" + value[4:]),
    "foreign": ("format", lambda value: b'{"somebody": "else"}' * 20),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_value_is_a_counted_miss_and_never_an_answer(nearless: Live, redis: Redis, kind: str) -> None:
    """The model is asked again, the answer is right, and the reason is counted."""
    reason, damage = DAMAGE[kind]
    seed = 100 + list(DAMAGE).index(kind)
    key = stored(nearless, redis, seed)
    value = redis.get(key)
    redis.set(key, damage(value))
    before = nearless.metric("foreseen_verify_failed_total", reason=reason)
    _, headers, body = nearless.post(FINGERPRINT, ask_fingerprint(numbers(seed)))
    assert digest_of(body) == fingerprint(numbers(seed))
    assert "hit" not in status_of(headers)
    assert nearless.metric("foreseen_verify_failed_total", reason=reason) - before == 1


def test_a_value_of_another_type_costs_no_answer(nearless: Live, redis: Redis) -> None:
    """A list where an entry should be: MGET says nothing is there, and the answer is right."""
    key = stored(nearless, redis, 300)
    redis.delete(key)
    redis.rpush(key, b"not", b"a", b"string")
    assert digest_of(nearless.post(FINGERPRINT, ask_fingerprint(numbers(300)))[2]) == fingerprint(numbers(300))
