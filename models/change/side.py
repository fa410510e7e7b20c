"""One side of a comparison: a model process or a V2 server, asked about the rows of a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct

from foreseen.errors import ModelUnavailable, SetupError
from foreseen.keys.key import space_key
from foreseen.keys.secret import read_secret
from foreseen.modelspec.manifest import Manifest
from foreseen.modelspec.prepare import Preparer
from foreseen.tenants.tenant import PUBLIC
from foreseen.types import Key, Prediction, Space
from foreseen.warm.model.client import V2Client
from foreseen.warm.model.model_rows import ModelRows, Rows
from foreseen.warm.plan import Plan
from foreseen.warm.read.chunk import Batch
from foreseen.warm.read.keys import Keyer, given_of
from foreseen.warm.run.via_proxy import manifest_of
from foreseen.warm.run.warmer import preparer_of

SECRET_BYTES = 32


class SideAnswers(Struct, frozen=True):
    """The answers to a batch. `keys[i]` is empty where row i cannot be asked at all."""

    keys: list[bytes]
    answers: Mapping[Key, Prediction]


class AskedSide:
    """One side of a comparison at a known address."""

    def __init__(self, plan: Plan, address: str, label: str, preparer: Preparer, *, checked: bool) -> None:
        self.plan, self.label = plan, label
        self._model = ModelRows(plan, address, checked=checked)
        space = Space(plan.scope, plan.manifest.name, plan.digest, plan.generation or 0)
        self._keyer = Keyer(plan.manifest, preparer, space_key(_root(plan.data), space))

    @property
    def manifest(self) -> Manifest:
        return self.plan.manifest

    def answers(self, batch: Batch) -> SideAnswers:
        """Equal rows are sent once. Raises SetupError if the server is down for too long."""
        bad: dict[int, str] = {}
        keys: list[bytes] = [b""] * batch.num_rows
        waiters: Rows = {}
        for given in given_of(batch, self.manifest, self.plan.inputs, bad):
            for part in self._keyer.keyed(given, bad):
                for i, (place, key) in enumerate(zip(part.places.tolist(), part.keys, strict=True)):
                    keys[place] = key
                    if key not in waiters:
                        waiters[key] = part.row(i), part.parameters[i] if part.parameters else b""
        made, _ = self._model.ask(list(waiters), waiters)
        return SideAnswers(keys, made)

    def close(self) -> None:
        self._model.close()


def digest_at(address: str, model: str, patience_seconds: float = 0.0) -> str:
    """The model digest that a model process reports. Raises SetupError."""
    return str(described(address, model, patience_seconds).get("parameters", {}).get("digest", ""))


def described(address: str, model: str, patience_seconds: float = 0.0) -> dict[str, Any]:
    """The metadata of a model at a V2 server. Raises SetupError."""
    with closing(V2Client(address, model, patience_seconds)) as client:
        try:
            return client.metadata()
        except ModelUnavailable as error:
            raise SetupError(str(error)) from None


def artifact_side(manifest: Manifest, address: str, label: str, data: Path, inputs: dict[str, str]) -> AskedSide:
    """Foreseen's own model process: inputs are prepared here, and every answer reports the digest."""
    digest = digest_at(address, manifest.name)
    plan = Plan(manifest=manifest, scope=PUBLIC, digest=digest, data=data, inputs=inputs, generation=0)
    return AskedSide(plan, address, label, preparer_of(manifest, data), checked=True)


def server_side(address: str, model: str, label: str, data: Path, inputs: dict[str, str]) -> AskedSide:
    """Any V2 server, or a proxy: requests follow its metadata."""
    manifest = manifest_of(described(address, model), model)
    plan = Plan(manifest=manifest, scope=PUBLIC, digest="", data=data, inputs=inputs, generation=0)
    return AskedSide(plan, address, label, Preparer(manifest, {}), checked=False)


def _root(data: Path) -> bytes:
    """The root secret, so that keys are those of the cache; without one they only tell rows apart."""
    try:
        return read_secret(data / "secret")
    except SetupError:
        return bytes(SECRET_BYTES)
