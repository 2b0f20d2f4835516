"""PUBLISH in DATAGRAM frames (RFC 9221, MQoQ 8.3.3 and 9.19): taken from a client, and sent to one.

Taken: at QoS 0, routed as any other. What comes before CONNECT was accepted waits, within bounds. A datagram that
cannot be read, or carries anything else, harms nothing but itself (the draft's error level 2): it is counted. The
profile ``mqttv5`` takes whatever that broker takes, and ends the connection where that does.

Sent, if the setting ``datagram_deliveries`` asks for it: messages at QoS 0 for subscriptions made on the control
stream, to clients that are known to read datagrams. The transport parameter does not tell that: many QUIC stacks
announce it whether or not anybody reads. A client is known to if it speaks ``MQTT-next`` as the draft has it, or says
so by a User Property of CONNECT. mqttv5's client does neither, and would lose them. What does not fit goes on the
stream.

*MQoQ* is the draft; see :mod:`mqttquic_lab.mqtt.flow_codes`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mqttquic_lab.broker.early import marked
from mqttquic_lab.broker.pipeline import PINGRESP, Pipeline
from mqttquic_lab.broker.quic_options import takes_datagrams
from mqttquic_lab.broker.tracing import note_received, note_sent
from mqttquic_lab.errors import MalformedPacketError, ProtocolError
from mqttquic_lab.mqtt import Connect, Disconnect, PacketDecoder, PingReq, ReasonCode
from mqttquic_lab.mqtt.datagram import NOT_MQTT, READS_DATAGRAMS, read_datagram
from mqttquic_lab.mqtt.flow_codes import ConnectionCode
from mqttquic_lab.mqtt.state import ConnectionState
from mqttquic_lab.mqtt.writing import varint

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing
    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import Connection

MAX_EARLY: Final = 64
"""Datagrams of a client that wait until its CONNECT is accepted; further ones are dropped, and counted as refused."""
MAX_EARLY_BYTES: Final = 64 * 1024


class Datagrams(Pipeline):
    """What the broker does with the datagrams of one client.

    Parameters
    ----------
    client : Client
        Whose they are.
    server : BrokerServer
        The broker.

    Attributes
    ----------
    received, sent : int
        Datagrams.
    delivers : bool
        Whether messages at QoS 0 go to the client in datagrams.
    """

    def __init__(self, client: Client, server: BrokerServer) -> None:
        super().__init__(server, None)
        self._client = client
        self._connection: Connection = client.connection
        self._early: deque[tuple[bytes, bool]] = deque()
        self._early_bytes = 0
        self.received = self.sent = 0
        self.delivers = False
        self._connection.on_datagram = self._on_datagram

    def __repr__(self) -> str:
        return f"<Datagrams of {self._client!r}>"

    # --- the client ---------------------------------------------------------------------------------------------

    def meet(self, packet: Connect, *, reads: bool) -> None:
        """Get to know the client, whose CONNECT is about to be accepted.

        Parameters
        ----------
        packet : Connect
            What it sent; its User Property :data:`~mqttquic_lab.mqtt.datagram.READS_DATAGRAMS` asks for datagrams.
        reads : bool
            Whether it speaks ``MQTT-next`` as the draft has it, and so reads datagrams.
        """
        client = self._client
        self.session, self.version, self.rights = client.session, client.version, client.rights
        self.outbox = self.answers = client.outbox
        self.state = ConnectionState.CONNECTED
        asks = READS_DATAGRAMS in packet.properties.get("user_property", ())
        is_asked = self._server.config.datagram_deliveries
        self.delivers = is_asked and (reads or asks) and bool(self._connection.max_datagram_size)

    def begin(self) -> None:
        """Take what came before CONNECT was accepted."""
        early, self._early = self._early, deque()
        for data, is_early in early:
            self._take(data, is_early=is_early)

    def close(self) -> None:
        """Let go of everything with the client."""
        if not self.is_ended:
            self.is_ended = True
            self.state = ConnectionState.CLOSED
            self._early.clear()
            self._stats.datagrams_lost += self.lost

    @property
    def lost(self) -> int:
        """Datagrams sent to the client that count as lost."""
        frames = self._connection.datagram_frames
        return 0 if frames is None else frames.lost

    def block(self, reason: object) -> None:
        """Do nothing: nobody can be kept from sending datagrams."""

    def unblock(self, reason: object) -> None:
        """Do nothing, as :meth:`block`."""

    def disconnect(self, code: int, reason: str = "") -> None:
        """Give up a datagram that we could not handle."""
        self._stats.datagrams_refused += 1

    # --- taken --------------------------------------------------------------------------------------------------

    def _on_datagram(self, data: bytes) -> None:
        if self.is_ended:
            return
        stats, size = self._stats, len(data)
        self.received += 1
        self.bytes_in += size
        stats.datagrams_in += 1
        stats.bytes_in += size
        is_early = self._connection.is_early
        if self._client.session is not None:
            if self._server.profile.keepalive == "any":
                self._client.keepalive.received(self._server.clock.time())
            self._take(data, is_early=is_early)
            return
        if len(self._early) < MAX_EARLY and self._early_bytes + size <= MAX_EARLY_BYTES:
            self._early.append((data, is_early))
            self._early_bytes += size
        else:
            stats.datagrams_refused += 1
        self._server.changed()

    def _take(self, data: bytes, *, is_early: bool) -> None:
        if self.is_ended:
            return
        try:
            packets = self._read(data)
        except ProtocolError as error:
            self._fail(error)
            self._server.changed()
            return
        self._stats.packets_in += len(packets)
        trace = self._server.trace
        if trace.detail:
            note_received(trace, self.client_id, None, packets)
        self._batch(marked(packets) if is_early else packets)

    def _read(self, data: bytes) -> list[Packet]:
        """Return the packets of a datagram: one, or none if it carries no MQTT."""
        if len(data) > self._server.config.max_packet_size:
            raise MalformedPacketError(f"a datagram of {len(data)} bytes is larger than packets may be")
        publish = read_datagram(data, receiver="server", version=self.version).publish
        return [] if publish is None else [publish]

    def _fail(self, error: ProtocolError) -> None:
        self._stats.datagrams_refused += 1

    # --- sent ---------------------------------------------------------------------------------------------------

    def send(self, outgoing: Outgoing) -> bool:
        """Send a message to the client; returns False if it has to go on a stream."""
        if outgoing.qos or not self.delivers:
            return False
        message, _, retain, identifiers = outgoing[:4]
        packet = message.at_most_once(self.version, retain, identifiers, self._server.clock.time())
        size = self._connection.max_datagram_size
        if size is None or len(packet) > size or not self._client.takes(len(packet), count=False):
            return False
        stats, outbox = self._stats, self._client.outbox
        if self._connection.send_datagram(packet):
            self.sent += 1
            stats.datagrams_out += 1
            stats.packets_out += 1
            stats.messages_out += 1
            stats.payload_bytes_out += len(message.payload)
            stats.bytes_out += len(packet)
            if self._server.trace.detail:
                note_sent(self._server.trace, self.client_id, None, (packet,))
            outbox.messages_out += 1
            outbox.bytes_out += len(packet)
        else:
            stats.dropped_qos0 += 1
            outbox.dropped += 1
        return True


class Mqttv5Datagrams(Datagrams):
    """Datagrams as the mqttv5 broker takes them, observed on mqttv5-cli 0.29: any packet, of whatever length it says.

    A packet goes on to the end of the datagram: two of them become one, and one that is cut is taken as it is.
    """

    def _read(self, data: bytes) -> list[Packet]:
        if not data or data[0] == NOT_MQTT:
            return []
        start = next((at + 1 for at, byte in enumerate(data[1:5], 1) if not byte & 0x80), None)
        if start is None:
            raise MalformedPacketError(f"a datagram of {len(data)} bytes with no end of its remaining length")
        decoder = PacketDecoder(self.version, receiver="server")
        return decoder.feed(data[:1] + varint(len(data) - start) + data[start:])

    def _handle(self, packet: Packet) -> None:
        handler = self._HANDLERS.get(type(packet))
        if handler is None:
            raise MalformedPacketError(f"{packet.NAME} in a datagram", packet=packet)
        handler(self, packet)

    def _fail(self, error: ProtocolError) -> None:
        self._stats.datagrams_refused += 1
        self._client.abandon(str(error), ConnectionCode.PROTOCOL_L0)

    def _on_pingreq(self, packet: PingReq) -> None:
        self.answers.write(PINGRESP, settled=True)

    def _on_connect(self, packet: Connect) -> None:
        self._client.disconnect(ReasonCode.PROTOCOL_ERROR, "CONNECT in a datagram", "protocol error")

    def _on_disconnect(self, packet: Disconnect) -> None:
        self._client.end_by(packet)

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **Pipeline.HANDLERS,
        Connect: _on_connect,
        PingReq: _on_pingreq,
        Disconnect: _on_disconnect,
    }


def datagrams_of(client: Client, server: BrokerServer) -> Datagrams | None:
    """Return what serves the datagrams of a new client; None if there are none, or they are not taken."""
    if client.connection.transport != "quic" or not takes_datagrams(server.config, server.profile):
        return None
    return (Mqttv5Datagrams if server.profile.name == "mqttv5" else Datagrams)(client, server)
