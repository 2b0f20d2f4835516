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
    from mqttquic_lab.errors import (
        AlpnError as AlpnError,
        BlockingCallError as BlockingCallError,
        CertificateError as CertificateError,
        ConnectError as ConnectError,
        ConnectRefusedError as ConnectRefusedError,
        ConnectTimeoutError as ConnectTimeoutError,
        DisconnectedError as DisconnectedError,
        HandshakeError as HandshakeError,
        LabError as LabError,
        MalformedPacketError as MalformedPacketError,
        OperationTimeoutError as OperationTimeoutError,
        PortInUseError as PortInUseError,
        ProtocolError as ProtocolError,
        PublishError as PublishError,
        ReasonedError as ReasonedError,
        SubscribeError as SubscribeError,
        UnknownOptionError as UnknownOptionError,
        UnreachableError as UnreachableError,
        UsageError as UsageError,
    )
    from mqttquic_lab.handles import (
        Broker as Broker,
        Feed as Feed,
        Handshake as Handshake,
        Session as Session,
        aio as aio,
        connect as connect,
        from_env as from_env,
        probe as probe,
        start_broker as start_broker,
    )
    from mqttquic_lab.mqtt import ReasonCode as ReasonCode, Will as Will
    from mqttquic_lab.records.message import Message as Message

__version__ = "0.1.0"

_HOMES = {
    "mqttquic_lab.errors": (
        "AlpnError", "BlockingCallError", "CertificateError", "ConnectError", "ConnectRefusedError",
        "ConnectTimeoutError", "DisconnectedError", "HandshakeError", "LabError", "MalformedPacketError",
        "OperationTimeoutError", "PortInUseError", "ProtocolError", "PublishError", "ReasonedError", "SubscribeError",
        "UnknownOptionError", "UnreachableError", "UsageError",
    ),
    "mqttquic_lab.handles": (
        "Broker", "Feed", "Handshake", "Session", "aio", "connect", "from_env", "probe", "start_broker",
    ),
    "mqttquic_lab.mqtt": ("ReasonCode", "Will"),
    "mqttquic_lab.records.message": ("Message",),
}  # fmt: skip
"""Where each name lives; imported by :func:`__getattr__` (PEP 562)."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF), "__version__"]  # noqa: PLE0604

# Without a handler of the application's, nothing is printed (it would land in whichever notebook cell runs).
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next use is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
