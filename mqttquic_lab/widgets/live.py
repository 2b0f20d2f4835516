"""The live view of one feed."""

from __future__ import annotations

import json
import re
import weakref
from typing import TYPE_CHECKING, Any

from mqttquic_lab.views import facts
from mqttquic_lab.widgets.freeze import snapshot_of
from mqttquic_lab.widgets.view import ErrorItem, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.views.live import Snapshot

TRANSPORTS = {"quic": "QUIC", "tls": "TLS over TCP", "tcp": "plain TCP"}


class LiveView(View):
    """Messages of one feed as they arrive: table, topics, rate, latency, and what is wrong.

    What :meth:`mqttquic_lab.handles.Feed.live` returns. It shows what the feed collects for as long as the feed's
    session lives, and keeps neither of them alive. Pausing, filtering and selecting happen in the browser and leave the
    feed alone.

    Parameters
    ----------
    feed : Feed
    rows : int
        Rows that the browser keeps, 10 to 5000. If more arrive than can be read, the table shows 1 in N, and says so;
        counts, rate and latency are always those of all messages.
    hz : float
        Updates per second, at most 10.
    fallback : bool
        A plain HTML view, five updates a second, without interaction. Also chosen where anywidget is missing.
    start : bool
        Start the thread that keeps the view up to date; else call :meth:`refresh`.

    Raises
    ------
    UsageError
        `rows` or `hz` out of range.
    """

    kind = "live view"

    def __init__(
        self, feed: Any, *, rows: int = 500, hz: float = 10.0, fallback: bool = False, start: bool = True
    ) -> None:
        self._feed = weakref.ref(feed)
        self._log = weakref.ref(feed.log)
        session = getattr(feed, "session", None)
        self._session = weakref.ref(session) if session is not None else lambda: None
        self._filters = tuple(feed.filters)
        self._url = str(getattr(session, "url", "") or "")
        self._transport = TRANSPORTS.get(str(getattr(session, "transport", "")), "")
        self._seen_state = "connected"
        super().__init__(feed.log, rows=rows, hz=hz, fallback=fallback, start=start)

    def _logs(self) -> Sequence[MessageLog]:
        log = self._log()
        return [log] if log is not None else []

    def _session_errors(self) -> list[ErrorItem]:
        session = self._session()
        return [ErrorItem(e.time, e.where, e.message) for e in session.errors] if session is not None else []

    @property
    def _title(self) -> str:
        return ", ".join(self._filters)

    def _state(self) -> tuple[str, str]:
        """Return the state in the session's words, and why if it is not connected."""
        feed, session = self._feed(), self._session()
        state = str(getattr(session, "state", "connected")) if session is not None else self._seen_state
        if state == "connected" and feed is not None and not getattr(feed, "is_active", True):
            state = "ended"
        if state != "connected" and self._seen_state != state:
            self._reason = self._why(state)
        self._seen_state = state
        return state, self._reason if state != "connected" else ""

    _reason = ""

    def _why(self, state: str) -> str:
        if state == "ended":
            return "The feed was unsubscribed: no more messages come. What was received stays."
        if state == "connecting":
            return "Connecting."
        errors = self._session_errors()
        because = f" Last error: {errors[-1].message.removesuffix('.')}." if errors else ""
        if state == "reconnecting":
            return f"The connection was lost, and the session is connecting anew.{because}"
        return f"The session is {state}: no more messages come, and nothing is being tried.{because}"

    def _meta(self, now_ns: int) -> dict[str, Any]:
        state, reason = self._state()
        word, tone = facts.STATES.get(state, (state, "muted"))
        meta: dict[str, Any] = {
            "label": f"Live view of {self._title}",
            "title": self._title,
            "state": {"word": word if state != "connected" else "live", "tone": tone},
            "chips": [{"text": text} for text in (self._url, self._transport) if text],
            "waiting": f"Waiting for the first message on {self._title}. Publish one:",
            "hint": publish_hint(self._filters),
        }
        if reason:
            meta["banner"] = {"text": reason, "tone": "warn"}
        return meta

    def _snapshot(self, now_ns: int) -> Snapshot:
        state, reason = self._state()
        errors = sorted([*self._session_errors(), *self.errors])
        return snapshot_of(
            self._collector,
            now_ns,
            title=self._title,
            url=self._url,
            state="closed" if state == "ended" else state,
            reason=reason,
            errors=tuple(tuple(item) for item in errors[-20:]),
            errors_total=self._errors(),
            hint=publish_hint(self._filters),
        )


def publish_hint(filters: Sequence[str]) -> str:
    """Return code that publishes a message which the first of some filters matches."""
    if not filters:
        return 'session.publish("lab/hello", "hello", timestamp=True)'
    name = re.sub(r"^\$share/[^/]+/", "", filters[0])  # MQTT 5.0 section 4.8.2
    name = "/".join("1" if level == "+" else "hello" if level == "#" else level for level in name.split("/"))
    return f'session.publish({json.dumps(name, ensure_ascii=False)}, "hello", timestamp=True)'
