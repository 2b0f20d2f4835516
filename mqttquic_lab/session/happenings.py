"""What happened to a session where nobody was waiting for it: errors, and changes of its connection."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from mqttquic_lab.session.results import ErrorRecord, EventRecord

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.session.results import EventName, SessionStats

MAX_ERRORS = 100
"""Error records kept; older ones are dropped (``stats.errors`` counts all)."""

MAX_EVENTS = 100
"""Event records kept; older ones are dropped."""


class Happenings:
    """The newest errors and events of one session. Written on its loop only, read from anywhere.

    Attributes
    ----------
    errors : tuple of ErrorRecord
        Oldest first. Replaced, never changed: other threads look at it.
    events : tuple of EventRecord
        The same.
    """

    def __init__(self, stats: SessionStats) -> None:
        self.errors: tuple[ErrorRecord, ...] = ()
        self.events: tuple[EventRecord, ...] = ()
        self._stats = stats

    def record_error(self, where: str, message: str) -> None:
        """Add an error, and count it.

        Parameters
        ----------
        where : str
            Part of the session, as in :class:`ErrorRecord`.
        message : str
            One sentence.
        """
        self.errors = (*self.errors[-MAX_ERRORS + 1 :], ErrorRecord.now(where, message))
        self._stats.errors += 1

    def record(self, where: str, error: LabError) -> None:
        """Add an error that is there as one."""
        self.record_error(where, str(error))

    def note(self, what: EventName, transport: str, detail: str) -> None:
        """Add an event.

        Parameters
        ----------
        what : str
            Its name, as in :class:`EventRecord`.
        transport : str
            What carries the session: ``"quic"``, ``"tls"`` or ``"tcp"``.
        detail : str
            One sentence, or where to.
        """
        self.events = (*self.events[-MAX_EVENTS + 1 :], EventRecord(time(), what, transport, detail))
