"""What `foreseen up` prints before its ready line: the sizes of the caches, their place, and the listening address."""

from __future__ import annotations

from collections.abc import Sequence

from foreseen.keys.entry import FAR_OVERHEAD_BYTES, NEAR_OVERHEAD_BYTES
from foreseen.modelspec.manifest import Manifest
from foreseen.protocol.datatypes import DATATYPES
from foreseen.settings import UpSettings
from foreseen.stores.redis_urls import shown


def defaults_in_force(settings: UpSettings, models: Sequence[Manifest], url: str) -> str:
    """A line each for near, far, the address and the data directory."""
    far = f"{_size(settings.far_bytes)}, embedded Valkey, LFU" if settings.redis is None else shown(settings.redis)
    reach = "this machine only" if settings.host in ("127.0.0.1", "localhost", "::1") else "every host that reaches it"
    near = f"{_size(settings.near_bytes)} per worker × {settings.workers}"
    lines = [
        f"near     {near}: {_held(models, settings.near_bytes, NEAR_OVERHEAD_BYTES)}",
        f"far      {far}"
        + (f": {_held(models, settings.far_bytes, FAR_OVERHEAD_BYTES)}" if settings.redis is None else ""),
        f"binding  {url} ({reach})",
        *([] if settings.grpc_port is None else [f"grpc     {settings.host}:{settings.grpc_port}"]),
        f"data     {settings.data.resolve()}",
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _held(models: Sequence[Manifest], capacity: int, overhead: int) -> str:
    """How many rows of each model fit, as far as their outputs have a fixed size."""
    held = []
    for manifest in models:
        size = overhead
        for output in manifest.model.outputs:
            dims = [dim for dim in output.shape[1:] if isinstance(dim, int)]
            elements = 1
            for dim in dims:
                elements *= dim
            size += elements * max(1, DATATYPES[output.datatype].size)
        held.append(f"about {capacity // size:,} rows of {manifest.name}")
    return ", ".join(held) or "the upstream's rows, as many as fit"
