"""Snapshots of live views, frozen to HTML and text; small cards of handles."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.views.html import Chip, visible
from mqttquic_lab.views.live import Row, Snapshot, TopicCount, freeze_html, freeze_text, snapshot_of
from mqttquic_lab.views.summary import broker_html, feed_html, session_html
from tests.helpers import samples
from tests.helpers.samples import HOSTILE, T0
from tests.views.markup import HIDDEN, check

ERROR = SimpleNamespace(time=T0 / 1e9, where="on_message", message="ZeroDivisionError: division by zero")


def test_snapshot_of_a_log() -> None:
    log = samples.plant_log(6000)
    snapshot = snapshot_of(log, title="plant/#", url="quic://localhost:14567", errors=[ERROR], rows=50)
    assert (snapshot.received, snapshot.held, snapshot.dropped) == (6000, 6000, 0)
    assert len(snapshot.rows) == 50
    newest = log.message(-1)
    assert snapshot.rows[0].payload == newest.payload
    assert snapshot.rows[0].topic == newest.topic
    assert snapshot.rows[0].latency == newest.latency
    assert {one.name: one.messages for one in snapshot.topics} == log.topic_counts()
    assert sum(snapshot.rate) * snapshot.span / len(snapshot.rate) == 6000
    assert set(snapshot.latency) == {"p50", "p95", "p99"}
    assert 0.002 < snapshot.latency["p50"][-1] < snapshot.latency["p99"][-1] < 0.03
    assert snapshot.errors == ((T0 / 1e9, "on_message", "ZeroDivisionError: division by zero"),)


def test_frozen_html_and_text_say_the_same() -> None:
    log = samples.plant_log(3000)
    snapshot = snapshot_of(
        log,
        title="plant/#",
        url="quic://localhost:14567",
        chips=(Chip("client lab-7f2c"),),
        counters={"lost packets": 14, "retransmissions": 0},
        errors=[ERROR],
        handshake=samples.quic_report(),
        filter="value.c > 20",
        hidden=1200,
    )
    shown, text = check(freeze_html(snapshot)), freeze_text(snapshot, width=400)
    for words in (
        "plant/#",
        "quic://localhost:14567",
        "connected",
        "client lab-7f2c",
        "3,000 received",
        "0 dropped",
        "table shows the newest 100 of 3,000 held",
        "filter value.c > 20 hides 1,200 messages",
        "14 lost packets",
        "1 error",
        "ZeroDivisionError: division by zero",
        "104 ms, 2 round trips to CONNACK",
        "plant/1/temp",
        '{"c": ',
        "p99",
    ):
        assert words in shown, words
        assert words in text, words
    assert "retransmissions" not in shown + text


def test_rows_show_their_flags() -> None:
    row = Row(T0, "t", b"x", 1, 2, retain=True, dup=True, early_data=True, stream_id=8, latency=0.0051)
    snapshot = Snapshot("t", rows=(row,), topics=(TopicCount("t", 1, b"x"),), received=1, held=1)
    shown = check(freeze_html(snapshot))
    assert "2 R D 0 8 5.1" in shown
    assert "QoS 2 R D 0 stream 8" in " ".join(freeze_text(snapshot).split())


def test_waiting_tells_how_to_begin() -> None:
    hint = 'session.publish("plant/1/temp", "21.5")'
    for log in (MessageLog(), None):
        snapshot = Snapshot("plant/+/temp", hint=hint) if log is None else snapshot_of(log, title="a/b", hint=hint)
        for shown in (check(freeze_html(snapshot)), freeze_text(snapshot)):
            assert "Waiting for the first message." in shown
            assert hint in shown
            assert "0 received" in shown
            assert "no errors" in shown


def test_disconnected_says_why() -> None:
    reason = "disconnected at 12:04:09 UTC: no answer for 90 s; trying again in 4 s"
    for state in ("closed", "connecting"):
        snapshot = Snapshot("t", state=state, reason=reason)
        for shown in (check(freeze_html(snapshot)), freeze_text(snapshot)):
            assert reason in shown
            assert state in shown
            assert "Waiting" not in shown


def test_verification_off_and_fallback_are_seen_in_the_frozen_view() -> None:
    report = samples.tls_report(verification="off")
    for shown in (check(freeze_html(Snapshot("t", handshake=report))), freeze_text(Snapshot("t", handshake=report))):
        assert "Verification is off" in shown
        assert "QUIC was asked for" in shown


def hostile_snapshot() -> Snapshot:
    payload = HOSTILE.encode("utf-8", "surrogatepass")
    row = Row(T0, HOSTILE, payload, len(payload))
    return Snapshot(
        HOSTILE,
        url=HOSTILE,
        state=HOSTILE,
        reason=HOSTILE,
        taken_ns=T0,
        chips=(Chip(HOSTILE, "bad", HOSTILE),),
        rows=(row,),
        topics=(TopicCount(HOSTILE, 1, payload, (1.0, float("nan"))),),
        rate=(1.0, float("inf"), float("nan")),
        latency={HOSTILE: (1.0,), "p50": (float("nan"),)},
        counters={HOSTILE: 3},
        filter=HOSTILE,
        errors=((1.0, HOSTILE, HOSTILE),),
        handshake=samples.hostile_report(),
        hint=HOSTILE,
    )


def test_hostile_everything() -> None:
    snapshot = hostile_snapshot()
    html = freeze_html(snapshot)
    check(html)
    assert "<script" not in html
    text = freeze_text(snapshot)
    assert not HIDDEN.search(text)
    assert all(visible(line) == line for line in text.splitlines())


def test_times_out_of_range_do_not_break_a_view() -> None:
    log = MessageLog()
    for time_ns in (-(2**63), 0, 2**63 - 1):
        log.append(time_ns, "t", b"x")
    check(freeze_html(snapshot_of(log, title="t")))
    check(freeze_html(snapshot_of(log, title="t", now_ns=T0)))
    assert snapshot_of(samples.plant_log(100), title="t", now_ns=T0 + 10**13).latency == {}


def test_a_frozen_view_stays_small() -> None:
    log = MessageLog(decode="raw")
    for i in range(3000):
        log.append(T0 + i, f"{i}/" + "x" * 5000, b"y" * 5000)
    assert len(freeze_html(snapshot_of(log, title="t"))) < 600_000
    assert len(freeze_text(snapshot_of(log, title="t"))) < 20_000


@dataclass
class Client:
    client_id: str
    transport: str = "quic"
    version: str = "5.0"
    messages_in: int = 0
    messages_out: int = 1234


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_summaries(text: str) -> None:
    session = session_html(
        samples.quic_report(url=text, client_id=text),
        feeds=[(text, 48_210, 3)],
        counters={"messages sent": 5, "zero": 0},
        errors=[(1.0, text, text)],
    )
    closed = session_html(samples.quic_report(url=text), state="closed")
    feed = feed_html(
        [text], received=5, held=4, dropped=1, topics={text: 4}, newest=[(T0, text, text.encode("utf-8", "replace"))]
    )
    broker = broker_html({"quic": text}, clients=[Client(text)] * 30, counters={"retained": 2}, ca_file=text)
    found = [check(part) for part in (session, closed, feed, broker)]
    assert "48,210" in found[0]
    assert "5 messages sent" in found[0]
    assert "zero" not in found[0]
    assert "closed" in found[1]
    assert "5 received 4 held 1 dropped 1 topic" in found[2]
    assert "30 clients" in found[3]
    assert "10 clients more not shown" in found[3]
    assert "1,234" in found[3]


def test_an_empty_feed_waits() -> None:
    assert "Waiting for the first message." in check(feed_html(["a/#"], received=0, held=0))


def test_a_closed_broker_has_nobody_to_count() -> None:
    card = broker_html({}, state="closed")
    assert "closed" in card
    assert "client" not in card.partition("</style>")[2]
