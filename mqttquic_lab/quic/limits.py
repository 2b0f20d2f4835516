"""How much a listener lets each client have under way: streams and bytes (RFC 9000 section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from mqttquic_lab.errors import UsageError
from mqttquic_lab.quic.client import CONNECTION_WINDOW, STREAM_WINDOW


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """Limits announced in the transport parameters (RFC 9000 section 18.2) and kept up as the client goes on.

    Parameters
    ----------
    max_streams_bidi, max_streams_uni : int
        Streams that the client may have open at a time: a stream that has ended makes room for another one.
    connection_window, stream_window : int
        Bytes that may be under way or unread, in all streams together and in each.

    Raises
    ------
    UsageError
        For a value that cannot be announced.
    """

    max_streams_bidi: int = 128
    max_streams_uni: int = 128
    connection_window: int = CONNECTION_WINDOW
    stream_window: int = STREAM_WINDOW

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_streams_bidi", 1, 1 << 60),
            ("max_streams_uni", 0, 1 << 60),
            ("connection_window", 1200, 1 << 62),
            ("stream_window", 1200, 1 << 62),
        ):
            value = getattr(self, name)
            if not least <= value < most:
                raise UsageError(f"{name}={value!r}: must be at least {least} (RFC 9000 section 4)")
