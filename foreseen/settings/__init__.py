"""Settings: one frozen dataclass per command. Flags, environment names, the configuration file, `--help` and the tables
of the docs derive from them.

Only `cli.py` reads the environment: every flag `--near-bytes` is also `FORESEEN_NEAR_BYTES`, and `near-bytes` in the
file of `--config`. A flag wins over the environment, that over the file.
"""

from foreseen.settings.commands import NAMES, arguments
from foreseen.settings.common import Common, StoreSettings
from foreseen.settings.inference import InferenceSettings
from foreseen.settings.kafka import BrokerSettings, KafkaSettings
from foreseen.settings.operators import (
    WITHOUT_ENVIRONMENT,
    CanarySettings,
    JobsSettings,
    KeySettings,
    PurgeSettings,
    UsageSettings,
)
from foreseen.settings.proxy import ProxySettings
from foreseen.settings.up import DoctorSettings, UpSettings
from foreseen.settings.warm import WarmSettings
from foreseen.settings.worker import WorkerSettings

__all__ = [
    "NAMES",
    "WITHOUT_ENVIRONMENT",
    "BrokerSettings",
    "CanarySettings",
    "Common",
    "DoctorSettings",
    "InferenceSettings",
    "JobsSettings",
    "KafkaSettings",
    "KeySettings",
    "ProxySettings",
    "PurgeSettings",
    "StoreSettings",
    "UpSettings",
    "UsageSettings",
    "WarmSettings",
    "WorkerSettings",
    "arguments",
]
