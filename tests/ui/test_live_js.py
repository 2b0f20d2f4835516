"""live.js in a bare Chromium: a model that pretends, ticks that the real collector made."""

from __future__ import annotations

import base64
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

from mqttquic_lab.widgets.collector import Collector
from mqttquic_lab.widgets.ticks import tick
from tests.helpers.browser import browser_test
from tests.ui.feeds import SECOND, START_NS, FakeFeed, plant
from tests.ui.page import LivePage, live_page

if TYPE_CHECKING:
    from mqttquic_lab.widgets.ticks import Tick

META: dict[str, Any] = {
    "label": "Live view of plant/#",
    "title": "plant/#",
    "state": {"word": "live", "tone": "ok"},
    "chips": [{"text": "quic://127.0.0.1:14567"}],
    "waiting": "Waiting for the first message on plant/#.",
    "hint": 'session.publish("plant/hello", "hello", timestamp=True)',
}


class Source:
    """A feed, what reads it, and the ticks that come out."""

    def __init__(self, keep: int = 500) -> None:
        self.feed = FakeFeed()
        self.collector = Collector(lambda: [self.feed.log], keep)
        self.keep = keep
        self.now = START_NS
        self.named = 0

    def put(self, topic: str, payload: bytes | str = b"", **fields: Any) -> None:
        self.now += SECOND // 1000
        self.feed.put(topic, payload, self.now, **fields)

    def tick(self, *, full: bool = False) -> Tick:
        self.now += SECOND // 10
        self.collector.read(self.now)
        rows = self.collector.take()
        if full:
            rows, self.named = self.collector.newest(self.keep), 0
        made = tick(self.collector, rows, self.now, errors=0, topics_from=self.named, reset=full)
        self.named = len(self.collector.topics.names)
        return made


def status(live: LivePage) -> str:
    return live.one("status").inner_text()


@browser_test()
def test_waits_then_draws_what_comes() -> None:
    source = Source()
    with live_page(meta=META) as live:
        assert live.sent("hello") == [{"kind": "hello"}]
        live.tick(source.tick())
        blank = live.one("blank").inner_text()
        assert "Waiting for the first message on plant/#." in blank
        assert 'session.publish("plant/hello", "hello", timestamp=True)' in blank
        assert live.page.locator(".none").all_inner_texts() == ["no message yet", "no message yet"]
        assert "0 received" in status(live)
        assert "no errors" in status(live)

        source.put("plant/1/temp", '{"c": 21.5}', qos=1, packet_id=9, stream_id=4)
        source.put("plant/2/temp", b"\x00\xff\x10", retain=True, dup=True, early_data=True)
        live.tick(source.tick())
        assert live.one("blank").is_hidden()
        assert live.texts("topic") == ["plant/2/temp", "plant/1/temp"]
        assert live.texts("payload") == ["00 ff 10", '{"c": 21.5}']
        assert live.texts("qos") == ["0", "1"]
        assert live.texts("flags") == ["RD0", ""]
        assert live.texts("stream") == ["–", "4"]  # noqa: RUF001
        assert live.texts("ms") == ["", ""]
        first = START_NS + SECOND // 10 + SECOND // 1000
        milli = first // 1_000_000 % 86_400_000
        assert live.texts("time")[1] == (
            f"{milli // 3_600_000:02}:{milli // 60_000 % 60:02}:{milli // 1000 % 60:02}.{milli % 1000:03}"
        )
        assert "2 received" in status(live)
        assert "view shows every message" in status(live)
        assert live.page.locator(".none").all_inner_texts() == ["", "not known: publish with timestamp=True"]

        source.now += SECOND
        for i in range(50):
            source.put("plant/1/temp", str(i), latency=0.004)
        source.now += SECOND
        live.tick(source.tick())
        assert live.texts("ms")[0] == "4.0"
        captions = live.page.locator("figcaption").all_inner_texts()
        assert "messages/s" in captions[0]
        assert re.search(r"p50\s+(3\.9|4\.[01])\b", captions[1])
        assert "h.01" in (live.page.locator("figure").nth(1).locator(".line.p50").get_attribute("d") or "")
        assert "last 60 s" in (live.page.locator("figure svg").first.get_attribute("aria-label") or "")
        # the tree: a parent counts what its children count
        leaves = live.one("tree").locator(".row:visible").all_inner_texts()
        assert [text.split("\n")[1:3] for text in leaves] == [
            ["plant", "52"], ["1", "51"], ["temp", "51"], ["2", "1"], ["temp", "1"],
        ]  # fmt: skip


@browser_test()
def test_nothing_from_the_network_becomes_markup() -> None:
    source = Source()
    evil = "<img src=x onerror=window.hacked=1>"
    source.put(evil + "/</span><script>window.hacked=2</script>", evil)
    source.put("a\u202eb\x07/\u200bc", "\u202e\x1b[31m</pre><svg onload=window.hacked=3>")
    source.put("json", json.dumps({evil: [evil], "\u202e": "\x00"}), properties={"content_type": evil})
    meta = {
        **META,
        "title": evil,
        "label": evil,
        "hint": evil,
        "waiting": evil,
        "chips": [{"text": evil, "title": evil}],
    }
    meta |= {"dashboard": True, "handshake": evil, "banner": {"text": evil, "tone": "bad"}, "notes": [{"text": evil}]}
    meta |= {"events": [{"t": 0, "text": evil}], "errors": [{"t": 0, "text": evil, "tone": "bad"}]}
    with live_page(meta=meta) as live:
        live.hear(*Source().tick())
        live.tick(source.tick())
        for index in range(3):
            live.rows().nth(index).click()
            row = live.page.evaluate("() => model.sent.length")
            reply = {"id": 2 - index, "facts": [[evil, evil]], "properties": [[evil, evil]], "kind": "message"}
            live.hear(reply, [evil.encode()])
            for name in ("JSON", "text", "hex", "properties"):
                live.page.get_by_role("button", name=name, exact=True).click()
                live.drawn()
            assert row is not None
        live.hear({"kind": "published", "n": 0, "ok": False, "text": evil})
        assert live.page.evaluate("() => window.hacked") is None
        assert live.page.locator(".mqlab img, .mqlab script, .mqlab svg[onload]").count() == 0
        assert live.texts("payload")[2] == evil
        assert live.texts("topic")[1] == "a\\u202eb\\u0007/\\u200bc"
        assert live.texts("payload")[1].startswith("\\u202e\\u001b[31m</pre>")
        assert "\u202e" not in live.page.evaluate("() => document.body.innerText")


@browser_test()
def test_pause_freezes_the_picture_and_not_the_feed() -> None:
    source = Source()
    with live_page(meta=META) as live:
        source.put("plant/1", "before")
        live.tick(source.tick())
        pause = live.one("pause")
        pause.click()
        assert pause.get_attribute("aria-pressed") == "true"
        waiting = []
        for i in range(300):  # more than are kept while paused
            source.put(f"plant/new{i % 3}", str(i))
            waiting.append(source.tick())
        live.ticks(waiting)
        assert live.texts("payload") == ["before"]
        assert live.one("tree").locator(".row:visible").count() == 2
        assert "301 received" in status(live)
        assert "paused · 300 newer wait" in live.one("chips").inner_text()
        pause.click()
        live.drawn()
        assert pause.inner_text() == "pause"
        assert live.texts("payload")[:2] == ["299", "298"]
        assert 100 <= live.count() <= 201
        assert live.one("tree").locator(".row:visible").count() == 5
        assert "paused" not in live.one("chips").inner_text()


@browser_test()
def test_filters_say_what_they_hide() -> None:
    source = Source()
    with live_page(meta=META) as live:
        for i in range(10):
            source.put(f"plant/{i % 2}/temp", json.dumps({"c": 15 + i, "in": {"ok": i == 3}}), qos=i % 3)
        source.put("$SYS/load", "Heavy load")
        live.tick(source.tick())
        box, hides = live.one("filter"), live.one("hides")

        def shown(text: str) -> int:
            box.fill(text)
            live.drawn()
            return live.count()

        assert shown("") == 11
        assert hides.inner_text() == ""
        for text, count in {
            "plant/+/temp": 10, "plant/1/#": 5, "#": 10, "+/load": 0, "$SYS/#": 1, "heavy": 1, "HEAVY load": 1,
            "c > 20": 4, "value.c>=20 and c<24": 4, "in.ok = true": 1, "c != 15 qos=0": 3, "qos = 2": 3, "size < 11": 1,
            'topic = "$SYS/load"': 1, "nothing": 0, "c > x": 0, "plant/1/# c > 20": 2, "__proto__.x = 1": 0,
        }.items():  # fmt: skip
            assert shown(text) == count, text
            assert hides.inner_text() == f"hides {11 - count} of 11 rows"
        assert shown("zzz") == 0
        assert "The filter hides all 11 rows." in live.one("blank").inner_text()
        shown("c > 20")
        source.put("plant/1/temp", '{"c": 99}')
        source.put("plant/1/temp", '{"c": 1}')
        live.tick(source.tick())
        assert live.count() == 5
        assert hides.inner_text() == "hides 8 of 13 rows"
        shown("")

        # a topic of the tree is a filter that can be seen and taken away
        live.one("tree").get_by_text("1", exact=True).first.click()
        live.drawn()
        assert live.one("chosen").inner_text() == "plant/1/# ✕"
        assert live.count() == 7
        live.one("chosen").click()
        live.drawn()
        assert live.count() == 13
        assert live.one("chosen").is_hidden()

        assert live.one("topicnote").inner_text() == "3 topics"
        live.one("topicfilter").fill("load")
        live.drawn()
        assert live.one("topicnote").inner_text() == "hides 2 of 3 topics"
        assert live.one("tree").locator(".row:visible .tn").all_inner_texts() == ["$SYS", "load"]


@browser_test(90)
def test_a_hundred_thousand_rows_leave_a_bounded_page() -> None:
    source = Source(keep=500)
    with live_page(meta=META) as live:
        ids = itertools.count()
        for _ in range(50):
            batch = []
            for _ in range(20):
                for _ in range(100):
                    source.put(f"plant/{next(ids) % 50}", "x" * 40)
                batch.append(source.tick())
            live.ticks(batch)
        live.drawn()
        assert "100,000 received" in status(live)
        assert "newest 500 rows here" in status(live)
        assert live.count() == 500
        nodes = live.page.evaluate("() => document.querySelectorAll('*').length")
        assert nodes < 900
        # someone looks at a row: what is held may grow to twice the size, and no further
        live.rows().nth(3).click()
        live.drawn()
        for _ in range(20):
            for _ in range(100):
                source.put("plant/1", "y")
            live.tick(source.tick())
        assert live.count() == 1000
        assert live.one("pill").inner_text() == "↑ 2,000 newer"
        assert live.page.evaluate("() => document.querySelectorAll('*').length") < 900
        live.one("pill").click()
        live.drawn()
        assert live.count() == 500
        assert live.texts("payload")[0] == "y"


@browser_test()
def test_what_is_selected_stays_where_it_is() -> None:
    source = Source()
    with live_page(meta=META) as live:
        for i in range(60):
            source.put("plant/1", str(i))
        live.tick(source.tick())
        live.rows().nth(4).click()
        live.drawn()
        selected = '[data-r="rows"] .row[aria-selected="true"]'
        assert live.page.locator(f"{selected} .payload").inner_text() == "55"
        assert live.one("body").inner_text() == "55"
        place = live.place(selected)
        for i in range(60, 90):
            source.put("plant/1", str(i))
            live.tick(source.tick())
        assert live.page.locator(f"{selected} .payload").inner_text() == "55"
        assert live.place(selected) == place
        assert live.one("pill").inner_text() == "↑ 30 newer"
        assert live.one("body").inner_text() == "55"

        # newer rows that the filter hides do not push it either
        live.one("filter").fill("5")
        live.drawn()
        place = live.place(selected)
        source.put("plant/1", "no")
        source.put("plant/1", "555")
        live.tick(source.tick())
        assert live.place(selected) == place
        live.one("filter").fill("")

        live.one("pill").click()
        live.drawn()
        assert live.one("pill").is_hidden()
        assert live.texts("payload")[:2] == ["555", "no"]
        source.put("plant/1", "runs again")
        live.tick(source.tick())
        assert live.texts("payload")[0] == "runs again"
        assert live.page.locator(selected).count() == 0

        # scrolled down is looked at, too; back at the top it runs again
        live.page.evaluate("() => { document.querySelector('[data-r=rows]').scrollTop = 240; }")
        live.drawn()
        top = live.texts("payload")[2]
        source.put("plant/1", "later")
        live.tick(source.tick())
        assert live.texts("payload")[2] == top
        live.page.evaluate("() => { document.querySelector('[data-r=rows]').scrollTop = 0; }")
        live.drawn()
        live.drawn()
        source.put("plant/1", "newest")
        live.tick(source.tick())
        assert live.texts("payload")[0] == "newest"


@browser_test()
def test_everything_works_from_the_keyboard() -> None:
    source = Source()
    with live_page(meta=META) as live:
        for i in range(40):
            source.put(f"plant/{i % 2}/temp", str(i))
        live.tick(source.tick())
        keyboard = live.page.keyboard
        reached = []
        for _ in range(14):
            keyboard.press("Tab")
            reached.append(
                live.page.evaluate(
                    "() => { const e = document.activeElement;"
                    " return (e.dataset.r || e.textContent.trim()) + ':' + getComputedStyle(e).outlineStyle; }"
                )
            )
        names = [name.split(":")[0] for name in reached]
        for name in ("pause", "freeze", "topicfilter", "tree", "filter", "grid", "JSON", "properties"):
            assert name in names
        assert all(name.endswith(":solid") for name in reached[: names.index("properties") + 1])

        live.one("grid").focus()
        selected = live.page.locator('[data-r="rows"] .row[aria-selected="true"] .payload')

        def press(key: str) -> str:
            keyboard.press(key)
            live.drawn()
            return selected.inner_text()

        assert press("ArrowDown") == "39"
        assert press("ArrowDown") == "38"
        assert press("ArrowUp") == "39"
        assert press("ArrowUp") == "39"
        assert press("End") == "0"
        assert press("ArrowDown") == "0"
        assert press("Home") == "39"
        paged = int(press("PageDown"))
        assert 25 < paged < 35
        active = live.one("grid").get_attribute("aria-activedescendant")
        assert live.page.locator(f"#{active} .payload").inner_text() == str(paged)
        live.page.wait_for_function("() => model.sent.some((c) => c.kind === 'message')")
        assert [content["id"] for content in live.sent("message")] == [paged]  # only the one that was stopped at
        source.put("plant/0/temp", "new")
        live.tick(source.tick())
        assert selected.inner_text() == str(paged)
        keyboard.press("Escape")
        live.drawn()
        assert selected.count() == 0
        assert live.texts("payload")[0] == "new"

        live.one("tree").focus()
        at = live.page.locator('[data-r="tree"] .row[aria-selected="true"] .tn')
        levels = live.one("tree").locator(".row:visible .tn")
        keyboard.press("ArrowDown")
        live.drawn()
        assert at.inner_text() == "plant"
        keyboard.press("ArrowLeft")
        live.drawn()
        assert levels.all_inner_texts() == ["plant"]
        assert live.one("tree").locator(".row").first.get_attribute("aria-expanded") == "false"
        for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
            keyboard.press(key)
            live.drawn()
        assert at.inner_text() == "temp"
        keyboard.press("Enter")
        live.drawn()
        assert live.one("chosen").inner_text() == "plant/0/temp ✕"
        keyboard.press("ArrowLeft")
        live.drawn()
        assert at.inner_text() == "0"


@browser_test()
def test_the_selected_message_in_all_its_forms() -> None:
    source = Source()
    with live_page(meta=META) as live:
        source.put("deep", "[" * 200 + "]" * 200, stream_id=8, qos=2, packet_id=3, retain=True, latency=0.0123)
        source.put("text", "grüße\n\tTab")
        source.put("big", json.dumps({"values": list(range(300))}))
        source.put("empty", "")
        source.put("json", '{"b": 1, "a": [true, null]}')
        live.tick(source.tick())
        body, facts, fetch = live.one("body"), live.one("facts"), live.one("fetch")

        def look(row: int, form: str = "") -> str:
            live.rows().nth(row).click()
            if form:
                live.page.get_by_role("button", name=form, exact=True).click()
            live.drawn()
            return body.inner_text()

        assert "arrow keys" in facts.inner_text()
        assert look(0) == '{\n  "b": 1,\n  "a": [\n    true,\n    null\n  ]\n}'
        assert look(1) == "(empty payload)"
        assert look(3) == "grüße\n\tTab"
        assert "QoS\n2, retained" in (look(4) and facts.inner_text())
        assert "latency\n12.3 ms" in facts.inner_text()
        assert "stream\n8" in facts.inner_text()
        assert look(3, "hex").startswith("00000  67 72 c3 bc c3 9f 65 0a 09 54 61 62")
        assert look(3, "JSON") == "not JSON"
        assert look(3, "properties") == "no MQTT properties"

        live.page.get_by_role("button", name="JSON", exact=True).click()
        assert look(2) == "not all here: fetch it"
        assert "first 256 B here" in facts.inner_text()
        assert fetch.inner_text() == "fetch 1.4 KiB of 1.4 KiB"
        fetch.click()
        (asked,) = [content for content in live.sent("message") if content.get("payload")]
        message = source.collector.message(int(asked["id"]))
        assert message is not None
        reply = {"kind": "message", "id": asked["id"], "facts": [["packet id", "5"]], "properties": [["unit", "C"]]}
        live.hear(reply, [message.payload])
        assert body.inner_text().endswith("299\n  ]\n}")
        assert fetch.is_hidden()
        assert "packet id\n5" in facts.inner_text()
        assert look(2, "properties") != "unit  C"  # a new click is a new question
        live.hear(reply)
        assert body.inner_text() == "unit  C"
        live.hear({**reply, "id": 12345, "properties": []})  # an answer that comes too late
        assert body.inner_text() == "unit  C"

        # JSON that would grow without bound when indented is shown as it is
        source.put("bomb", "[" * 30_000 + "]" * 30_000)
        live.tick(source.tick())
        live.one("pill").click()
        live.drawn()
        live.rows().nth(0).click()
        live.page.get_by_role("button", name="JSON", exact=True).click()
        live.drawn()
        bomb = source.collector.newest(1)[0].id
        live.hear({"kind": "message", "id": bomb, "facts": [], "properties": []}, [b"[" * 30_000 + b"]" * 30_000])
        assert len(body.inner_text()) < 100


@browser_test()
def test_a_reload_shows_the_snapshot_first_and_then_everything() -> None:
    source = Source()
    for i in range(120):
        source.put(f"plant/{i % 3}", str(i))
    content, buffers = source.tick()
    kept = {"content": {**content, "topics": {**content["topics"], "start": 0}}}
    with live_page(meta=META) as live:
        live.page.evaluate(
            "([state, texts]) => { model.state.snapshot = { ...state, buffers: texts.map(decode) }; leave(); }",
            [kept, [base64.b64encode(data).decode() for data in buffers]],
        )
        assert live.page.locator(".mqlab").count() == 0
        assert live.page.evaluate("() => model.listeners()") == 0
        live.page.evaluate("() => again()")
        live.drawn()
        assert live.count() == 120
        assert "120 received" in status(live)
        source.put("plant/4", "one more")
        live.tick(source.tick(full=True))
        assert live.count() == 121
        assert live.one("topicnote").inner_text() == "4 topics"


@browser_test()
def test_the_dashboard_has_a_card_a_publish_box_and_tells_what_happened() -> None:
    meta = {
        **META, "dashboard": True, "handshake": "104 ms · 2 round trips to CONNACK", "can_publish": True,
        "since": 1000, "until": 135_000, "lasting": "connected", "errors": [],
        "events": [{"t": 0, "text": "connected over QUIC v1", "tone": "ok"}],
    }  # fmt: skip
    with live_page(meta=meta, card='<div class="mql"><b>the card</b></div>') as live:
        assert "connected 02:14" in live.one("chips").inner_text()
        summary = live.page.locator("summary")
        assert summary.inner_text() == "Handshake · 104 ms · 2 round trips to CONNACK"
        assert live.page.get_by_text("the card").count() == 0
        summary.click()
        live.page.get_by_text("the card").wait_for()
        live.set("card", '<div class="mql"><b>a new card</b></div>')
        assert live.page.get_by_text("a new card").is_visible()
        assert live.one("events").inner_text().split() == ["00:00:00", "connected", "over", "QUIC", "v1"]
        assert live.one("errorstitle").inner_text() == "no errors"

        button, outcome = live.one("publish"), live.one("outcome")
        button.click()  # without a topic the browser itself objects
        assert live.sent("publish") == []
        live.one("ptopic").fill("plant/1/set")
        live.one("ppayload").fill("21.5")
        live.one("pqos").select_option("1")
        live.one("pretain").check()
        live.page.keyboard.press("Enter")
        live.drawn()
        assert live.sent("publish") == [
            {"kind": "publish", "n": 1, "topic": "plant/1/set", "payload": "21.5", "qos": 1, "retain": True}
        ]
        assert button.is_disabled()
        assert outcome.inner_text() == "sending…"
        live.hear({"kind": "published", "n": 0, "ok": True, "text": "an older one"})
        assert outcome.inner_text() == "sending…"
        live.hear({"kind": "published", "n": 1, "ok": False, "text": "not authorized"})
        assert (outcome.inner_text(), outcome.get_attribute("data-tone")) == ("not authorized", "bad")
        assert button.is_enabled()

        banner = live.one("banner")
        assert banner.is_hidden()
        errors = [{"t": 60_000, "text": "keep-alive: no answer", "tone": "bad"}]
        closed = {"state": {"word": "disconnected", "tone": "bad"}, "banner": {"text": "Disconnected.", "tone": "bad"}}
        live.set("meta", {**meta, **closed, "errors": errors, "can_publish": False})
        assert live.one("word").inner_text() == "disconnected"
        assert banner.inner_text() == "Disconnected."
        assert "keep-alive: no answer" in live.one("errors").inner_text()
        assert button.is_disabled()

        # no word from the kernel: the picture stays and says so
        live.page.evaluate("() => { const now = Date.now; Date.now = () => now() + 65000; }")
        live.page.wait_for_function("() => document.querySelector('[data-r=word]').textContent === 'no news'")
        assert "No news from the kernel for 01:0" in banner.inner_text()
        live.hear(*Source().tick())
        assert live.one("word").inner_text() == "disconnected"


CONTRAST = """
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (...colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  const walker = document.createTreeWalker(document.querySelector(".mqlab"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.getClientRects().length || node.closest("option, :disabled")) continue;
    const behind = [];
    for (let e = node; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const back = rgb("#fff", ...behind), front = rgb("#fff", ...behind, getComputedStyle(node).color);
    const [a, b] = [light(back), light(front)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = `${node.tagName}.${node.className}`;
    found[name] = Math.min(found[name] ?? 99, ratio);
  }
  return found;
}
"""


@browser_test(120)
def test_readable_and_whole_at_every_width_in_light_and_dark() -> None:
    source = Source()
    source.now -= 60 * SECOND
    plant(source.feed, START_NS, rate=120)
    source.now = START_NS
    ticked = source.tick(full=True)
    meta = {
        **META, "dashboard": True, "title": "quic://127.0.0.1:14567", "lasting": "connected", "can_publish": True,
        "handshake": "104 ms · 2 round trips to CONNACK · TLS 1.3 · TLS_AES_256_GCM_SHA384 · X25519 · ALPN mqtt",
        "chips": [{"text": "QUIC v1"}, {"text": "verified", "tone": "ok"}, {"text": "verification off", "tone": "bad"},
                  {"text": "TLS over TCP", "tone": "warn"}, {"text": "client lab-7f2c"}],
        "since": 1000, "until": 135_000,
        "banner": {"text": "QUIC was asked for, TLS over TCP is in use: UDP does not answer.", "tone": "warn"},
        "events": [{"t": 0, "text": "connected over TLS", "tone": "ok"}],
        "errors": [{"t": 0, "text": "decoder: a bad packet", "tone": "bad"}],
    }  # fmt: skip
    for theme in ("light", "dark"):
        with live_page(width=1200, theme=theme, meta=meta) as live:
            live.tick(ticked)
            live.rows().nth(2).click()
            for width in (1200, 1000, 900, 600, 300):
                live.page.set_viewport_size({"width": width, "height": 700})
                live.drawn()
                live.browser.screenshot(f"dashboard-{width}-{theme}")
                assert live.page.evaluate("() => document.documentElement.scrollWidth") <= width
                outside = live.page.evaluate(
                    "() => [...document.querySelectorAll('.mqlab :is(button, input, select)')].map((e) => ["
                    "e.outerHTML, e.getBoundingClientRect().right]).filter(([, right]) => right > innerWidth)"
                )
                assert outside == []
                cut = live.page.evaluate(
                    "() => [...document.querySelectorAll('.head span, .tree .row:not([hidden]) > *')].filter((e) => {"
                    " const frame = e.closest('section').getBoundingClientRect(), own = e.getBoundingClientRect();"
                    " return own.width && own.right > frame.right + 1; }).map((e) => e.outerHTML)"
                )
                assert cut == []
            ratios = live.page.evaluate(CONTRAST)
            assert len(ratios) > 15
            assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    for theme in ("light", "dark"):
        with live_page(width=1200, height=500, theme=theme, meta=META) as live:
            live.tick(Source().tick())
            live.browser.screenshot(f"live-waiting-{theme}")
            live.tick(ticked)
            live.browser.screenshot(f"live-1200-{theme}")
