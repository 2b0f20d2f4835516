"""When packets go: pacing, acknowledgements that go along, probes; and the contract with aioquic about it."""

from __future__ import annotations

import ast
import inspect
import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import PingAcknowledged, StreamDataReceived
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketPacer

from mqttquic_lab.quic import private, private_recovery, private_streams
from mqttquic_lab.quic.private_recovery import MAX_BACKOFF, Pacer
from tests.helpers.engines import CLIENT, SERVER, Engines

if TYPE_CHECKING:
    from mqttquic_lab.quic.private import Engine
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
    engine.send_stream_data(0, b"x")
    owners: list[Any] = [engine, engine._loss, engine._loss._pacer, engine._loss._cc, engine._streams[0].sender]
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


# --- probes (RFC 9002 section 6.2)


def expire(engine: Engine, engines: Engines) -> list[bytes]:
    """Let time pass to the engine's next deadline; returns what it then sends."""
    timer = engine.get_timer()
    assert timer is not None
    engines.now = max(engines.now, timer)
    engine.handle_timer(engines.now)
    return [data for data, _ in engine.datagrams_to_send(engines.now)]


@pytest.mark.parametrize("arrives", [0, 1])
def test_a_probe_timeout_sends_two_packets_and_each_is_enough(engines: Engines, arrives: int) -> None:
    client, server = engines.client, engines.server
    client.send_stream_data(0, b"lost, alas", end_stream=True)
    assert client.datagrams_to_send(engines.now)  # lost
    probes = expire(client, engines)
    assert len(probes) == 2
    server.receive_datagram(probes[arrives], CLIENT, engines.now)
    [event] = [event for event in Engines.events(server) if isinstance(event, StreamDataReceived)]
    assert (event.data, event.end_stream) == (b"lost, alas", True)
    engines.deliver()
    server.receive_datagram(probes[1 - arrives], CLIENT, engines.now)  # late
    engines.deliver()
    client.send_stream_data(4, b"and on")
    engines.deliver()
    assert [event.data for event in Engines.events(server) if isinstance(event, StreamDataReceived)] == [b"and on"]
    assert private_streams.unacknowledged_total(client) == 0
    assert client._loss.bytes_in_flight == 0


def test_the_second_probe_carries_what_is_next(engines: Engines) -> None:
    client, server = engines.client, engines.server
    for number in range(3):
        client.send_stream_data(4 * number, b"%d" % number)
        assert client.datagrams_to_send(engines.now)  # lost
        engines.now += 0.0001
    for probe in expire(client, engines):
        server.receive_datagram(probe, CLIENT, engines.now)
    arrived = [event.data for event in Engines.events(server) if isinstance(event, StreamDataReceived)]
    assert arrived == [b"0", b"1"]


def test_probes_repeat_the_handshake(identities: Identities) -> None:
    """Every first datagram of a probe timeout is lost, and every first flight: the second ones suffice."""
    pair = Engines(identities)
    client, server = pair.client, pair.server
    assert client.datagrams_to_send(pair.now)
    sent: dict[Engine, int] = {}
    for _ in range(40):
        for source, target, address in ((client, server, CLIENT), (server, client, SERVER)):
            if source is server and source.get_peer_address() is None:
                continue
            probes = expire(source, pair) if source.get_timer() is not None else []
            if len(probes) >= 2:
                sent[source] = sent.get(source, 0) + 1
            for data in probes[1:]:
                target.receive_datagram(data, address, pair.now)
        if client._handshake_complete and server._handshake_complete:
            break
    assert client._handshake_complete
    assert server._handshake_complete
    assert len(sent) == 2


def test_what_was_lost_and_copied_is_sent_until_it_arrives_and_is_kept_in_order(engines: Engines) -> None:
    """Half of all datagrams are lost, in both directions; what arrives is what was written."""
    chance = random.Random(3)
    client, server = engines.client, engines.server
    data = chance.randbytes(60_000)
    for start in range(0, len(data), 3000):
        client.send_stream_data(0, data[start : start + 3000], end_stream=start + 3000 == len(data))
    arrived, ended, copies = b"", False, 0
    for _ in range(3000):
        engines.now = min(engines.now + 0.02, *(t for t in (client.get_timer(), server.get_timer()) if t))
        for source, target, address in ((client, server, CLIENT), (server, client, SERVER)):
            timer = source.get_timer()
            if timer is not None and timer <= engines.now:
                source.handle_timer(engines.now)
            copies += source._probe_twice
            for datagram, _ in source.datagrams_to_send(engines.now):
                if chance.random() < 0.5:
                    target.receive_datagram(datagram, address, engines.now)
        for event in Engines.events(server):
            if isinstance(event, StreamDataReceived):
                arrived += event.data
                ended = event.end_stream
        if ended and private_streams.unacknowledged_total(client) == 0:
            break
        engines.now += 0.005
    assert ended
    assert arrived == data
    assert copies > 5
    assert client._loss.bytes_in_flight >= 0


def test_probe_timeouts_grow_to_a_bound(engines: Engines) -> None:
    client = engines.client
    client.send_stream_data(0, b"into the dark")
    client.datagrams_to_send(engines.now)
    times = []
    while engines.now < 1030:
        assert expire(client, engines)
        times.append(engines.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[1] == pytest.approx(2 * pauses[0])
    assert MAX_BACKOFF / 2 < max(pauses) <= MAX_BACKOFF
    assert len(times) > 15


def test_on_a_long_path_they_grow_to_four_times_the_first(engines: Engines) -> None:
    client = engines.client
    client._loss._rtt_smoothed = 3.0
    first = client._loss.get_probe_timeout()
    client.send_stream_data(0, b"into the dark")
    client.datagrams_to_send(engines.now)
    times = [engines.now]
    for _ in range(5):
        expire(client, engines)
        times.append(engines.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == pytest.approx([first, 2 * first, 4 * first, 4 * first, 4 * first])


def test_nothing_is_copied_while_data_flows(engines: Engines) -> None:
    """A timeout that has data to send anyway sends that."""
    client = engines.client
    private.stop_pacing(client)
    client.send_stream_data(0, bytes(1000))
    client.datagrams_to_send(engines.now)
    timer = client.get_timer()
    assert timer is not None
    client.send_stream_data(4, bytes(5000))
    engines.now = timer
    client.handle_timer(engines.now)
    sent = sum(len(data) for data, _ in client.datagrams_to_send(engines.now))
    assert 6000 < sent < 6600
