"""The contract with aioquic about paths: its private names, and what it does with a path that we give it."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.logger import QuicLogger

from mqttquic_lab.quic import private, private_paths, private_streams
from mqttquic_lab.quic.private import Engine
from mqttquic_lab.quic.private_paths import PathAnnouncement
from tests.helpers.engines import CLIENT, SERVER, Engines

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

SOURCE = ast.parse(Path(private_paths.__file__).read_text())

OTHER = ("192.0.2.9", 3000)
"""Where the client has moved to, as the server sees it."""

PATH = (*SERVER, "another socket of the client's")
"""The server by another socket, as the client's engine sees it."""


@pytest.fixture
def engines(identities: Identities) -> Engines:
    pair = Engines(identities, quic_logger=QuicLogger())
    pair.deliver()
    return pair


def exchange(pair: Engines, rounds: int = 10, *, addresses: dict[Any, Any]) -> list[tuple[str, int]]:
    """Hand datagrams over by path: client's name of a path -> the server's; returns (sender, size) of each."""
    passed = []
    back = {theirs: ours for ours, theirs in addresses.items()}
    for _ in range(rounds):
        pair.now += 0.01
        for source, target, route, name in (
            (pair.client, pair.server, addresses, "client"),
            (pair.server, pair.client, back, "server"),
        ):
            timer = source.get_timer()
            if timer is not None and timer <= pair.now:
                source.handle_timer(pair.now)
            for data, to in source.datagrams_to_send(pair.now):
                passed.append((name, len(data)))
                if to in route:
                    target.receive_datagram(data, route[to], pair.now)
    return passed


def test_every_private_name_exists(engines: Engines) -> None:
    engine = engines.client
    used = {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    owners: list[Any] = [engine, engine._loss, engine._loss._pacer]
    assert len(used) > 10
    assert not {name for name in used if not any(hasattr(owner, name) for owner in owners)}
    path = QuicNetworkPath(SERVER)
    for name in ("addr", "is_validated", "local_challenge_sent", "peer_cid", "bytes_received", "bytes_sent"):
        assert hasattr(path, name), name
    for name in ("packet_time", "bucket_time", "bucket_max"):
        assert hasattr(engine._loss._pacer, name), name
    for name in ("ack_eliciting_in_flight", "sent_packets"):
        assert hasattr(engine._loss.spaces[0], name), name


def test_overridden_methods_have_the_same_shape() -> None:
    name = "_serialize_transport_parameters"
    assert inspect.signature(getattr(QuicConnection, name)).parameters.keys() == {"self"}
    assert inspect.signature(getattr(Engine, name)).parameters.keys() == {"self"}
    assert f"self.{name}(" in inspect.getsource(QuicConnection)


def test_a_validated_path_is_taken_into_use(engines: Engines) -> None:
    client, server = engines.client, engines.server
    assert private_paths.path_validated(client)
    assert private_paths.path_validated(server)
    spare = private_paths.spare_connection_ids(client)
    assert spare >= 2
    assert private_paths.connection_id_sequence(client) == 0
    private_paths.probe_path(client, PATH)
    assert private_paths.spare_connection_ids(client) == spare - 1
    assert client.get_peer_address() == SERVER
    sizes = exchange(engines, addresses={SERVER: CLIENT, PATH: OTHER})
    assert sizes[0] == ("client", 1200)  # padded (RFC 9000 section 8.2.1)
    assert client.get_peer_address() == PATH
    assert server.get_peer_address() == OTHER
    assert private_paths.path_validated(server)
    assert private_paths.connection_id_sequence(client) == 1
    assert private_paths.connection_id_sequence(server) == 1
    assert private_paths.spare_connection_ids(client) == spare  # one for the one that was retired


def test_a_challenge_is_repeated_only_when_asked(engines: Engines) -> None:
    client = engines.client
    private_paths.probe_path(client, PATH)
    only_old = {SERVER: CLIENT}
    assert ("client", 1200) in exchange(engines, addresses=only_old)
    assert ("client", 1200) not in exchange(engines, 40, addresses=only_old)
    private_paths.challenge_again(client, PATH)
    exchange(engines, addresses={SERVER: CLIENT, PATH: OTHER})
    assert client.get_peer_address() == PATH


def test_a_forgotten_path_gives_its_id_back_and_is_not_taken_any_more(engines: Engines) -> None:
    client = engines.client
    spare = private_paths.spare_connection_ids(client)
    private_paths.probe_path(client, PATH)
    exchange(engines, 1, addresses={SERVER: CLIENT})
    private_paths.forget_path(client, PATH)
    assert client.get_peer_address() == SERVER
    private_paths.forget_path(client, SERVER)  # in use: stays
    assert client.get_peer_address() == SERVER
    exchange(engines, addresses={SERVER: CLIENT})
    assert private_paths.spare_connection_ids(client) == spare
    assert private_paths.connection_id_sequence(client) == 0


def test_a_new_path_begins_anew(engines: Engines) -> None:
    """What is in flight belongs to the old path: neither its acknowledgement nor its loss says anything."""
    client: Any = engines.client  # Any: mypy does not expect properties to change
    server = engines.server
    client.send_stream_data(0, bytes(80_000))
    exchange(engines, 3, addresses={SERVER: CLIENT})
    client.send_stream_data(0, bytes(80_000))
    late = client.datagrams_to_send(engines.now)
    assert private.bytes_in_flight(client) > 5000
    assert client.rtt.info is not None
    private_paths.start_path(client)
    assert private.bytes_in_flight(client) == 0
    assert private.congestion_window(client) == 12_000
    assert client.rtt.info is None
    assert client._loss.get_probe_timeout() == 0.2  # that of a path of which nothing is known
    # Their acknowledgement changes nothing but that they are not sent again.
    for data, _ in late:
        server.receive_datagram(data, CLIENT, engines.now + 0.5)
    for data, _ in server.datagrams_to_send(engines.now + 1):
        client.receive_datagram(data, SERVER, engines.now + 1)
    assert client.rtt.info is None
    assert client._loss._rtt_min == math.inf
    assert private.bytes_in_flight(client) == 0
    assert private.congestion_window(client) == 12_000
    # And what goes on from here is measured, and arrives.
    exchange(engines, 100, addresses={SERVER: CLIENT})
    measured = engines.client.rtt.info
    assert measured is not None
    assert measured.latest < 0.1
    assert private_streams.unacknowledged(client, 0) == 0
    received = sum(len(event.data) for event in engines.events(server) if hasattr(event, "data"))
    assert received == 160_000


def test_what_was_lost_on_the_old_path_comes_again_at_once(engines: Engines) -> None:
    client, server = engines.client, engines.server
    client.send_stream_data(0, b"x" * 500)
    exchange(engines, 200, addresses={})  # two seconds in which nothing passes
    assert client._loss._pto_count > 2
    private_paths.start_path(client)
    exchange(engines, 6, addresses={SERVER: CLIENT})
    assert sum(len(event.data) for event in engines.events(server) if hasattr(event, "data")) == 500


def test_what_is_given_up_is_sent_at_once_and_arrives_once(engines: Engines) -> None:
    client, server = engines.client, engines.server
    window = private.congestion_window(client)
    client.send_stream_data(0, b"x" * 3000)
    client.datagrams_to_send(engines.now)
    assert private.bytes_in_flight(client) > 3000
    private_paths.give_up_in_flight(client)
    assert private.bytes_in_flight(client) == 0
    assert private.congestion_window(client) == window  # no sign of congestion
    engines.now += 0.1  # the pacer allows more
    assert sum(len(data) for data, _ in client.datagrams_to_send(engines.now)) > 3000
    assert sum(len(data) for data, _ in client.datagrams_to_send(engines.now)) == 0
    private_paths.give_up_in_flight(client)
    exchange(engines, addresses={SERVER: CLIENT})
    assert sum(len(event.data) for event in engines.events(server) if hasattr(event, "data")) == 3000


def test_amplification_is_limited_until_the_path_is_validated(engines: Engines) -> None:
    client, server = engines.client, engines.server
    server.send_stream_data(1, bytes(100_000))
    client.send_ping(1)
    [(data, _)] = client.datagrams_to_send(engines.now)
    server.receive_datagram(data, OTHER, engines.now)
    assert server.get_peer_address() == OTHER
    assert not private_paths.path_validated(server)
    sent = sum(len(data) for data, to in server.datagrams_to_send(engines.now) if to == OTHER)
    assert 0 < sent <= 3 * len(data)
    assert private_paths.unvalidated_bytes(server) == (len(data), sent)
    # Nobody answers there: back to the path that is known to work (RFC 9000 section 9.3.2).
    peer_address: Any = OTHER
    while peer_address == OTHER:
        timer = server.get_timer()
        assert timer is not None
        engines.now = max(engines.now, timer)
        server.handle_timer(engines.now)
        sent += sum(len(data) for data, to in server.datagrams_to_send(engines.now) if to == OTHER)
        peer_address = server.get_peer_address()
    assert sent <= 3 * len(data)
    assert peer_address == CLIENT
    assert private_paths.unvalidated_bytes(server) is None


def test_a_servers_announcement(identities: Identities) -> None:
    preferred = ("192.0.2.77", 4433)
    pair = Engines(
        identities,
        announcement=PathAnnouncement(disable_active_migration=True, ipv4=preferred, ipv6=("2001:db8::1", 1)),
    )
    pair.deliver(1)
    parameters = private.transport_parameters(pair.client, "remote")
    assert parameters is not None
    assert parameters.disable_active_migration is True
    assert parameters.preferred_address is not None
    assert parameters.preferred_address.ipv4_address == preferred
    assert parameters.preferred_address.ipv6_address == ("2001:db8::1", 1)
    issued = {event.connection_id for event in pair.events(pair.server) if hasattr(event, "connection_id")}
    assert parameters.preferred_address.connection_id in issued
    assert private_paths.take_preferred_address(pair.client) == preferred
    assert private_paths.take_preferred_address(pair.client) is None  # aioquic no longer goes there by itself
    pair.deliver()
    assert pair.client.get_peer_address() == SERVER
    private_paths.probe_path(pair.client, (*preferred, "socket"))
    exchange(pair, addresses={SERVER: CLIENT, (*preferred, "socket"): OTHER})
    assert pair.client.get_peer_address() == (*preferred, "socket")
    assert private_paths.connection_id_sequence(pair.client) == 1  # the one that came with the address


def test_without_an_announcement(engines: Engines) -> None:
    parameters = private.transport_parameters(engines.client, "remote")
    assert parameters is not None
    assert not parameters.disable_active_migration
    assert parameters.preferred_address is None
    assert private_paths.take_preferred_address(engines.client) is None
