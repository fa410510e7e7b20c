"""Compares a sample of given predictions with the model's own before anything is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.protocol.tensors import array_of_raw
from foreseen.types import Array, Prediction
from foreseen.warm.read.reader import Chunk
from foreseen.warm.run.warm_worker import check_rows
from foreseen.warm.run.warmer import Warmer
from foreseen.warm.write.importer import given_outputs

TOLERANCE = 1e-3
"""How far a verified output of a model that is not declared exact may be off, absolutely or relatively."""


class Sample:
    """Draws a share of the rows and has the model compute them."""

    def __init__(self, warmer: Warmer, share: float, seed: int) -> None:
        self._warmer, self._share = warmer, share
        self._dice = np.random.default_rng(seed)
        self._checked = 0

    def hold(self, url: str, chunks: Iterable[Chunk]) -> None:
        """One file. Raises SetupError on the first mismatch."""
        plan = self._warmer.plan
        for chunk in chunks:
            check_rows(chunk, url, plan)
            places = np.flatnonzero(self._dice.random(chunk.batch.num_rows) < self._share).tolist()
            if self._checked == 0 and not places:
                places = [0]
            bad: dict[int, str] = {}
            given = given_outputs(chunk.batch, plan, bad)
            said = self._warmer.predicted(chunk.batch, [place for place in places if place not in bad])
            for place, prediction in said.items():
                name = _mismatch([np.asarray(column[place]) for column in given], prediction, plan.manifest)
                if name is not None:
                    raise SetupError(
                        f"row {chunk.line(place)} of {url}: {name} is not what the model computes; nothing "
                        "was imported; predict it again with the model in force"
                    )
            self._checked += len(said)


def _mismatch(given: Sequence[Array], said: Prediction, manifest: Manifest) -> str | None:
    """The output that differs: in any bit for models declared exact, by more than rounding for others."""
    for array, head, raw in zip(given, said.outputs, said.data, strict=True):
        datatype = DATATYPES[head.datatype]
        own = array_of_raw(raw, datatype, head.shape, head.name)
        if array.shape != own.shape:
            return head.name
        near = datatype.kind == "f" and not manifest.exact
        same = np.allclose(array, own, TOLERANCE, TOLERANCE) if near else np.array_equal(array, own)
        if not same:
            return head.name
    return None
