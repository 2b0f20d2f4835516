"""What a broker with a store still has after it was closed, or killed, and started again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from mqttquic_lab.mqtt import PubAck, PubComp, Publish, PubRec, PubRel, Will
from tests.broker.store_house import House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench
    from tests.broker.peer import Peer

End = Literal["restart", "kill"]
ENDS: tuple[End, ...] = ("restart", "kill")

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.start()
    yield house
    await house.end()


async def again(house: House, end: End, **options: Any) -> Bench:
    return await (house.restart(**options) if end == "restart" else house.kill(**options))


async def join(house: House, client_id: str = "s", version: Version = 5, **connect: Any) -> Peer:
    """Connect a client whose session lasts."""
    if version == 5:
        connect.setdefault("session_expiry_interval", 100)
    return await house.bench.join(client_id, version, clean_start=False, **connect)


async def lose(house: House, peer: Peer, client_id: str = "s") -> None:
    await peer.vanish()
    server = house.server
    await server.wait_for(lambda: client_id not in {client.client_id for client in server.clients()})


async def take(peer: Peer, count: int) -> list[Publish]:
    """Return so many messages that came in a row, completing their exchanges."""
    messages = [await peer.message(acknowledge=False) for _ in range(count)]
    for message in messages:
        if message.qos:
            peer.send(PubAck(message.packet_id or 0) if message.qos == 1 else PubRec(message.packet_id or 0))
    for message in messages:
        if message.qos == 2:
            peer.send(PubComp((await peer.expect(PubRel)).packet_id))
    return messages


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("version", [4, 5])
async def test_what_waits_is_there_after_a_restart(house: House, end: End, version: Version) -> None:
    subscriber = await join(house, version=version)
    await subscriber.subscribe("a", qos=2)
    await lose(house, subscriber)
    publisher = await house.bench.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a", b"%d" % qos, qos, content_type="t")
    await again(house, end)
    assert (house.server.stats().queued, house.server.stats().stored_messages) == (2, 2)
    back = house.bench.attach(version)
    assert (await back.connect("s", clean_start=False)).session_present
    found = await take(back, 2)
    assert [(m.payload, m.qos, m.dup) for m in found] == [(b"1", 1, False), (b"2", 2, False)]
    if version == 5:
        assert [dict(m.properties) for m in found] == [{"content_type": "t"}] * 2
    await back.sync()
    assert house.server.stats().stored_messages == 0


@pytest.mark.parametrize("end", ENDS)
async def test_what_is_under_way_goes_on_where_it_was(house: House, end: End) -> None:
    subscriber = await join(house)
    await subscriber.subscribe("a", qos=2)
    publisher = await house.bench.join("p")
    for number, qos in enumerate((1, 2, 2, 2, 1)):
        await publisher.publish("a", b"%d" % number, qos)
    ids = [(await subscriber.message(acknowledge=False)).packet_id or 0 for _ in range(5)]
    for number in (2, 1):  # PUBRECs out of order: PUBRELs have theirs [MQTT-4.6.0-4]
        subscriber.send(PubRec(ids[number]))
        assert (await subscriber.expect(PubRel)).packet_id == ids[number]
    await again(house, end)
    back = await join(house)
    packets = [await back.next() for _ in range(5)]
    assert [p.packet_id for p in packets[:2] if isinstance(p, PubRel)] == [ids[2], ids[1]]
    rest = [(p.payload, p.packet_id, p.dup, p.qos) for p in packets[2:] if isinstance(p, Publish)]
    assert rest == [(b"0", ids[0], True, 1), (b"3", ids[3], True, 2), (b"4", ids[4], True, 1)]
    for number in (1, 2):
        back.send(PubComp(ids[number]))
    for number in (0, 4):
        back.send(PubAck(ids[number]))
    back.send(PubRec(ids[3]))
    assert (await back.expect(PubRel)).packet_id == ids[3]
    back.send(PubComp(ids[3]))
    assert await back.sync() == []
    await again(house, end)
    again_back = await join(house)
    assert await again_back.sync() == []
    assert house.server.stats().stored_messages == 0


@pytest.mark.parametrize("end", ENDS)
async def test_a_message_received_is_not_taken_twice(house: House, end: End) -> None:
    subscriber = await join(house, "sub")
    await subscriber.subscribe("a", qos=2)
    publisher = await join(house, "pub")
    publisher.send(Publish("a", b"x", 2, False, False, 7))
    await publisher.expect(PubRec)
    publisher.send(Publish("a", b"y", 2, False, False, 8))
    await publisher.expect(PubRec)
    publisher.send(PubRel(8))
    await publisher.expect(PubComp)
    await take(subscriber, 2)
    await subscriber.sync()
    await again(house, end)
    publisher, subscriber = await join(house, "pub"), await join(house, "sub")
    publisher.send(Publish("a", b"x", 2, False, True, 7))
    assert (await publisher.expect(PubRec)).reason_code == 0
    assert await subscriber.sync() == []
    publisher.send(PubRel(7))
    assert (await publisher.expect(PubComp)).reason_code == 0
    publisher.send(Publish("a", b"z", 2, False, False, 8))  # that identifier is free again
    await publisher.expect(PubRec)
    assert (await subscriber.message()).payload == b"z"


@pytest.mark.parametrize("end", ENDS)
async def test_subscriptions_hold(house: House, end: End) -> None:
    client = await join(house)
    await client.subscribe("a/+", qos=1, retain_as_published=True, subscription_identifier=5)
    await client.subscribe("own", qos=1, no_local=True)
    await client.subscribe("gone", qos=1)
    await client.unsubscribe("gone")
    for name in ("s", "t"):
        member = client if name == "s" else await join(house, name)
        await member.subscribe("$share/g/work", qos=1)
    await again(house, end)
    client, other = await join(house), await join(house, "t")
    assert house.server.stats().subscriptions == 4
    publisher = await house.bench.join("p")
    await publisher.publish("a/1", b"x", 1, retain=True)
    message = await client.message()
    assert (message.retain, message.qos, message.properties["subscription_identifier"]) == (True, 1, (5,))
    assert await client.publish("own", b"", 1) == 0x00
    assert await publisher.publish("gone", b"", 1) == 0x10
    for _ in range(2):
        await publisher.publish("work", b"", 1)
    assert (await client.message()).topic == (await other.message()).topic == "work"
    assert await client.sync() == await other.sync() == []


@pytest.mark.parametrize("end", ENDS)
async def test_retained_messages(house: House, end: End) -> None:
    publisher = await house.bench.join("p")
    for topic, payload in (("r/1", b"old"), ("r/1", b"new"), ("r/2", b"x"), ("r/2", b""), ("r/3", b"y")):
        await publisher.publish(topic, payload, 0, retain=True, content_type="c")
    await publisher.publish("r/short", b"z", 1, retain=True, message_expiry_interval=10)
    await publisher.publish("r/long", b"z", 1, retain=True, message_expiry_interval=100)
    await again(house, end, after=30)
    assert house.server.stats().retained == 3
    reader = await house.bench.join("r")
    await reader.subscribe("r/+", qos=1)
    found = {m.topic: m for m in await take(reader, 3)}
    assert {topic: m.payload for topic, m in found.items()} == {"r/1": b"new", "r/3": b"y", "r/long": b"z"}
    assert found["r/long"].properties["message_expiry_interval"] == 70
    assert found["r/1"].properties["content_type"] == "c"
    publisher = await house.bench.join("p")
    for topic in ("r/1", "r/3", "r/long"):
        await publisher.publish(topic, b"", 1, retain=True)
    await again(house, end)
    assert (house.server.stats().retained, house.server.stats().stored_messages) == (0, 0)


@pytest.mark.parametrize("end", ENDS)
async def test_time_goes_on_while_the_broker_is_down(house: House, end: End) -> None:
    for name, seconds in (("short", 20), ("long", 200)):
        client = await join(house, name, session_expiry_interval=seconds)
        await client.subscribe("a", qos=1)
        await lose(house, client, name)
    publisher = await house.bench.join("p")
    await publisher.publish("a", b"1", 1, message_expiry_interval=30)
    await publisher.publish("a", b"2", 1, message_expiry_interval=100)
    house.bench.clock.advance(5)
    await again(house, end, after=50)
    assert {session.client_id for session in house.server.sessions} == {"long"}
    late = await house.bench.join("short", clean_start=False, session_expiry_interval=20)
    assert await late.sync() == []
    client = await join(house, "long")
    message = await client.message()
    assert (message.payload, message.properties["message_expiry_interval"]) == (b"2", 45)
    assert await client.sync() == []
    await lose(house, late, "short")
    house.bench.clock.advance(21)
    await again(house, end)
    assert {session.client_id for session in house.server.sessions} == {"long"}


async def test_a_session_lost_with_the_broker_counts_from_the_restart(house: House) -> None:
    await join(house, session_expiry_interval=20)
    await house.kill(after=1000)
    house.bench.clock.advance(19)
    assert house.server.stats().sessions == 1
    house.bench.clock.advance(2)
    assert (house.server.stats().sessions, house.server.stats().sessions_expired) == (0, 1)


@pytest.mark.parametrize("end", ENDS)
async def test_sessions_that_end_with_their_connection_leave_nothing(house: House, end: End) -> None:
    transient = await house.bench.join("t")
    await transient.subscribe("a", qos=2)
    publisher = await house.bench.join("p")
    for qos in (1, 2):
        await publisher.publish("a", b"x", qos)
    lasting = await join(house, "l")
    await lasting.subscribe("b", qos=1)
    await lasting.leave(session_expiry_interval=0)
    cleaned = await join(house, "c")
    await cleaned.subscribe("b", qos=1)
    await house.bench.join("c")  # clean start
    await again(house, end)
    stats = house.server.stats()
    assert (stats.sessions, stats.subscriptions, stats.stored_messages) == (0, 0, 0)
    tables = "session", "subscription", "message", "delivery", "received", "retained", "will"
    connection = house.journal.file.connection
    rows = await house.journal.in_thread(
        lambda: [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    )
    assert rows == [0] * len(tables)


async def test_a_session_that_lasts_no_more_is_forgotten_at_once(house: House) -> None:
    client = await join(house)
    await client.subscribe("a", qos=1)
    await lose(house, client)
    publisher = await house.bench.join("p")
    await publisher.publish("a", b"x", 1)
    back = await house.bench.join("s", clean_start=False, session_expiry_interval=0)
    await back.message(acknowledge=False)
    await house.kill()
    assert (house.server.stats().sessions, house.server.stats().stored_messages) == (0, 0)


async def test_one_copy_for_many(house: House) -> None:
    for name in ("a", "b", "c"):
        client = await join(house, name)
        await client.subscribe("t", qos=1)
        await lose(house, client, name)
    publisher = await house.bench.join("p")
    await publisher.publish("t", bytes(1000), 1, retain=True)
    assert (house.server.stats().stored_messages, house.server.stats().stored_bytes) == (1, 1001)
    await house.kill()
    assert (house.server.stats().stored_messages, house.server.stats().stored_bytes) == (1, 1001)
    for name in ("a", "b", "c"):
        client = await join(house, name)
        await client.message()
        await client.sync()
    assert house.server.stats().stored_messages == 1
    publisher = await house.bench.join("p")
    await publisher.publish("t", b"", 1, retain=True)
    assert house.server.stats().stored_messages == 3 - 2  # the empty message, once, for three


# Wills


@pytest.mark.parametrize("end", ENDS)
async def test_a_will_is_published_when_the_broker_is_back(house: House, end: End) -> None:
    watcher = await join(house, "w")
    await watcher.subscribe("will/#", qos=1)
    await house.bench.join("transient", will=Will("will/1", b"x", 1, True, {"content_type": "c"}))
    await join(house, "lasting", will=Will("will/2", b"y", 1))
    polite = await join(house, "polite", will=Will("will/3", b"z", 1))
    await polite.leave()
    await again(house, end)
    watcher = await join(house, "w")
    found = {m.topic: m for m in await take(watcher, 2)}
    assert set(found) == {"will/1", "will/2"}
    assert found["will/1"].properties["content_type"] == "c"
    assert await watcher.sync() == []
    assert (house.server.stats().retained, house.server.stats().wills_published) == (1, 2)
    await again(house, end)
    watcher = await join(house, "w")
    assert await watcher.sync() == []


@pytest.mark.parametrize("end", ENDS)
async def test_a_delayed_will_waits_on(house: House, end: End) -> None:
    watcher = await join(house, "w")
    await watcher.subscribe("will/#", qos=1)
    for name in ("late", "back", "expires"):
        will = Will(f"will/{name}", b"x", 1, False, {"will_delay_interval": 60})
        client = await join(house, name, session_expiry_interval=30 if name == "expires" else 100, will=will)
        await lose(house, client, name)
    await again(house, end, after=10)
    watcher = await join(house, "w")
    assert await watcher.sync() == []
    await join(house, "back")
    house.bench.clock.advance(25)
    assert [m.topic for m in await watcher.sync() if isinstance(m, Publish)] == ["will/expires"]
    house.bench.clock.advance(30)
    assert [m.topic for m in await watcher.sync() if isinstance(m, Publish)] == ["will/late"]
    await again(house, end, after=10)
    assert house.server.stats().wills_published == 0


async def test_a_will_that_fell_due_meanwhile(house: House) -> None:
    watcher = await join(house, "w", session_expiry_interval=1000)
    await watcher.subscribe("will", qos=1)
    will = Will("will", b"x", 1, False, {"will_delay_interval": 60})
    await lose(house, await join(house, "s", will=will))
    await house.restart(after=61)
    watcher = await join(house, "w")
    assert (await watcher.message()).topic == "will"
