"""One session carried from transport to transport while messages are under way (MQTT 5.0 section 3.1.4)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.mqtt import Disconnect, PubAck, Publish, PubRec, PubRel, Will
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.broker.peer import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.mqtt import Version

SCHEMES = ("quic", "mqtts", "mqtt")
MESSAGES = 6


@pytest.fixture
async def broker() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(BrokerConfig(quic_port=0, tls_port=0, tcp_port=0)) as server:
        yield server


async def dial(broker: BrokerServer, scheme: str, version: Version = 5) -> Peer:
    trust = Trust(ca_file=broker.ca_file)
    return Peer(await open_connection(parse_url(broker.urls[scheme]), trust=trust), version)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SCHEMES, SCHEMES)))
async def test_what_is_in_flight_goes_on_over_another_transport(broker: BrokerServer, before: str, after: str) -> None:
    other = await dial(broker, "mqtt")
    await other.connect("other")
    old = await dial(broker, before)
    await old.connect("x", session_expiry_interval=60)
    await old.subscribe("a", qos=2)
    for number in range(MESSAGES):
        other.send(Publish("a", b"%d" % number, 1 + number % 2, packet_id=1 + number))
    sent = [await old.message(acknowledge=False) for _ in range(MESSAGES)]
    released = sent[1]
    assert released.packet_id is not None
    old.send(PubRec(released.packet_id, 0, {}))
    await old.expect(PubRel)
    # A QoS 2 message of its own, half way: its second half comes over the new connection.
    old.send(Publish("b", b"", 2, packet_id=77))
    await old.expect(PubRec)

    new = await dial(broker, after)
    answer = await new.connect("x", clean_start=False, session_expiry_interval=60)
    assert answer.session_present
    goodbye = [packet for packet in await old.closed() if isinstance(packet, Disconnect)]
    assert [packet.reason_code for packet in goodbye] == [0x8E]  # before the end, also over QUIC
    again = [await new.next() for _ in range(MESSAGES)]
    messages = [packet for packet in again if isinstance(packet, Publish)]
    assert [(p.payload, p.qos, p.dup, p.packet_id) for p in messages] == [
        (p.payload, p.qos, True, p.packet_id) for p in sent if p is not released
    ]
    assert [packet.packet_id for packet in again if isinstance(packet, PubRel)] == [released.packet_id]
    new.send(PubRel(77, 0, {}))
    assert (await new.next()).reason_code == 0  # type: ignore[attr-defined]
    for packet in messages:
        assert packet.packet_id is not None
        new.send((PubAck if packet.qos == 1 else PubRec)(packet.packet_id, 0, {}))
    assert sum(isinstance(packet, PubRel) for packet in await new.sync()) == sum(p.qos == 2 for p in messages)
    stats = broker.stats()
    assert (stats.takeovers, stats.sessions, stats.dropped_session) == (1, 2, 0)
    (client,) = [client for client in broker.clients() if client.client_id == "x"]
    assert client.transport == {"quic": "quic", "mqtts": "tls", "mqtt": "tcp"}[after]
    for peer in (old, new, other):
        await peer.connection.close()


async def test_round_and_round_with_traffic(broker: BrokerServer) -> None:
    """Every QoS 2 message arrives once, whatever the session is carried by."""
    other = await dial(broker, "mqtt")
    await other.connect("other")
    got: list[bytes] = []
    peers: list[Peer] = []
    for turn in range(9):
        peer = await dial(broker, SCHEMES[turn % 3])
        peers.append(peer)
        await peer.connect("x", clean_start=False, session_expiry_interval=60)
        if turn == 0:
            await peer.subscribe("a", qos=2)
        for number in range(3):
            await other.publish("a", b"%d" % (3 * turn + number), 2, packet_id=1 + 3 * turn + number)
        # It reads some, and is taken over before the exchanges end.
        while (packet := await peer.next()) and len(got) < 3 * turn + 2:
            if isinstance(packet, Publish):
                assert packet.packet_id is not None
                peer.send(PubRec(packet.packet_id, 0, {}))
                got.append(packet.payload)
            elif isinstance(packet, PubRel):
                pass  # PUBCOMP is left out: PUBREL comes again
    assert len(got) == len(set(got))
    assert broker.stats().takeovers == 8
    for peer in (*peers, other):
        await peer.connection.close()


@pytest.mark.parametrize(("delay", "published"), [(0, 1), (30, 0)])
async def test_the_will_of_a_connection_that_was_taken_over(broker: BrokerServer, delay: int, published: int) -> None:
    watcher = await dial(broker, "mqtt")
    await watcher.connect("watcher")
    await watcher.subscribe("will")
    old = await dial(broker, "quic")
    await old.connect(
        "x", session_expiry_interval=60, will=Will("will", b"gone", properties={"will_delay_interval": delay})
    )
    new = await dial(broker, "mqtts")
    await new.connect("x", clean_start=False, session_expiry_interval=60)
    await old.closed()
    assert len(await watcher.sync()) == published  # section 3.1.3.2.2
    for peer in (old, new, watcher):
        await peer.connection.close()


async def test_a_session_changes_version_and_transport(broker: BrokerServer) -> None:
    old = await dial(broker, "quic")
    await old.connect("x", session_expiry_interval=60)
    await old.subscribe("a", qos=1)
    new = await dial(broker, "mqtt", 4)
    assert (await new.connect("x", clean_start=False)).session_present
    assert [type(packet) for packet in await old.closed()] == [Disconnect]
    await new.publish("a", b"x", 1)
    for peer in (old, new):
        await peer.connection.close()
