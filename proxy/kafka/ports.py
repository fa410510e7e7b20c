"""What the bridge needs of a broker: a member of a consumer group, and a producer. `client.py` and `producer.py` are
these on aiokafka; tests have others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from foreseen.proxy.kafka.messages import Incoming, Outgoing
from foreseen.proxy.predict.ask import RequestHead
from foreseen.proxy.predict.response_bytes import Reply

Place = tuple[str, int]
"""Topic and partition."""


class BrokerError(Exception):
    """The broker could not be reached, or refused; in one line."""


class RecordTooLarge(BrokerError):
    """The broker takes no record of this size; to try again would not help."""


class Processed(NamedTuple):
    """A message, what it came to, and in which word it is counted."""

    record: Incoming
    out: Outgoing
    outcome: str

    @property
    def place(self) -> Place:
        return self.record.topic, self.record.partition


class Consumer(Protocol):
    """A member of a consumer group; errors of the broker are `BrokerError`."""

    async def poll(self, timeout_ms: int, most: int) -> Sequence[Incoming]:
        """Messages of all partitions that are not paused, in their order."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def commit(self, offsets: Mapping[Place, int]) -> None: ...


class Producer(Protocol):
    """Sends records of any topics."""

    async def send(self, records: Sequence[Outgoing]) -> Sequence[BrokerError | None]:
        """What went wrong with each, None where all in-sync replicas have it. Where one fails, those behind it for the
        same partition fail too."""


class Transactions(Protocol):
    """The transactions of the messages of one partition."""

    async def start(self) -> None:
        """End what a process before this one has left open, and keep it from more. Raises BrokerError."""

    async def transact(self, records: Sequence[Outgoing], offset: int) -> None:
        """Send all of these and commit the offset, or neither. Raises BrokerError."""

    async def stop(self) -> None:
        """Abort what is open. Raises BrokerError."""


class Answers(Protocol):
    """The normal path of a request (`Responder`)."""

    def begin(self, head: RequestHead, body: bytes, reached: Callable[[Reply], None]) -> Reply | None:
        """The reply, or None where `reached` is called with it later."""

    def digest_of(self, head: RequestHead, body: bytes) -> str | None: ...


class KafkaOutbox(Protocol):
    """Sends what was processed, as it is put in."""

    commits: bool
    """Whether it commits offsets itself."""

    def put(self, one: Processed) -> None: ...

    async def run(self, delivered: Callable[[Processed], None]) -> None:
        """Send until cancelled; `delivered` is called for what the broker has. Raises BrokerError where the membership
        has to end."""

    async def assigned(self, places: Sequence[Place]) -> None: ...
    async def revoked(self, places: Sequence[Place]) -> None: ...
    async def close(self) -> None: ...
