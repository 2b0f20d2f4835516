"""The application error codes of the gateway's RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE.

ALPN ``mqtt`` has no standard ones. These are MQTT 5.0 reason codes (section 2.4) where one says what happened, and of
the MQTT-next draft for a stream of the wrong kind; their numbers do not meet. CONNECTION_CLOSE says it in words too.
"""

from __future__ import annotations

from typing import Final

NORMAL: Final = 0x00
UNSPECIFIED: Final = 0x80
"""The connection to the broker broke."""
SERVER_UNAVAILABLE: Final = 0x88
"""No connection to the broker came about."""
SHUTTING_DOWN: Final = 0x8B
"""The gateway closes."""
QUOTA_EXCEEDED: Final = 0x97
"""Too many streams."""
CONNECT_TIMEOUT: Final = 0xA0
"""No stream in time (maximum connect time)."""
STREAM_TYPE: Final = 0xB5
"""A stream that is no MQTT connection (MQTT-next: ERROR_STREAM_TYPE)."""
