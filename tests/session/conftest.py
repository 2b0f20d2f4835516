"""An embedded broker on free ports, for sessions over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.session import AsyncSession
from tests.session.scripted import hang

SCHEMES = ("quic", "mqtts", "mqtt")

Open = Callable[..., Awaitable[AsyncSession]]


@pytest.fixture
async def broker() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(BrokerConfig(quic_port=0, tls_port=0, tcp_port=0)) as server:
        yield server


@pytest.fixture
async def connect(broker: BrokerServer) -> AsyncIterator[Open]:
    """Open sessions to the broker by scheme; they are closed at the end."""
    sessions: list[AsyncSession] = []

    async def open_session(scheme: str = "quic", **options: Any) -> AsyncSession:
        options.setdefault("ca_file", broker.ca_file)
        session = await hang(AsyncSession.open(broker.urls[scheme], **options))
        sessions.append(session)
        return session

    yield open_session
    for session in sessions:
        await hang(session.close())
