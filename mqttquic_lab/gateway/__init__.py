"""A QUIC listener in front of a broker that has none: every stream is carried to it over TCP or TLS, byte for byte."""

from __future__ import annotations

from mqttquic_lab.gateway.config import GatewayConfig
from mqttquic_lab.gateway.server import GatewayServer
from mqttquic_lab.gateway.status import GatewayClient, GatewayError, GatewayStats, RelayedStream

__all__ = ["GatewayClient", "GatewayConfig", "GatewayError", "GatewayServer", "GatewayStats", "RelayedStream"]
