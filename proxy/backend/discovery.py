"""A V2 server's address → its models as models of this proxy: found at start, followed while they change.

A model that appears there appears here; one whose rows prove independent is keyed by the row from then on; one
whose signature changes is another model under the same name. What is put in force is a new `ServedModel`, so that a
request that is under way ends under the manifest that it was decoded by.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import orjson
import structlog
from msgspec import structs

from foreseen.errors import SetupError
from foreseen.modelspec.manifest import Freshness, Manifest, find, names
from foreseen.proxy.backend.isolation import IsolationLock
from foreseen.proxy.backend.served import WATCH_SECONDS, WATCH_SECONDS_AT_START, ServedModel
from foreseen.proxy.backend.upstream import UpstreamMetadata, UpstreamProcess, told_of
from foreseen.proxy.cache.freshness import policy_of
from foreseen.settings import ProxySettings

log = structlog.get_logger()

START_SECONDS = 60.0
LOOK_SECONDS = 5.0
"""For models that are new there."""
_REQUEST_SECONDS = 5.0

Serve = Callable[[UpstreamMetadata], ServedModel]


class Upstream:
    """The models of one server. `names` are those to serve, none for all that it lists; `serve` makes one of ours."""

    def __init__(self, address: str, names: Sequence[str], serve: Serve, trials: IsolationLock | None = None) -> None:
        self.served: dict[str, ServedModel] = {}
        self.trials = trials or IsolationLock()
        self._address = address.rstrip("/")
        self._names = tuple(names)
        self._serve = serve
        self._refused: dict[str, str] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._client: aiohttp.ClientSession | None = None

    async def find(self) -> None:
        """Wait until the server tells its models, and serve them. Raises SetupError where it does not in time."""
        failure = "it did not answer"
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    try:
                        await self._look()
                    except SetupError as error:
                        failure = str(error)
                    except (aiohttp.ClientError, OSError, TimeoutError) as error:
                        failure = f"it cannot be reached ({type(error).__name__})"
                    else:
                        if self.served:
                            return
                        failure = "; ".join(self._refused.values()) or "it lists no model"
                    await asyncio.sleep(WATCH_SECONDS_AT_START)
        except TimeoutError:
            await self.close()
            raise SetupError(f"--upstream {self._address}: {failure}") from None

    async def follow(self) -> None:
        """Keep `served` as the server is, for ever."""
        try:
            while True:
                for name in self.served:
                    if name not in self._followers:
                        self._followers[name] = asyncio.create_task(self._follow(name))
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    await self._look()
                except (aiohttp.ClientError, OSError, TimeoutError, SetupError) as error:
                    log.debug("upstream not listed", upstream=self._address, error=type(error).__name__)
        finally:
            for task in self._followers.values():
                task.cancel()
            await self.close()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _look(self) -> None:
        """Serve what is not served yet."""
        for name in self._names or await self._listed():
            if name in self.served:
                continue
            try:
                one = self._serve(await self._told(name))
                await one.refresh()  # ready as soon as it is there
                self.served[name] = one
            except SetupError as error:
                if self._refused.get(name) != str(error):
                    log.warning("upstream model not served", model=name, why=str(error))
                self._refused[name] = str(error)

    async def _follow(self, name: str) -> None:
        """One model: its version, whether its rows may be keyed one by one, its signature."""
        for turn in itertools.count():
            one = self.served[name]
            await one.refresh()
            process = one.process
            assert isinstance(process, UpstreamProcess)
            if process.declared is None:
                await self._renew(name, one, process)
            if turn == 0 and one.facts is not None and one.facts.identity == "unobservable":
                log.warning(
                    "upstream: a change of this model would be unobservable; declare --upstream-digest", model=name
                )
            await asyncio.sleep(WATCH_SECONDS if one.ready and process.settled else WATCH_SECONDS_AT_START)

    async def _renew(self, name: str, one: ServedModel, process: UpstreamProcess) -> None:
        if process.told.manifest.model != one.manifest.model:
            new = self._serve(process.told)
            log.warning("upstream model has another signature", model=name)
        elif process.rows != one.manifest.rows:
            new = one.keyed(structs.replace(one.manifest, rows=process.rows))
            log.info("upstream rows", model=name, rows=process.rows, why=process.why)
        else:
            return
        await new.refresh()
        new.stats = one.stats
        self.served[name] = new
        if new.process is not process:
            await process.close()

    async def _listed(self) -> list[str]:
        """`/v2/models` where there is one (KServe, Foreseen), else Triton's repository index (Triton, MLServer)."""
        document = await self._json("GET", "/v2/models")
        if isinstance(document, dict) and isinstance(document.get("models"), list):
            listed = document["models"]
        else:
            listed = await self._json("POST", "/v2/repository/index", b"{}")
        if not isinstance(listed, list):
            raise SetupError("it does not list its models; name them with --model")
        names = [one.get("name") if isinstance(one, dict) else one for one in listed]
        return list(dict.fromkeys(name for name in names if isinstance(name, str)))

    async def _told(self, name: str) -> UpstreamMetadata:
        metadata = await self._json("GET", f"/v2/models/{name}")
        if not isinstance(metadata, dict):
            raise SetupError(f"model {name!r}: the upstream {self._address} has no metadata of it")
        return told_of(name, metadata)

    async def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        """A JSON reply, None where the server has none."""
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS))
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with self._client.request(method, self._address + path, data=body, headers=headers) as reply:
            content = await reply.read()
            if reply.status != 200:
                return None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            return None


async def upstream_of(settings: ProxySettings, defaults: Freshness) -> Upstream | None:
    """The upstream of the settings, its models found; None where there is none. Raises SetupError."""
    if settings.upstream is None:
        return None
    address, folders = settings.upstream, (settings.models,) if settings.models else ()
    if not address.startswith(("http://", "https://")):
        raise SetupError(f"--upstream {address}: is not http://host:port")

    trials = IsolationLock()

    def serve(told: UpstreamMetadata) -> ServedModel:
        known = told.manifest.name in names(folders)  # the manifests in the box are not of this server's models
        manifest = find(told.manifest.name, folders) if known else None
        return in_front_of(address, told, settings, defaults, manifest, trials)

    upstream = Upstream(address, settings.model, serve, trials)
    await upstream.find()
    return upstream


def in_front_of(
    address: str,
    told: UpstreamMetadata,
    settings: ProxySettings,
    defaults: Freshness,
    manifest: Manifest | None,
    trials: IsolationLock | None = None,
) -> ServedModel:
    """A model of somebody else's server; `manifest` is the operator's own word on it."""
    process = UpstreamProcess(
        told,
        address,
        manifest=manifest,
        digest=(manifest.digest if manifest is not None else None) or settings.upstream_digest,
        tolerance=settings.upstream_tolerance,
        probe=settings.upstream_probe,
        quarantine_seconds=settings.quarantine_seconds,
        trials=trials,
    )
    own = manifest or told.manifest
    return ServedModel(own, process, settings.data, policy_of(own.freshness, defaults))
