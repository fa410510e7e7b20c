"""Settings of `foreseen kafka`. Those of the broker have the names that Kafka's own clients use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from foreseen.errors import SetupError
from foreseen.settings.common import Common
from foreseen.settings.proxy import ProxySettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BrokerSettings(Common):
    """Brokers, how they are spoken to, and the topics."""

    brokers: Annotated[tuple[str, ...], Parameter(help="A broker, HOST:PORT; may be repeated.")] = ()
    topic: Annotated[str, Parameter(help="Topic of the requests.")] = ""
    reply_topic: Annotated[str, Parameter(help="Topic of the replies.")] = ""
    group: Annotated[str, Parameter(help="Consumer group; its processes share the partitions.")] = ""
    dead_letter_topic: Annotated[
        str | None,
        Parameter(
            help="Topic for invalid messages, with the reason in headers. Default: error replies to the reply topic."
        ),
    ] = None
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Parameter(help="Protocol of the connections to brokers."),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Parameter(help="SASL mechanism.")] = (
        "SCRAM-SHA-512"
    )
    sasl_username: Annotated[str | None, Parameter(help="SASL user.")] = None
    sasl_password_file: Annotated[Path | None, Parameter(help="File with the SASL password.")] = None
    ssl_cafile: Annotated[
        Path | None, Parameter(help="Certificates (PEM) that verify brokers. Default: the system's.")
    ] = None
    ssl_certfile: Annotated[Path | None, Parameter(help="Client certificate (PEM), for mutual TLS.")] = None
    ssl_keyfile: Annotated[Path | None, Parameter(help="Private key (PEM) of the client certificate.")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KafkaSettings(BrokerSettings, ProxySettings):
    """A process between Kafka topics; it takes the proxy's settings, as far as they are not about connections."""

    allow_reply_topic: Annotated[
        tuple[str, ...],
        Parameter(
            help="A topic that messages may name in kafka_replyTopic; may be repeated. All other replies go to "
            "--reply-topic."
        ),
    ] = ()
    value_as: Annotated[
        Literal["v2", "v1", "openai", "rerank", "score", "grpc", "row"],
        Parameter(
            name="--as",
            help="Format of the message values. row: the model's one input, or a JSON object of its inputs.",
        ),
    ] = "v2"
    ordered: Annotated[bool, Parameter(help="Send a partition's replies in the order of its messages.")] = False
    transactional_id: Annotated[
        str | None,
        Parameter(
            help="Exactly once: send replies and commit offsets in one transaction, with ids that begin with this. "
            "Needs brokers with transactions. Default: at least once."
        ),
    ] = None
    tenant: Annotated[
        str | None, Parameter(help="The tenant of --keys-file that messages are charged to. Default: public.")
    ] = None
    metrics_port: Annotated[
        int | None, Parameter(help="TCP port of this process's own /metrics, on --host. Default: none.")
    ] = None

    def check(self) -> None:
        """Raises SetupError where a setting is missing."""
        for name in ("brokers", "topic", "reply_topic", "group"):
            if not getattr(self, name):
                raise SetupError(f"--{name.replace('_', '-')}: is missing")
        if self.reply_topic == self.topic or self.dead_letter_topic == self.topic:
            raise SetupError("--reply-topic and --dead-letter-topic: must not be the topic of the requests")
