"""One UDP socket under any number of QUIC connections.

Reading drains the socket in batches, hands each datagram to its connection, and lets every touched connection work
once. Sending uses generic segmentation offload (GSO) and reading generic receive offload (GRO) where Linux has them
(udp(7)); without them it falls back silently. Nothing that the network does raises out of here: errors of the socket
are reported to :attr:`Endpoint.on_error` and counted, and QUIC recovers from what was lost.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

NetworkAddress = Any
"""What ``recvfrom`` gives, (host, port) or (host, port, flow info, scope id); on a socket that is bound to every
interface followed by a :class:`PacketInfo`, so that replies leave from the address that was asked. Where a connection
may have several sockets, a :class:`Via` comes last."""

Datagrams = list[tuple[bytes, NetworkAddress]]

_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_PKTINFO: Final = 8  # Linux; Python 3.11 has no name for it
_IPV6_RECVPKTINFO: Final = getattr(socket, "IPV6_RECVPKTINFO", 49)
_IPV6_PKTINFO: Final = getattr(socket, "IPV6_PKTINFO", 50)

MAX_READ: Final = 64
"""Datagrams read before the connections work on them."""
MAX_READ_GRO: Final = 2
"""The same in GRO buffers, each of up to 64 KiB; more would let the peer idle meanwhile."""
MAX_SEGMENTS: Final = 64
"""UDP_MAX_SEGMENTS of older kernels."""
MAX_GSO_BYTES: Final = 65_000
MAX_QUEUE: Final = 4096
"""Datagrams waiting for a full socket buffer; more are dropped, as a full router would."""
RECEIVE_BUFFER: Final = 4 * 1024 * 1024


class DatagramReceiver(Protocol):
    """What an endpoint hands datagrams to."""

    def receive(self, data: bytes, address: NetworkAddress, now: float) -> None:
        """Take one datagram; work follows in :meth:`pump`."""

    def pump(self) -> None:
        """Work on everything received, once per batch."""

    def transmit(self) -> None:
        """Send what is due."""


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """Our own address of a path (RFC 3542 section 6.1, ip(7)).

    Attributes
    ----------
    level, kind : int
        Of the control message that carries it.
    address : bytes
        The packed IP address.
    interface : int
        Index of the interface, which a link-local address needs; else 0.
    """

    level: int
    kind: int
    address: bytes
    interface: int = 0

    @property
    def host(self) -> str:
        """The address as text."""
        return socket.inet_ntop(socket.AF_INET if len(self.address) == 4 else socket.AF_INET6, self.address)

    @property
    def control_message(self) -> tuple[int, int, bytes]:
        """For ``sendmsg``: leave from this address."""
        if len(self.address) == 4:
            return self.level, self.kind, struct.pack("=I4s4s", 0, self.address, bytes(4))
        return self.level, self.kind, struct.pack("=16sI", self.address, self.interface)


class Via:
    """Ends an address and tells through which socket it is reached, where a connection may have several.

    Two addresses with different ones are different paths (RFC 9000 section 9), though the peer is the same.

    Attributes
    ----------
    endpoint : Endpoint
        The socket; another one after a rebinding, which is no new path.
    """

    __slots__ = ("endpoint",)
    endpoint: Endpoint


@dataclass(slots=True)
class EndpointCounters:
    """What passed through one socket.

    Attributes
    ----------
    datagrams_received, datagrams_sent : int
        UDP datagrams.
    bytes_received, bytes_sent : int
        Their payloads.
    datagrams_dropped : int
        Not sent: queue full, too large for the path, or refused by the operating system.
    datagrams_unrouted : int
        Received, but of no connection.
    errors : int
        Errors of the socket, such as ICMP's "port unreachable".
    """

    datagrams_received: int = 0
    datagrams_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    datagrams_dropped: int = 0
    datagrams_unrouted: int = 0
    errors: int = 0


def _nobody(_data: bytes, _address: NetworkAddress) -> None:
    """Route nothing: no owner has assigned anything yet."""


def _unheard(_error: OSError) -> None:
    """Ignore an error: nobody asked."""


class Endpoint:
    """Drives one non-blocking UDP socket on the running loop (which must support ``add_reader``).

    Parameters
    ----------
    sock : socket.socket
        Bound, or connected to `peer`. The endpoint owns it from now on.
    peer : address, optional
        The address to which the socket is connected: the only one that is read from and sent to. A connected socket
        is what makes the kernel report ICMP errors.
    via : Via, optional
        Ends every address that was read here. For sockets without `peer`; a `peer` has its own.

    Attributes
    ----------
    route : callable(data, address) -> DatagramReceiver or None
        Whose datagram this is; the owner assigns it.
    on_error : callable(OSError)
        Told of socket errors; the owner may assign it.
    counters : EndpointCounters
        What passed through.
    last_heard : float
        When something arrived last, on the loop's clock.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        peer: NetworkAddress | None = None,
        via: Via | None = None,
    ) -> None:
        self.counters = EndpointCounters()
        self.route: Callable[[bytes, NetworkAddress], DatagramReceiver | None] = _nobody
        self.on_error: Callable[[OSError], None] = _unheard
        self._loop = asyncio.get_running_loop()
        self.last_heard = self._loop.time()
        self._peer = peer
        self._via = via
        self._queue: Datagrams = []
        self._blocked = False
        self._waiting: dict[DatagramReceiver, None] = {}
        self._closed = False
        sock.setblocking(False)
        self._socket = sock
        self._gso = self._gro = self._packet_info = False
        self._prepare(sock)
        self._buffer = bytearray(65_535)
        self._view = memoryview(self._buffer)
        self._loop.add_reader(sock.fileno(), self._readable)

    def _prepare(self, sock: socket.socket) -> None:
        # Larger than what is in flight on the loopback; the kernel caps it silently.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if not sys.platform.startswith("linux"):
            return
        if self._peer is None and sock.getsockname()[0] in ("0.0.0.0", "::"):  # noqa: S104 - only a comparison
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._packet_info = True
        try:
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)
            self._gso = True
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            self._gro = True
        except OSError:
            pass  # an old kernel

    # --- state

    @property
    def local_address(self) -> tuple[str, int]:
        """Our host and port; those last known after :meth:`close`."""
        if not self._closed:
            self._local_address = plain_address(self._socket.getsockname())
        return self._local_address

    def local_address_towards(self, address: NetworkAddress | None) -> tuple[str, int]:
        """Our host and port on the path to `address`, which a socket bound to every interface has many of."""
        host, port = self.local_address
        info = _packet_info(address)
        return info.host if info is not None else host, port

    @property
    def socket_name(self) -> tuple[Any, ...]:
        """Our address as the socket has it, with what IPv6 adds."""
        name: tuple[Any, ...] = self._socket.getsockname()
        return name

    @property
    def blocked(self) -> bool:
        """Whether the socket buffer is full: building more packets would only age them."""
        return self._blocked

    @property
    def is_closed(self) -> bool:
        """Whether the socket is gone."""
        return self._closed

    def when_writable(self, receiver: DatagramReceiver) -> None:
        """Call ``receiver.transmit()`` when the socket takes datagrams again."""
        self._waiting[receiver] = None

    def forget(self, receiver: DatagramReceiver) -> None:
        """Undo :meth:`when_writable`."""
        self._waiting.pop(receiver, None)

    def close(self) -> None:
        """Release the socket. Safe to repeat."""
        if self._closed:
            return
        self._local_address = self.local_address
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._queue.clear()
        self._waiting.clear()
        self._socket.close()

    # --- receiving

    def _readable(self) -> None:
        touched: dict[DatagramReceiver, None] = {}
        now = self._loop.time()
        for _ in range(MAX_READ_GRO if self._gro else MAX_READ):
            try:
                if self._gro or self._packet_info:
                    size, ancillary, _, address = self._socket.recvmsg_into([self._view], 128)
                    segment = _segment_size(ancillary) or size
                    if self._packet_info:
                        address = _with_packet_info(address, ancillary)
                else:
                    size, address = self._socket.recvfrom_into(self._view)
                    segment = size
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                # ICMP told that something we sent did not arrive (ECONNREFUSED, or WSAECONNRESET on Windows).
                self._failed(error)
                if self._closed:
                    return
                continue
            if self._via is not None:
                address = (*address, self._via)
            self._dispatch(size, segment, self._peer or address, now, touched)
        for receiver in touched:
            try:
                receiver.pump()
            except Exception:
                # Connections handle their own errors; one that does not must not stop the others.
                logger.exception("a QUIC connection failed to handle what it received")

    def _dispatch(
        self, size: int, segment: int, address: NetworkAddress, now: float, touched: dict[DatagramReceiver, None]
    ) -> None:
        self.last_heard = now
        counters = self.counters
        counters.bytes_received += size
        for start in range(0, size, segment or 1):
            data = bytes(self._view[start : min(start + segment, size)])
            counters.datagrams_received += 1
            try:
                receiver = self.route(data, address)
                if receiver is None:
                    counters.datagrams_unrouted += 1
                else:
                    receiver.receive(data, address, now)
                    touched[receiver] = None
            except Exception:
                # Whatever a stranger's bytes did, the socket serves the others.
                counters.errors += 1
                logger.exception("a datagram could not be handled")

    # --- sending

    def send(self, datagrams: Sequence[tuple[bytes, NetworkAddress]]) -> None:
        """Send datagrams in order, or queue them while the socket buffer is full. Never raises."""
        if self._closed:
            return
        room = MAX_QUEUE - len(self._queue)
        if len(datagrams) > room:
            self.counters.datagrams_dropped += len(datagrams) - room
            datagrams = datagrams[:room]
        self._queue += datagrams
        if not self._blocked:
            self._flush()

    def _flush(self) -> None:
        queue = self._queue
        done = 0
        try:
            while done < len(queue) and not self._closed:
                done += self._send_some(queue, done)
        except (BlockingIOError, InterruptedError):
            del queue[:done]
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._socket.fileno(), self._writable)
            return
        queue.clear()

    def _writable(self) -> None:
        self._blocked = False
        self._loop.remove_writer(self._socket.fileno())
        self._flush()
        while self._waiting and not self._blocked:
            receiver = next(iter(self._waiting))
            del self._waiting[receiver]
            receiver.transmit()

    def _send_some(self, queue: Datagrams, first: int) -> int:
        """Send one datagram, or a run of equal size for one address; returns how many are dealt with."""
        data, address = queue[first]
        count = self._run_length(queue, first) if self._gso else 1
        try:
            if self._peer is not None and address != self._peer:
                self.counters.datagrams_dropped += 1  # a connected socket reaches its peer only
                return 1
            if self._via is not None:
                address = address[:-1]
            if count > 1 or self._packet_info:
                segments = [payload for payload, _ in queue[first : first + count]]
                ancillary = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(data)))] if count > 1 else []
                if self._peer is not None:
                    self._socket.sendmsg(segments, ancillary)
                else:
                    if isinstance(address[-1], PacketInfo):
                        ancillary.append(address[-1].control_message)
                        address = address[:-1]
                    self._socket.sendmsg(segments, ancillary, 0, address)
            elif self._peer is None:
                self._socket.sendto(data, address)
            else:
                self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            raise
        except OSError as error:
            if count > 1 and error.errno in (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT):
                self._gso = False  # the interface cannot; one by one from now on
                return 0
            self.counters.datagrams_dropped += count
            self._failed(error)
            return count
        self.counters.datagrams_sent += count
        self.counters.bytes_sent += len(data) * (count - 1) + len(queue[first + count - 1][0])
        return count

    def _run_length(self, queue: Datagrams, first: int) -> int:
        data, address = queue[first]
        size = len(data)
        last = min(len(queue), first + MAX_SEGMENTS, first + max(1, MAX_GSO_BYTES // size))
        index = first + 1
        while index < last and len(queue[index][0]) == size and queue[index][1] == address:
            index += 1
        # Only the last segment may be shorter.
        if index < last and len(queue[index][0]) < size and queue[index][1] == address:
            index += 1
        return index - first

    def _failed(self, error: OSError) -> None:
        self.counters.errors += 1
        self.on_error(error)


def _packet_info(address: NetworkAddress | None) -> PacketInfo | None:
    """Return the :class:`PacketInfo` of an address, which a :class:`Via` may follow."""
    return next((part for part in address[2:] if isinstance(part, PacketInfo)), None) if address is not None else None


def _segment_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            return int.from_bytes(value[:4], sys.byteorder)
    return 0


def _with_packet_info(address: NetworkAddress, ancillary: list[tuple[int, int, bytes]]) -> NetworkAddress:
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return (*address, PacketInfo(level, kind, value[8:12]))
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            # The interface is chosen by routing, except for link-local addresses, which mean nothing without it.
            link_local = value[0] == 0xFE and value[1] & 0xC0 == 0x80
            interface = int.from_bytes(value[16:20], sys.byteorder) if link_local else 0
            return (*address, PacketInfo(level, kind, value[:16], interface))
    return address


def plain_address(address: NetworkAddress) -> tuple[str, int]:
    """Return (host, port) of a socket address; an IPv4-mapped IPv6 address as the IPv4 address that it is."""
    host, port = str(address[0]), int(address[1])
    return host.removeprefix("::ffff:") if "." in host else host, port
