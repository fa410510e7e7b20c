"""Metadata of topics and of a group from brokers: whether they exist, and the user's rights (KIP-430).

Nothing is written, joined or created by asking. aiokafka knows the request only up to version 5; rights come with 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from foreseen.proxy.kafka.client import access, spoken
from foreseen.proxy.kafka.cluster import UNKNOWN, ClusterState, TopicState
from foreseen.settings import BrokerSettings

TIMEOUT_MS = 5000


class MetadataResponse(Response):  # type: ignore[misc]
    """Version 8."""

    API_KEY, API_VERSION = 3, 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8")))),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", Array(Int32)), ("isr", Array(Int32)), ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )  # fmt: skip


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION = 3, 8
    RESPONSE_TYPE = MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]
    """Topics with the rights on them; brokers since Kafka 2.3 know it."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(self._topics, False, False, True)


async def cluster_state(settings: BrokerSettings, topics: Sequence[str]) -> ClusterState:
    """Ask the brokers. Raises BrokerError, SetupError."""
    client = AIOKafkaClient(**access(settings), request_timeout_ms=TIMEOUT_MS, client_id="foreseen-doctor")
    try:
        await spoken(client.bootstrap())
        node = client.get_random_node()
        answer = (await spoken(client.send(node, _MetadataRequest(topics)))).to_object()
        found = {one["topic"]: _topic(one) for one in answer["topics"]}
        rights, error = await _group(client, settings.group) if settings.group else (None, None)
        return ClusterState(len(answer["brokers"]), found, rights, error)
    finally:
        await client.close()


def _topic(one: dict[str, Any]) -> TopicState:
    return TopicState(len(one["partitions"]), _named(one["error_code"]), _known(one["authorized_operations"]))


async def _group(client: AIOKafkaClient, group: str) -> tuple[int | None, str | None]:
    """The rights on a group, from its coordinator."""
    found = await spoken(client.send(client.get_random_node(), FindCoordinatorRequest(group, 0)))
    if error := _named(found.error_code):
        return None, error
    node = found.coordinator_id
    asked = DescribeGroupsRequest([group], include_authorized_operations=True)
    await spoken(client.ready(node))
    answer = (await spoken(client.send(node, asked))).to_object()
    (one,) = answer["groups"]
    return _known(one.get("authorized_operations", UNKNOWN)), _named(one["error_code"])


def _known(operations: int) -> int | None:
    return None if operations == UNKNOWN else operations


def _named(code: int) -> str | None:
    return None if code == 0 else str(for_code(code).__name__)
