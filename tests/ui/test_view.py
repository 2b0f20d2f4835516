"""LiveView with a comm that records: throttling, bounds, requests, ends, errors."""

from __future__ import annotations

import builtins
import gc
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.session.results import ErrorRecord
from mqttquic_lab.widgets import LiveView
from mqttquic_lab.widgets.carrier import LiveWidget
from mqttquic_lab.widgets.collector import SEQUENCE_BITS
from mqttquic_lab.widgets.live import publish_hint
from mqttquic_lab.widgets.view import PAYLOAD_LIMIT
from tests.ui.feeds import SECOND, FakeFeed, FakeSession
from tests.ui.page import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.widgets.view import View
    from tests.ui.comms import FakeComm

    CommOf = Callable[[View], FakeComm]

LONG = 10.0
"""Seconds after which something that should happen at once has not happened."""


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def still(feed: FakeFeed, **options: Any) -> LiveView:
    """A view without a thread, that does keep its feed: most tests have no other use for it."""
    view = LiveView(feed, start=False, **options)
    vars(view)["feed"] = feed
    return view


def later(seconds: float) -> int:
    """A moment after the view was opened, which was just now."""
    return time.time_ns() + int(seconds * SECOND)


def columns(content: dict[str, Any], buffers: list[bytes]) -> dict[str, memoryview]:
    kinds: dict[str, Any] = {"f8": "d", "f4": "f", "u4": "I", "u2": "H", "u1": "B"}
    return {
        name: memoryview(data).cast(kinds[kind]) for (name, kind), data in zip(content["columns"], buffers, strict=True)
    }


def test_the_module_is_small_and_asks_nobody() -> None:
    source, css = (FOLDER / "live.js").read_text(), (FOLDER / "live.css").read_text()
    assert len(source.encode()) < 30_000
    assert len(css.encode()) < 15_000
    assert not re.search(
        r"https?:|//\w+\.|@import|url\(|\bimport\b|\beval\b|insertAdjacentHTML|outerHTML", source + css
    )
    assert re.findall(r"(\S+)\.innerHTML = (.*);", source) == [
        ("node", "markup"),
        ("$.card", 'model.get("card") || ""'),
    ]


def test_no_more_than_ten_updates_a_second(comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = still(feed)
    comm = comm_of(view)
    comm.messages.clear()
    start = later(1)
    for step in range(3000):
        now = start + step * SECOND // 1000
        feed.put("plant/1/temp", b"1", now)
        view.refresh(now)
    ticks = comm.sent("tick")
    assert 25 <= len(ticks) <= 31
    assert len(comm.messages) <= 31 + 2 * 4  # header and snapshot, once a second each
    assert sum(len(columns(*tick).get("id", b"")) for tick in ticks) == 2901


def test_an_idle_view_says_once_a_second_that_it_lives(comm_of: CommOf) -> None:
    view = still(FakeFeed())
    comm = comm_of(view)
    comm.messages.clear()
    start = later(1)
    for step in range(100):
        view.refresh(start + step * SECOND // 10)
    assert len(comm.sent("tick")) == 10


def test_a_slower_view_and_a_clock_set_back(comm_of: CommOf) -> None:
    view = still(FakeFeed(), hz=2)
    start = later(1)
    assert view.refresh(start)
    assert not view.refresh(start + SECOND // 4)
    assert view.refresh(start + SECOND // 2)
    assert view.refresh(start - 3600 * SECOND)
    assert not view.refresh(start - 3600 * SECOND + 1)
    assert comm_of(view).sent("tick")


def test_a_flood_stays_small_and_keeps_its_counters_exact(comm_of: CommOf) -> None:
    feed = FakeFeed(log=MessageLog(max_messages=50_000))
    view = still(feed)
    comm = comm_of(view)
    start = later(1)
    payload = b"x" * 4000
    for tick in range(20):
        for i in range(5000):
            feed.put(f"plant/{i % 7}/temp", payload, start + tick * SECOND // 10)
        view.refresh(start + tick * SECOND // 10)
    last, _ = comm.sent("tick")[-1]
    assert last["status"]["received"] == 100_000
    texts = [part["text"] for part in last["status"]["parts"]]
    assert texts[:3] == ["100,000 received", "50,000 dropped", "view shows 1 in 50"]
    sizes = [len(json.dumps(content)) + sum(map(len, buffers)) for content, buffers in comm.sent("tick")[2:]]
    assert max(sizes) < 60_000
    final = next(c for c, _ in reversed(comm.sent("tick")) if "topics" in c)
    assert len(final["topics"]["last"]) == 7
    snapshot = comm.updates("snapshot")[-1]
    assert len(json.dumps(snapshot["content"])) < 20_000


def test_a_page_that_was_loaded_anew_gets_all_there_is(comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = still(feed, rows=20)
    comm = comm_of(view)
    start = later(1)
    for i in range(50):
        feed.put(f"plant/{i % 3}", b"%d" % i, start)
    view.refresh(start)
    comm.hear({"kind": "hello"})
    view.refresh(start + SECOND // 5)
    content, buffers = comm.sent("tick")[-1]
    found = columns(content, buffers)
    assert content["reset"] is True
    assert len(found["id"]) == 20
    assert bytes(found["payload"])[-4:] == b"4849"
    assert content["topics"]["start"] == 0
    assert content["topics"]["names"] == ["plant/0", "plant/1", "plant/2"]
    feed.put("plant/9", b"", start)
    view.refresh(start + SECOND)
    content, buffers = comm.sent("tick")[-1]
    assert content["reset"] is False
    assert (content["topics"]["start"], content["topics"]["names"]) == (3, ["plant/9"])
    assert list(columns(content, buffers)["id"]) == [50]


def test_the_snapshot_lets_a_page_draw_before_the_kernel_answers() -> None:
    feed = FakeFeed()
    view = still(feed)
    start = later(1)
    feed.put("plant/1", b"on", start, latency=0.002)
    view.refresh(start)
    content = view.widget.snapshot["content"]
    found = columns(content, view.widget.snapshot["buffers"])
    assert bytes(found["payload"]) == b"on"
    assert content["topics"]["names"] == ["plant/1"]
    assert found["ms"][0] == pytest.approx(2.0)


def test_a_payload_is_sent_when_asked_for_and_only_so_much_of_it(comm_of: CommOf) -> None:
    feed = FakeFeed(log=MessageLog(max_messages=3))
    view = still(feed)
    comm = comm_of(view)
    start = later(1)
    properties = {"content_type": "text/plain", "user_property": [("unit", "C")], "correlation_data": b"\x01\xff"}
    feed.put("a", b"y" * 300_000, start, packet_id=7, qos=1, properties=properties)
    view.refresh(start)
    comm.hear({"kind": "message", "id": 0})
    view.refresh(start + SECOND)
    content, buffers = comm.sent("message")[-1]
    assert buffers == []
    assert content["facts"] == [("packet id", "7")]
    assert content["properties"] == [
        ("content type", "text/plain"), ("user property unit", "C"), ("correlation data", "01 ff"),
    ]  # fmt: skip
    comm.hear({"kind": "message", "id": 0, "payload": True})
    view.refresh(start + 2 * SECOND)
    assert comm.sent("message")[-1][1] == [b"y" * PAYLOAD_LIMIT]
    for _ in range(5):
        feed.put("a", b"")
    comm.hear({"kind": "message", "id": 0, "payload": True})
    view.refresh(start + 3 * SECOND)
    content, buffers = comm.sent("message")[-1]
    assert "no longer" in content["facts"][0][1]
    assert buffers == []


@pytest.mark.parametrize("row", [None, "0", -1, 1.5e300, True, [0], 99 << SEQUENCE_BITS, float("nan")])
def test_nonsense_from_the_browser_harms_nobody(comm_of: CommOf, row: Any) -> None:
    view = still(FakeFeed())
    comm = comm_of(view)
    comm.hear({"kind": "message", "id": row, "payload": True})
    comm.hear({"kind": ["x"]})
    comm.hear({"kind": "rm"})
    comm.hear({})
    view.refresh(later(1))
    assert not view.errors


def test_callbacks_of_the_browser_only_put_work_down(comm_of: CommOf) -> None:
    view = still(FakeFeed())
    comm = comm_of(view)
    comm.messages.clear()
    for _ in range(100):
        comm.hear({"kind": "freeze"})
        comm.hear({"kind": "hello"})
        comm.hear({"kind": "message", "id": 0})
    assert comm.messages == []
    assert view.frozen is None
    view.refresh(later(1))
    assert len(comm.sent("frozen")) == 1
    assert len(comm.sent("tick")) == 1


def test_the_browsers_freeze_button_gets_a_page_and_python_the_view(comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = still(feed)
    feed.put("plant/1", "<b>hot</b>")
    comm_of(view).hear({"kind": "freeze"})
    view.refresh(later(1))
    content, (page,) = comm_of(view).sent("frozen")[0]
    assert re.fullmatch(r"live-view-\d{8}-\d{6}\.html", content["name"])
    assert page.startswith(b"<!doctype html>")
    assert b"&lt;b&gt;hot" in page
    assert b"<b>hot" not in page
    assert view.frozen is not None
    assert "hot" in view.frozen.text()
    view.refresh(later(2))
    assert content["name"] in view.widget.meta["notes"][0]["text"]


def test_the_thread_sends_what_arrives_and_ends_with_close(comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = LiveView(feed)
    comm = comm_of(view)
    thread = view._thread
    assert thread is not None
    assert thread.daemon
    feed.put("plant/1", b"21.5", time.time_ns())
    until(lambda: any(content["names"] == ["plant/1"] for content, _ in comm.sent("tick")))
    feed.put("plant/2", b"22.5", time.time_ns())
    view.close()
    assert not thread.is_alive()
    assert view.closed
    assert comm.sent("tick")[-1][0]["status"]["received"] == 2  # the last state is whole
    assert view.widget.meta["closed"] is True
    assert "closed" in view.widget.meta["banner"]["text"]
    assert view.widget.meta["state"] == {"word": "stopped", "tone": "muted"}
    before = len(comm.messages)
    view.close()
    assert not view.refresh()
    assert len(comm.messages) == before
    assert not any(kind == "comm_close" for kind, _, _ in comm.messages)  # the page keeps the picture
    assert "plant/2" in view.freeze().html
    comm.hear({"kind": "freeze"})
    assert comm.sent("frozen")
    view.close(remove=True)
    assert comm.messages[-1][0] == "comm_close"


def test_a_view_is_a_context_manager() -> None:
    with LiveView(FakeFeed()) as view:
        assert not view.closed
    assert view.closed


def test_the_view_keeps_no_feed_alive_and_ends_with_it() -> None:
    feed = FakeFeed()
    feed.put("plant/1", b"last words")
    view = LiveView(feed)
    thread = view._thread
    assert thread is not None
    until(lambda: view._collector.totals().received == 1)
    del feed
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    assert view.closed
    assert "gone" in view.widget.meta["banner"]["text"]
    assert "last words" in view.text()
    assert "last words" in view.freeze().html


def test_a_view_that_nobody_kept_goes_on_until_it_is_of_no_use() -> None:
    feed = FakeFeed()
    comm = LiveView(feed).widget.comm
    gc.collect()
    feed.put("plant/1", b"", time.time_ns())
    until(lambda: any(content["names"] for content, _ in comm.sent("tick")))
    threads = [t for t in threading.enumerate() if t.name == "mqttquic-lab live view"]
    del feed
    gc.collect()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_an_error_of_the_pump_is_shown_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch, comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = LiveView(feed)

    def broken(*_: Any) -> Any:
        raise RuntimeError("the disk <is> on fire")

    with monkeypatch.context() as patch:
        patch.setattr(view._collector, "read", broken)
        until(lambda: view.errors)
        until(lambda: view._error_count > 2)
    assert len(view.errors) == 1  # the same again and again is one line
    until(lambda: "on fire" in view.widget.meta.get("banner", {}).get("text", ""))
    assert "RuntimeError: the disk <is> on fire" in view.widget.meta["banner"]["text"]
    feed.put("plant/1", b"", time.time_ns())
    until(lambda: comm_of(view).sent("tick")[-1][0]["status"]["received"] == 1)
    parts = [part["text"] for part in comm_of(view).sent("tick")[-1][0]["status"]["parts"]]
    assert any(re.fullmatch(r"\d+ errors, newest: view: RuntimeError: .*", text) for text in parts)
    view.close()


def test_the_session_behind_a_feed_is_told_of() -> None:
    feed = FakeFeed("plant/+")
    session = FakeSession(feed)
    view = still(feed)
    meta = view.widget.meta
    assert meta["state"] == {"word": "live", "tone": "ok"}
    assert [chip["text"] for chip in meta["chips"]] == ["quic://127.0.0.1:14567", "QUIC"]
    assert meta["hint"] == 'session.publish("plant/1", "hello", timestamp=True)'
    session.errors.append(ErrorRecord(time.time(), "keep-alive", "no answer for 60 s"))
    session.state = "closed"
    view.refresh(later(2))
    meta = view.widget.meta
    assert meta["state"] == {"word": "closed", "tone": "muted"}
    assert "nothing is being tried" in meta["banner"]["text"]
    assert "no answer for 60 s" in meta["banner"]["text"]
    assert "no answer for 60 s" in view.text()


def test_a_feed_that_was_unsubscribed_says_so() -> None:
    feed = FakeFeed()
    view = still(feed)
    feed.is_active = False
    view.refresh(later(2))
    assert view.widget.meta["state"]["word"] == "ended"
    assert "unsubscribed" in view.widget.meta["banner"]["text"]


def test_the_text_twin_says_what_the_view_shows() -> None:
    feed = FakeFeed("plant/+/temp")
    view = still(feed)
    assert "Waiting for the first message" in view.text()
    feed.put("plant/1/temp", '{"c": 21.5}', time.time_ns(), qos=1, latency=0.003)
    text = view.text()
    for expected in ("plant/+/temp", "plant/1/temp", '{"c": 21.5}', "1 received", "0 dropped", "no errors", "QoS 1"):
        assert expected in text
    assert repr(view) == "<LiveView, 1 received, 0 dropped, following>"


def test_what_a_notebook_gets() -> None:
    view = still(FakeFeed())
    data, _ = view._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    assert "Waiting for the first message" in data["text/plain"]
    view.close(remove=True)
    data, _ = view._repr_mimebundle_()
    assert list(data) == ["text/plain"]


def test_hostile_names_are_escaped_in_the_frozen_view() -> None:
    feed = FakeFeed("<script>alert(0)</script>")
    view = still(feed)
    feed.put("<img src=x onerror=alert(1)>\u202e", "</style><script>alert(2)</script>")
    html = view.freeze().html
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html


def test_the_fallback_is_the_frozen_view_five_times_a_second(comm_of: CommOf) -> None:
    feed = FakeFeed()
    view = still(feed, fallback=True)
    comm = comm_of(view)
    assert type(view.widget).__name__ == "HTML"
    assert view.is_fallback
    start = later(1)
    comm.messages.clear()
    for step in range(2000):
        now = start + step * SECOND // 1000
        feed.put("plant/<1>", b"21.5", now)
        view.refresh(now)
    assert 8 <= len(comm.updates("value")) <= 10
    assert "plant/&lt;1&gt;" in view.widget.value
    assert "2,000 received" in view.text()
    view.close()
    assert "<script" not in view.widget.value


def test_without_anywidget_the_fallback_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("anywidget", "mqttquic_lab.widgets.carrier")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    view = still(FakeFeed())
    assert view.is_fallback
    assert "Waiting for the first message" in view.widget.value


@pytest.mark.parametrize(
    "options",
    [{"rows": 5}, {"rows": 10**6}, {"rows": 50.0}, {"rows": True}, {"hz": 0}, {"hz": 11}, {"hz": float("nan")}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"rows|hz"):
        LiveView(FakeFeed(), **options)


@pytest.mark.parametrize(
    ("filters", "topic"),
    [
        (("plant/+/temp",), "plant/1/temp"),
        (("#",), "hello"),
        (("plant/#", "x"), "plant/hello"),
        (("$share/g/a/+",), "a/1"),
        (('a"b',), 'a\\"b'),
        ((), "lab/hello"),
    ],
)
def test_the_hint_names_a_topic_that_would_arrive(filters: tuple[str, ...], topic: str) -> None:
    assert f'publish("{topic}"' in publish_hint(filters)


def test_the_widget_carries_the_files_of_this_package() -> None:
    widget = LiveWidget(rows=50)
    assert str(widget._esm) == (FOLDER / "live.js").read_text()
    assert str(widget._css) == (FOLDER / "live.css").read_text()
