"""When packets go: pacing, acknowledgements that go along, probes; and the contract with aioquic about it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import PingAcknowledged, StreamDataReceived
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketPacer

from mqttquic_lab.quic import private, private_recovery
from mqttquic_lab.quic.private_recovery import Pacer
from tests.helpers.engines import CLIENT, SERVER, Engines

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

SOURCE = ast.parse(Path(private_recovery.__file__).read_text())


@pytest.fixture
def engines(identities: Identities) -> Engines:
    pair = Engines(identities, window=10_000_000, max_data=10_000_000)
    pair.deliver()
    return pair


# --- contract


def test_every_private_name_exists(engines: Engines) -> None:
    engine = engines.client
    owners: list[Any] = [engine, engine._loss, engine._loss._pacer, engine._loss._cc]
    names = {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    missing = {name for name in names if not any(hasattr(owner, name) for owner in owners)}
    assert not missing, f"aioquic no longer has {sorted(missing)}"


def test_overridden_methods_have_the_same_shape() -> None:
    for name in ("update_after_send", "next_send_time"):
        mine, original = (list(inspect.signature(getattr(of, name)).parameters) for of in (Pacer, QuicPacketPacer))
        assert mine == original


def test_aioquic_asks_the_pacer_before_each_packet_and_tells_it_afterwards() -> None:
    write = inspect.getsource(QuicConnection._write_application)
    asks = "self._pacing_at = self._loss._pacer.next_send_time(now=now)"
    assert write.index("while True:") < write.index(asks) < write.index("break") < write.index("builder.start_packet(")
    assert write.count("_pacer.update_after_send(now=now)") == 1


# --- building packets


def test_no_packet_is_begun_in_vain(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    start = QuicPacketBuilder.start_packet

    def start_packet(self: QuicPacketBuilder, *arguments: Any) -> None:
        begun.append(arguments)
        start(self, *arguments)

    monkeypatch.setattr(QuicPacketBuilder, "start_packet", start_packet)
    client = engines.client
    for size, packets in ((100, 1), (2500, 3)):
        begun.clear()
        client.send_stream_data(0, bytes(size))
        engines.now += 1
        assert len(client.datagrams_to_send(engines.now)) == packets == len(begun)
        assert client._pacing_at is None
        engines.deliver()


def test_whatever_is_to_be_sent_leaves_in_one_go(engines: Engines) -> None:
    """Nothing of what aioquic puts into packets is left behind by ending early."""
    client, server = engines.client, engines.server
    private.stop_pacing(client)
    for number in range(40):
        client.send_stream_data(4 * number, bytes(100), end_stream=number % 2 == 0)
    client.send_ping(7)
    client.change_connection_id()
    client.reset_stream(4, 1)
    client.stop_stream(8, 1)
    engines.now += 1
    for data, _ in client.datagrams_to_send(engines.now):
        server.receive_datagram(data, CLIENT, engines.now)
    arrived = {event.stream_id for event in Engines.events(server) if isinstance(event, StreamDataReceived)}
    assert arrived == set(range(0, 160, 4)) - {4}
    engines.now += 0.01
    for data, _ in server.datagrams_to_send(engines.now):
        client.receive_datagram(data, SERVER, engines.now)
    assert [event.uid for event in Engines.events(client) if isinstance(event, PingAcknowledged)] == [7]
    engines.deliver()
    assert client._loss.bytes_in_flight == server._loss.bytes_in_flight == 0


# --- acknowledgements


@pytest.mark.parametrize(("age", "along"), [(0.0002, False), (0.0008, True)])
def test_an_acknowledgement_that_is_nearly_due_goes_along_with_data(engines: Engines, age: float, along: bool) -> None:
    client, server = engines.client, engines.server
    client.send_stream_data(0, b"question")
    [(data, _)] = client.datagrams_to_send(engines.now)
    server.receive_datagram(data, CLIENT, engines.now)
    space = server._spaces[tls.Epoch.ONE_RTT]
    assert space.ack_at is not None
    assert space.ack_at > engines.now
    engines.now += age
    assert server.datagrams_to_send(engines.now) == []  # never on its own before it is due
    server.send_stream_data(0, b"answer")
    [(data, _)] = server.datagrams_to_send(engines.now)
    client.receive_datagram(data, SERVER, engines.now)
    assert (space.ack_at is None) is along
    assert (client._loss.bytes_in_flight == 0) is along
