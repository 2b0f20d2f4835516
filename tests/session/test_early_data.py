"""Sessions whose CONNECT, and messages if allowed, go in the first flight: every message arrives, and arrives once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import (
    ConnectRefusedError,
    DisconnectedError,
    OperationTimeoutError,
    PublishError,
    UsageError,
)
from mqttquic_lab.quic.tickets import TicketStore, process_tickets
from mqttquic_lab.session import AsyncSession
from mqttquic_lab.session.probe import probe
from tests.helpers.lossy import LossyRelay
from tests.session.scripted import hang

if TYPE_CHECKING:
    from mqttquic_lab.quic.server import QuicListener
    from mqttquic_lab.session import AsyncFeed

FREE: dict[str, Any] = {"quic_port": 0, "tls_port": 0, "tcp_port": 0}

MESSAGES = [("early/0", "at most once"), ("early/1", "at least once", 1), ("early/2", b"exactly once", 2)]


class House:
    """A broker, somebody who listens to everything over TCP, and sessions that come with tickets."""

    def __init__(self, broker: BrokerServer, feed: AsyncFeed) -> None:
        self.broker = broker
        self.feed = feed
        self.store = TicketStore()
        self.sessions: list[AsyncSession] = []

    @property
    def listener(self) -> QuicListener:
        return cast("QuicListener", self.broker._listeners[0])

    async def open(self, **options: Any) -> AsyncSession:
        options = {"tickets": self.store, "early_data": True, "ca_file": self.broker.ca_file, **options}
        session = await hang(AsyncSession.open(options.pop("url", self.broker.url), **options))
        self.sessions.append(session)
        return session

    async def remember(self, **options: Any) -> None:
        """Connect and leave, so that there is a ticket."""
        session = await self.open(**options)
        while not session.handshake.tickets:
            await session.ping()
        await session.close()

    async def heard(self, count: int) -> Counter[tuple[str, bytes]]:
        """What was published, after `count` messages and everything that came before a message of our own."""
        await hang(self.feed.wait(count))
        probe = await self.open(early_data=False, tickets=None)
        await probe.publish("last", b"", 1)
        await hang(self.feed.wait(count + 1))
        await asyncio.sleep(0)
        frame = self.feed.df
        return Counter(zip(frame["topic"], frame["payload"], strict=True))


MakeHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def make_house() -> AsyncIterator[MakeHouse]:
    houses: list[House] = []

    async def make(**options: Any) -> House:
        broker = BrokerServer(BrokerConfig(**{**FREE, "early_data": True, **options}))
        await broker.start()
        ear = await AsyncSession.open(broker.urls["mqtt"])
        houses.append(House(broker, await ear.subscribe("#", 2, decode="raw")))
        houses[-1].sessions.append(ear)
        return houses[-1]

    yield make
    for house in houses:
        for session in house.sessions:
            await hang(session.close())
        await house.broker.close()


EXPECTED = Counter(
    {
        ("early/0", b"at most once"): 1,
        ("early/1", b"at least once"): 1,
        ("early/2", b"exactly once"): 1,
        ("last", b""): 1,
    }
)


async def publish_early(house: House, **options: Any) -> AsyncSession:
    """Open a session with messages in its first flight, and see each of them acknowledged."""
    session = await house.open(early_data="publish", publish_early=MESSAGES, client_id="early", **options)
    results = await hang(session.early_published())
    assert [result.reason_code for result in results] == [0, 0, 0]
    assert [result.packet_id for result in results] == [None, 1, 2]
    assert all(result.round_trip for result in results[1:])
    assert session.unacknowledged == 0
    return session


# --- each answer, with messages of every QoS


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_accepted(make_house: MakeHouse, version: str) -> None:
    house = await make_house()
    await house.remember()
    session = await publish_early(house, version=version)
    report = session.handshake
    assert (report.early_data, report.resumed, report.round_trips) == ("accepted", True, 1)
    assert (report.client_id, report.mqtt_version, report.reason_code) == ("early", version, 0)
    assert report.connect_fields
    assert report.flights[0].packets == ("Initial", "0-RTT")
    assert report.flights[0].content == ("ClientHello", "CONNECT", "PUBLISH", "PUBLISH", "PUBLISH")
    assert report.flights[-1].content[-1] == "CONNACK"
    assert report.timings["connect_sent"] < report.timings["server_hello"]
    assert await house.heard(3) == EXPECTED
    assert house.feed.df["early_data"].tolist() == [True, True, True, False]
    assert (session.stats.messages_sent, session.stats.packets_sent) == (3, 5)  # CONNECT, three messages, PUBREL
    # The session goes on as any other.
    result = await session.publish("later", b"x", 2)
    assert result.packet_id == 3
    await hang(session.ping())
    assert session.errors == []


async def test_not_offered(make_house: MakeHouse) -> None:
    house = await make_house()
    session = await publish_early(house)
    assert (session.handshake.early_data, session.handshake.round_trips) == ("not offered", 2)
    assert session.handshake.flights[2].content[:2] == ("Finished", "CONNECT")
    assert await house.heard(3) == EXPECTED
    assert not house.feed.df["early_data"].any()


@pytest.mark.parametrize("forgotten", [False, True])
async def test_rejected(make_house: MakeHouse, forgotten: bool) -> None:
    """Nothing is lost, nothing is doubled: what the broker did not take is sent again, once."""
    house = await make_house()
    await house.remember()
    if forgotten:
        house.listener.admission._issued.clear()
    else:
        house.listener.admission.policy = "off"
    session = await publish_early(house)
    report = session.handshake
    assert (report.early_data, report.resumed, report.round_trips) == ("rejected", not forgotten, 2)
    assert await house.heard(3) == EXPECTED
    assert not house.feed.df["early_data"].any()
    stats = house.broker.stats()
    assert (stats.early_data_accepted, stats.early_data_rejected, stats.early_messages) == (0, 1, 0)


async def test_retry(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.remember()
    house.listener._retry = True
    session = await publish_early(house)
    report = session.handshake
    assert (report.early_data, report.retry, report.round_trips) == ("accepted", True, 2)
    assert await house.heard(3) == EXPECTED
    assert house.broker.stats().retries >= 1


async def test_retry_and_rejected(make_house: MakeHouse) -> None:
    house = await make_house(retry=True)
    await house.remember()
    house.listener.admission.policy = "off"
    session = await publish_early(house)
    report = session.handshake
    assert (report.early_data, report.retry, report.round_trips) == ("rejected", True, 3)
    assert await house.heard(3) == EXPECTED


@pytest.mark.parametrize("lost", [{1}, {2}, {3}, {1, 2}])
async def test_loss_in_the_first_flight(make_house: MakeHouse, lost: set[int]) -> None:
    house = await make_house()
    await house.remember()
    [key] = house.store
    kept = house.store.take(key)
    assert kept is not None
    async with LossyRelay(house.listener.addresses[0], lost_to_server=lost) as relay:
        house.store.put(replace(kept, key=replace(key, port=relay.address[1])))
        session = await publish_early(house, url=f"quic://127.0.0.1:{relay.address[1]}")
        assert await house.heard(3) == EXPECTED
        await session.close()


async def test_as_many_as_may_go(make_house: MakeHouse) -> None:
    """A hundred messages do not fit one flight; ten of them are acknowledged."""
    house = await make_house()
    await house.remember()
    many = [("bulk", b"%03d" % n + bytes(500), 2 if n % 10 == 0 else 0) for n in range(100)]
    session = await house.open(early_data="publish", publish_early=many)
    assert session.handshake.early_data == "accepted"
    assert len(await hang(session.early_published())) == 100
    await hang(house.feed.wait(100))
    assert [payload[:3] for payload in house.feed.df["payload"]] == [b"%03d" % n for n in range(100)]


async def test_retained_messages_may_go_early(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.open(early_data="publish", publish_early=[("state", {"on": True}, 1, True)])
    other = await house.open(early_data=False, tickets=None)
    feed = await other.subscribe("state", decode="json")
    await hang(feed.wait(1))
    assert feed.df["value"].tolist() == [{"on": True}]
    assert feed.df["retain"].tolist() == [True]


# --- without messages


async def test_connect_alone_takes_one_round_trip(make_house: MakeHouse) -> None:
    house = await make_house()
    for expected in (("not offered", 2), ("accepted", 1), ("accepted", 1)):
        session = await house.open()
        report = session.handshake
        assert (report.early_data, report.round_trips) == expected
        assert await hang(session.early_published()) == []
        while not session.handshake.tickets:
            await session.ping()
        await session.close()


async def test_tickets_without_early_data_only_resume(make_house: MakeHouse) -> None:
    house = await make_house()
    for resumed in (False, True):
        session = await house.open(early_data=False)
        report = session.handshake
        assert (report.early_data, report.resumed, report.round_trips) == ("not offered", resumed, 2)
        while not session.handshake.tickets:
            await session.ping()
        await session.close()


async def test_early_data_without_a_store_uses_that_of_the_process(make_house: MakeHouse) -> None:
    house = await make_house()
    port = house.listener.port
    for expected in ("not offered", "accepted"):
        session = await house.open(tickets=None)
        assert session.handshake.early_data == expected
        while not session.handshake.tickets:
            await session.ping()
    assert any(key.port == port for key in process_tickets())
    process_tickets().clear()


async def test_a_broker_that_does_not_take_early_data(make_house: MakeHouse) -> None:
    house = await make_house(early_data=False)
    await house.remember()
    session = await publish_early(house)
    assert (session.handshake.early_data, session.handshake.resumed) == ("not offered", True)
    assert session.handshake.tickets[0].max_early_data == 0
    assert await house.heard(3) == EXPECTED


async def test_probe_with_early_data(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.remember()
    report = await hang(probe(house.broker, tickets=house.store, early_data=True))
    assert (report.early_data, report.error) == ("accepted", None)


# --- ends


async def test_refused_connect() -> None:
    """Messages behind a CONNECT that is refused are not published, and the refusal is told in one round trip."""
    users = {"ada": "lovelace"}
    async with BrokerServer(BrokerConfig(**FREE, early_data=True, users=users)) as broker:
        store = TicketStore()
        options: dict[str, Any] = {"tickets": store, "username": "ada", "early_data": "publish"}
        session = await hang(AsyncSession.open(broker, password="lovelace", **options))
        while not session.handshake.tickets:
            await session.ping()
        await session.close()
        with pytest.raises(ConnectRefusedError, match="User Name or Password") as caught:
            await hang(AsyncSession.open(broker, password="babbage", publish_early=MESSAGES, **options))
        assert caught.value.reason_code == 0x86
        stats = broker.stats()
        assert (stats.early_data_accepted, stats.connects_refused, stats.messages_in) == (1, 1, 0)


async def test_a_broker_that_asks_somebody_first(make_house: MakeHouse) -> None:
    """What came early is marked so, even if it is worked on when the handshake is long complete."""
    asked = asyncio.Event()

    async def authenticate(*_: object) -> bool:
        await asked.wait()
        return True

    house = await make_house()
    await house.remember()
    house.broker.config.authenticate = authenticate
    opening = asyncio.ensure_future(house.open(early_data="publish", publish_early=MESSAGES))
    await hang(house.broker.wait_for(lambda: house.broker.stats().connections == 2))
    [connection] = house.listener.connections
    while connection.is_early:
        await connection.progress()
    asked.set()
    session = await hang(opening)
    await hang(session.early_published())
    await hang(house.feed.wait(3))
    assert house.feed.df["early_data"].tolist() == [True] * 3
    house.broker.config.authenticate = None


async def test_the_password_goes_early_but_is_not_shown(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.remember()
    session = await house.open(
        username="ada", password="very secret", publish_early=[("a", "also secret")], early_data="publish"
    )
    shown = f"{session!r} {session.options!r} {session.handshake.to_dict()} {list(session.trace)} {house.store!r}"
    assert "very secret" not in shown
    assert "also secret" not in shown


async def test_a_message_that_is_too_large(make_house: MakeHouse) -> None:
    """The broker's limit is not known when it is sent: the broker ends the session, and says why."""
    house = await make_house(max_packet_size=200)
    await house.remember()
    session = await house.open(early_data="publish", publish_early=[("a", bytes(1000), 1)])
    with pytest.raises(DisconnectedError, match="too large") as caught:
        await hang(session.early_published())
    assert caught.value.reason_code == 0x95


async def test_results_that_do_not_come(make_house: MakeHouse) -> None:
    house = await make_house()
    session = await house.open(early_data="publish", publish_early=[("a", b"x", 2)])
    await hang(session.early_published())
    outcome = session._early._outcomes[0] = asyncio.get_running_loop().create_future()
    with pytest.raises(OperationTimeoutError, match="1 of 1 early messages are not acknowledged"):
        await session.early_published(timeout=0.01)
    outcome.set_exception(PublishError("refused"))
    with pytest.raises(PublishError):
        await session.early_published()


async def test_a_session_that_ends_before_the_acknowledgement(make_house: MakeHouse) -> None:
    from mqttquic_lab.session.publishing import Waiting

    house = await make_house()
    session = await house.open(early_data="publish", publish_early=[("a", b"x", 1)])
    waiting = Waiting(asyncio.get_running_loop().create_future())
    session._deliveries.send("b", b"y", 1, False, None, waiting)  # never written: never acknowledged
    session._early._outcomes.append(waiting.future)
    await session.close()
    with pytest.raises(DisconnectedError, match="was not acknowledged"):
        await session.early_published()


# --- other connections of the same session


async def test_reconnect_after_a_loss_goes_early_but_says_nothing_twice(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.remember()
    session = await publish_early(house, session_expiry_interval=60, reconnect=False)
    while not session.handshake.tickets:
        await session.ping()
    session.connection.abort("lost")
    await hang(session.wait_closed())
    await hang(session.reconnect())
    assert (session.handshake.early_data, session.handshake.round_trips) == ("accepted", 1)
    assert session.handshake.session_present
    assert await house.heard(3) == EXPECTED


async def test_reconnect_of_a_living_session_waits_for_the_handshake(make_house: MakeHouse) -> None:
    """An early CONNECT would have the broker end the connection that still serves."""
    house = await make_house()
    await house.remember()
    session = await house.open(client_id="alive", session_expiry_interval=60)
    while not session.handshake.tickets:
        await session.ping()
    await hang(session.reconnect())
    assert (session.handshake.early_data, session.handshake.resumed) == ("not offered", True)
    assert session.handshake.session_present
    assert house.broker.stats().takeovers == 1


async def test_moving_to_tls_leaves_the_quic_options_behind(make_house: MakeHouse) -> None:
    house = await make_house()
    session = await house.open(client_id="mover", congestion="cubic", session_expiry_interval=60)
    await hang(session.reconnect(house.broker.urls["mqtts"]))
    assert session.transport == "tls"
    with pytest.raises(UsageError, match="only QUIC updates its keys"):
        await session.update_keys()
    assert session.close_info is None


async def test_over_a_given_connection_nothing_is_early(make_house: MakeHouse) -> None:
    from tests.helpers.memory import memory_pair

    mine, _theirs = memory_pair()
    with pytest.raises(UsageError, match="yet to be opened"):
        await AsyncSession.over(mine, early_data="publish", publish_early=[("a", b"")])
