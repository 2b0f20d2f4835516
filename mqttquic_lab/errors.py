"""Every exception this package raises on purpose.

One base, :class:`LabError`; below it one class per thing a caller may want to handle differently. Classes also
inherit the built-in a Python programmer would reach for (``ConnectionError``, ``TimeoutError``, ``ValueError``),
so ``except TimeoutError`` works without knowing this module. Messages say what happened and what to do about it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class LabError(Exception):
    """Base of every exception of this package."""


class UsageError(LabError, ValueError):
    """An argument cannot be used; raised before anything is sent. The message names the fix."""


class PortInUseError(UsageError):
    """Another program (or an earlier listener) has this port."""


class StoreError(UsageError):
    """A file cannot be used as a broker's store: foreign, damaged, of a later version, or in use by another broker."""


class UnknownOptionError(UsageError, TypeError):
    """A keyword this verb does not have; the message suggests the nearest one it has."""

    def __init__(self, verb: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
        super().__init__(f"{verb}() has no option {name!r}: {hint}")
        self.name = name
        self.suggestion = near[0] if near else None


class BlockingCallError(LabError, RuntimeError):
    """A blocking verb was called where it would wait for itself (on the session's own loop, or after a fork)."""


class OperationTimeoutError(LabError, TimeoutError):
    """A verb's own ``timeout`` ran out; the work it started was cancelled."""


class ReasonedError(LabError):
    """An error that an MQTT packet carries: its reason code, reason string and the packet itself.

    Attributes
    ----------
    reason_code : int or None
        MQTT 5.0 section 2.4 reason code (3.1.1 return codes are mapped to their 5.0 equivalents).
    reason_string : str or None
        MQTT 5.0 Reason String property, as the peer sent it.
    packet : object or None
        The packet that carried it.
    """

    def __init__(
        self, message: str, *, reason_code: int | None = None, reason_string: str | None = None, packet: Any = None
    ) -> None:
        super().__init__(message)
        self.reason_code = reason_code
        self.reason_string = reason_string
        self.packet = packet

    @property
    def properties(self) -> Mapping[str, Any]:
        """MQTT 5.0 properties of that packet, User Properties among them; empty if there is none."""
        return getattr(self.packet, "properties", None) or {}


class ConnectError(ReasonedError, ConnectionError):
    """No MQTT session came about. Subclasses say at which step it ended."""


class UnreachableError(ConnectError):
    """The address does not resolve, or the host answers that nothing listens on this port."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """Nobody answered within the connect timeout (closed, filtered or wrong port, or UDP blocked on the path)."""


class CertificateError(ConnectError):
    """The peer's certificate was refused: unknown issuer, other name, expired, not yet valid.

    Attributes
    ----------
    problem : str
        ``"untrusted"``, ``"name"``, ``"expired"``, ``"not-yet-valid"`` or ``"other"``.
    chain : sequence
        What the peer presented, as :class:`mqttquic_lab.records.handshake.CertificateInfo`.
    """

    def __init__(self, message: str, *, problem: str = "other", chain: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.problem = problem
        self.chain = tuple(chain)


class AlpnError(ConnectError):
    """The peer speaks none of the application protocols offered (RFC 7301; QUIC CRYPTO_ERROR 0x178)."""


class HandshakeError(ConnectError):
    """The TLS or QUIC handshake failed for another reason than certificate or ALPN."""


class ConnectRefusedError(ConnectError):
    """The broker answered CONNECT with a failure code (MQTT 5.0 section 3.2.2.2)."""


class AuthenticationError(ConnectError):
    """Enhanced authentication (MQTT 5.0 section 4.12) failed at this end.

    The server did not show that it is the one meant, or broke a rule of the method. What the server refuses is a
    :class:`ConnectRefusedError`.
    """


class DisconnectedError(ReasonedError, ConnectionError):
    """The session is not connected (any more); says since when and why."""


class MigrationError(LabError):
    """A QUIC connection could not move to another address (RFC 9000 section 9); it goes on where it was.

    Attributes
    ----------
    problem : str
        ``"unconfirmed"`` (the handshake is not confirmed yet), ``"disabled"`` (the server asked not to),
        ``"no spare id"`` (the server gave no unused connection id), ``"unreachable"`` (no route from that address),
        ``"not validated"`` (no answer on the new path) or ``"busy"`` (another move is under way).
    """

    def __init__(self, message: str, *, problem: str) -> None:
        super().__init__(message)
        self.problem = problem


class StreamClosedError(DisconnectedError):
    """One data stream has ended, and what was in flight on it failed; the session lives on its other streams.

    Attributes
    ----------
    stream_id : int or None
        QUIC stream id (RFC 9000 section 2.1).
    """

    stream_id: int | None = None


class StreamLimitError(UsageError):
    """No more streams can be opened now (RFC 9000 section 4.6), and waiting would be in vain."""


class BrokerProfileWarning(UserWarning):
    """The broker of this profile is known to refuse what was just asked for; it is sent nevertheless."""


class StreamMappingWarning(UserWarning):
    """``streams="flows"`` was asked for, and the session goes on without: the broker or the transport has none."""


class ProtocolError(ReasonedError):
    """One end broke a rule of the standard.

    Attributes
    ----------
    rule : str
        Conformance statement such as ``"MQTT-2.2.1-3"`` where one exists, else ``""``.
    section : str
        Section of the standard, such as ``"MQTT 5.0 section 3.3.1.2"``.
    offset : int or None
        Byte offset in the packet where the error shows.
    field : str
        Name of the field at that offset.
    """

    def __init__(
        self,
        message: str,
        *,
        reason_code: int | None = None,
        rule: str = "",
        section: str = "",
        offset: int | None = None,
        field: str = "",
        packet: Any = None,
    ) -> None:
        super().__init__(message, reason_code=reason_code, packet=packet)
        self.rule = rule
        self.section = section
        self.offset = offset
        self.field = field

    def __str__(self) -> str:
        where = f"{self.field} at byte {self.offset}" if self.offset is not None else self.field
        cite = ", ".join(part for part in (f"[{self.rule}]" if self.rule else "", self.section) if part)
        parts = [super().__str__(), f"({where})" if where else "", f"- {cite}" if cite else ""]
        return " ".join(part for part in parts if part)


class MalformedPacketError(ProtocolError):
    """Bytes that are not a packet of this version (MQTT 5.0 section 4.13; reason code 0x81 unless stated).

    Attributes
    ----------
    packets : list
        Packets that were decoded from the same chunk before the bad one: nothing that arrived whole is lost.
    """

    packets: list[Any]

    def __init__(self, message: str, **details: Any) -> None:
        details.setdefault("reason_code", 0x81)
        super().__init__(message, **details)
        self.packets = []


class PublishError(ReasonedError):
    """The peer refused a PUBLISH (PUBACK or PUBREC reason code of 0x80 or more), or it cannot be sent."""


class SubscribeError(ReasonedError):
    """The broker refused a SUBSCRIBE or UNSUBSCRIBE for at least one filter."""
