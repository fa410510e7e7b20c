"""The usage of tenants in the state store → what `foreseen usage` prints."""

from __future__ import annotations

import asyncio

import orjson

from foreseen.errors import SetupError, StateUnavailable
from foreseen.paths import state_socket
from foreseen.settings import UsageSettings
from foreseen.stores.quota_store import connect_quota_store
from foreseen.stores.redis_urls import access_of, shown
from foreseen.tenants.usage import USAGE_KINDS, Usage
from foreseen.units import seconds_of


def answer(settings: UsageSettings) -> str:
    """What is printed. Raises SetupError where the store does not answer, or --since is no duration."""
    url = settings.state or f"unix://{state_socket(settings.data)}"
    try:
        seconds = seconds_of(settings.since, "h")
    except ValueError as error:
        raise SetupError(f"--since: {error}") from None
    try:
        usage = asyncio.run(_usage(settings, url, seconds))
    except StateUnavailable as error:
        raise SetupError(f"{shown(url)}: {error}; is the state store running?") from None
    if not settings.json:
        return _table(usage, settings.since)
    lines = [
        {"tenant": tenant, "model": model, **_numbers(counts)} for (tenant, model), counts in sorted(usage.items())
    ]
    return orjson.dumps({"since": settings.since, "usage": lines}).decode()


async def _usage(settings: UsageSettings, url: str, seconds: float) -> Usage:
    store = connect_quota_store(url, access_of(settings))
    try:
        return await store.usage(seconds, settings.tenant)
    finally:
        await store.close()


def _numbers(counts: list[float]) -> dict[str, float]:
    named = dict(zip(USAGE_KINDS, counts, strict=True))
    return {kind: round(value, 3) if kind.endswith("seconds") else int(value) for kind, value in named.items()}


def _table(usage: Usage, since: str) -> str:
    if not usage:
        return f"no usage of tenants in the last {since}"
    header = ("tenant", "model", "requests", "rows", "hits", "model s", "saved s")
    rows = [(tenant, model, *map(str, _numbers(counts).values())) for (tenant, model), counts in sorted(usage.items())]
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    lines = [
        "  ".join(_cell(text, width, left=at < 2) for at, (text, width) in enumerate(zip(row, widths, strict=True)))
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(text: str, width: int, *, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)
