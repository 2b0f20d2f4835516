"""Binding UDP ports, with errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import PortInUseError, UsageError
from mqttquic_lab.net.address import host_port

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT_ATTEMPTS = 20
"""Free ports tried until one is free on every address of a name."""


async def bind_udp(host: str, port: int) -> list[socket.socket]:
    """Return a bound UDP socket for every address of `host`, all with the same port.

    Raises
    ------
    PortInUseError
        The port is taken.
    UsageError
        The host is not an address of this machine, or the port is not allowed.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host!r}: the name does not resolve ({error})") from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _bind_all(addresses, host, port)
        except PortInUseError:
            # Port 0 gave a port for the first address that is taken on another one.
            if port or len(addresses) == 1 or attempt == PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _bind_all(
    addresses: Sequence[tuple[socket.AddressFamily, tuple[Any, ...]]], host: str, port: int
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            number = bound[0].getsockname()[1] if bound else port
            try:
                bound.append(_bind_one(family, (address[0], number, *address[2:])))
            except OSError as error:
                # A name may have an address that this machine has not, such as ::1 without IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing is not None and not bound:
            raise missing
    except OSError as error:
        for sock in bound:
            sock.close()
        where = host_port(host, port)
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"UDP port {port} of {host!r} is in use: choose another one, or 0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"not allowed to listen on {where}: ports below 1024 need privileges") from error
        raise UsageError(f"cannot listen on {where}: {error.strerror or error}") from error
    return bound


def _bind_one(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def connected_udp(target: tuple[Any, ...], local: tuple[Any, ...] | None = None) -> socket.socket:
    """Return a UDP socket for one address only, so that the kernel reports ICMP's "port unreachable" to us.

    Parameters
    ----------
    target : address
        Where it leads, as ``connect`` takes it.
    local : address, optional
        Our own, as ``bind`` takes it; None for what routing chooses.

    Raises
    ------
    UsageError
        `local` is not an address of this machine, of another family, or taken.
    OSError
        There is no way to `target` from there.
    """
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if local is not None:
            _bind_local(sock, local)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_local(sock: socket.socket, local: tuple[Any, ...]) -> None:
    where = host_port(str(local[0]), int(local[1]))
    if (":" in local[0]) != (sock.family == socket.AF_INET6):
        raise UsageError(f"cannot send from {where}: the other end has an address of another family")
    try:
        sock.bind(local)
    except OSError as error:
        raise UsageError(f"cannot send from local_address {where}: {error.strerror or error}") from error
