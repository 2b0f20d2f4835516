"""The dashboard of a pretended session: states, errors, many feeds, publishing."""

from __future__ import annotations

import datetime as dt
import gc
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.errors import PublishError
from mqttquic_lab.mqtt import FlowFlags
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.session.flow_spec import FlowInfo
from mqttquic_lab.session.results import ErrorRecord, EventRecord, PublishResult, SessionStats
from mqttquic_lab.session.streams import StreamInfo
from mqttquic_lab.widgets import Dashboard
from mqttquic_lab.widgets.dashboard import PUBLISH_QUEUE
from tests.ui.feeds import SECOND, FakeFeed, FakeSession
from tests.ui.test_view import LONG, later, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.widgets.view import View
    from tests.ui.comms import FakeComm

    CommOf = Callable[[View], FakeComm]


def report(**fields: Any) -> HandshakeReport:
    known: dict[str, Any] = {
        "url": "quic://broker.example:14567", "state": "connected", "quic_version": "QUIC v1", "tls_version": "TLS 1.3",
        "alpn": "mqtt", "cipher_suite": "TLS_AES_256_GCM_SHA384", "key_exchange_group": "X25519", "mqtt_version": "5.0",
        "verification": "verified", "timings": {"client_hello": 0.0, "connack": 0.104}, "round_trips": 2,
        "client_id": "lab-7f2c",
    }  # fmt: skip
    return HandshakeReport(**{**known, **fields})


def still(session: FakeSession, **options: Any) -> Dashboard:
    view = Dashboard(session, start=False, **options)
    vars(view)["kept"] = session
    return view


def words(view: Dashboard) -> list[str]:
    return [chip["text"] for chip in view.widget.meta["chips"]]


def test_the_header_says_what_matters() -> None:
    view = still(FakeSession(report=report()))
    meta = view.widget.meta
    assert meta["title"] == "quic://broker.example:14567"
    assert meta["state"] == {"word": "connected", "tone": "ok"}
    assert words(view) == ["QUIC v1", "verified", "MQTT 5.0", "client lab-7f2c"]
    assert meta["handshake"].startswith("104 ms · 2 round trips to CONNACK · TLS 1.3 · TLS_AES_256_GCM_SHA384")
    assert meta["waiting"] == "No subscription yet. Make one:"
    assert meta["hint"] == 'feed = session.subscribe("lab/#")'
    assert "banner" not in meta
    assert meta["can_publish"] is True
    assert meta["lasting"] == "connected ≥"  # since when is not known, only since when it was seen
    assert "TLS_AES_256_GCM_SHA384" in view.widget.card
    assert view.widget.card.startswith("<div")


@pytest.mark.parametrize(
    ("fields", "chip", "tone", "sentence"),
    [
        ({"verification": "off"}, "verification off", "bad", "Verification is off"),
        (
            {"transport": "tls", "fallback_reason": "UDP port 14567 does not answer"},
            "TLS over TCP", "warn", "QUIC was asked for",
        ),
        ({"transport": "tcp", "tls_version": None, "verification": "none"}, "plain TCP", "bad", "Nothing is encrypted"),
    ],
)  # fmt: skip
def test_what_must_not_be_missed_is_a_chip_and_a_sentence(
    fields: dict[str, Any], chip: str, tone: str, sentence: str
) -> None:
    view = still(FakeSession(report=report(**fields)))
    assert {"text": chip, "tone": tone} in [
        {"text": one["text"], "tone": one["tone"]} for one in view.widget.meta["chips"]
    ]
    assert sentence in view.widget.meta["banner"]["text"]
    assert view.widget.meta["banner"]["tone"] == tone
    assert sentence in view.text()


def test_a_lost_connection_says_why_since_when_and_what_is_tried() -> None:
    session = FakeSession(FakeFeed(), report=report())
    view = still(session)
    session.state = "closed"
    session.handshake = report(state="closed", error="no packet for 30 s")
    session.errors.append(ErrorRecord(time.time(), "transport", "no packet for 30 s"))
    view.refresh(later(2))
    meta = view.widget.meta
    assert meta["state"] == {"word": "disconnected", "tone": "bad"}
    for part in ("Disconnected since", "UTC", "no packet for 30 s", "Nothing is being tried"):
        assert part in meta["banner"]["text"]
    assert meta["can_publish"] is False
    assert [event["text"] for event in meta["events"]] == [
        "closed: no packet for 30 s", "connected over QUIC v1 when this view opened",
    ]  # fmt: skip
    assert meta["errors"][0]["text"] == "transport: no packet for 30 s"
    assert meta["until"] >= meta["since"]
    assert "no packet for 30 s" in view.freeze().html
    session.state, session.handshake = "connected", report()
    view.refresh(later(4))
    assert view.widget.meta["lasting"] == "connected"
    assert "until" not in view.widget.meta


def lost_session(**counters: int) -> Any:
    """Return a session that has lost its connection and tries to get another."""
    moment = dt.datetime(2026, 11, 22, 20, 0, tzinfo=dt.UTC)
    why = "the broker disconnected: Server shutting down (0x8b)"
    session: Any = FakeSession(FakeFeed(), report=report(state="closed", error=why))
    session.state, session.connected_at = "reconnecting", moment
    session.queued, session.stats = 2, SessionStats(**counters)
    session.events = [
        EventRecord(moment.timestamp(), "connected", "quic", "quic://broker.example:14567"),
        EventRecord(moment.timestamp() + 65, "lost", "quic", why),
        EventRecord(moment.timestamp() + 65, "retrying", "quic", f"attempt 1: {why}"),
    ]
    return session


def test_a_session_that_reconnects_says_why_since_when_and_what_waits() -> None:
    session = lost_session()
    view = still(session)
    meta = view.widget.meta
    assert meta["state"] == {"word": "reconnecting", "tone": "warn"}
    assert meta["banner"] == {
        "text": "Disconnected since 20:01:05 UTC: the broker disconnected: Server shutting down (0x8b). "
        "Connecting anew. 2 messages queued until then.",
        "tone": "warn",
    }
    assert (meta["lasting"], meta["until"] - meta["since"]) == ("was connected", 65_000)
    assert meta["can_publish"] is True
    assert {"text": "2 messages queued"} in meta["notes"]
    assert "2 messages queued" in view.text()
    told = [line for line in view.text().splitlines() if line.startswith("!")]
    assert len(told) == 1, "the reason stands there once"
    assert [event["text"] for event in meta["events"]][:2] == [
        "connecting anew", "closed: the broker disconnected: Server shutting down (0x8b)",
    ]  # fmt: skip
    session.events.append(EventRecord(time.time(), "retrying", "quic", "attempt 2: nothing listens there"))
    session.queued = 1
    view.refresh(later(2))
    meta = view.widget.meta
    assert "Connecting anew; so far, nothing listens there. 1 message queued" in meta["banner"]["text"]
    assert meta["events"][0] | {"t": 0} == {
        "t": 0, "text": "connecting anew, attempt 2: nothing listens there", "tone": "warn",
    }  # fmt: skip
    session.events.append(EventRecord(time.time(), "resumed", "quic", "the broker has kept the session"))
    session.state, session.handshake, session.queued = "connected", report(), 0
    view.refresh(later(4))
    meta = view.widget.meta
    assert meta["state"]["word"] == meta["lasting"] == "connected"
    assert "until" not in meta
    assert "banner" not in meta
    assert "notes" not in meta


@pytest.mark.parametrize(
    ("state", "counters", "ok", "words"),
    [
        ("connected", {}, True, "the message to plant/set was sent"),
        ("connected", {"queued_dropped": 1}, False, "not all queued messages were sent"),
        ("closed", {"queued_dropped": 1}, False, "the message to plant/set was not sent"),
    ],
)
def test_what_became_of_a_queued_message(
    state: str, counters: dict[str, int], ok: bool, words: str, comm_of: CommOf
) -> None:
    session = lost_session()
    session.on_publish = lambda: PublishResult(0, None, None, queued=True)
    view = still(session)
    comm = comm_of(view)
    comm.hear({"kind": "publish", "n": 1, "topic": "plant/set", "payload": "1", "qos": 0})
    until(lambda: view._promised is not None)
    view.refresh(later(2))
    assert [content["text"] for content, _ in comm.sent("published")] == [
        "queued, not sent yet: goes to plant/set, QoS 0, once the session is connected again"
    ]
    session.state, session.queued, session.stats = state, 0, SessionStats(**counters)
    view.refresh(later(4))
    view.refresh(later(6))
    told = [content for content, _ in comm.sent("published")]
    assert len(told) == 2
    assert (told[1]["n"], told[1]["ok"]) == (1, ok)
    assert words in told[1]["text"]
    view.close()


def stream(number: int, state: str = "open") -> StreamInfo:
    return StreamInfo(number, "topic", cast("Any", state), (), (), 0, 0, 0, 0, 0)


def flow(number: int, state: str = "open") -> FlowInfo:
    return FlowInfo(number, "client data", state, FlowFlags(), 300, False)


def test_the_header_counts_streams_and_flows() -> None:
    session: Any = FakeSession(report=report(alpn="MQTT-next"))
    session.mapping, session.streams = "per-topic", (stream(0), stream(4), stream(8, "closed"))
    view = still(session)
    assert "per-topic · 2 streams" in words(view)
    session.mapping, session.flows = "flows", (flow(0), flow(2))
    view.refresh(later(2))
    assert "2 flows" in words(view)
    session.flows = (flow(0), flow(2), flow(4, "kept"))
    view.refresh(later(4))
    (chip,) = [chip for chip in view.widget.meta["chips"] if "flows" in chip["text"]]
    assert chip["text"] == "3 flows · 2 streams · 1 kept"
    assert chip["title"] == "open QUIC streams 0, 4; flows 0 open, 2 open, 4 kept"
    session.flows, session.streams = (flow(0, "kept"), flow(2, "kept")), ()
    view.refresh(later(6))
    assert "2 flows kept" in words(view)
    assert "ALPN MQTT-next" in view.widget.meta["handshake"]


def test_datagrams_are_counted() -> None:
    session = FakeSession(report=report())
    session.stats = SessionStats(datagrams_sent=20, datagrams_lost=1)
    assert still(session).widget.meta["notes"] == [{"text": "20 datagrams sent"}, {"text": "1 datagram lost"}]


def test_a_session_that_knows_its_history_is_believed() -> None:
    session: Any = FakeSession(FakeFeed(), report=report())
    moment = dt.datetime(2026, 11, 22, 20, 0, tzinfo=dt.UTC)
    session.connected_at = moment
    session.events = [
        EventRecord(moment.timestamp() - 9, "fallback", "tls", "no answer <b>"),
        EventRecord(moment.timestamp() - 9, "connected", "tls", "mqtts://h:8883"),
        EventRecord(moment.timestamp() - 5, "lost", "tls", "cable"),
        EventRecord(moment.timestamp(), "resumed", "quic", "3 packets sent again"),
    ]
    view = still(session)
    meta = view.widget.meta
    assert (meta["since"], meta["lasting"]) == (moment.timestamp() * 1e3, "connected")
    assert [event["text"] for event in meta["events"]] == [
        "connected again over QUIC: 3 packets sent again",
        "closed: cable",
        "connected over TLS",
        "TLS instead of QUIC: no answer <b>",
    ]
    assert [event["tone"] for event in meta["events"]] == ["ok", "bad", "ok", "warn"]
    assert meta["events"][0]["t"] == moment.timestamp() * 1e3
    # Between two looks it was lost and came back: the state is the same, the moment is not.
    session.connected_at = moment + dt.timedelta(seconds=1)
    session.events += [EventRecord(moment.timestamp() + 1, "renewed", "tcp", "nothing kept")] * 30
    view.refresh(later(2))
    meta = view.widget.meta
    assert meta["since"] == (moment.timestamp() + 1) * 1e3
    assert len(meta["events"]) == 20
    assert meta["events"][0]["text"] == "connected again over plain TCP: nothing kept"


def test_a_session_closed_on_purpose_is_no_failure() -> None:
    session = FakeSession(report=report())
    view = still(session)
    session.state = "closed"
    view.refresh(later(2))
    assert view.widget.meta["state"]["word"] == "closed"
    assert view.widget.meta["banner"]["tone"] == "warn"
    assert "was closed" in view.widget.meta["banner"]["text"]


def test_all_feeds_are_one_view_even_if_their_handles_are_made_anew(comm_of: CommOf) -> None:
    class Anew(FakeSession):
        """As handles.Session: a feed's handle lives only as long as somebody keeps it."""

        @property
        def feeds(self) -> list[FakeFeed]:
            return [FakeFeed(*feed.filters, log=feed.log) for feed in self.__dict__["all_feeds"]]

        @feeds.setter
        def feeds(self, feeds: list[FakeFeed]) -> None:
            self.__dict__["all_feeds"] = feeds

    one, two = FakeFeed("a/#"), FakeFeed("b/#")
    session = Anew(one)
    view = still(session)
    for second in range(1, 5):
        one.put("a/1", b"")
        if second == 3:
            session.__dict__["all_feeds"].append(two)
            two.put("b/1", b"")
        gc.collect()
        view.refresh(later(second))
    assert view._collector.totals().received == 5
    assert sum(len(c["names"]) for c, _ in comm_of(view).sent("tick")) == 5
    assert dict(zip(view._collector.topics.names, view._collector.topics.counts.tolist(), strict=True)) == {
        "a/1": 4, "b/1": 1,
    }  # fmt: skip
    assert "on a/#, b/#" in view.widget.meta["waiting"]


def test_one_feed_only() -> None:
    one, two = FakeFeed("a/#"), FakeFeed("b/#")
    session = FakeSession(one, two)
    view = still(session, feed=two)
    one.put("a/1", b"")
    two.put("b/1", b"")
    view.refresh(later(1))
    assert view._collector.topics.names == ["b/1"]


def test_publishing_happens_on_a_thread_and_its_outcome_is_shown(comm_of: CommOf) -> None:
    session = FakeSession(report=report())
    where: list[str] = []

    def acknowledged() -> PublishResult:
        where.append(threading.current_thread().name)
        return PublishResult(0x10, 1, 0.0031)

    session.on_publish = acknowledged
    view = Dashboard(session)
    comm = comm_of(view)
    order = {"kind": "publish", "n": 1, "topic": "plant/1/set", "payload": "21.5", "qos": 1, "retain": True}
    comm.hear(order)
    until(lambda: comm.sent("published"))
    (answer, _) = comm.sent("published")[0]
    assert answer["ok"] is True
    assert answer["n"] == 1
    assert "0x10" in answer["text"]
    assert "3.10 ms" in answer["text"]
    assert session.published == [("plant/1/set", "21.5", 1, True)]
    assert where == ["mqttquic-lab publish"]
    comm.hear({**order, "n": 2, "qos": 0})
    until(lambda: len(comm.sent("published")) == 2)
    assert "no answer is expected" in comm.sent("published")[1][0]["text"]

    def refused() -> PublishResult:
        raise PublishError("not authorized", reason_code=0x87)

    session.on_publish = refused
    comm.hear({**order, "n": 3})
    until(lambda: len(comm.sent("published")) == 3)
    answer, _ = comm.sent("published")[2]
    assert answer == {"kind": "published", "n": 3, "ok": False, "text": "not published: not authorized"}
    until(lambda: any("not authorized" in error["text"] for error in view.widget.meta["errors"]))
    comm.hear({"kind": "publish", "n": 4, "qos": "many"})
    until(lambda: len(comm.sent("published")) == 4)
    assert comm.sent("published")[3][0]["ok"] is False
    worker = view._worker
    assert worker is not None
    view.close()
    worker.join(LONG)
    assert not worker.is_alive()


def test_a_publish_box_that_is_hammered_refuses(comm_of: CommOf) -> None:
    session = FakeSession(report=report())
    gate, entered = threading.Event(), threading.Event()

    def slow() -> PublishResult:
        entered.set()
        assert gate.wait(LONG)
        return PublishResult(0, None, None)

    session.on_publish = slow
    view = still(session)
    comm = comm_of(view)
    comm.hear({"kind": "publish", "n": 0, "topic": "t", "payload": "", "qos": 0})
    assert entered.wait(LONG)
    for n in range(1, PUBLISH_QUEUE + 3):
        comm.hear({"kind": "publish", "n": n, "topic": "t", "payload": "", "qos": 0})
    view.refresh(later(1))
    refused = [content for content, _ in comm.sent("published")]
    assert [content["n"] for content in refused] == [PUBLISH_QUEUE + 1, PUBLISH_QUEUE + 2]
    assert all("waiting already" in content["text"] for content in refused)
    gate.set()
    until(lambda: len(session.published) == PUBLISH_QUEUE + 1)
    view.close()


def test_the_dashboard_keeps_no_session_alive_and_ends_with_it() -> None:
    session = FakeSession(FakeFeed(), report=report())
    session.feeds[0].put("a", b"seen")
    view = Dashboard(session)
    thread = view._thread
    assert thread is not None
    until(lambda: view._collector.totals().received == 1)
    del session
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    assert view.closed
    assert view.widget.meta["can_publish"] is False
    assert "seen" in view.text()
    assert "broker.example" in view.freeze().html


def test_counters_the_session_keeps_are_told() -> None:
    session = FakeSession(FakeFeed(), report=report())
    session.stats = SessionStats(unrouted=3)
    view = still(session)
    view.refresh(later(2))
    assert "3 messages for no feed" in view.text()


def test_a_session_is_asked_about_itself_at_most_once_a_second() -> None:
    session = FakeSession(report=report())
    asked = []

    class Asked(FakeSession):
        @property
        def handshake(self) -> HandshakeReport:
            asked.append(1)
            return session.handshake

        @handshake.setter
        def handshake(self, value: HandshakeReport) -> None:
            pass

    view = still(Asked(report=report()))
    asked.clear()
    start = later(2)
    for step in range(300):
        view.refresh(start + step * SECOND // 100)
    assert 2 <= len(asked) <= 4


def test_fallback_shows_the_card_and_no_script() -> None:
    session = FakeSession(FakeFeed("<x>"), report=report(client_id="<script>"))
    session.feeds[0].put("<script>", b"<script>")
    view = still(session, fallback=True)
    view.refresh(later(1))
    assert "TLS_AES_256_GCM_SHA384" in view.widget.value
    assert "<script" not in view.widget.value
