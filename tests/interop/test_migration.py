"""Our client changes its address under other QUIC stacks: quinn (mqttv5) and quiche (before mosquitto)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import MigrationError
from mqttquic_lab.session import AsyncSession
from tests.helpers.numbered import NumberedLoad, check_delivered
from tests.interop.quic_peers import mosquitto, mqttv5_broker, relay_to_tcp

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.certs import Identities

PATIENCE = 20.0


async def carry(load: NumberedLoad) -> None:
    """Have messages under way."""
    load.start()
    await load.reached(50)


@pytest.mark.matrix("migration", "rebinding", ours="client", peer="mqttv5", note="no QoS 2 message lost or doubled")
async def test_mqttv5_lets_us_move(tmp_path: Path, identities: Identities) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(identities.authority.pem)
    async with (
        asyncio.timeout(PATIENCE),
        mqttv5_broker(identities.good, tmp_path) as peer,
        await AsyncSession.open(peer.url, ca_file=ca_file) as session,
    ):
        feed = await session.subscribe("numbered", 2, decode="raw")
        load = NumberedLoad(session, window=8)
        await carry(load)
        hosts = []
        for move in (session.migrate("127.0.0.2"), session.rebind(), session.migrate(), session.migrate("127.0.0.3")):
            result = await move
            assert session.connection.local_address == result.new_local
            hosts.append(result.new_local[0])
            await load.reached(50)
        assert hosts == ["127.0.0.2", "127.0.0.2", "127.0.0.1", "127.0.0.3"]
        await check_delivered(await load.stop(), feed, exactly_once=True)


@pytest.mark.matrix("rebinding", ours="client", peer="mosquitto behind quiche")
@pytest.mark.matrix("migration", refused=True, note="disable_active_migration, and no spare connection id")
async def test_quiche_wants_us_to_stay_but_takes_a_rebinding(
    tmp_path: Path, identities: Identities, free_port: int
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(identities.authority.pem)
    async with (
        asyncio.timeout(PATIENCE),
        mosquitto(tmp_path, free_port),
        relay_to_tcp(free_port, identities.good, tmp_path) as peer,
        await AsyncSession.open(peer.url, ca_file=ca_file) as session,
    ):
        feed = await session.subscribe("numbered", 2, decode="raw")
        load = NumberedLoad(session, window=8)
        await carry(load)
        with pytest.raises(MigrationError) as caught:
            await session.migrate("127.0.0.2")
        assert caught.value.problem == "disabled"
        with pytest.raises(MigrationError) as caught:
            await session.migrate("127.0.0.2", force=True)
        assert caught.value.problem == "no spare id"
        await session.rebind()
        await load.reached(50)
        await check_delivered(await load.stop(), feed, exactly_once=True)
