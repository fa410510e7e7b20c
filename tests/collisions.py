"""XXH3 collisions among valid float tensors, built from the algorithm's own arithmetic.

For inputs above 240 bytes XXH3 walks blocks of 16 stripes of 8 lanes; each lane adds, modulo 2^64,
`acc[i^1] += data; acc[i] += lo32(data ^ secret) * hi32(data ^ secret)`. 64- and 128-bit outputs fold the same sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a"
    "51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8f"
    "f8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
LOW, MASK = 2**32 - 1, 2**64 - 1
STRIPES, LANES = 16, 8


def secret_word(stripe: int, lane: int) -> int:
    at = 8 * stripe + 8 * lane
    return int.from_bytes(SECRET[at : at + 8], "little")


def words(tensor: np.ndarray) -> np.ndarray:
    """The first block of a float32 tensor as [stripe, lane] words."""
    return np.frombuffer(tensor.tobytes(), "<u8")[: STRIPES * LANES].reshape(STRIPES, LANES).copy()


def with_words(tensor: np.ndarray, changed: dict[tuple[int, int], int]) -> np.ndarray:
    made = np.frombuffer(tensor.tobytes(), "<u8").copy()
    for (stripe, lane), value in changed.items():
        made[stripe * LANES + lane] = value
    return made.view("<f4").reshape(tensor.shape)


def finite(*values: int) -> bool:
    return bool(np.isfinite(np.array(values, "<u8").view("<f4")).all())


def chosen_pair(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two finite tensors that differ in two floats of one lane and have one hash.

    Where the low half equals the secret's the product is 0 whatever the high half; what one high half gains, the other
    loses.
    """
    for lane in range(LANES):
        for one, two in itertools.combinations(range(STRIPES), 2):
            low = [secret_word(stripe, lane) & LOW for stripe in (one, two)]
            high = [0x3F800000, 0x40000000]  # 1.0 and 2.0
            before = [h << 32 | w for h, w in zip(high, low, strict=True)]
            after = [(high[0] + 5) << 32 | low[0], (high[1] - 5) << 32 | low[1]]
            if finite(*before, *after):
                places = [(one, lane), (two, lane)]
                return (
                    with_words(tensor, dict(zip(places, before, strict=True))),
                    with_words(tensor, dict(zip(places, after, strict=True))),
                )
    raise AssertionError("no finite pair")


def second_preimage(tensor: np.ndarray) -> np.ndarray:
    """Another finite tensor with the hash of a given one: five words of one lane are solved for in closed form."""
    given = words(tensor)
    for lane, stripes in _places():
        keys = [secret_word(stripe, lane) for stripe in stripes]
        data = [int(given[stripe, lane]) for stripe in stripes]
        product = sum(((d ^ k) & LOW) * ((d ^ k) >> 32) for d, k in zip(data, keys, strict=True)) & MASK
        a = product % 2**31
        rest = (product - a) >> 31
        b = min(rest, LOW)
        c = rest - b
        if c > LOW:
            continue
        made = [x ^ k for x, k in zip((a << 32 | 1, b << 32 | 2**31, c << 32 | 2**31), keys[:3], strict=True)]
        left = (sum(data) - sum(made)) & MASK
        low = (left - (keys[3] & LOW)) & LOW
        high = (((left - (keys[3] & LOW) - low) >> 32) - (keys[4] >> 32)) & LOW
        made += [high << 32 | (keys[3] & LOW), (keys[4] >> 32) << 32 | low]
        if finite(*made) and made != data:
            return with_words(tensor, {(s, lane): value for s, value in zip(stripes, made, strict=True)})
    raise AssertionError("no finite second preimage")


def seeded_pair(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two finite tensors that collide under about 1.5 % of all seeds: the sign of two floats of one lane is flipped.

    The data sum changes by 2^64; the products cancel where both low halves, XORed with the seeded secret, are equal.
    """
    low = 0x3F000000
    before = [0x3F800000 << 32 | low, 0x3F800000 << 32 | (low ^ 0x0A0A0410)]
    after = [value ^ 1 << 63 for value in before]
    places = [(0, 0), (12, 0)]
    return (
        with_words(tensor, dict(zip(places, before, strict=True))),
        with_words(tensor, dict(zip(places, after, strict=True))),
    )


def _places() -> Iterator[tuple[int, tuple[int, ...]]]:
    for lane in range(LANES):
        for stripes in itertools.combinations(range(STRIPES), 5):
            for turned in range(5):
                yield lane, stripes[turned:] + stripes[:turned]
