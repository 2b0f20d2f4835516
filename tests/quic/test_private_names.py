"""The contract with aioquic: every private name that we use exists and means what we think it means.

When this fails, a new aioquic has renamed or changed something: look at mqttquic_lab/quic/private.py, and nowhere else.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import QuicErrorCode

from mqttquic_lab.quic import private, private_streams
from mqttquic_lab.quic.private import Engine
from tests.helpers.engines import CLIENT, Engines

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

SOURCE = ast.parse(Path(private.__file__).read_text())


def used_names() -> set[str]:
    """Every attribute with a leading underscore in private.py."""
    return {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }


def own_names() -> set[str]:
    """Methods that private.py defines itself and aioquic does not have."""
    defined = {node.name for node in ast.walk(SOURCE) if isinstance(node, ast.FunctionDef)}
    return {name for name in defined if not hasattr(QuicConnection, name)}


@pytest.fixture
def engines(identities: Identities) -> Engines:
    pair = Engines(identities, quic_logger=QuicLogger())
    pair.deliver()
    return pair


def test_aioquic_is_the_pinned_one() -> None:
    assert importlib.metadata.version("aioquic").startswith("1.7.")


def test_every_private_name_exists(engines: Engines) -> None:
    engine = engines.client
    engine.send_stream_data(0, b"x")
    stream = engine._streams[0]
    owners: list[Any] = [
        engine, engine.tls, engine._loss, engine._loss._pacer, engine._loss._cc, stream.sender, stream.receiver,
    ]  # fmt: skip
    names = used_names() - own_names()
    assert len(names) > 30
    missing = {name for name in names if not any(hasattr(owner, name) for owner in owners)}
    assert not missing, f"aioquic no longer has {sorted(missing)}"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_initialize", ["self", "peer_cid"]),
        ("_push_crypto_data", ["self"]),
        ("_idle_timeout", ["self"]),
        ("_update_traffic_key", ["self", "direction", "epoch", "cipher_suite", "secret"]),
        ("_alpn_handler", ["self", "alpn_protocol"]),
        ("_log_key_updated", ["self", "key_type", "trigger"]),
        ("_find_network_path", ["self", "addr"]),
        ("_write_stream_limits", ["self", "builder", "space", "stream"]),
        ("_write_connection_limits", ["self", "builder", "space"]),
        ("_on_max_stream_data_delivery", ["self", "delivery", "stream"]),
        ("_on_connection_limit_delivery", ["self", "delivery", "limit"]),
    ],
)
def test_overridden_methods_have_the_same_shape(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(QuicConnection, name)).parameters) == parameters
    assert list(inspect.signature(getattr(Engine, name)).parameters) == parameters


def test_overridden_methods_are_called(engines: Engines) -> None:
    source = inspect.getsource(QuicConnection)
    for name in (
        "_initialize",
        "_push_crypto_data",
        "_idle_timeout",
        "_find_network_path",
        "_write_stream_limits",
        "_write_connection_limits",
    ):
        assert f"self.{name}(" in source, f"aioquic no longer calls {name}"
    handler = inspect.signature(tls.Context._handle_reassembled_message)
    assert list(handler.parameters) == ["self", "message_type", "input_buf", "output_buf"]
    assert [message.type for message in engines.client.transcript][:7] == [1, 2, 8, 11, 15, 20, 20]


def test_facts(engines: Engines, identities: Identities) -> None:
    client, server = engines.client, engines.server
    for engine in (client, server):
        assert private.handshake_confirmed(engine)
        assert private.version(engine) == 1
        suite = private.cipher_suite(engine)
        assert suite is not None
        assert suite.name == "AES_256_GCM_SHA384"
        assert not private.retried(engine)
        assert not private.version_negotiated(engine)
        assert private.idle_timeout(engine) == 60.0
        assert private.probe_timeout(engine) > 0
        assert private.congestion_window(engine) >= 12_000
        assert private.close_event(engine) is None
    assert private.peer_chain(client) == [identities.good.certificate]
    assert private.peer_chain(server) == []
    assert private.server_identified(client)
    # In this world an acknowledgement takes no time, or ten milliseconds.
    rtt = client.rtt.info
    assert rtt is not None
    assert 0 <= rtt.minimum <= rtt.smoothed < 0.011
    for side, other in ((client, server), (server, client)):
        assert private.transport_parameters(side, "local") == private.transport_parameters(other, "remote")
    assert engines.tickets[0].max_early_data_size is None
    shares = {group for group, _ in tls.pull_client_hello(_buffer(client.transcript[0].raw)).key_share or ()}
    assert shares == {int(group) for group in private.OFFERED_GROUPS}


def _buffer(data: bytes) -> Any:
    from aioquic.buffer import Buffer  # type: ignore[attr-defined]

    return Buffer(data=data)


def test_facts_before_anything_happened(identities: Identities) -> None:
    server = Engines(identities).server
    assert private.version(server) is None
    assert private.cipher_suite(server) is None
    assert private.peer_chain(server) == []
    assert private.transport_parameters(server, "local") is None
    assert server.rtt.info is None


def test_streams(engines: Engines) -> None:
    client, server = engines.client, engines.server
    assert private_streams.stream_credit(client) == 128
    client.send_stream_data(0, b"x" * 1000)
    assert private_streams.stream_credit(client) == 127
    assert private_streams.stream_credit(client, unidirectional=True) == 128
    assert private_streams.unacknowledged(client, 0) == private_streams.unacknowledged_total(client) == 1000
    assert private_streams.can_send(client, 0)
    engines.deliver()
    assert private_streams.unacknowledged(client, 0) == 0
    assert private.bytes_in_flight(client) == 0
    client.send_stream_data(0, b"", end_stream=True)
    assert not private_streams.can_send(client, 0)
    client.send_stream_data(4, b"y" * 500)
    engines.deliver()
    client.reset_stream(4, 1)
    assert not private_streams.can_send(client, 4)
    assert private_streams.unacknowledged(client, 4) == 0
    assert private_streams.stream_exists(server, 4)
    server.send_stream_data(0, b"", end_stream=True)
    engines.deliver()
    server.send_ping(1)
    client.send_ping(1)
    engines.deliver()
    assert not private_streams.stream_exists(client, 0)
    assert not private_streams.can_send(client, 0)


def test_credit_follows_what_was_taken(engines: Engines) -> None:
    """A window of 100 kB: without reading nothing more comes, with reading everything."""
    client, server = engines.client, engines.server
    server.hold(0, 0)
    client.send_stream_data(0, bytes(350_000))
    engines.deliver(100)
    received = sum(len(event.data) for event in engines.events(server) if hasattr(event, "data"))
    # The limit grew with what was taken: all of it, as nothing is held.
    assert received == 350_000
    client.send_stream_data(4, bytes(350_000))
    for _ in range(100):
        engines.deliver(1)
        stream = server._streams.get(4)
        server.hold(4, stream.receiver.starting_offset() if stream else 0)
    assert server.held[4] == 100_000
    assert private_streams.undelivered(server, 4) == 0
    server.hold(4, 0)
    server.send_ping(7)
    engines.deliver(100)
    assert server._streams[4].receiver.starting_offset() == 350_000


def test_why_it_ended(engines: Engines) -> None:
    client, server = engines.client, engines.server
    client.close(error_code=5, reason_phrase="done")
    assert private.close_event(client) == ConnectionTerminated(5, None, "done")
    assert not private.closed_by_peer(client)
    engines.deliver()
    assert private.close_event(server) == ConnectionTerminated(5, None, "done")
    assert private.closed_by_peer(server)


def test_an_idle_timeout_of_zero_means_none(identities: Identities) -> None:
    pair = Engines(identities)
    pair.server.configuration.idle_timeout = 0.0001  # rounds to 0 on the wire
    for _ in range(6):
        pair.deliver(1)
    parameters = private.transport_parameters(pair.client, "remote")
    assert parameters is not None
    assert parameters.max_idle_timeout == 0
    assert private.idle_timeout(pair.client) == 60
    timer = pair.client.get_timer()
    assert timer is not None
    assert pair.client._close_at is not None
    assert pair.client._close_at > pair.now + 50


def test_knobs(engines: Engines) -> None:
    client = engines.client
    private.set_datagram_size(client, 8192)
    private.stop_pacing(client)
    private.set_logger(client, None)
    assert client._quic_logger is client._loss._quic_logger is None
    client.send_stream_data(0, bytes(11_000))
    sizes = [len(data) for data, _ in client.datagrams_to_send(engines.now)]
    assert sizes[0] == 8192
    engines.deliver()
    client.send_stream_data(0, bytes(1000))
    engines.deliver()
    assert client._loss._pacer.packet_time is None
    private.set_logger(client, None)


def test_a_refusal_closes_the_clients_connection(identities: Identities) -> None:
    from aioquic.quic.packet import pull_quic_header

    pair = Engines(identities)
    [(initial, _)] = pair.client.datagrams_to_send(pair.now)
    packet = private.refusal_packet(
        pull_quic_header(_buffer(initial), host_cid_length=8), QuicErrorCode.CONNECTION_REFUSED, "full"
    )
    assert len(packet) < 100  # never an amplification
    pair.client.receive_datagram(packet, ("192.0.2.2", 2000), pair.now)
    assert private.close_event(pair.client) == ConnectionTerminated(QuicErrorCode.CONNECTION_REFUSED, 0, "full")


def test_a_server_that_allows_no_early_data_refuses_who_offers_it(identities: Identities) -> None:
    pair = Engines(identities)
    pair.server.early_data_offered = False
    pair.deliver()
    assert pair.server.transcript[0].sender == "client"
    assert not pair.server.early_data_offered
    assert pair.server.get_peer_address() == CLIENT
