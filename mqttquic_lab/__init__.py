"""MQTT over QUIC in notebooks: sessions, DataFrames, handshake cards and live views.

>>> import mqttquic_lab as mq
>>> broker = mq.start_broker()                  # QUIC, TLS and TCP on loopback
>>> session = mq.connect(broker)                # or "quic://broker.example:14567"
>>> feed = session.subscribe("plant/+/temp", qos=1, decode="json")
>>> session.publish("plant/1/temp", {"c": 21.5}, qos=1)
>>> feed.wait(1); feed.df

Importing this package is cheap: each name is imported at its first use.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttquic_lab.broker.acl import AclRule
    from mqttquic_lab.errors import (
        AlpnError,
        AuthenticationError,
        BlockingCallError,
        BrokerProfileWarning,
        CertificateError,
        ConnectError,
        ConnectRefusedError,
        ConnectTimeoutError,
        DisconnectedError,
        HandshakeError,
        LabError,
        MalformedPacketError,
        MigrationError,
        OperationTimeoutError,
        PortInUseError,
        ProtocolError,
        PublishError,
        ReasonedError,
        StoreError,
        StreamClosedError,
        StreamLimitError,
        StreamMappingWarning,
        SubscribeError,
        UnknownOptionError,
        UnreachableError,
        UsageError,
    )
    from mqttquic_lab.experiments.replay import replay
    from mqttquic_lab.handles import (
        Broker,
        Feed,
        Gateway,
        Handshake,
        Session,
        Stream,
        aio,
        connect,
        from_env,
        probe,
        start_broker,
        start_gateway,
    )
    from mqttquic_lab.mqtt import ReasonCode, Will
    from mqttquic_lab.quic.congestion import CongestionControl, register_congestion_control
    from mqttquic_lab.quic.tickets import TicketStore
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.session import Backoff, FlowInfo, StreamInfo

__version__ = "0.1.0"

__all__ = [
    "AclRule",
    "AlpnError",
    "AuthenticationError",
    "Backoff",
    "BlockingCallError",
    "Broker",
    "BrokerProfileWarning",
    "CertificateError",
    "CongestionControl",
    "ConnectError",
    "ConnectRefusedError",
    "ConnectTimeoutError",
    "DisconnectedError",
    "Feed",
    "FlowInfo",
    "Gateway",
    "Handshake",
    "HandshakeError",
    "LabError",
    "MalformedPacketError",
    "Message",
    "MigrationError",
    "MigrationResult",
    "OperationTimeoutError",
    "PortInUseError",
    "ProtocolError",
    "PublishError",
    "ReasonCode",
    "ReasonedError",
    "Session",
    "StoreError",
    "Stream",
    "StreamClosedError",
    "StreamInfo",
    "StreamLimitError",
    "StreamMappingWarning",
    "SubscribeError",
    "TicketStore",
    "UnknownOptionError",
    "UnreachableError",
    "UsageError",
    "Will",
    "__version__",
    "aio",
    "connect",
    "from_env",
    "probe",
    "register_congestion_control",
    "replay",
    "start_broker",
    "start_gateway",
]

_HOMES = {
    "AclRule": "broker.acl",
    "Backoff": "session",
    "BrokerProfileWarning": "errors",
    "StreamMappingWarning": "errors",
    "CongestionControl": "quic.congestion",
    "Message": "records.message",
    "MigrationResult": "records.migration",
    "ReasonCode": "mqtt",
    "FlowInfo": "session",
    "StreamInfo": "session",
    "TicketStore": "quic.tickets",
    "Will": "mqtt",
    "register_congestion_control": "quic.congestion",
    "replay": "experiments.replay",
}
"""Where names live that are in neither errors.py nor handles/."""

# Without a handler of the application's, nothing is printed (it would land in whichever notebook cell runs).
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a name of this package when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "handles")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next use is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
