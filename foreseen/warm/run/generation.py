"""The generation of one model's key space, from the state store: no proxy looks up entries of an older one.

A purge raises it. A long-lived warmer reads it again, so that proxies find what it writes after a purge.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from foreseen.errors import SetupError, StateUnavailable
from foreseen.paths import state_socket
from foreseen.settings import StoreSettings
from foreseen.stores.redis_urls import access_of
from foreseen.stores.state import generation_of, read_generations
from foreseen.warm.plan import Plan

AGAIN_SECONDS = 1.0
"""The state store is asked at most so often; each time takes a connection of its own, some milliseconds."""


class SpaceGenerations:
    """The current generation of a plan's entries."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._address = None if plan.generation is not None else state_address(plan)
        self._known: int | None = 0 if self._address is None else None
        self._asked_at = 0.0
        self._lock = threading.Lock()

    def current(self) -> int:
        """Raises SetupError where it is not known. A store that goes away later takes no purge either: what it said
        last counts."""
        if self._plan.generation is not None:
            return self._plan.generation
        with self._lock:
            if self._address is not None and time.monotonic() > self._asked_at + AGAIN_SECONDS:
                self._known = self._asked(self._address, self._known)
                self._asked_at = time.monotonic()
            assert self._known is not None
            return self._known

    def _asked(self, address: str, known: int | None) -> int:
        plan = self._plan
        try:
            access = access_of(
                StoreSettings(
                    redis_ca_file=plan.redis_ca_file,
                    sentinel_user=plan.sentinel_user,
                    sentinel_password_file=plan.sentinel_password_file,
                )
            )
            with ThreadPoolExecutor(1) as thread:  # the caller may run an event loop, as notebooks do
                found = thread.submit(read_generations, address, access).result()
        except StateUnavailable:
            if known is not None:
                return known
            raise SetupError(
                "the state store does not answer, so purges are not known; start it (foreseen up), or give --state"
            ) from None
        return generation_of(found, plan.scope, plan.manifest.name, plan.digest)


def state_address(plan: Plan) -> str | None:
    """The address of the generations; None if purges are off. Raises SetupError if neither is known."""
    own = state_socket(plan.data)
    if plan.state is not None:
        return None if plan.state == "none" else plan.state
    if own.exists():
        return f"unix://{own}"
    if plan.redis is not None:
        raise SetupError(
            "--redis is given without a state store, so purges are not known; give --state of the proxies, or "
            "--state none if they have none"
        )
    return None
