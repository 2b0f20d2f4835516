"""The dashboard of one session: how it came about, how it is, and the traffic of all its feeds."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import reason_text
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.views import facts
from mqttquic_lab.views.card import handshake_html
from mqttquic_lab.views.html import Chip, shorten
from mqttquic_lab.views.quantities import counted, milliseconds, plural
from mqttquic_lab.widgets.freeze import snapshot_of
from mqttquic_lab.widgets.live import publish_hint
from mqttquic_lab.widgets.view import ErrorItem, View

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.views.live import Snapshot

EVENTS_KEPT = 20
PUBLISH_QUEUE = 16
QUEUED = "queued, not sent yet"
EVENTS: dict[str, tuple[str, str]] = {
    "connected": ("connected over {transport}", "ok"),
    "fallback": ("{transport} instead of QUIC: {detail}", "warn"),
    "resumed": ("connected again over {transport}: {detail}", "ok"),
    "renewed": ("connected again over {transport}: {detail}", "warn"),
    "mapping": ("{detail}", "warn"),
    "flow": ("{detail}", "muted"),
    "moved": ("same connection, another address: {detail}", "ok"),
    "retrying": ("connecting anew, {detail}", "warn"),
    "lost": ("closed: {detail}", "bad"),
    "closed": ("closed", "muted"),
}
"""What happened -> how it is said, and its colour."""

TRANSPORTS = {"quic": "QUIC", "tls": "TLS", "tcp": "plain TCP"}

COUNTED = {
    "unrouted": "messages for no feed",
    "datagrams_sent": "datagrams sent",
    "datagrams_received": "datagrams received",
    "datagrams_lost": "datagrams lost",
    "datagrams_dropped": "datagrams dropped",
    "datagrams_refused": "datagrams refused",
    "queued_dropped": "queued messages dropped",
}
"""Counter of the session -> its words in the status line, where it is not 0."""

LOOK_NS = 1_000_000_000
"""Least time between two looks at the session's own state, which may have to ask its loop."""


class Dashboard(View):
    """A session at a glance: state, transport, handshake, all feeds, connection changes, errors, a box to publish from.

    What :meth:`mqttquic_lab.handles.Session.dashboard` returns. It does not keep the session alive.

    Parameters
    ----------
    session : Session
    feed : Feed, optional
        Show the messages of this feed only; else those of all feeds the session has or gets.
    rows, hz, fallback, start
        As for :class:`mqttquic_lab.widgets.LiveView`.

    Raises
    ------
    UsageError
        `rows` or `hz` out of range.
    """

    kind = "dashboard"
    _watched = "session"

    def __init__(
        self,
        session: Any,
        *,
        feed: Any = None,
        rows: int = 500,
        hz: float = 10.0,
        fallback: bool = False,
        start: bool = True,
    ) -> None:
        self._only = weakref.ref(feed.log) if feed is not None else None
        self._url = str(session.url)
        self._client_id = str(session.client_id or "")
        self._report = HandshakeReport(url=self._url)
        self._state = ""
        self._since_ns = self._opened_ns = 0
        self._until_ns = 0
        self._filters: tuple[str, ...] = ()
        self._queued = 0
        self._counted: dict[str, int] = {}
        self._streams: Chip | None = None
        self._trying = ""
        self._promised: tuple[dict[str, Any], int] | None = None  # the newest order whose message is queued
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._card_key: tuple[Any, ...] = ()
        self._looked_ns = 0
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=PUBLISH_QUEUE)
        self._worker: threading.Thread | None = None
        super().__init__(session, rows=rows, hz=hz, fallback=fallback, start=start)

    def refresh(self, now_ns: int | None = None) -> bool:
        """Read what is new; see :meth:`View.refresh`."""
        now = time.time_ns() if now_ns is None else now_ns
        if not self._closed and not 0 <= now - self._looked_ns < LOOK_NS:
            self._looked_ns = now
            self._look(now)  # without the lock: the session's loop may be the thread that waits for it
        return super().refresh(now_ns)

    def _look(self, now: int) -> None:
        """Take the session's state, report and counters."""
        session = self._owner()
        if session is None:
            return
        handshake = session.handshake
        report: HandshakeReport = getattr(handshake, "report", handshake)
        state = str(session.state)
        queued = int(getattr(session, "queued", 0))
        stats = session.stats  # after the queue: what left it without being sent is counted here
        filters = tuple(text for feed in session.feeds for text in feed.filters)
        # A session of another make may have neither.
        connected_at = getattr(session, "connected_at", None)
        records = getattr(session, "events", None)
        streams = _streams_chip(session)
        with self._lock:
            self._report, self._filters = report, filters
            self._client_id = str(session.client_id or report.client_id or "")
            self._queued, self._streams = queued, streams
            self._counted = {words: getattr(stats, name, 0) for name, words in COUNTED.items()}
            self._counted["messages queued"] = queued
            if state != self._state:
                self._changed(state, now)
            if state == "connected" and connected_at is not None:
                # It may have connected anew between two looks.
                self._since_ns, self._opened_ns = round(connected_at.timestamp() * 1e9), 0
            if records is not None and len(records):
                self._events = deque(_event_items(records[-EVENTS_KEPT:]), maxlen=EVENTS_KEPT)
                self._take_history(records, connected_at)
            self._tell_of_queued(getattr(stats, "queued_dropped", 0))

    def _take_history(self, records: Sequence[Any], connected_at: dt.datetime | None) -> None:
        """Take from the session's events what a view that was opened later, or looks once a second, cannot know."""
        newest = records[-1]
        # Told only when the reason changes: the number of the attempt is not that of the present one.
        reason = newest.detail.partition(": ")[2] if newest.what == "retrying" else ""
        self._trying = reason if self._state == "reconnecting" else ""
        ended = next((record for record in reversed(records) if record.what in {"lost", "closed"}), None)
        if self._state in {"reconnecting", "closed"} and ended is not None:
            self._until_ns = round(ended.time * 1e9)
            if connected_at is not None:
                self._since_ns, self._opened_ns = round(connected_at.timestamp() * 1e9), 0

    def _changed(self, state: str, now: int) -> None:
        report = self._report
        text, tone = state, facts.STATES.get(state, (state, "muted"))[1]
        if state == "connected":
            # It may have connected before this view was opened: what is known is when the view first saw it.
            self._since_ns, self._until_ns = now, 0
            self._opened_ns = 0 if self._state else now
            carrier = facts.transport(report).text
            text = f"connected over {carrier}" if self._state else f"connected over {carrier} when this view opened"
        elif self._state == "connected":
            self._until_ns = now
            if report.error:
                text, tone = f"{state}: {report.error}", "bad"
        self._events.appendleft({"t": now / 1e6, "text": shorten(text, 300), "tone": tone})
        self._state = state

    def _logs(self) -> Sequence[MessageLog]:
        if self._only is not None:
            log = self._only()
            return [log] if log is not None else []
        session = self._owner()
        return [feed.log for feed in session.feeds] if session is not None else []

    def _session_errors(self) -> list[ErrorItem]:
        session = self._owner()
        return [ErrorItem(e.time, e.where, e.message) for e in session.errors] if session is not None else []

    def _chips(self) -> list[Chip]:
        report = self._report
        found = [facts.transport(report)]
        if report.verification in facts.VERIFICATION:
            word, kind = facts.VERIFICATION[report.verification]
            found.append(Chip(word, kind, report.verification_detail))
        if report.mqtt_version:
            found.append(Chip(f"MQTT {report.mqtt_version}"))
        if self._streams is not None:
            found.append(self._streams)
        if self._client_id:
            found.append(Chip(f"client {shorten(self._client_id, 40)}", "", shorten(self._client_id)))
        return found

    def _notices(self) -> list[tuple[str, str]]:
        """Return what must not be missed: the worst first."""
        found = []
        if self._state not in {"connected", "connecting", ""}:
            why = f": {_sentence(self._report.error)}" if self._report.error else ""
            since = ""
            if self._until_ns:
                since = f" since {facts.moment(self._until_ns):%H:%M:%S} UTC"
            if self._state == "reconnecting":
                found.append((f"Disconnected{since}{why or '.'} {self._attempts()}", "warn"))
            else:
                found.append(self._at_rest(since, why))
        found += [(item.text, item.kind) for item in facts.notices(self._report) if item.text != self._report.error]
        return found

    def _attempts(self) -> str:
        """Return what is being tried, and what becomes of messages meanwhile."""
        said = "Connecting anew."
        if self._trying and self._trying != self._report.error:
            said = f"Connecting anew; so far, {_sentence(self._trying)}"
        waiting = f" {plural(self._queued, 'message')} queued until then." if self._queued else ""
        return f"{said}{waiting}"

    def _at_rest(self, since: str, why: str) -> tuple[str, str]:
        if why:
            return f"Disconnected{since}{why} Nothing is being tried: session.reconnect() goes on with it.", "bad"
        return f"The session was closed{since}. session.reconnect() goes on with it.", "warn"

    def _meta(self, now_ns: int) -> dict[str, Any]:
        report = self._report
        word, tone = facts.STATES.get(self._state, (self._state, "muted"))
        if self._state == "closed" and report.error:
            word, tone = "disconnected", "bad"
        notices = self._notices()
        subscribed = f" on {', '.join(self._filters)}" if self._filters else ""
        meta: dict[str, Any] = {
            "label": f"Dashboard of {self._url}",
            "dashboard": True,
            "title": self._url,
            "state": {"word": word, "tone": tone},
            "chips": [{"text": c.text, "tone": c.kind, "title": c.title} for c in self._chips()],
            "handshake": facts.headline(report) + "".join(f" · {part}" for part in self._agreed()),
            "waiting": f"Waiting for the first message{subscribed}. Publish one:"
            if self._filters
            else "No subscription yet. Make one:",
            "hint": publish_hint(self._filters) if self._filters else 'feed = session.subscribe("lab/#")',
            "events": list(self._events),
            "errors": self._error_items(),
            "can_publish": self._state in {"connected", "reconnecting"},
        }
        if self._since_ns:
            meta["since"] = self._since_ns / 1e6
            meta["lasting"] = "connected ≥" if self._opened_ns else "connected"
        if self._until_ns:
            meta["until"] = self._until_ns / 1e6
            if self._since_ns:
                meta["lasting"] = f"was {meta['lasting']}"
        if notices:
            meta["banner"] = {"text": " ".join(text for text, _ in notices), "tone": notices[0][1]}
        return meta

    def _notes(self) -> list[str]:
        return [*(counted(number, words) for words, number in self._counted.items() if number), *super()._notes()]

    def _agreed(self) -> list[str]:
        report = self._report
        begun = facts.beginning(report)
        parts = [
            report.tls_version,
            report.cipher_suite,
            report.key_exchange_group,
            f"ALPN {report.alpn}" if report.alpn else None,
            begun.text if begun else None,
        ]
        return [part for part in parts if part]

    def _update_extras(self) -> None:
        report = self._report
        key = (report.state, report.error, tuple(report.timings), len(report.tickets), report.verification)
        if key != self._card_key:
            self._card_key = key
            self._set("card", handshake_html(report))

    def _snapshot(self, now_ns: int) -> Snapshot:
        errors = sorted([*self._session_errors(), *self.errors])
        notices = self._notices() if self._state != "connected" else []
        return snapshot_of(
            self._collector,
            now_ns,
            title=f"Dashboard of {self._url}",
            state=self._state,
            reason=notices[0][0] if notices else "",
            chips=tuple(self._chips()),
            errors=tuple(tuple(item) for item in errors[-EVENTS_KEPT:]),
            errors_total=self._errors(),
            handshake=self._report,
            hint=publish_hint(self._filters),
            counters={words: number for words, number in self._counted.items() if number},
        )

    # Publishing

    def request(self, content: dict[str, Any]) -> None:
        """Put down what the browser asks for; see :meth:`View.request`."""
        if content.get("kind") != "publish":
            super().request(content)
            return
        try:
            self._orders.put_nowait(content)
        except queue.Full:
            self._reply(content, ok=False, text=f"{PUBLISH_QUEUE} messages are waiting already: not sent")
            return
        with self._requests_lock:
            if self._worker is None and not self._closed:
                self._worker = threading.Thread(target=self._publish_all, name="mqttquic-lab publish", daemon=True)
                self._worker.start()

    def _on_end(self) -> None:
        with contextlib.suppress(queue.Full):  # then the thread finds out by itself when it has answered them all
            self._orders.put_nowait(None)

    def _publish_all(self) -> None:
        while not (self._closed and self._orders.empty()) and (order := self._orders.get()) is not None:
            session = self._owner()
            if session is None or self._closed:
                self._reply(order, ok=False, text="the session is gone")
                continue
            try:
                dropped = getattr(session.stats, "queued_dropped", 0)
                text = self._publish(session, order)
            except Exception as error:  # noqa: BLE001 - whatever it is, the person who pressed the button is told
                self._reply(order, ok=False, text=f"not published: {shorten(error, 300)}")
                self._record("publish", f"{type(error).__name__}: {error}")
            else:
                self._reply(order, ok=True, text=text)
                with self._lock:
                    self._promised = (order, dropped) if text.startswith(QUEUED) else None
            del session  # not kept alive while waiting for the next one

    @staticmethod
    def _publish(session: Any, order: dict[str, Any]) -> str:
        topic, qos = str(order.get("topic", "")), int(order.get("qos", 0))
        result = session.publish(topic, str(order.get("payload", "")), qos=qos, retain=bool(order.get("retain")))
        shown = shorten(topic, 60)
        if getattr(result, "queued", False):
            return f"{QUEUED}: goes to {shown}, QoS {qos}, once the session is connected again"
        if qos == 0:
            return f"sent to {shown}, QoS 0: no answer is expected"
        code = int(getattr(result, "reason_code", 0))
        trip = getattr(result, "round_trip", None)
        took = f" after {milliseconds(trip)}" if trip is not None else ""
        return f"published to {shown}, QoS {qos}: 0x{code:02x} {reason_text(code)}{took}"

    def _tell_of_queued(self, dropped: int) -> None:
        """Say what became of the message last published from here, if it had to wait for a connection."""
        if self._promised is None or self._queued:
            return
        order, dropped_before = self._promised
        shown = shorten(str(order.get("topic", "")), 60)
        if self._state == "connected":
            self._promised = None
            if dropped > dropped_before:
                self._reply(order, ok=False, text="connected again, but not all queued messages were sent: see errors")
            else:
                self._reply(order, ok=True, text=f"connected again, and the message to {shown} was sent")
        elif self._state == "closed":
            self._promised = None
            self._reply(order, ok=False, text=f"the session was closed: the message to {shown} was not sent")

    def _reply(self, order: dict[str, Any], *, ok: bool, text: str) -> None:
        self._replies.append(({"kind": "published", "n": order.get("n"), "ok": ok, "text": text}, []))


def _event_items(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Return event records, oldest first, as the view lists them: newest first."""
    found, before = [], ""
    for record in records:
        text, tone = EVENTS.get(record.what, ("{what}: {detail}", "muted"))
        transport = TRANSPORTS.get(record.transport, record.transport)
        said = text.format(what=record.what, transport=transport, detail=record.detail)
        if record.what == "retrying" and before and record.detail.endswith(f": {before}"):
            said = "connecting anew"  # the reason stands in the line below
        before = record.detail
        found.append({"t": record.time * 1e3, "text": shorten(said, 300), "tone": tone})
    return found[::-1]


def _streams_chip(session: Any) -> Chip | None:
    """Return how a session uses QUIC's streams, if otherwise than by one, and how many are open."""
    mapping = str(getattr(session, "mapping", "single"))
    if mapping == "single":
        return None
    flows = getattr(session, "flows", ())
    ids = [str(stream.id) for stream in session.streams if stream.state == "open"]
    title = f"open QUIC streams {', '.join(ids)}" if ids else "no stream is open"
    if not flows:
        return Chip(f"{mapping} · {plural(len(ids), 'stream')}", "", shorten(title, 200))
    kept = sum(flow.state == "kept" for flow in flows)
    words = plural(len(flows), "flow")
    if kept == len(flows):
        words += " kept"
    elif len(flows) != len(ids):
        words += f" · {plural(len(ids), 'stream')}" + (f" · {kept} kept" if kept else "")
    return Chip(words, "", shorten(f"{title}; flows {', '.join(f'{flow.id} {flow.state}' for flow in flows)}", 300))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
