"""A path with a delay that every packet takes, SYN and ICMP included: a TUN device that turns packets round.

A relay in user space answers a SYN itself, so that TCP's own handshake costs nothing behind it. Here the kernel routes
packets for 10.99.0.2 into the device; we hold each for half a round trip, exchange source and destination (which leaves
all checksums as they are), and write it back: the kernel takes it for one that 10.99.0.2 has sent to 10.99.0.1, where
the server listens. Needs Linux, and the right to make a network device.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import subprocess
from typing import Self

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000

SERVER, MIRROR = "10.99.0.1", "10.99.0.2"
"""Where a server listens, and where clients connect to."""


def available() -> bool:
    """Whether this process may make such a device."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"mqlabprobe", IFF_TUN | IFF_NO_PI))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class DelayTunnel:
    """The path between :data:`MIRROR` and :data:`SERVER`; an async context manager.

    Parameters
    ----------
    round_trip : float
        Seconds.

    Attributes
    ----------
    packets : int
        Packets that have passed, in both directions.
    """

    def __init__(self, round_trip: float) -> None:
        self._delay = round_trip / 2
        self.packets = 0

    async def __aenter__(self) -> Self:
        name = f"mqlab{os.getpid() % 10_000}"
        self._loop = asyncio.get_running_loop()
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        for command in (["addr", "add", f"{SERVER}/30", "dev", name], ["link", "set", name, "up", "mtu", "1500"]):
            subprocess.run(["ip", *command], check=True, capture_output=True)
        self._loop.add_reader(self._device, self._readable)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._device)
        os.close(self._device)
        self._device = -1

    def _readable(self) -> None:
        for _ in range(64):
            try:
                packet = os.read(self._device, 65_535)
            except BlockingIOError:
                return
            if packet[0] >> 4 == 4:
                turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                self._loop.call_later(self._delay, self._write, turned)

    def _write(self, packet: bytes) -> None:
        self.packets += 1
        if self._device >= 0:
            with contextlib.suppress(OSError):
                os.write(self._device, packet)
