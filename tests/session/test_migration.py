"""Sessions whose connection changes its address while QoS 1 and 2 messages are under way in both directions."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import DisconnectedError, MigrationError, UsageError
from mqttquic_lab.session import AsyncSession
from tests.helpers.lossy import LossyRelay
from tests.helpers.numbered import NumberedLoad, check_delivered
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mqttquic_lab.broker import ClientInfo
    from mqttquic_lab.session import AsyncFeed
    from tests.session.conftest import Open

OTHER = "127.0.0.2"


class Pair:
    """A session that publishes and one that receives, both through one relay."""

    def __init__(self, broker: BrokerServer, relay: LossyRelay) -> None:
        self.broker = broker
        self.relay = relay
        self.sender: AsyncSession
        self.receiver: AsyncSession
        self.feed: AsyncFeed

    def session(self, who: str) -> AsyncSession:
        return cast("AsyncSession", getattr(self, who))

    def info(self, who: str) -> ClientInfo:
        [info] = [info for info in self.broker.clients() if info.client_id == who]
        return info


@asynccontextmanager
async def pair(qos: int = 2, **options: Any) -> AsyncIterator[Pair]:
    config = BrokerConfig(quic_port=0, tls=False, tcp=False)
    async with BrokerServer(config) as broker:
        listener = cast("Any", broker._listeners[0])
        async with LossyRelay(listener.addresses[0]) as relay:
            both = Pair(broker, relay)
            options = {"ca_file": broker.ca_file, **options}
            url = f"quic://127.0.0.1:{relay.address[1]}"
            both.sender = await hang(AsyncSession.open(url, client_id="sender", **options))
            both.receiver = await hang(AsyncSession.open(url, client_id="receiver", **options))
            both.feed = await hang(both.receiver.subscribe("numbered", qos, decode="raw"))
            try:
                yield both
            finally:
                await hang(both.sender.close())
                await hang(both.receiver.close())


async def migrates(both: Pair, session: AsyncSession) -> None:
    result = await session.migrate(OTHER)
    assert result.kind == "migration"
    assert session.handshake.local_address == result.new_local
    assert result.new_local[0] == OTHER


async def changes_port(both: Pair, session: AsyncSession) -> None:
    before = session.handshake.local_address
    await session.migrate()
    assert session.handshake.local_address != before


async def rebinds(both: Pair, session: AsyncSession) -> None:
    result = await session.rebind()
    assert (result.kind, result.old_sequence) == ("rebinding", result.new_sequence)
    assert session.handshake.local_address == result.new_local


async def is_forgotten_by_the_nat(both: Pair, session: AsyncSession) -> None:
    before = both.broker.stats().migrations
    both.relay.rebind()
    await both.broker.wait_for(lambda: both.broker.stats().migrations > before)


async def loses_its_path(both: Pair, session: AsyncSession) -> None:
    """The path is dead for longer than a probe timeout before the session moves."""
    host = session.connection.local_address[0]
    both.relay.blocked.add(host)
    await asyncio.sleep(0.3)
    await session.migrate(OTHER if host != OTHER else "127.0.0.3")
    both.relay.blocked.discard(host)


MOVES = [migrates, changes_port, rebinds, is_forgotten_by_the_nat, loses_its_path]


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("who", ["sender", "receiver"])
@pytest.mark.parametrize("move", MOVES)
async def test_messages_survive(move: Callable[[Pair, AsyncSession], Awaitable[None]], who: str, qos: int) -> None:
    async with pair(qos) as both:
        load = NumberedLoad(both.sender, qos=qos)
        load.start()
        before = both.info(who)
        for _ in range(2):
            await load.reached(60)
            await hang(move(both, both.session(who)))
            await load.reached(60)
        acknowledged = await load.stop()
        received = await check_delivered(acknowledged, both.feed, exactly_once=qos == 2)
        assert len(received) >= 240
        after = both.info(who)
        assert after.address != before.address
        # The same connections, session and subscription.
        assert after.connected_at == before.connected_at
        assert both.broker.stats().connects_total == 2
        assert both.broker.stats().migrations >= 2
        assert both.info("receiver").subscriptions == ("numbered",)
        for session in (both.sender, both.receiver):
            assert session.errors == []
            assert session.state == "connected"


async def test_a_session_that_is_spread_over_streams() -> None:
    async with pair(2, streams="per-topic") as both:
        loads = [NumberedLoad(both.sender, f"spread/{n}", window=8) for n in range(4)]
        feeds = [await hang(both.receiver.subscribe(load.topic, 2, decode="raw")) for load in loads]
        for load in loads:
            load.start()
        for session in (both.sender, both.receiver):
            for move in (migrates, rebinds):
                await asyncio.gather(*(load.reached(20) for load in loads))
                await hang(move(both, session))
        await asyncio.gather(*(load.reached(20) for load in loads))
        for load, feed in zip(loads, feeds, strict=True):
            await check_delivered(await load.stop(), feed, exactly_once=True)
        assert both.sender.errors == both.receiver.errors == []


async def test_what_is_told_about_it() -> None:
    async with pair() as both:
        session = both.sender
        first = session.handshake.local_address
        result = await hang(session.migrate(f"{OTHER}:0"))
        await both.broker.wait_for(lambda: both.broker.stats().migrations == 1)
        rebound = await hang(session.rebind())
        assert result.old_local == first
        assert rebound.old_local == result.new_local
        assert [(event.what, event.detail) for event in session.events if event.what == "moved"] == [
            ("moved", result.sentence()),
            ("moved", rebound.sentence()),
        ]
        updates = [event.data for event in session.trace if event.name == "path_updated"]
        assert [update["new_local"] for update in updates] == [result.new_local, rebound.new_local]
        await both.broker.wait_for(lambda: both.broker.stats().migrations == 2)
        assert await hang(session.ping()) > 0


async def test_the_brokers_client_info_follows(broker: BrokerServer, connect: Open) -> None:
    session = await connect(client_id="mover")
    for move in (session.migrate(), session.rebind(), session.migrate(OTHER)):
        await hang(move)
        await hang(session.ping())
        [info] = broker.clients()
        assert info.address == session.connection.local_address


async def test_a_migration_that_fails_leaves_the_session_alone() -> None:
    async with pair() as both:
        both.relay.blocked.add(OTHER)
        load = NumberedLoad(both.sender)
        load.start()
        await load.reached(20)
        with pytest.raises(MigrationError, match=r"no answer on the path from 127\.0\.0\.2") as caught:
            await hang(both.sender.migrate(OTHER, timeout="250 ms"))
        assert caught.value.problem == "not validated"
        await load.reached(100)
        await check_delivered(await load.stop(), both.feed, exactly_once=True)
        assert both.broker.stats().migrations == 0
        assert [event for event in both.sender.events if event.what == "moved"] == []


async def test_a_broker_that_prefers_another_address_and_forbids_migration() -> None:
    config = BrokerConfig(
        quic_port=0, tls=False, tcp=False, preferred_address=("127.0.0.3", 0), disable_active_migration=True
    )
    async with BrokerServer(config) as broker, await AsyncSession.open(broker.url, ca_file=broker.ca_file) as session:
        await broker.wait_for(lambda: broker.stats().migrations == 1)
        assert session.handshake.peer_address is not None
        assert session.handshake.peer_address[0] == "127.0.0.3"
        result = await session.publish("a", b"from there", 2)
        assert not result.reason_code & 0x80
        await hang(session.migrate(OTHER))  # the ban was on the first address


@pytest.mark.parametrize("address", ["127.0.0.3", ("127.0.0.3",), ("127.0.0.3", 70_000), ("127.0.0.3", "x"), (1, 2)])
def test_preferred_addresses_that_cannot_be_used(address: Any) -> None:
    with pytest.raises(UsageError, match=r"preferred_address=.*must be an address and a port"):
        BrokerConfig(preferred_address=address)
    with pytest.raises(UsageError, match="preferred_address: for the QUIC listener"):
        BrokerConfig(preferred_address=address, quic=False)


async def test_a_broker_that_forbids_migration() -> None:
    config = BrokerConfig(quic_port=0, tls=False, tcp=False, disable_active_migration=True)
    async with BrokerServer(config) as broker, await AsyncSession.open(broker.url, ca_file=broker.ca_file) as session:
        with pytest.raises(MigrationError, match="force=True") as caught:
            await hang(session.migrate(OTHER))
        assert caught.value.problem == "disabled"
        assert (await hang(session.migrate(OTHER, force=True))).new_local[0] == OTHER


@pytest.mark.parametrize("scheme", ["mqtts", "mqtt"])
async def test_only_quic_moves(connect: Open, scheme: str) -> None:
    session = await connect(scheme)
    for verb in (session.migrate, session.rebind):
        with pytest.raises(UsageError, match="only a session over QUIC can"):
            await hang(verb())
    assert await hang(session.ping()) > 0


async def test_what_cannot_be_used(connect: Open) -> None:
    session = await connect()
    with pytest.raises(UsageError, match="timeout"):
        await hang(session.migrate(timeout=0))
    with pytest.raises(UsageError, match="is no IP address of ours"):
        await hang(session.migrate("eth0"))
    with pytest.raises(UsageError, match="cannot send from local_address"):
        await hang(session.migrate("192.0.2.1"))
    await hang(session.close())
    for verb in (session.migrate, session.rebind):
        with pytest.raises(DisconnectedError):
            await hang(verb())
