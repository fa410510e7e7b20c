"""scikit-learn's handwritten digits → a small classifier, trained here in integers: the same on every machine.

64 pixels of 0…16, a hidden layer of 256 fixed random features (Huang et al. 2006, "extreme learning machine"), and an
averaged multiclass perceptron on top (Freund & Schapire 1999). All sums stay below 2²⁴, so the fp32 graph computes them
exactly in any order: no batch can change a bit, and the artifact digest is the same everywhere. The manifest rounds
pixels to integers for the same reason.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from onnx import ModelProto

from foreseen.models.graphs.graph import Graph
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Array, Row

PIXELS, HIDDEN, CLASSES = 64, 256, 10
ROUNDS = 20
SEED = 1
HELD_BACK = 5  # every fifth picture is never trained on
LARGEST_WEIGHT = 1000  # averaged weights are rounded to this range: worst sum 7.3 million, exact in fp32 up to 16.7
LARGEST_BIAS = 40
ONE = 16.0  # the constant feature, as large as a full pixel
SHARPNESS = 2.0**-14  # logits → softmax; a power of two, so that it is exact


def make(manifest: Manifest, folder: Path) -> ModelProto:
    """`pixels` FP32 [rows, 64] → `probabilities` FP32 [rows, 10]."""
    del folder  # the data travel with scikit-learn
    features, biases = _features()
    pixels, labels, held_back = _pictures()
    weights = _trained(_hidden(pixels[~held_back], features, biases), labels[~held_back])
    graph = Graph()
    mixed = graph.add("MatMul", "pixels", graph.constant("features", features.astype(np.float32)))
    hidden = graph.add("Relu", graph.add("Add", mixed, graph.constant("biases", biases.astype(np.float32))))
    scores = graph.add("MatMul", hidden, graph.constant("weights", weights[:-1].astype(np.float32)))
    logits = graph.add("Add", scores, graph.constant("offsets", (weights[-1] * ONE).astype(np.float32)))
    graph.add("Softmax", graph.add("Mul", logits, graph.number(SHARPNESS)), axis=-1, name="probabilities")
    return graph.model(manifest.model)


def truth() -> tuple[list[Row], Array]:
    """The pictures that were held back, and their labels."""
    pixels, labels, held_back = _pictures()
    return [Row((row.astype(np.float32),)) for row in pixels[held_back]], labels[held_back]


def _pictures() -> tuple[Array, Array, Array]:
    """Pixels INT64 [n, 64], labels INT64 [n], which are held back BOOL [n]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data.astype(np.int64), data.target.astype(np.int64), np.arange(len(data.target)) % HELD_BACK == 0


def _features() -> tuple[Array, Array]:
    """Random directions INT64 [64, 256] of −1, 0 and 1, and biases INT64 [256]; Python's generator is stable."""
    chance = random.Random(SEED)  # noqa: S311 - wanted: the same everywhere
    features = [[chance.choice((-1, 0, 0, 1)) for _ in range(HIDDEN)] for _ in range(PIXELS)]
    biases = [chance.randint(-LARGEST_BIAS, LARGEST_BIAS) for _ in range(HIDDEN)]
    return np.array(features, np.int64), np.array(biases, np.int64)


def _hidden(pixels: Array, features: Array, biases: Array) -> Array:
    """INT64 [n, 257]: the features and the constant one."""
    mixed = np.maximum(pixels @ features + biases, 0)
    return np.concatenate([mixed, np.full((len(mixed), 1), int(ONE), np.int64)], axis=1)


def _trained(hidden: Array, labels: Array) -> Array:
    """Averaged perceptron weights, INT64 [257, 10], rounded to ±1000."""
    chance = random.Random(SEED)  # noqa: S311 - wanted: the same everywhere
    weights = np.zeros((hidden.shape[1], CLASSES), np.int64)
    total = np.zeros_like(weights)
    order = list(range(len(hidden)))
    for _ in range(ROUNDS):
        chance.shuffle(order)
        for i in order:
            said = int(np.argmax(hidden[i] @ weights))
            if said != labels[i]:
                weights[:, labels[i]] += hidden[i]
                weights[:, said] -= hidden[i]
            total += weights
    rounded: Array = total * LARGEST_WEIGHT // int(np.abs(total).max())
    return rounded
