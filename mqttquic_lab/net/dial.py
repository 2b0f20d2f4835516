"""Getting a TCP connection to a host that may have several addresses: first answer wins (RFC 8305)."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mqttquic_lab.errors import ConnectError, ConnectTimeoutError, UnreachableError, UsageError
from mqttquic_lab.net.address import host_port, is_ip_address, resolve
from mqttquic_lab.net.sockets import set_no_delay
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    from mqttquic_lab.net.address import SocketAddress

STAGGER = 0.25
"""Seconds that one address gets before the next is tried beside it (RFC 8305 section 5)."""

LocalAddress = tuple[str, int]

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}


class Dialled(NamedTuple):
    """A connected socket (non-blocking, TCP_NODELAY) and when its SYN left and its SYN-ACK came."""

    sock: socket.socket
    started: float
    connected: float


async def dial(host: str, port: int, *, local_address: LocalAddress | None = None) -> Dialled:
    """Connect a TCP socket to `host`.

    Every address of a name is tried, each :data:`STAGGER` after the one before it or as soon as that failed; the
    others are given up when the first has answered. No socket is left over, whatever happens.

    Parameters
    ----------
    host : str
        DNS name or IP address.
    port : int
        TCP port.
    local_address : tuple of (str, int), optional
        Our own IP address and port (0 for any) to connect from.

    Raises
    ------
    UnreachableError
        The name does not resolve, nothing listens, or there is no way to the host.
    ConnectTimeoutError
        The operating system's own timeout passed; the caller's is the caller's business.
    UsageError
        `local_address` is not an address of this machine, or of another family than the host.
    """
    addresses = await resolve(host, port)
    if local_address is not None:
        addresses = _of_same_family(addresses, local_address, host)
    waiting = deque(addresses)
    attempts: set[asyncio.Task[Dialled]] = set()
    failures: list[OSError] = []
    winner: Dialled | None = None
    try:
        while winner is None and (waiting or attempts):
            if waiting:
                attempts.add(asyncio.create_task(_attempt(*waiting.popleft(), local_address)))
            done, _ = await asyncio.wait(
                attempts, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if isinstance(error := task.exception(), OSError):
                    failures.append(error)
                    attempts.discard(task)
                elif winner is None:
                    winner = task.result()
                    attempts.discard(task)
        await _give_up(attempts)
    except BaseException:
        if winner is not None:
            winner.sock.close()
        for task in attempts:
            task.add_done_callback(_close_result)
            task.cancel()
        raise
    if winner is None:
        raise _explain(failures, host, port, local_address)
    return winner


async def _attempt(family: socket.AddressFamily, address: SocketAddress, local_address: LocalAddress | None) -> Dialled:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        set_no_delay(sock)
        if local_address is not None:
            sock.bind(local_address)
        started = CLOCK()
        await asyncio.get_running_loop().sock_connect(sock, address)
        return Dialled(sock, started, CLOCK())
    except BaseException:
        sock.close()
        raise


async def _give_up(attempts: set[asyncio.Task[Dialled]]) -> None:
    for task in attempts:
        task.add_done_callback(_close_result)
        task.cancel()
    if attempts:
        await asyncio.wait(attempts)


def _close_result(task: asyncio.Task[Dialled]) -> None:
    """Close the socket of an attempt that succeeded too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().sock.close()


def _of_same_family(
    addresses: list[tuple[socket.AddressFamily, SocketAddress]], local_address: LocalAddress, host: str
) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    if not is_ip_address(local_address[0]):
        raise UsageError(f"local_address takes an IP address of this machine, not {local_address[0]!r}")
    family = socket.AF_INET6 if ":" in local_address[0] else socket.AF_INET
    matching = [entry for entry in addresses if entry[0] == family]
    if not matching:
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise UsageError(f"local_address {local_address[0]} is {kind}, but {host} has no {kind} address")
    return matching


def _explain(
    failures: list[OSError], host: str, port: int, local_address: LocalAddress | None
) -> ConnectError | UsageError:
    """Return the error that says most about why no address answered."""
    where = host_port(host, port)
    # A refusal proves that the host is there; it says more than a missing route of the other family.
    for failure in failures:
        if isinstance(failure, ConnectionRefusedError):
            error: ConnectError | UsageError = UnreachableError(
                f"nothing listens on TCP port {port} of {host} (connection refused): is the broker running, "
                "and is this its port?"
            )
            break
    else:
        failure = failures[0]
        text = failure.strerror or str(failure)
        if failure.errno == errno.ETIMEDOUT:
            error = ConnectTimeoutError(f"{where} did not answer (TCP): a firewall may drop what is sent to this port")
        elif local_address is not None and failure.errno in {errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EINVAL}:
            error = UsageError(f"cannot connect from {host_port(*local_address)}: {text}")
        elif failure.errno in _UNREACHABLE:
            error = UnreachableError(f"there is no way to {where} ({text}): check address and network")
        else:
            error = UnreachableError(f"cannot connect to {where}: {text}")
    error.__cause__ = failure
    return error
