"""SCRAM-SHA-256 with somebody else at the other end: mqttv5's broker with our client, its client with our broker."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import ConnectRefusedError
from mqttquic_lab.mqtt.scram import ScramCredentials
from mqttquic_lab.session import AsyncSession
from tests.helpers.peers import run
from tests.interop.quic_peers import mqttv5_broker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.certs import Identities

SCRAM = "SCRAM-SHA-256"


async def test_our_client_and_its_broker(identities: Identities, tmp_path: Path) -> None:
    known = ScramCredentials.of("secret", iterations=310_000)
    keys = ":".join(base64.b64encode(key).decode() for key in (known.stored_key, known.server_key))
    users = tmp_path / "scram.txt"
    users.write_text(f"ann:{base64.b64encode(known.salt).decode()}:{known.iterations}:{keys}\n")
    ca_file = identities.authority.write_ca(tmp_path / "trusted.pem")
    options = ("--auth-method", "scram", "--scram-file", str(users))
    async with mqttv5_broker(identities.good, tmp_path, *options) as broker:
        async with await AsyncSession.open(
            broker.url, ca_file=ca_file, username="ann", password="secret", auth=SCRAM
        ) as session:
            await session.reauthenticate()
            assert (await session.publish("a", "x", 1)).reason_code in (0, 0x10)
            assert session.errors == []
        with pytest.raises(ConnectRefusedError) as refused:
            await AsyncSession.open(broker.url, ca_file=ca_file, username="ann", password="wrong", auth=SCRAM)
        assert refused.value.reason_code == 0x87


async def test_its_client_and_our_broker() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"ann": "secret"}, auth_methods=[SCRAM])
    async with BrokerServer(config) as broker:
        login = ("pub", "--url", broker.url, "--auth-method", "scram", "-u", "ann", "--non-interactive", "-t", "a")
        await run("mqttv5", *login, "-P", "secret", "-m", "x", "-q", "1")
        assert (broker.stats().authentications, broker.stats().messages_in) == (1, 1)
        await run("mqttv5", *login, "-P", "wrong", "-m", "x", "-q", "1", expect=1)
        assert broker.stats().authentications_refused == 1
