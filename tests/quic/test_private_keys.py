"""The contract with aioquic about keys: its private names, and when it calls what we have replaced."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from mqttquic_lab.quic import private_keys
from mqttquic_lab.quic.private import Engine
from mqttquic_lab.quic.private_keys import handshake_data_waits, key_phase
from tests.helpers.engines import CLIENT, SERVER, Engines

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

SOURCE = ast.parse(Path(private_keys.__file__).read_text())


@pytest.fixture
def engines(identities: Identities) -> Engines:
    pair = Engines(identities)
    pair.deliver()
    return pair


class Resuming:
    """A client's and a server's engine whose first flight carries early data."""

    def __init__(self, identities: Identities, *, accept: bool) -> None:
        identity = identities.good
        self.now = 1000.0
        self.decided: list[bool] = []
        tickets: list[Any] = []
        first = self._client(None, tickets)
        issued: dict[bytes, Any] = {}
        self._deliver(first, self._server(identity, first, {}, accept=True, issued=issued))
        self.client = self._client(tickets[0], [])
        self.client.early_data_offered = True
        self.server = self._server(identity, self.client, issued, accept=accept, issued={})

    def _client(self, ticket: Any, tickets: list[Any]) -> Engine:
        engine = Engine(
            configuration=QuicConfiguration(
                is_client=True, alpn_protocols=["mqtt"], server_name="localhost", session_ticket=ticket, verify_mode=0
            ),
            session_ticket_handler=tickets.append,
        )
        engine.connect(SERVER, now=self.now)
        return engine

    def _server(
        self, identity: Any, client: Engine, known: dict[bytes, Any], *, accept: bool, issued: dict[bytes, Any]
    ) -> Engine:
        def keep(ticket: Any) -> None:
            issued[ticket.ticket] = ticket

        engine = Engine(
            configuration=QuicConfiguration(
                is_client=False,
                alpn_protocols=["mqtt"],
                certificate=identity.certificate,
                private_key=identity.private_key,
                max_stream_data=5000,
            ),
            accept_early_data=True,
            original_destination_connection_id=client.original_destination_connection_id,
            session_ticket_handler=keep,
            session_ticket_fetcher=known.get,
        )
        engine.admit_early_data = accept
        engine.on_early_data = self.decided.append
        return engine

    def _deliver(self, client: Engine, server: Engine) -> None:
        for _ in range(10):
            self.now += 0.01
            for source, target, address in ((client, server, CLIENT), (server, client, SERVER)):
                if source.get_peer_address() is not None:
                    for data, _ in source.datagrams_to_send(self.now):
                        target.receive_datagram(data, address, self.now)

    def deliver(self) -> None:
        self._deliver(self.client, self.server)


def test_every_private_name_exists(engines: Engines) -> None:
    engine = engines.client
    used = {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert len(used) > 5
    owners: list[Any] = [engine, engine._loss]
    assert not {name for name in used if not any(hasattr(owner, name) for owner in owners)}
    space = engine._spaces[tls.Epoch.ONE_RTT]
    for name in ("sent_packets", "ack_eliciting_in_flight", "loss_time"):
        assert hasattr(space, name), name


def test_what_we_have_replaced_is_what_tls_calls() -> None:
    source = inspect.getsource(QuicConnection._initialize)
    assert "self.tls.alpn_cb = self._alpn_handler" in source
    assert "self.tls.update_traffic_key_cb = self._update_traffic_key" in source
    assert "partial(self._log_key_updated" in source
    hello = inspect.getsource(tls.Context._server_handle_hello)
    # In this order: we take the acceptance back while the keys are made, and the answer is written after that.
    order = [
        "self.alpn_cb(",
        "get_session_ticket_cb(",
        "early_data_accepted = True",
        "Epoch.ZERO_RTT",
        "push_encrypted_extensions",
    ]
    assert [hello.index(words) for words in order] == sorted(hello.index(words) for words in order)


def test_phases(engines: Engines) -> None:
    told: list[tuple[str, str]] = []
    for name, engine in (("client", engines.client), ("server", engines.server)):
        assert key_phase(engine) == 0
        engine.on_key_update = lambda trigger, name=name: told.append((name, trigger))  # type: ignore[misc]
    engines.client.request_key_update()
    engines.client.send_ping(1)
    engines.deliver()
    assert (key_phase(engines.client), key_phase(engines.server)) == (1, 1)
    assert told == [("client", "local_update"), ("server", "remote_update")]


def test_no_phase_before_there_are_keys(identities: Identities) -> None:
    pair = Engines(identities)
    assert key_phase(pair.client) is None
    assert key_phase(pair.server) is None
    assert not handshake_data_waits(pair.server)
    assert handshake_data_waits(pair.client)
    pair.deliver()
    assert not handshake_data_waits(pair.client)


@pytest.mark.parametrize("accept", [True, False])
def test_early_data_is_taken_or_sent_again(identities: Identities, accept: bool) -> None:
    pair = Resuming(identities, accept=accept)
    client, server = pair.client, pair.server
    client.send_stream_data(0, b"both ways")
    client.send_stream_data(2, b"one way", end_stream=True)
    pair.deliver()
    assert pair.decided == [accept]
    assert client.tls.session_resumed
    assert server.tls.session_resumed
    assert client.tls.early_data_accepted is server.tls.early_data_accepted is accept
    data = {event.stream_id: event.data for event in Engines.events(server) if hasattr(event, "data")}
    assert data == {0: b"both ways", 2: b"one way"}
    assert client._loss.bytes_in_flight == 0
    assert not client._cryptos[tls.Epoch.ZERO_RTT].send.is_valid()
    # The limits are the server's of now: 5000 bytes per stream. The ticket had remembered the same ones.
    assert client._streams[0].max_stream_data_remote == 5000


def test_a_refusal_takes_remembered_limits_back(identities: Identities) -> None:
    pair = Resuming(identities, accept=False)
    client = pair.client
    ticket = client.configuration.session_ticket
    assert ticket is not None
    client.send_stream_data(0, b"x")
    client._streams[0].max_stream_data_remote = 100_000
    pair.deliver()
    assert client._streams[0].max_stream_data_remote == 5000
    assert replace(ticket).is_valid


def test_the_offer_of_a_client(identities: Identities) -> None:
    pair = Resuming(identities, accept=True)
    pair.client.send_stream_data(0, b"x")
    pair.deliver()
    ticket = pair.client.configuration.session_ticket
    assert ticket is not None
    offer = pair.server.offer
    assert offer.identity == ticket.ticket
    assert offer.early_data
    assert 0 <= (offer.obfuscated_age - ticket.age_add) % (1 << 32) < 60_000
    assert repr(ticket.ticket) not in repr(offer)
    assert "raw" not in repr(pair.server.transcript[0])
