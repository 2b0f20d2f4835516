"""What a session says before it knows that the broker is there: CONNECT, and messages that were allowed to go early.

MQTT lets a client send packets without waiting for CONNACK (MQTT 5.0 section 3.1.4). Over QUIC with a ticket they go in
the very first flight; without one, or when the broker does not take early data, right after the handshake. In each case
they are written once, and the transport sees to it that they arrive once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttquic_lab.errors import OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import Connect, Version
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.session.authenticating import Authenticator
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.quic_options import EarlyMessage
    from mqttquic_lab.session.results import PublishResult


@dataclass(frozen=True, slots=True)
class FirstFlight:
    """The packets that go first.

    Attributes
    ----------
    connect : Connect
        CONNECT.
    version : {5, 4}
        Protocol level.
    messages : tuple of EarlyMessage
        What follows CONNECT.
    authenticator : Authenticator or None
        Goes on with the enhanced authentication that CONNECT begins.
    """

    connect: Connect
    version: Version
    messages: tuple[EarlyMessage, ...] = ()
    authenticator: Authenticator | None = None

    @property
    def content(self) -> tuple[str, ...]:
        """Names of the packets."""
        return ("CONNECT", *("PUBLISH" for _ in self.messages))

    def encode(self) -> bytes:
        """Return their bytes. Packet identifiers are those that a new session gives out: 1, 2, 3 ..."""
        packets = [self.connect.encode(self.version)]
        packets += [message.encode(number, self.version) for message, number in numbered(self.messages)]
        return b"".join(packets)


def numbered(messages: Sequence[EarlyMessage]) -> list[tuple[EarlyMessage, int | None]]:
    """Return each message with its packet identifier, None at QoS 0."""
    found: list[tuple[EarlyMessage, int | None]] = []
    number = 0
    for message in messages:
        number += message.qos > 0
        found.append((message, number if message.qos else None))
    return found


class EarlyPublished:
    """The messages that went before CONNACK, and what became of them. On the session's loop only."""

    def __init__(self, messages: tuple[EarlyMessage, ...], publisher: Publisher, connection: Connection) -> None:
        at = connection.started + connection.report.timings.get("connect_sent", 0.0)
        self._outcomes = [publisher.adopt(message, packet_id, at) for message, packet_id in numbered(messages)]

    def __len__(self) -> int:
        return len(self._outcomes)

    async def results(self, timeout: float | None) -> list[PublishResult]:
        """See :meth:`AsyncSession.early_published`."""
        waiting = [outcome for outcome in self._outcomes if not outcome.done()]
        if waiting:
            _, pending = await asyncio.wait(waiting, timeout=timeout)
            if pending:
                raise OperationTimeoutError(
                    f"{len(pending)} of {len(self)} early messages are not acknowledged after {timeout:g} s"
                )
        return [outcome.result() for outcome in self._outcomes]
