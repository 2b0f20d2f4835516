"""The only module that touches names which aioquic does not document.

aioquic 1.7 gives a sans-IO QUIC engine, but many facts of a connection and a few necessary repairs can only be had
through its private attributes. They all stand here and in the modules beside it (``private_paths.py`` and so on), each
behind a small function or method with a plain name, and ``tests/quic/test_private_names.py`` and its neighbours fail as
soon as a release renames one.

:class:`Engine` is aioquic's connection with these changes:

- it records the TLS messages of both directions (aioquic parses and drops them);
- it grants flow-control credit for what the application has *taken*, not for what arrived, so that a receiver that
  stops reading stops the peer (RFC 9000 section 4.1);
- after a Retry it sends the same ClientHello again (RFC 9000 section 17.2.5.3) and does not lose what had been sent
  in 0-RTT packets; neither does it when the server refuses early data;
- a peer that announces an idle timeout of zero has none;
- it measures round-trip times below a millisecond;
- it offers key shares for X25519, P-256 and P-384 unless told otherwise: X448 costs more than the three together and
  no broker asks;
- a server may resume without accepting 0-RTT data, and decides that for each ticket;
- a server may announce a preferred address, and ask its clients not to migrate;
- an address that was validated by a Retry token counts as validated (RFC 9000 section 8.1.2);
- a probe timeout sends two packets, and grows to a bound (``private_recovery.py``);
- only streams that have something to do are looked at, the urgent ones first (``private_streams.py``);
- it knows what became of DATAGRAM frames (``private_datagrams.py``).
"""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder

from mqttquic_lab.quic.private_datagrams import DatagramFrames
from mqttquic_lab.quic.private_keys import early_data_decided
from mqttquic_lab.quic.private_paths import PathAnnouncement, announce
from mqttquic_lab.quic.private_recovery import (
    Pacer,
    acknowledge_along,
    can_resend,
    copy_for_probe,
    limit_backoff,
    measure_rtt,
)
from mqttquic_lab.quic.private_streams import Schedule, Streams
from mqttquic_lab.quic.rtt import RttEstimator
from mqttquic_lab.quic.ticket_offer import TicketOffer, ticket_offer
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import NetworkAddress, QuicNetworkPath
    from aioquic.quic.events import ConnectionTerminated
    from aioquic.quic.logger import QuicLoggerTrace
    from aioquic.quic.packet import QuicHeader, QuicPreferredAddress, QuicTransportParameters
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream
    from cryptography import x509

# What aioquic warns of reaches the caller as an error: without a handler, Python would also print it on stderr.
logging.getLogger("quic").addHandler(logging.NullHandler())

OFFERED_GROUPS = (tls.Group.X25519, tls.Group.SECP256R1, tls.Group.SECP384R1)
"""Key-exchange groups for which a client sends a key share, most wanted first (RFC 8446 section 4.2.8)."""

MAX_TRANSCRIPT = 64
"""TLS messages kept per connection; a handshake has about ten, the rest are tickets."""

_KEPT_RAW = frozenset(
    {tls.HandshakeType.CLIENT_HELLO, tls.HandshakeType.SERVER_HELLO, tls.HandshakeType.CERTIFICATE_VERIFY}
)


@dataclass(frozen=True, slots=True)
class TlsMessage:
    """A TLS handshake message that passed (RFC 8446 section 4).

    Attributes
    ----------
    time : float
        Seconds on :data:`mqttquic_lab.trace.CLOCK`: when it was queued for sending, or arrived whole.
    sender : str
        ``"client"`` or ``"server"``.
    type : int
        HandshakeType.
    size : int
        Bytes, with its 4-byte header.
    raw : bytes
        The message itself; kept only for those that hold facts (ClientHello, ServerHello, CertificateVerify), else
        empty.
    """

    time: float
    sender: Literal["client", "server"]
    type: int
    size: int
    raw: bytes = field(repr=False)


def _ignore(*_: object) -> None:
    """Nobody listens yet."""


class Engine(DatagramFrames):
    """aioquic's sans-IO connection with a TLS transcript, honest flow control and a repaired Retry.

    Parameters
    ----------
    configuration : QuicConfiguration
        ``max_stream_data`` and ``max_data`` are the receive windows: bytes that a peer may have under way or
        unread, per stream and in total.
    accept_early_data : bool
        Server only: whether tickets allow 0-RTT data.
    announcement : PathAnnouncement
        Server only: what the client is told about paths.
    groups : sequence of Group
        Key-exchange groups, most wanted first; empty for the usual ones.
    address_validated : bool
        Server only: whether the client has proved its address with a token, so that the limit of three times what it
        has sent does not apply.
    on_message : callable(TlsMessage)
        Called with every TLS message as it passes.
    options
        Passed to aioquic.

    Attributes
    ----------
    transcript : list of TlsMessage
        The first :data:`MAX_TRANSCRIPT` TLS messages of both directions.
    held : dict of int to int
        Stream id -> bytes that arrived but which its paused reader has not taken; changed by :meth:`hold`.
    consumed : int
        Bytes of all streams that readers have taken or that never will be (after a reset).
    rtt : RttEstimator
        Round-trip times, unrounded.
    offer : TicketOffer
        Server only: what the ClientHello offered.
    admit_early_data : bool
        Server only: whether this connection's 0-RTT data is taken. May be changed while the ticket is fetched.
    on_early_data : callable(bool)
        Server only: told once, when 0-RTT data was offered with a good ticket, whether it is taken.
    on_key_update : callable(str)
        Told of each key update (RFC 9001 section 6): ``"local_update"`` or ``"remote_update"``.
    first_version : int or None
        Version of the client's first packet.
    schedule : Schedule
        The order in which streams fill packets.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        accept_early_data: bool = False,
        announcement: PathAnnouncement | None = None,
        groups: Sequence[tls.Group] = (),
        address_validated: bool = False,
        on_message: Callable[[TlsMessage], None] = _ignore,
        **options: Any,
    ) -> None:
        self.transcript: list[TlsMessage] = []
        self.held: dict[int, int] = {}
        self.consumed = 0
        self.on_message = on_message
        self.on_early_data: Callable[[bool], None] = _ignore
        self.on_key_update: Callable[[str], None] = _ignore
        self.accept_early_data = self.admit_early_data = accept_early_data
        self.groups = tuple(groups)
        self.address_validated = address_validated
        self.offer = TicketOffer()
        self.first_version: int | None = None
        self._retries_done = 0
        self._probe_twice = False
        self.stream_window = configuration.max_stream_data
        self.connection_window = configuration.max_data
        self.early_data_offered = False
        self.rtt = RttEstimator()
        self.announcement = announcement
        self.preferred: QuicPreferredAddress | None = None
        super().__init__(configuration=configuration, **options)
        self._streams: Streams = Streams()
        self.schedule = Schedule(self._streams, self._grant_streams, self._opened_by_us)
        self.pacer = self._loss._pacer = Pacer(
            max_datagram_size=self._loss._pacer._max_datagram_size, more=self._more_to_send
        )
        measure_rtt(self)

    # --- TLS

    def _initialize(self, peer_cid: bytes) -> None:
        if self.first_version is None:
            self.first_version = self._version
        if self._spaces:
            self._forget_first_flight()
            if self._retry_count > self._retries_done:
                self._retries_done = self._retry_count
                self._renew_initial_keys(peer_cid)
                return
            # Version negotiation: a ticket is of the version that it was issued under (RFC 9369 section 5).
            self._configuration.session_ticket = None
        super()._initialize(peer_cid)
        can_resend(self)
        context = self.tls
        if self.groups or self._is_client:
            supported = (*context._supported_groups, tls.Group.SECP521R1)
            context._supported_groups = [group for group in self.groups or OFFERED_GROUPS if group in supported]
        if not self._is_client and not self.accept_early_data:
            context._max_early_data = None
        inner = context._handle_reassembled_message

        def record_and_handle(message_type: int, input_buf: Buffer, output_buf: dict[tls.Epoch, Buffer]) -> None:
            raw = input_buf.data_slice(0, input_buf.capacity)
            self._record_message("server" if self._is_client else "client", message_type, raw)
            inner(message_type=message_type, input_buf=input_buf, output_buf=output_buf)

        context._handle_reassembled_message = record_and_handle  # type: ignore[method-assign]

    def _forget_first_flight(self) -> None:
        """Give back what a Retry or a version negotiation makes void: bytes in flight, and data to send again."""
        for space in self._spaces.values():
            for packet in tuple(space.sent_packets.values()):
                for handler, arguments in packet.delivery_handlers:
                    handler(QuicDeliveryState.LOST, *arguments)
            self._loss.discard_space(space)

    def _renew_initial_keys(self, peer_cid: bytes) -> None:
        """Keep everything of the handshake but the Initial keys, which depend on the connection id of the Retry."""
        for version in self._cryptos_initial:
            pair = CryptoPair()
            pair.setup_initial(cid=peer_cid, is_client=True, version=version)
            self._cryptos_initial[version] = pair
        assert self._version is not None
        self._cryptos[tls.Epoch.INITIAL] = self._cryptos_initial[self._version]

    def _push_crypto_data(self) -> None:
        for buffer in self._crypto_buffers.values():
            data = buffer.data
            while len(data) >= 4:
                size = 4 + int.from_bytes(data[1:4], "big")
                self._record_message("client" if self._is_client else "server", data[0], data[:size])
                data = data[size:]
        super()._push_crypto_data()

    def _record_message(self, sender: Literal["client", "server"], message_type: int, raw: bytes) -> None:
        if sender == "client" and message_type == tls.HandshakeType.CLIENT_HELLO and not self._is_client:
            self.offer = ticket_offer(raw)
            self.early_data_offered = self.offer.early_data
        if len(self.transcript) < MAX_TRANSCRIPT:
            message = TlsMessage(CLOCK(), sender, message_type, len(raw), raw if message_type in _KEPT_RAW else b"")
            self.transcript.append(message)
            self.on_message(message)

    # --- paths (RFC 9000 sections 9.6 and 18.2)

    def _serialize_transport_parameters(self) -> bytes:
        return announce(self, super()._serialize_transport_parameters())

    # --- early data

    def _update_traffic_key(
        self, direction: tls.Direction, epoch: tls.Epoch, cipher_suite: tls.CipherSuite, secret: bytes
    ) -> None:
        if epoch is tls.Epoch.ZERO_RTT and direction is tls.Direction.DECRYPT:
            # The ticket is good. Without keys 0-RTT packets are dropped, and EncryptedExtensions, written after this,
            # says so (RFC 8446 section 4.2.10); resumption goes on.
            self.on_early_data(self.admit_early_data)
            if not self.admit_early_data:
                self.tls.early_data_accepted = False
                return
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _alpn_handler(self, alpn_protocol: str) -> None:
        super()._alpn_handler(alpn_protocol)
        if self._is_client and self.early_data_offered:
            early_data_decided(self, accepted=self.tls.early_data_accepted)

    # --- keys and paths

    def _log_key_updated(self, key_type: str, trigger: str) -> None:
        super()._log_key_updated(key_type, trigger)
        # Told for both directions; one of them is enough.
        if trigger != "tls" and key_type == "client_1rtt_secret":
            self.on_key_update(trigger)

    def _find_network_path(self, addr: NetworkAddress) -> QuicNetworkPath:
        path = super()._find_network_path(addr)
        if self.address_validated and not self._network_paths:
            path.is_validated = True
        return path

    # --- time

    def _idle_timeout(self) -> float:
        # Zero says "no limit" (RFC 9000 section 18.2); aioquic takes it for one of three probe timeouts.
        if self._remote_max_idle_timeout == 0:
            self._remote_max_idle_timeout = None
        return super()._idle_timeout()

    # --- when packets go

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Return what is to be sent."""
        if self._handshake_confirmed and self.schedule.has_data:
            acknowledge_along(self, now)
        datagrams = self._build(now)
        if self._probe_twice and datagrams:
            self._probe_twice = False
            if len(datagrams) == 1:
                copy_for_probe(self)
                datagrams += self._build(now)
        return datagrams

    def _build(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        self.pacer.begin()
        datagrams = super().datagrams_to_send(now)
        if self.pacer.is_done:
            self._pacing_at = None
        return datagrams

    def handle_timer(self, now: float) -> None:
        """Handle what is due; a probe timeout asks for two packets (RFC 9002 section 6.2.4)."""
        timeouts = self._loss._pto_count
        super().handle_timer(now)
        if self._loss._pto_count > timeouts:
            self._probe_twice = True
            limit_backoff(self)

    def _more_to_send(self) -> bool:
        """Whether a packet that was built may have left something: all but this fits into the first one."""
        return (
            self.schedule.has_data
            or self.schedule.freed
            or bool(self._datagrams_pending)
            or not self._handshake_confirmed
            or not self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
        )

    # --- the order of streams

    @property  # type: ignore[override]
    def _streams_queue(self) -> Schedule:
        return self.schedule

    @_streams_queue.setter
    def _streams_queue(self, order: object) -> None:
        """Keep the schedule's own order."""

    def _grant_streams(self, stream_id: int, more: int) -> None:
        self._stream_limit(stream_id).value += more

    def _opened_by_us(self, stream_id: int) -> bool:
        return (stream_id & 1 == 0) == bool(self._is_client)

    def _write_stream_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        room = builder.remaining_buffer_space
        used = super()._write_stream_frame(builder, space, stream, max_offset)
        self.schedule.frame_written(builder, room)
        return used

    # --- flow control (RFC 9000 section 4)

    def hold(self, stream_id: int, size: int) -> None:
        """Note how many bytes wait for a stream's reader: so many less may be sent."""
        if size:
            self.held[stream_id] = size
        else:
            self.held.pop(stream_id, None)
        self.schedule.received(stream_id)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not QuicDeliveryState.ACKED:
            self.schedule.received(stream.stream_id or 0)

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver = stream.receiver
        if receiver.is_finished:
            self._streams.limits_due.pop(stream.stream_id or 0, None)
            return
        window = self.stream_window
        limit = receiver.starting_offset() + window
        if self.held:
            limit -= self.held.get(stream.stream_id or 0, 0)
        # Half a window at a time: one MAX_STREAM_DATA per 512 KiB, not one per packet.
        if limit - stream.max_stream_data_local >= window // 2:
            stream.max_stream_data_local = limit
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            buffer = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=17,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buffer.push_uint_var(stream.stream_id or 0)
            buffer.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local
            if self._quic_logger is not None and builder.quic_logger_frames is not None:
                builder.quic_logger_frames.append(
                    self._quic_logger.encode_max_stream_data_frame(
                        maximum=stream.max_stream_data_local, stream_id=stream.stream_id or 0
                    )
                )
        self._streams.limits_due.pop(stream.stream_id or 0, None)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        granted = self._local_max_data
        limit = self.consumed + self.connection_window
        if limit - granted.value >= self.connection_window // 2:
            granted.value = limit
        for kind in (granted, self._local_max_streams_bidi, self._local_max_streams_uni):
            # MAX_STREAMS only once the peer has fewer streams left to open than the frame would grant.
            worth_it = kind is granted or kind.sent - kind.used < kind.value - kind.sent
            if kind.value != kind.sent and worth_it:
                buffer = builder.start_frame(
                    kind.frame_type, capacity=9, handler=self._on_connection_limit_delivery, handler_args=(kind,)
                )
                buffer.push_uint_var(kind.value)
                kind.sent = kind.value
                if self._quic_logger is not None and builder.quic_logger_frames is not None:
                    builder.quic_logger_frames.append(
                        self._quic_logger.encode_connection_limit_frame(frame_type=kind.frame_type, maximum=kind.value)
                    )


# --- how a connection ends


def close_event(engine: Engine) -> ConnectionTerminated | None:
    """Return why the connection ends, at once (the public event comes three probe timeouts later)."""
    return engine._close_event


def closed_by_peer(engine: Engine) -> bool:
    """Whether the peer's CONNECTION_CLOSE ended the connection (RFC 9000 section 10.2.2)."""
    return engine._state is QuicConnectionState.DRAINING


def probe_timeout(engine: Engine) -> float:
    """Return the probe timeout in seconds (RFC 9002 section 6.2.1)."""
    return engine._loss.get_probe_timeout()


def refusal_packet(header: QuicHeader, error_code: int, reason: str) -> bytes:
    """Return an Initial packet with CONNECTION_CLOSE for a client for which nothing is kept (RFC 9000 section 5.2.2).

    Parameters
    ----------
    header : QuicHeader
        Of the client's Initial packet.
    error_code : int
        Transport error code.
    reason : str
        Short ASCII reason phrase.
    """
    assert header.version is not None
    keys = CryptoPair()
    keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=os.urandom(8),
        peer_cid=header.source_cid,
        version=header.version,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    phrase = reason.encode("ascii")
    buffer = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=32 + len(phrase))
    buffer.push_uint_var(error_code)
    buffer.push_uint_var(QuicFrameType.PADDING)
    buffer.push_uint_var(len(phrase))
    buffer.push_bytes(phrase)
    datagrams, _ = builder.flush()
    return datagrams[0]


# --- facts of the handshake


def handshake_confirmed(engine: Engine) -> bool:
    """Whether the handshake is confirmed (RFC 9001 section 4.1.2)."""
    return engine._handshake_confirmed


def version(engine: Engine) -> int | None:
    """Return the QUIC version in use."""
    return engine._version


def cipher_suite(engine: Engine) -> tls.CipherSuite | None:
    """Return the TLS 1.3 cipher suite, None before the ServerHello."""
    schedule = engine.tls.key_schedule if hasattr(engine, "tls") else None
    return schedule.cipher_suite if schedule is not None else None


def peer_chain(engine: Engine) -> list[x509.Certificate]:
    """Return the chain that the peer presented, leaf first; also after it was refused; empty on resumption."""
    if not hasattr(engine, "tls") or engine.tls._peer_certificate is None:
        return []
    return [engine.tls._peer_certificate, *engine.tls._peer_certificate_chain]


def retried(engine: Engine) -> bool:
    """Whether the server asked for a Retry (client side), or this connection came after one (server side)."""
    return engine._retry_count > 0 or engine._retry_source_connection_id is not None


def version_negotiated(engine: Engine) -> bool:
    """Whether a Version Negotiation packet made the client start again (RFC 9368 section 2.1)."""
    return engine._version_negotiated_incompatible


def transport_parameters(engine: Engine, whose: Literal["local", "remote"]) -> QuicTransportParameters | None:
    """Return one side's transport parameters (RFC 9000 section 18), None while unknown."""
    if not hasattr(engine, "tls"):
        return None
    extensions = engine.tls.handshake_extensions if whose == "local" else engine.tls.received_extensions
    for kind, data in extensions or ():
        if kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS:
            return pull_quic_transport_parameters(Buffer(data=data))
    return None


def server_identified(engine: Engine) -> bool:
    """Whether the server has proved to hold the certificate's key and, if asked for, passed verification."""
    return engine.tls.state in (tls.State.CLIENT_EXPECT_FINISHED, tls.State.CLIENT_POST_HANDSHAKE)


# --- moving facts


def congestion_window(engine: Engine) -> int:
    """Return the congestion window in bytes (RFC 9002 section 7)."""
    return engine._loss.congestion_window


def bytes_in_flight(engine: Engine) -> int:
    """Return the bytes sent and neither acknowledged nor lost (RFC 9002 section 2)."""
    return engine._loss.bytes_in_flight


def idle_timeout(engine: Engine) -> float:
    """Return the idle timeout in force, in seconds: the smaller of both sides' (RFC 9000 section 10.1)."""
    local, remote = engine.configuration.idle_timeout, engine._remote_max_idle_timeout
    return min(local, remote) if remote else local


# --- knobs


def set_logger(engine: Engine, logger: QuicLoggerTrace | None) -> None:
    """Switch the qlog tap on or off; only between two calls of the engine."""
    engine._quic_logger = logger
    engine._loss._quic_logger = logger


def set_datagram_size(engine: Engine, size: int) -> None:
    """Send datagrams of up to `size` bytes from now on. Not before the handshake: Initial packets are padded to it."""
    engine._max_datagram_size = size
    engine._loss._pacer._max_datagram_size = size


def stop_pacing(engine: Engine) -> None:
    """Send whatever the congestion window allows at once."""

    def no_rate(congestion_window: int, smoothed_rtt: float) -> None:
        """Leave the pacer without a rate."""

    pacer = engine._loss._pacer
    pacer.packet_time = None
    pacer.update_rate = no_rate  # type: ignore[method-assign]


VERSION_NAMES = {QuicProtocolVersion.VERSION_1: "QUIC v1", QuicProtocolVersion.VERSION_2: "QUIC v2"}
"""RFC 9000 and RFC 9369."""
