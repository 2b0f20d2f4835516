"""What :class:`LiveView` and :class:`Dashboard` share: one pump thread that reads logs and touches one widget.

The thread is the only one that changes the widget after it was made, because traits are not thread-safe. What the
browser asks for is put down by the comm's callback, which may run on any thread, and done at the next update.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from mqttquic_lab.errors import UsageError
from mqttquic_lab.views.html import shorten
from mqttquic_lab.views.quantities import time_of_day
from mqttquic_lab.widgets.collector import Collector, describe
from mqttquic_lab.widgets.freeze import FrozenView, file_name
from mqttquic_lab.widgets.ticks import tick

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.views.live import Snapshot

logger = logging.getLogger(__name__)

MAX_HZ = 10.0
"""The Jupyter server drops messages above a rate; and nobody sees more."""

FALLBACK_HZ = 5.0
"""Updates per second of the view without anywidget, which sends all of it each time."""

MAX_ROWS = 5000
SNAPSHOT_ROWS = 50
ERRORS_KEPT = 20
ERROR_SHOWN = 300
PAYLOAD_LIMIT = 65_536
"""Bytes of one payload that the browser gets on request."""

SLOW_NS = 1_000_000_000
"""Least time between two changes of the header or the snapshot."""

TOPICS_NS = 500_000_000
"""Least time between two updates of the topic tree."""

CLOSE_TIMEOUT = 2.0


class ErrorItem(NamedTuple):
    """One line in a list of errors."""

    time: float
    """Seconds since the epoch."""
    where: str
    message: str


class View:
    """A live view of one or more feeds: draws itself in a notebook, as text elsewhere.

    Holds what it shows weakly: when that is garbage-collected the view stops, and keeps showing what it had.

    Parameters
    ----------
    owner : object
        What ends the view when it is gone: a feed's log, or a session.
    rows : int
        Rows that the browser keeps, 10 to 5000.
    hz : float
        Updates per second, at most 10.
    fallback : bool
        Use a plain HTML widget, five updates a second, without interaction. Also chosen when anywidget cannot be
        imported.
    start : bool
        Start the thread that keeps the view up to date. Without it, call :meth:`refresh`.

    Attributes
    ----------
    widget : ipywidgets.DOMWidget
        What the notebook shows; may be put into boxes with other widgets.
    frozen : FrozenView or None
        What the browser's freeze button or :meth:`freeze` made last.
    errors : deque of ErrorItem
        What went wrong in the view itself, the newest 20.

    Raises
    ------
    UsageError
        `rows` or `hz` out of range.
    """

    kind = "live view"

    def __init__(self, owner: object, *, rows: int, hz: float, fallback: bool, start: bool) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or not 10 <= rows <= MAX_ROWS:
            raise UsageError(f"rows={rows!r}: the table keeps 10 to {MAX_ROWS} rows")
        if not 0 < hz <= MAX_HZ:
            raise UsageError(f"hz={hz!r}: at most {MAX_HZ:g} updates per second, and more than none")
        self.errors: deque[ErrorItem] = deque(maxlen=ERRORS_KEPT)
        self.frozen: FrozenView | None = None
        self._rows = rows
        self._lock = threading.RLock()  # collector and widget: the pump, freeze(), text(), close()
        self._stop = threading.Event()
        stop = self._stop
        self._owner: weakref.ref[Any] = weakref.ref(owner, lambda _: stop.set())
        self._collector = Collector(self._logs, rows)
        self._requests: dict[str, dict[str, Any]] = {}
        self._requests_lock = threading.Lock()
        self._replies: deque[tuple[dict[str, Any], list[bytes]]] = deque(maxlen=16)
        self._error_count = 0
        self._note = ""
        self._ending = ""
        self._closed = False
        self._sent: dict[str, int] = {}  # what was last sent when, nanoseconds
        self._topics_sent = 0
        self._last: Snapshot | None = None
        self._widget_kind, self.widget = _make_widget(rows, fallback)
        self._period_ns = int(1e9 / (min(hz, FALLBACK_HZ) if self.is_fallback else hz))
        if not self.is_fallback:
            self.widget.on_msg(_listener(self))
        self._thread: threading.Thread | None = None
        self._guarded_refresh()
        if start and not self._closed:
            self._thread = threading.Thread(target=self._run, name=f"mqttquic-lab {self.kind}", daemon=True)
            self._thread.start()

    # What a subclass says

    def _logs(self) -> Sequence[MessageLog]:
        """Return the logs to read now."""
        raise NotImplementedError

    def _meta(self, now_ns: int) -> dict[str, Any]:
        """Return the header's contents; see live.js, drawMeta."""
        raise NotImplementedError

    def _snapshot(self, now_ns: int) -> Snapshot:
        """Return what a frozen or printed view shows."""
        raise NotImplementedError

    def _session_errors(self) -> list[ErrorItem]:
        """Return errors beyond the view's own."""
        return []

    def _on_end(self) -> None:
        """Let go of whatever else waits; called once."""

    def _update_extras(self) -> None:
        """Touch whatever else the widget has; called at most once a second."""

    # Public

    @property
    def is_fallback(self) -> bool:
        """Whether this is the plain HTML view."""
        return self._widget_kind == "html"

    @property
    def closed(self) -> bool:
        """Whether the view has stopped following."""
        return self._closed

    def freeze(self) -> FrozenView:
        """Return what the view shows now as static HTML and SVG, which stays in a saved or exported notebook."""
        with self._lock:
            self.frozen = FrozenView(self._present())
            return self.frozen

    def text(self) -> str:
        """Return what the view shows now as text."""
        with self._lock:
            return FrozenView(self._present()).text()

    def refresh(self, now_ns: int | None = None) -> bool:
        """Read what is new and send it to the browser, unless the last update is less than one period ago.

        The view's thread calls this by itself.

        Parameters
        ----------
        now_ns : int, optional
            Nanoseconds since the epoch; the clock's by default.

        Returns
        -------
        bool
            Whether it was time for an update.
        """
        now = time.time_ns() if now_ns is None else now_ns
        with self._lock:
            if self._closed or 0 <= now - self._sent.get("update", -self._period_ns) < self._period_ns:
                return False
            self._sent["update"] = now
            if self._owner() is None:
                self._end(now, f"The {self._watched} is gone: nothing new can come. This was seen last.")
            else:
                self._update(now)
            return True

    def close(self, *, remove: bool = False) -> None:
        """Stop following. What the view shows stays in the page, and :meth:`freeze` goes on working.

        Parameters
        ----------
        remove : bool
            Take it out of the page, too.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)
        with self._lock:
            if not self._closed:
                self._end(time.time_ns(), "View closed. This was seen last.", tone="idle")
            if remove:
                self.widget.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        totals = self._collector.totals()
        state = "closed" if self._closed else "following"
        return f"<{type(self).__name__}, {totals.received:,} received, {totals.dropped:,} dropped, {state}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        bundle = self.widget._repr_mimebundle_(include=include, exclude=exclude) if self.widget.comm else None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/plain": self.text()}, metadata

    # The thread

    _watched = "feed"

    def _run(self) -> None:
        while not self._stop.wait(self._seconds_left()) and not self._closed:
            self._guarded_refresh()
        self._sent.pop("update", None)
        self._guarded_refresh()

    def _seconds_left(self) -> float:
        left = self._sent.get("update", 0) + self._period_ns - time.time_ns()
        return min(max(left, 0), self._period_ns) / 1e9

    def _guarded_refresh(self) -> None:
        try:
            self.refresh()
        except Exception as error:  # shown in the view and kept: there is nobody else to tell on this thread
            logger.exception("a live view could not be updated")
            self._record("view", f"{type(error).__name__}: {error}")

    def _record(self, where: str, message: str) -> None:
        with self._lock:
            item = ErrorItem(time.time(), where, shorten(message, ERROR_SHOWN))
            if not self.errors or self.errors[-1][1:] != item[1:]:  # the same again and again is one line
                self.errors.append(item)
            self._error_count += 1

    # All below with the lock held

    def _update(self, now: int, *, final: bool = False) -> None:
        new = self._collector.read(now)
        requests = self._take_requests()
        hello = "hello" in requests
        if hello or final or self._due("meta", now, SLOW_NS):
            self._sent["meta"] = now
            self._set("meta", {**self._meta(now), **self._common_meta()})
            self._update_extras()
        if self.is_fallback:
            if new or final or self._due("drawn", now, SLOW_NS):
                self._sent["drawn"] = now
                self.widget.value = FrozenView(self._present(now)).html
            return
        self._send_tick(now, new, hello=hello, final=final)
        if final or self._due("snapshot", now, SLOW_NS):
            self._sent["snapshot"] = now
            rows = self._collector.newest(SNAPSHOT_ROWS)
            content, buffers = tick(
                self._collector,
                rows,
                now,
                errors=self._errors(),
                newest_error=self._newest_error(),
                topics_from=0 if self._collector.topics.names else None,
            )
            self._set("snapshot", {"content": content, "buffers": buffers})
        self._answer(requests)

    def _send_tick(self, now: int, new: int, *, hello: bool, final: bool) -> None:
        """Send rows and numbers if there is something to say, and once a second in any case: it lives."""
        if not (new or hello or final or self._due("tick", now, SLOW_NS)):
            return
        self._sent["tick"] = now
        with_topics = hello or final or self._due("topics", now, TOPICS_NS)
        rows = self._collector.take()
        if hello:
            rows = self._collector.newest(self._rows)
            self._topics_sent = 0
        if with_topics:
            self._sent["topics"] = now
        start = self._topics_sent if with_topics else None
        content, buffers = tick(
            self._collector,
            rows,
            now,
            errors=self._errors(),
            newest_error=self._newest_error(),
            topics_from=start,
            reset=hello,
        )
        if with_topics:
            self._topics_sent = len(self._collector.topics.names)
        self.widget.send(content, buffers)

    def _answer(self, requests: dict[str, dict[str, Any]]) -> None:
        if "message" in requests:
            self._answer_message(requests["message"])
        if "freeze" in requests:
            frozen = self.freeze()
            name = file_name(frozen.snapshot, self.kind)
            self._note = f"frozen as {name}, and as view.frozen in Python"
            self._sent.pop("meta", None)
            self.widget.send({"kind": "frozen", "name": name}, [frozen.page().encode()])
        while self._replies:
            content, buffers = self._replies.popleft()
            self.widget.send(content, buffers)

    def _answer_message(self, request: dict[str, Any]) -> None:
        row_id = request.get("id")
        if isinstance(row_id, bool) or not isinstance(row_id, (int, float)) or not 0 <= row_id < 2**53:
            return
        message = self._collector.message(int(row_id))
        content: dict[str, Any] = {"kind": "message", "id": row_id}
        buffers: list[bytes] = []
        if message is None:
            content["facts"] = [("note", "no longer in the log: older messages were dropped")]
        else:
            content["facts"], content["properties"] = describe(message)
            if request.get("payload"):
                buffers = [bytes(message.payload[:PAYLOAD_LIMIT])]
        self.widget.send(content, buffers)

    def _end(self, now: int, why: str, *, tone: str = "warn") -> None:
        """Send the last state, once."""
        self._ending, self._ending_tone = f"{why} ({time_of_day(now)[:8]} UTC)", tone
        try:
            self._update(now, final=True)
            self._last = self._snapshot(now)
        except Exception as error:  # closing must not fail; what went wrong is kept
            logger.exception("a live view could not send its last state")
            self._record("view", f"{type(error).__name__}: {error}")
        finally:
            self._closed = True
            self._on_end()

    _ending_tone = "idle"

    def _present(self, now: int | None = None) -> Snapshot:
        if self._closed and self._last is not None:
            return self._last
        now = time.time_ns() if now is None else now
        self._collector.read(now)
        return self._snapshot(now)

    def _common_meta(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"closed": bool(self._ending)}
        if notes := self._notes():
            extra["notes"] = [{"text": text} for text in notes]
        if self._ending:
            extra["banner"] = {"text": self._ending, "tone": self._ending_tone}
            extra["state"] = {"word": "stopped", "tone": "muted"}
            extra["can_publish"] = False
        elif self.errors and self.errors[-1].where == "view":
            extra["banner"] = {"text": f"The view had a problem: {self.errors[-1].message}", "tone": "bad"}
        return extra

    def _notes(self) -> list[str]:
        """Return what stands at the end of the status line."""
        return [self._note] if self._note else []

    def _newest_error(self) -> str:
        every = [*self._session_errors(), *self.errors]
        newest = max(every, key=lambda item: item.time, default=None)
        return f"{newest.where}: {newest.message}" if newest else ""

    def _errors(self) -> int:
        return self._error_count + len(self._session_errors())

    def _error_items(self) -> list[dict[str, Any]]:
        """Return the newest errors first, as live.js lists them."""
        every = sorted([*self._session_errors(), *self.errors], key=lambda item: -item.time)[:ERRORS_KEPT]
        return [{"t": item.time * 1e3, "text": f"{item.where}: {item.message}", "tone": "bad"} for item in every]

    def _due(self, what: str, now: int, period: int) -> bool:
        return not 0 <= now - self._sent.get(what, -period) < period

    def _set(self, trait: str, value: Any) -> None:
        if not self.is_fallback and getattr(self.widget, trait) != value:
            setattr(self.widget, trait, value)

    # Requests of the browser

    def request(self, content: dict[str, Any]) -> None:
        """Put down what the browser asks for; of each kind the newest counts. The comm calls this, on any thread."""
        kind = content.get("kind")
        if kind in {"hello", "message", "freeze"}:
            with self._requests_lock:
                self._requests[str(kind)] = content
            if self._closed:
                with self._lock:  # no pump any more, so nobody to collide with
                    if kind != "message":
                        self._answer_closed(str(kind))

    def _answer_closed(self, kind: str) -> None:
        requests = self._take_requests()
        if kind == "freeze":
            self._answer(requests)

    def _take_requests(self) -> dict[str, dict[str, Any]]:
        with self._requests_lock:
            requests, self._requests = self._requests, {}
        return requests


def _listener(view: View) -> Any:
    """Return a callback for the comm that does not keep the view alive."""
    reference = weakref.ref(view)

    def heard(_widget: Any, content: Any, _buffers: Any) -> None:
        alive = reference()
        if alive is not None and isinstance(content, dict):
            alive.request(content)

    return heard


def _make_widget(rows: int, fallback: bool) -> tuple[str, Any]:
    if not fallback:
        try:
            from mqttquic_lab.widgets.carrier import LiveWidget
        except ImportError:
            logger.warning("anywidget cannot be imported: the live view falls back to plain HTML")
        else:
            return "anywidget", LiveWidget(rows=rows)
    import ipywidgets

    return "html", ipywidgets.HTML()
