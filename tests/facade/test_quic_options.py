"""Tickets, early data and the other choices of QUIC as a person types them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab.quic import knobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def broker() -> Iterator[mq.Broker]:
    with mq.start_broker(quic_port=0, tls_port=0, tcp_port=0, early_data=True) as broker:
        yield broker


def visit(broker: mq.Broker, **options: Any) -> mq.Handshake:
    """Connect until there is a ticket, leave, and return how that went."""
    with mq.connect(broker, **options) as session:
        while not session.handshake.tickets:
            session.ping()
        return session.handshake


def test_the_second_connection_takes_one_round_trip(broker: mq.Broker, tmp_path: Path) -> None:
    path = tmp_path / "tickets.json"
    first = visit(broker, tickets=path, early_data=True)
    assert (first.early_data, first.round_trips, first.resumed) == ("not offered", 2, False)
    second = visit(broker, tickets=path, early_data=True)
    assert (second.early_data, second.round_trips, second.resumed) == ("accepted", 1, True)
    assert "0-RTT" in repr(second)
    assert broker.stats.early_data_accepted == 1
    path.chmod(0o644)
    with pytest.raises(mq.UsageError, match="chmod 600"):
        mq.connect(broker, tickets=path)


def test_messages_before_connack(broker: mq.Broker) -> None:
    store = mq.TicketStore()
    visit(broker, tickets=store, early_data=True)
    with mq.connect(broker) as ear:
        feed = ear.subscribe("early", 2)
        early = [("early", {"n": number}, number) for number in range(3)]
        with mq.connect(broker, tickets=store, early_data="publish", publish_early=early) as session:
            assert session.handshake.early_data == "accepted"
            assert [result.reason_code for result in session.early_published()] == [0, 0, 0]
            feed.wait(3)
            assert feed.df["early_data"].all()
            [info] = [client for client in broker.clients() if client.early_messages]
            assert info.early_messages == 3


def test_keys_and_close_codes(broker: mq.Broker) -> None:
    session = mq.connect(broker, quic_version="v2", congestion="cubic")
    assert [session.update_keys(), session.update_keys(timeout="2s")] == [1, 0]
    assert session.handshake.key_updates == 2
    assert session.handshake.congestion_control == "cubic"
    session.close()
    info = session.close_info
    assert info is not None
    assert info.code_text == "application code 0x0 (normal)"
    assert session.handshake.closed_with


async def test_awaitable_twins(broker: mq.Broker) -> None:
    session = await mq.aio.connect(
        broker, tickets=mq.TicketStore(), early_data="publish", publish_early=[("a", "b", 1)]
    )
    results = await session.aio.early_published()
    assert [result.packet_id for result in results] == [1]
    assert await session.aio.update_keys() == 1
    await session.aio.close()
    await asyncio.sleep(0)


def test_a_controller_of_ones_own(monkeypatch: pytest.MonkeyPatch, broker: mq.Broker) -> None:
    monkeypatch.setattr(knobs, "registered", {})

    class Tiny(mq.CongestionControl):
        def __init__(self, *, max_datagram_size: int) -> None:
            super().__init__(max_datagram_size=max_datagram_size)
            self.congestion_window = 4 * max_datagram_size

        def on_packet_sent(self, *, packet: Any) -> None:
            self.bytes_in_flight += packet.sent_bytes

        def on_packet_acked(self, *, now: float, packet: Any) -> None:
            self.bytes_in_flight -= packet.sent_bytes

        def on_packets_expired(self, *, packets: Any) -> None:
            self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

        def on_packets_lost(self, *, now: float, packets: Any) -> None:
            self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    with pytest.raises(mq.UsageError, match=r"mq\.register_congestion_control"):
        mq.connect(broker, congestion="tiny")
    mq.register_congestion_control("tiny", Tiny)
    with mq.connect(broker, congestion="tiny") as session:
        assert session.publish("a", bytes(20_000), 1).reason_code in (0, 0x10)
        assert session.handshake.congestion_control == "tiny"


@pytest.mark.parametrize("scheme", ["mqtts", "mqtt"])
def test_options_of_quic_elsewhere(broker: mq.Broker, scheme: str) -> None:
    with pytest.raises(mq.UsageError, match=r"early_data, congestion are options of QUIC"):
        mq.connect(broker.urls[scheme], early_data=True, congestion="cubic", tickets=None)
    with pytest.raises(mq.UsageError, match="tickets is an option of QUIC"):
        mq.probe(broker.urls[scheme], tickets=True)
    with pytest.raises(mq.UsageError, match="quic=False leaves it out"):
        mq.start_broker(quic=False, retry=True)


def test_misspelt() -> None:
    with pytest.raises(mq.UnknownOptionError, match="did you mean 'early_data'"):
        mq.connect("quic://localhost", early_date=True)
    with pytest.raises(mq.UnknownOptionError, match="did you mean 'quic_version'"):
        mq.start_broker(quic_versions="v1")
