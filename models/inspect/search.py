"""A graph → the sizes, numbers and texts that it takes, found by experiment: a signature does not contain them.

A convolution needs pictures of a least size or of a multiple of 32, an embedding needs ids below its vocabulary, an
encoder of categories needs a known one. The findings become `[samples]` of the manifest.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec.structs import replace
from onnx import ModelProto, NodeProto

from foreseen.modelspec.manifest import BATCH, Manifest, ModelInput
from foreseen.modelspec.manifest.hints import Samples
from foreseen.protocol.datatypes import DATATYPES

Tries = Callable[[Manifest], str | None]
"""Whether the graph takes random rows of a manifest: None, or its error."""

SIZES = (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 224, 256, 320, 384, 512, 640, 1024, 4096, 16000)
FEW = (1, 4, 16, 32, 64, 224, 640)  # where several sizes are tried with each other
VALUES: dict[str, tuple[tuple[float, float], ...]] = {
    "i": ((0, 10), (0, 2), (1, 2), (0, 1)),
    "f": ((0.0, 1.0), (1.0, 2.0), (0.0, 255.0)),
}
TEXTS = (("1", "2", "3.5"), ("a", "b", ""), ("2020-01-02", "1999-12-31"))
MOST_ELEMENTS = 4_000_000  # of one made-up row's input: larger ones take gigabytes in the middle of a graph
MOST_KNOWN = 50  # categories of an encoder
WANTED_SIZES = 4
SEARCH_SECONDS = 90.0


def found(manifest: Manifest, graph: ModelProto, tries: Tries) -> tuple[Samples, str | None]:
    """Hints with which the graph takes random rows; where there are none, its error for the first ones."""
    shown = next(_guesses(manifest, graph))
    first = tries(replace(manifest, samples=shown))
    if first is None:
        return shown, None
    until = time.monotonic() + SEARCH_SECONDS
    for hints in _guesses(manifest, graph):
        if time.monotonic() > until:
            break
        if tries(replace(manifest, samples=hints)) is None:
            return _more_sizes(replace(manifest, samples=hints), tries, until), None
    return manifest.samples, first


def _guesses(manifest: Manifest, graph: ModelProto) -> Iterator[Samples]:
    """Contents at the given sizes first, then sizes with the contents that are likeliest, then both."""
    base = manifest.samples
    contents = list(_contents(manifest, graph))
    yield from (_joined(base, content) for content in contents)
    sizes = [] if base.sizes else list(_sizes(manifest))
    for content in contents[:1] if len(sizes) > len(SIZES) else contents:
        yield from (_joined(base, replace(content, sizes=size)) for size in sizes)
    for content in contents[1:]:
        yield from (_joined(base, replace(content, sizes=size)) for size in sizes)


def _joined(given: Samples, guess: Samples) -> Samples:
    """Hints of the manifest or of the flags are kept."""
    return Samples(guess.sizes | given.sizes, guess.values | given.values, guess.texts | given.texts)


def _contents(manifest: Manifest, graph: ModelProto) -> Iterator[Samples]:
    """Numbers and texts for the inputs: first what the graph implies, then each usual range for all inputs."""
    keyed = manifest.model.keyed
    shown = {name: (0.0, float(top)) for name, top in vocabularies(graph).items() if top < 100}
    words = categories(graph)
    texts = {spec.name: words for spec in keyed if spec.datatype == "BYTES" and words}
    yield Samples(values=shown, texts=texts)
    integers, floats = (_of_kind(keyed, kind) for kind in "if")
    strings = [spec.name for spec in keyed if spec.datatype == "BYTES"]
    for whole, real, text in itertools.product(
        VALUES["i"] if integers else ((0, 10),),
        (None, *VALUES["f"]) if floats else (None,),
        ((), *TEXTS) if strings else ((),),
    ):
        values = dict.fromkeys(integers, whole) | (dict.fromkeys(floats, real) if real is not None else {})
        yield Samples(values=values | shown, texts=dict.fromkeys(strings, text) if text else texts)


def _of_kind(keyed: Sequence[ModelInput], kind: str) -> list[str]:
    return [spec.name for spec in keyed if DATATYPES[spec.datatype].kind == kind]


def _sizes(manifest: Manifest) -> Iterator[dict[str, tuple[int, ...]]]:
    """One size for all named dimensions, then a size for each."""
    named = sorted({d for spec in manifest.model.keyed for d in spec.shape if isinstance(d, str) and d != BATCH})
    if not named:
        return
    guesses = [dict.fromkeys(named, size) for size in SIZES]
    if 1 < len(named) <= 3:
        mixed = itertools.product(SIZES if len(named) == 2 else FEW, repeat=len(named))
        guesses += [dict(zip(named, sizes, strict=True)) for sizes in mixed if len(set(sizes)) > 1]
    for guess in guesses:
        if _elements(manifest, guess) <= MOST_ELEMENTS:
            yield {name: (size,) for name, size in guess.items()}


def _elements(manifest: Manifest, sizes: Mapping[str, int]) -> int:
    """Of the largest input of a row."""
    shapes = [[sizes.get(d, 2) if isinstance(d, str) else d for d in spec.shape] for spec in manifest.model.keyed]
    return max(math.prod(shape) for shape in shapes)


def _more_sizes(manifest: Manifest, tries: Tries, until: float) -> Samples:
    """The hints with some more sizes that the graph takes: rows of one size would hide what padding does."""
    hints = manifest.samples
    if not hints.sizes or any(len(sizes) > 1 for sizes in hints.sizes.values()):
        return hints
    base = {name: sizes[0] for name, sizes in hints.sizes.items()}
    taken = [base]
    for changed in (tuple(base), *((name,) for name in base)):
        for size in SIZES:
            guess = base | dict.fromkeys(changed, size)
            if guess in taken or len(taken) > WANTED_SIZES or time.monotonic() > until or size > 4 * max(base.values()):
                continue
            one = replace(hints, sizes={name: (n,) for name, n in guess.items()})
            if tries(replace(manifest, samples=one)) is None:
                taken.append(guess)
    return replace(hints, sizes={name: tuple(guess[name] for guess in taken) for name in base})


def vocabularies(graph: ModelProto) -> dict[str, int]:
    """Input of ids → how many rows the table has that they are looked up in."""
    tables = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    names = {value.name: value.name for value in graph.graph.input}
    found_: dict[str, int] = {}
    for node in graph.graph.node:
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape") and node.input[0] in names:
            names[node.output[0]] = names[node.input[0]]
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in names:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            top, name = int(tables[node.input[0]][axis]), names[node.input[1]]
            found_[name] = min(top, found_.get(name, top))
    return found_


def categories(graph: ModelProto) -> tuple[str, ...]:
    """The strings that encoders in the graph know."""
    known: dict[str, None] = {}
    for node in graph.graph.node:
        known |= dict.fromkeys(_strings(node))
    return tuple(known)[:MOST_KNOWN]


def _strings(node: NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        if attribute.name in ("keys_strings", "cats_strings", "pool_strings", "string_vocabulary"):
            for item in attribute.strings:
                yield item.decode(errors="ignore")


def given_values(ranges: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`NAME=LOW,HIGH` of the command line. Raises ValueError with what is wrong."""
    values = {}
    for said in ranges:
        name, _, numbers = said.rpartition("=")
        low, _, high = numbers.partition(",")
        try:
            values[name] = (float(low), float(high))
        except ValueError:
            raise ValueError(f"--values {said}: is not NAME=LOW,HIGH") from None
        if not name or not values[name][0] < values[name][1]:
            raise ValueError(f"--values {said}: is not NAME=LOW,HIGH")
    return values


def given_sizes(dims: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`NAME=SIZE[,SIZE…]` of the command line. Raises ValueError with what is wrong."""
    sizes: dict[str, tuple[int, ...]] = {}
    for dim in dims:
        name, _, numbers = dim.partition("=")
        if not name or not all(number.isdigit() for number in numbers.split(",")):
            raise ValueError(f"--dim {dim}: is not NAME=SIZE or NAME=SIZE,SIZE")
        sizes[name] = tuple(int(number) for number in numbers.split(","))
    longest = max(map(len, sizes.values()), default=0)
    return {name: tuple(listed[at % len(listed)] for at in range(longest)) for name, listed in sizes.items()}
