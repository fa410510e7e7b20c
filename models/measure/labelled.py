"""Two CSV files of labelled texts → questions with a logistic-regression head fitted on fp32 embeddings.

This is how a sentence encoder is used, so label agreement means here what it means in production.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from msgspec import Struct

from foreseen.errors import SetupError
from foreseen.models.measure import check
from foreseen.models.measure.gate import runs_alone
from foreseen.models.measure.graph_run import GraphSession
from foreseen.models.measure.samples import tokenized
from foreseen.modelspec.manifest import Manifest
from foreseen.types import Array, Row

BATCH_ROWS = 32
ITERATIONS = 2000  # lbfgs on 10,003 × 384 with 77 classes stops after about 200

_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


class Files(Struct, frozen=True):
    """CSV files with the columns `text` and `label`, plain or packed (.gz, .xz, .bz2)."""

    train: Path
    test: Path

    @property
    def tag(self) -> str:
        """Names the pair by content, for the report's file name."""
        return hashlib.sha256(self.train.read_bytes() + b"|" + self.test.read_bytes()).hexdigest()[:12]


def questions(
    manifest: Manifest, folder: Path, fp32: GraphSession, files: Files
) -> tuple[list[Row], Array, check.Head, str]:
    """Rows and true labels of the test file, the head fitted on the training file, and that in words."""
    train_texts, train_labels = read(files.train)
    test_texts, test_labels = read(files.test)
    numbers = {label: number for number, label in enumerate(sorted({*train_labels, *test_labels}))}
    head = fitted(
        embedded(fp32, tokenized(manifest, folder, train_texts), 1 if runs_alone(manifest) else BATCH_ROWS),
        [numbers[label] for label in train_labels],
    )
    what = (
        f"{len(test_texts)} texts of {files.test.name}, logistic regression on {len(train_texts)} of {files.train.name}"
    )
    rows = tokenized(manifest, folder, test_texts)
    return rows, np.array([numbers[label] for label in test_labels]), head, what


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels. Raises SetupError naming the file."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        if not lines:
            raise ValueError("no rows")
        return [line["text"] for line in lines], [line["label"] for line in lines]
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror or error}") from None
    except (KeyError, ValueError, csv.Error):
        raise SetupError(f"{path}: is not a CSV file with the columns text and label") from None


def embedded(session: GraphSession, rows: list[Row], most: int) -> Array:
    """Vectors in the rows' order, FP64 [n, k], computed in batches of at most `most` neighbours in length."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].tensors[0].size)
    made: list[Array | None] = [None] * len(rows)
    for start in range(0, len(order), most):
        members = order[start : start + most]
        got = check.vectors(session.run([rows[i] for i in members]), session.signature)
        for i, vector in zip(members, got, strict=True):
            made[i] = vector
    return np.stack([vector for vector in made if vector is not None])


def fitted(vectors: Array, labels: list[int]) -> check.Head:
    """Logistic regression with scikit-learn's defaults."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=ITERATIONS).fit(vectors, labels)

    def head(others: Array) -> Array:
        found: Array = model.predict(others)
        return found

    return head
