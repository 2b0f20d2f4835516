"""Loss recovery and pacing of an engine (RFC 9002); a part of ``private.py``."""



from __future__ import annotations

from typing import TYPE_CHECKING

from aioquic.quic.recovery import QuicPacketPacer

if TYPE_CHECKING:
    from collections.abc import Callable


class Pacer(QuicPacketPacer):
    """aioquic's pacer, which also says when there is nothing left to put into a packet.

    aioquic finds that out by building an empty packet, which costs a third of what it costs to build one.

    Parameters
    ----------
    max_datagram_size : int
        Bytes.
    more : callable() -> bool
        Whether anything is left that a packet with something in it has not taken along.

    Attributes
    ----------
    is_done : bool
        Whether building ended for that reason; then there is no time to wait for.
    """

    def __init__(self, *, max_datagram_size: int, more: Callable[[], bool]) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._more = more
        self._sent = False
        self.is_done = False

    def begin(self) -> None:
        """Note that packets are going to be built."""
        self._sent = self.is_done = False

    def update_after_send(self, now: float) -> None:
        """Note that a packet was built."""
        super().update_after_send(now)
        self._sent = True

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # aioquic's own returns None, too
        """Return when the next packet may be built, None for now."""
        if self._sent and not self._more():
            self.is_done = True
            return now
        return super().next_send_time(now)
