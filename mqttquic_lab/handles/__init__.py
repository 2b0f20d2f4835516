"""What a person types: sessions, feeds and brokers with blocking verbs, and the same verbs awaitable under ``.aio``.

Mechanical on purpose: everything a handle does is done by the asynchronous object it wraps, on that object's loop. A
parity test holds names and signatures of both together.
"""

from __future__ import annotations

import mqttquic_lab.handles.aio as aio
from mqttquic_lab.handles.broker import Broker
from mqttquic_lab.handles.entry import connect, from_env, probe, start_broker, start_gateway
from mqttquic_lab.handles.feed import Feed
from mqttquic_lab.handles.gateway import Gateway
from mqttquic_lab.handles.handshake import Handshake
from mqttquic_lab.handles.session import Session
from mqttquic_lab.handles.stream import Stream

__all__ = [
    "Broker",
    "Feed",
    "Gateway",
    "Handshake",
    "Session",
    "Stream",
    "aio",
    "connect",
    "from_env",
    "probe",
    "start_broker",
    "start_gateway",
]
