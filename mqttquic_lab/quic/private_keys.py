"""Keys of an engine, and what depends on them: key phases and early data (RFC 9001); a part of ``private.py``."""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

from typing import TYPE_CHECKING

from aioquic import tls
from aioquic.quic.packet_builder import QuicDeliveryState

if TYPE_CHECKING:
    from mqttquic_lab.quic.private import Engine


def early_data_decided(engine: Engine, *, accepted: bool) -> None:
    """Take in whether the server took our 0-RTT data (client side, with EncryptedExtensions).

    The server's limits replace those that were remembered with the ticket (RFC 9000 section 7.4.1), and what it did
    not take is sent again, once there are 1-RTT keys.
    """
    if not accepted:
        # Dropped by the server, not lost on the path: no reason to slow down (RFC 9002 section 6.4).
        space = engine._spaces[tls.Epoch.ONE_RTT]
        void = list(space.sent_packets.values())
        engine._loss._cc.on_packets_expired(packets=[packet for packet in void if packet.in_flight])
        space.sent_packets.clear()
        space.ack_eliciting_in_flight = 0
        space.loss_time = None
        for packet in void:
            for handler, arguments in packet.delivery_handlers:
                handler(QuicDeliveryState.LOST, *arguments)
        if engine._cryptos[tls.Epoch.ZERO_RTT].send.is_valid():
            engine._cryptos[tls.Epoch.ZERO_RTT].send.teardown()
    for stream_id, stream in engine._streams.items():
        one_way = stream_id & 2
        limit = engine._remote_max_stream_data_uni if one_way else engine._remote_max_stream_data_bidi_remote
        stream.max_stream_data_remote = max(stream.max_stream_data_remote, limit) if accepted else limit


def key_phase(engine: Engine) -> int | None:
    """Return the key phase in use, 0 or 1 (RFC 9001 section 6), None before there are 1-RTT keys."""
    pair = engine._cryptos.get(tls.Epoch.ONE_RTT)
    return pair.send.key_phase if pair is not None and pair.send.is_valid() else None


def handshake_data_waits(engine: Engine) -> bool:
    """Whether handshake messages are waiting to be sent."""
    return any(not stream.sender.buffer_is_empty for stream in engine._crypto_streams.values())
