"""The embedded broker: MQTT 3.1.1 and 5.0 over QUIC, TLS and TCP, for lessons and tests on one machine."""

from __future__ import annotations

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.process import BrokerProcess
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.broker.status import BrokerStats, ClientInfo

__all__ = ["BrokerConfig", "BrokerProcess", "BrokerServer", "BrokerStats", "ClientInfo"]
