"""Two QUIC engines in memory, without sockets or a clock: bytes handed from one to the other."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from aioquic.quic.configuration import QuicConfiguration

from mqttquic_lab.quic.private import Engine

if TYPE_CHECKING:
    from mqttquic_lab.quic.private_paths import PathAnnouncement
    from tests.helpers.certs import Identities

CLIENT, SERVER = ("192.0.2.1", 1000), ("192.0.2.2", 2000)


class Engines:
    """A client's and a server's engine, and the time that both believe in."""

    def __init__(
        self,
        identities: Identities,
        *,
        window: int = 100_000,
        announcement: PathAnnouncement | None = None,
        **client: Any,
    ) -> None:
        self.now = 1000.0
        self.tickets: list[Any] = []
        client.setdefault("verify_mode", ssl.CERT_NONE)
        self.client = Engine(
            configuration=QuicConfiguration(
                is_client=True, alpn_protocols=["mqtt"], server_name="localhost", max_stream_data=window, **client
            ),
            session_ticket_handler=self.tickets.append,
        )
        self.client.connect(SERVER, now=self.now)
        identity = identities.good
        self.server = Engine(
            configuration=QuicConfiguration(
                is_client=False,
                alpn_protocols=["mqtt"],
                certificate=identity.certificate,
                private_key=identity.private_key,
                max_stream_data=window,
            ),
            announcement=announcement,
            original_destination_connection_id=self.client.original_destination_connection_id,
            session_ticket_handler=lambda _: None,
        )

    def deliver(self, rounds: int = 20) -> None:
        """Hand datagrams over until neither side has any."""
        for _ in range(rounds):
            self.now += 0.01
            moved = False
            for source, target, address in ((self.client, self.server, CLIENT), (self.server, self.client, SERVER)):
                timer = source.get_timer()
                if timer is not None and timer <= self.now:
                    source.handle_timer(self.now)
                if source is self.server and source.get_peer_address() is None:
                    continue
                for data, _to in source.datagrams_to_send(self.now):
                    target.receive_datagram(data, address, self.now)
                    moved = True
            if not moved:
                return

    @staticmethod
    def events(engine: Engine) -> list[Any]:
        """Take an engine's events."""
        found = []
        while (event := engine.next_event()) is not None:
            found.append(event)
        return found
