"""The error that everybody gets who waits for something when a session ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError


def gone(what: str, reason: LabError | None, otherwise: str = "the session was closed") -> DisconnectedError:
    """Return an error of the caller's own, chained to why the session ended.

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
