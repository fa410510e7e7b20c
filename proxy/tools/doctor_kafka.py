"""Checks of what `foreseen kafka` needs: brokers, topics, the group, and the rights on them. Nothing is written."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator

from foreseen.errors import SetupError
from foreseen.proxy.kafka.cluster import READ, WRITE, ClusterState, TopicState
from foreseen.proxy.kafka.ports import BrokerError
from foreseen.proxy.tools.finding import Finding
from foreseen.settings import DoctorSettings

TOO_FEW_PARTITIONS = 2


async def kafka(settings: DoctorSettings) -> AsyncIterator[Finding]:
    """Whether the brokers answer, the topics are there, and this user may read and write them."""
    if importlib.util.find_spec("aiokafka") is None:
        yield Finding("must", "kafka", "--brokers needs the extra kafka", "pip install 'foreseen[kafka]'")
        return
    from foreseen.proxy.kafka.rights import cluster_state

    wanted = [topic for topic in (settings.topic, settings.reply_topic, settings.dead_letter_topic) if topic]
    try:
        state = await cluster_state(settings, wanted)
    except SetupError as error:
        yield Finding("must", "kafka", str(error), "mend the setting")
        return
    except BrokerError as error:
        fix = "start the brokers, or mend --brokers, --security-protocol, user or password"
        yield Finding("must", "kafka", f"{', '.join(settings.brokers)}: {error}", fix)
        return
    yield Finding("ok", "kafka", f"{state.brokers} broker(s) at {', '.join(settings.brokers)}")
    for one in judged(settings, state):
        yield one


def judged(settings: DoctorSettings, state: ClusterState) -> Iterator[Finding]:
    """What the brokers' answers mean."""
    for topic, operation in (
        (settings.topic, READ), (settings.reply_topic, WRITE), (settings.dead_letter_topic, WRITE),
    ):  # fmt: skip
        if topic:
            yield _topic(topic, state.topics.get(topic), operation)
    if settings.group:
        yield _group(settings.group, state)


def _topic(name: str, topic: TopicState | None, operation: int) -> Finding:
    verb = "read" if operation == READ else "write"
    what = f"topic {name}"
    if topic is None or topic.error == "UnknownTopicOrPartitionError":
        return Finding("must", what, "the brokers have no such topic", "create it, or mend the setting")
    if topic.error is not None:
        return Finding("must", what, topic.error, f"allow this user to describe and {verb} it")
    if not topic.may(operation):
        return Finding("must", what, f"this user may not {verb} it", f"allow {verb.upper()} on it")
    rights = "the brokers tell no rights" if topic.rights is None else f"this user may {verb} it"
    if operation == READ and topic.partitions < TOO_FEW_PARTITIONS:
        fix = "more partitions, where one process is not enough"
        return Finding("note", what, f"1 partition, {rights}: one process at a time reads it", fix)
    return Finding("ok", what, f"{topic.partitions} partition(s), {rights}")


def _group(name: str, state: ClusterState) -> Finding:
    what = f"group {name}"
    if state.group_error is not None:
        return Finding("must", what, state.group_error, "allow this user to describe and read it")
    if not state.may_read_group():
        return Finding("must", what, "this user may not read it", "allow READ on it")
    rights = "the brokers tell no rights" if state.group_rights is None else "this user may read it"
    return Finding("ok", what, rights)
