"""What brokers say of topics and of a group, and what this user may do with them."""

from __future__ import annotations

from msgspec import Struct

READ, WRITE = 3, 4
"""Kafka's AclOperation, which are bits of `authorized_operations`."""
UNKNOWN = -(2**31)


class TopicState(Struct, frozen=True):
    """What the brokers say of a topic. `rights` is None where they do not tell."""

    partitions: int
    error: str | None
    rights: int | None

    def may(self, operation: int) -> bool:
        return self.rights is None or bool(self.rights >> operation & 1)


class ClusterState(Struct, frozen=True):
    """Brokers, the topics that were asked for, and the group's rights or the error that its brokers answer."""

    brokers: int
    topics: dict[str, TopicState]
    group_rights: int | None
    group_error: str | None

    def may_read_group(self) -> bool:
        return self.group_rights is None or bool(self.group_rights >> READ & 1)
