"""TCP socket options and facts that asyncio leaves to its users."""

from __future__ import annotations

import socket
import struct
import sys

from mqttquic_lab.records.handshake import RttInfo

_TCP_INFO_RTT = struct.Struct("=II")  # tcpi_rtt and tcpi_rttvar, microseconds
_TCP_INFO_RTT_OFFSET = 68
_TCP_INFO_MIN_RTT_OFFSET = 148
_UNKNOWN_U32 = 0xFFFFFFFF


def set_no_delay(sock: socket.socket) -> None:
    """Switch Nagle's algorithm off (RFC 9293 section 3.7.4).

    With it, a small MQTT packet waits for the acknowledgement of the one before, which the peer delays by up to
    40 ms. asyncio does this too; it is said here so that it does not depend on the loop in use.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def close_with_reset(sock: socket.socket) -> None:
    """Make the coming close of a TCP socket send RST instead of FIN (a linger time of zero)."""
    size = "hh" if sys.platform == "win32" else "ii"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(size, 1, 0))


def tcp_rtt(sock: socket.socket) -> RttInfo | None:
    """Return the kernel's round-trip estimate of a TCP socket (Linux ``TCP_INFO``), or None elsewhere.

    Linux keeps a smoothed value (RFC 6298), its mean deviation and the minimum, but not the latest sample:
    :attr:`RttInfo.latest` repeats the smoothed one.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    if len(info) < _TCP_INFO_RTT_OFFSET + _TCP_INFO_RTT.size:
        return None
    smoothed, variance = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_RTT_OFFSET)
    if not smoothed:
        return None
    minimum = smoothed
    if len(info) >= _TCP_INFO_MIN_RTT_OFFSET + 4:
        (kernel_minimum,) = struct.unpack_from("=I", info, _TCP_INFO_MIN_RTT_OFFSET)
        if kernel_minimum != _UNKNOWN_U32:
            minimum = kernel_minimum
    return RttInfo(latest=smoothed / 1e6, minimum=minimum / 1e6, smoothed=smoothed / 1e6, variance=variance / 1e6)
