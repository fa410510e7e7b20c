"""fp32 outputs → a head that gives every row a label, so that a changed answer can be counted.

A model whose output has `labels` in the manifest decides by its own largest value, where that differs between rows. All
others get k-means centres fitted on their fp32 vectors: fixed seed, numpy only, so the figures exist on every machine.
"""

from __future__ import annotations

import numpy as np

from foreseen.models.measure.check import Head
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Array

CENTRES = 77  # as many as BANKING77 has intents, the set of labels that the figures are compared with
ROUNDS = 25  # Lloyd's iterations; far past convergence for 1,000 vectors
COMMONEST = 0.95  # share of the commonest label up to which a model's own head tells candidates apart
ROWS_PER_CENTRE = 6  # fewer rows get fewer centres


def head_of(manifest: Manifest, fp32: Array, seed: int = 1) -> Head:
    """The model's own head, or the seeded k-means head. `fp32` FP64 [n, k]: the vectors to fit on.

    Rows that the build makes can all fall into one class (every blob of colour is safe for work): agreement would be
    100 % whatever a candidate did, so k-means centres separate them instead.
    """
    first = manifest.model.outputs[0].name
    labels = any(output.name == first and output.labels for output in manifest.seen.outputs)
    if labels and np.bincount(largest(fp32)).max() <= COMMONEST * len(fp32):
        return largest
    return nearest(centres(fp32, max(1, min(CENTRES, len(fp32) // ROWS_PER_CENTRE)), seed))


def largest(vectors: Array) -> Array:
    labels: Array = vectors.argmax(axis=1)
    return labels


def nearest(middles: Array) -> Head:
    """The head that labels a vector with its nearest centre. `middles` FP64 [c, k]."""
    lengths = np.einsum("ij,ij->i", middles, middles)

    def head(vectors: Array) -> Array:
        labels: Array = (lengths - 2 * vectors @ middles.T).argmin(axis=1)
        return labels

    return head


def centres(vectors: Array, count: int, seed: int) -> Array:
    """Lloyd's k-means from a seeded draw of the rows; a centre that loses all its rows is not moved."""
    chance = np.random.default_rng(seed)
    middles = vectors[chance.choice(len(vectors), count, replace=False)].astype(np.float64)
    for _ in range(ROUNDS):
        labels = nearest(middles)(vectors)
        for label in np.unique(labels):
            middles[label] = vectors[labels == label].mean(axis=0)
    return middles
