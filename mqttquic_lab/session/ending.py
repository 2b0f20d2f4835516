"""How a session ends, in the words of an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError
from mqttquic_lab.session.limits import said

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Disconnect


def farewell(packet: Disconnect) -> DisconnectedError:
    """Return what a DISCONNECT of the broker means (MQTT 5.0 section 3.14)."""
    words = packet.properties.get("reason_string")
    elsewhere = packet.properties.get("server_reference")
    moved = f"; it names {elsewhere!r} instead, which this client does not follow" if elsewhere else ""
    return DisconnectedError(
        f"the broker disconnected: {said(packet.reason_code, words)}{moved}",
        reason_code=packet.reason_code,
        reason_string=words,
        packet=packet,
    )


def gone(what: str, reason: LabError | None, otherwise: str = "the session was closed") -> DisconnectedError:
    """Return an error for one who waited: the caller's own, chained to why the session ended.

    Parameters
    ----------
    what : str
        What cannot be done, or did not come.
    reason : LabError or None
        Why the session ended; None if that was asked for.
    otherwise : str
        What to say then.
    """
    error = DisconnectedError(
        f"{what}: {reason if reason is not None else otherwise}",
        reason_code=getattr(reason, "reason_code", None),
        reason_string=getattr(reason, "reason_string", None),
        packet=getattr(reason, "packet", None),
    )
    error.__cause__ = reason
    return error
