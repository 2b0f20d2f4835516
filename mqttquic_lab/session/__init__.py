"""The client: MQTT 5.0 and 3.1.1 over QUIC, TLS or TCP, asynchronous.

Everything here runs on one event loop; :mod:`mqttquic_lab.handles` wraps it for people who have none.
"""

from __future__ import annotations

from mqttquic_lab.session.backoff import Backoff
from mqttquic_lab.session.client import AsyncSession
from mqttquic_lab.session.feed import AsyncFeed
from mqttquic_lab.session.flow_spec import FlowInfo
from mqttquic_lab.session.options import SessionOptions
from mqttquic_lab.session.probe import probe
from mqttquic_lab.session.results import ErrorRecord, EventRecord, PublishResult, PublishSummary, SessionStats
from mqttquic_lab.session.stream import AsyncStream
from mqttquic_lab.session.streams import StreamInfo

__all__ = [
    "AsyncFeed",
    "AsyncSession",
    "AsyncStream",
    "Backoff",
    "ErrorRecord",
    "EventRecord",
    "FlowInfo",
    "PublishResult",
    "PublishSummary",
    "SessionOptions",
    "SessionStats",
    "StreamInfo",
    "probe",
]
