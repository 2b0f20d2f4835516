"""Paths and connection ids of an engine (RFC 9000 sections 5.1, 8.2 and 9); the other half of ``private.py``.

aioquic knows a path by the peer's address alone. Addresses that end in a
:class:`~mqttquic_lab.quic.endpoint.Via` differ by our own socket as well, so that a client's new local address is a
path of its own: aioquic then sends the challenge, answers the peer's, and changes over once the path is validated, as
it does for a server's preferred address.
"""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import QuicConnectionId, QuicNetworkPath
from aioquic.quic.events import ConnectionIdIssued
from aioquic.quic.packet import (
    QuicPreferredAddress,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)

from mqttquic_lab.quic.private_recovery import watch_controller

if TYPE_CHECKING:
    from mqttquic_lab.quic.endpoint import NetworkAddress
    from mqttquic_lab.quic.private import Engine


def path_validated(engine: Engine) -> bool:
    """Whether the peer has shown that it is reached where packets go now (RFC 9000 section 8.2)."""
    return bool(engine._network_paths) and engine._network_paths[0].is_validated


def unvalidated_bytes(engine: Engine) -> tuple[int, int] | None:
    """Return (received, sent) on the path in use, None if it is validated; at most three times as many are sent."""
    path = engine._network_paths[0]
    return None if path.is_validated else (path.bytes_received, path.bytes_sent)


def spare_connection_ids(engine: Engine) -> int:
    """Return how many connection ids the peer has given that were not used yet (RFC 9000 section 5.1.1)."""
    return len(engine._peer_cid_available)


def connection_id_sequence(engine: Engine) -> int:
    """Return the sequence number of the peer's connection id that our packets carry."""
    return engine._peer_cid.sequence_number or 0


def probe_path(engine: Engine, address: NetworkAddress) -> None:
    """Begin to validate a path, with a spare connection id of its own (client side).

    The next transmission carries PATH_CHALLENGE; with its PATH_RESPONSE the path is taken into use.
    """
    path = QuicNetworkPath(address)
    path.peer_cid = engine._peer_cid_available.pop(0)
    engine._add_network_path(path)


def challenge_again(engine: Engine, address: NetworkAddress) -> None:
    """Send another PATH_CHALLENGE: aioquic repeats a lost one on the path in use only (RFC 9000 section 8.2.1)."""
    for path in engine._network_paths:
        if path.addr == address and not path.is_validated:
            path.local_challenge_sent = False


def forget_path(engine: Engine, address: NetworkAddress) -> None:
    """Forget a path that is not in use; a connection id that was kept for it is retired (RFC 9000 section 9.5)."""
    for path in engine._network_paths[1:]:
        if path.addr == address:
            engine._network_paths.remove(path)
            if path.peer_cid is not None:
                engine._retire_peer_cid(path.peer_cid)


def take_preferred_address(engine: Engine) -> tuple[str, int] | None:
    """Return the server's preferred address if it can be used, and leave it to the caller (RFC 9000 section 9.6.1)."""
    if engine._remote_preferred_address is None:
        return None
    address = engine._find_preferred_address()
    engine._remote_preferred_address = None
    return None if address is None else (str(address[0]), int(address[1]))


def start_path(engine: Engine) -> None:
    """Begin congestion control and round-trip times anew for the path in use (RFC 9000 section 9.4).

    What is still in flight went another way: its acknowledgement or loss says nothing about this one.
    """
    loss, estimator = engine._loss, engine.rtt
    controller = create_congestion_control(
        engine.configuration.congestion_control_algorithm, max_datagram_size=engine.configuration.max_datagram_size
    )
    for space in loss.spaces:
        for packet in space.sent_packets.values():
            packet.in_flight = packet.is_ack_eliciting = False
        space.ack_eliciting_in_flight = 0
    loss._cc = controller
    loss._rtt_initialized = False
    loss._rtt_first_sample_time = loss._rtt_latest = loss._rtt_smoothed = loss._rtt_variance = 0.0
    loss._rtt_min = float("inf")
    loss._pacer.packet_time = None
    loss._pacer.bucket_time = loss._pacer.bucket_max = 0.0
    estimator.reset()
    watch_controller(engine)
    resend_soon(engine)


def give_up_in_flight(engine: Engine) -> None:
    """Send everything again that was not acknowledged: the path it went is dead. No sign of congestion."""
    loss = engine._loss
    for space in loss.spaces:
        packets = tuple(space.sent_packets.values())
        loss._on_packets_lost(congestion_event=False, now=0.0, packets=packets, space=space)  # the time is not used


def resend_soon(engine: Engine) -> None:
    """Have what was lost on another path noticed after one round trip, not after a backed-off probe timeout."""
    loss = engine._loss
    loss._pto_count = 0
    if any(space.sent_packets for space in loss.spaces):
        loss._send_probe()


# --- what a server says about paths (RFC 9000 sections 9.6 and 18.2)


@dataclass(frozen=True, slots=True)
class PathAnnouncement:
    """What a server tells about paths in its transport parameters (RFC 9000 section 18.2).

    Attributes
    ----------
    disable_active_migration : bool
        Clients are asked to stay where they are.
    ipv4, ipv6 : tuple of str and int, optional
        The server's preferred address (section 9.6).
    """

    disable_active_migration: bool = False
    ipv4: tuple[str, int] | None = None
    ipv6: tuple[str, int] | None = None


def announce(engine: Engine, parameters: bytes) -> bytes:
    """Return the encoded transport parameters with the engine's announcement in them."""
    announcement = engine.announcement
    if announcement is None:
        return parameters
    decoded = pull_quic_transport_parameters(Buffer(data=parameters))
    decoded.disable_active_migration = announcement.disable_active_migration
    if announcement.ipv4 is not None or announcement.ipv6 is not None:
        if engine.preferred is None:  # version negotiation may bring us here a second time
            issued = _issue_connection_id(engine)
            engine.preferred = QuicPreferredAddress(
                announcement.ipv4, announcement.ipv6, issued.cid, issued.stateless_reset_token
            )
        decoded.preferred_address = engine.preferred
    buffer = Buffer(capacity=len(parameters) + 256)
    push_quic_transport_parameters(buffer, decoded)
    return buffer.data


def _issue_connection_id(engine: Engine) -> QuicConnectionId:
    """Return a connection id that is told to the peer elsewhere than in NEW_CONNECTION_ID."""
    issued = QuicConnectionId(
        cid=os.urandom(engine.configuration.connection_id_length),
        sequence_number=engine._host_cid_seq,
        stateless_reset_token=os.urandom(16),
        was_sent=True,
    )
    engine._host_cid_seq += 1
    engine._host_cids.append(issued)
    engine._events.append(ConnectionIdIssued(connection_id=issued.cid))
    return issued
