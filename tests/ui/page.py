"""A bare page with live.js in it and a model that only pretends to have a kernel behind it."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mqttquic_lab.widgets
from tests.helpers.browser import Browser, browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator

    from mqttquic_lab.widgets.ticks import Tick

FOLDER = Path(mqttquic_lab.widgets.__file__).parent

# What JupyterLab's two themes define, as far as the view uses it.
THEMES = {
    "light": {"--jp-layout-color0": "#fff", "--jp-ui-font-color0": "rgba(0,0,0,1)"},
    "dark": {"--jp-layout-color0": "#111", "--jp-ui-font-color0": "rgba(255,255,255,1)"},
    "none": {},
}

HARNESS = """
async ([source, css, state]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const module = (await import(url)).default;
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
  const heard = {};
  const model = {
    state, sent: [],
    get(name) { return this.state[name]; },
    set(name, value) { this.state[name] = value; (heard["change:" + name] || []).slice().forEach((f) => f()); },
    send(content) { this.sent.push(content); },
    on(name, f) { (heard[name] ??= []).push(f); },
    off(name, f) { heard[name] = (heard[name] || []).filter((g) => g !== f); },
    emit(name, ...values) { (heard[name] || []).slice().forEach((f) => f(...values)); },
    listeners() { return Object.values(heard).reduce((n, list) => n + list.length, 0); },
  };
  window.decode = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  window.model = model;
  window.hear = (content, buffers) => model.emit("msg:custom", content, buffers.map(decode));
  window.drawn = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())));
  const el = document.createElement("div");
  document.body.append(el);
  window.again = async () => { window.leave = await module.render({ model, el }); };
  await again();
}
"""


class LivePage:
    """The rendered module, driven from the test."""

    def __init__(self, opened: Browser) -> None:
        self.browser = opened
        self.page = opened.page

    def hear(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        """Deliver a custom message and wait until it is drawn."""
        texts = [base64.b64encode(data).decode() for data in buffers or []]
        self.page.evaluate("([content, buffers]) => { hear(content, buffers); return drawn(); }", [content, texts])

    def tick(self, tick: Tick) -> None:
        self.hear(*tick)

    def ticks(self, ticks: list[Tick]) -> None:
        """Deliver many at once, as after a stall of the page."""
        texts = [[content, [base64.b64encode(data).decode() for data in buffers]] for content, buffers in ticks]
        self.page.evaluate("(all) => { all.forEach((one) => hear(...one)); return drawn(); }", texts)

    def set(self, name: str, value: Any) -> None:
        """Change a trait."""
        self.page.evaluate("([name, value]) => { model.set(name, value); return drawn(); }", [name, value])

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """Return what the module sent to Python."""
        found: list[dict[str, Any]] = self.page.evaluate("(kind) => model.sent.filter((c) => c.kind === kind)", kind)
        return found

    def drawn(self) -> None:
        self.page.evaluate("() => drawn()")

    def one(self, name: str) -> Locator:
        """Return an element by its name in live.js."""
        return self.page.locator(f'[data-r="{name}"]')

    def rows(self) -> Locator:
        return self.page.locator('[data-r="rows"] .row:visible')

    def texts(self, cell: str) -> list[str]:
        """Return the texts of one column of the table, as far as it is in sight, top first."""
        script = """(cell) => [...document.querySelectorAll('[data-r="rows"] .row')].filter((n) => !n.hidden)
          .sort((a, b) => a.index - b.index).map((n) => n.querySelector('.' + cell).textContent)"""
        found: list[str] = self.page.evaluate(script, cell)
        return found

    def count(self) -> int:
        """Return how many rows the table has, in sight or not."""
        return int(self.page.locator('[role="grid"]').get_attribute("aria-rowcount") or 0) - 1

    def place(self, selector: str) -> float:
        """Return how far an element's top is below that of the table, in pixels."""
        box = self.page.locator(selector).bounding_box()
        frame = self.one("rows").bounding_box()
        assert box is not None
        assert frame is not None
        return box["y"] - frame["y"]


@contextlib.contextmanager
def live_page(
    *,
    width: int = 1200,
    height: int = 700,
    theme: str = "none",
    meta: dict[str, Any] | None = None,
    rows: int = 500,
    card: str = "",
    snapshot: dict[str, Any] | None = None,
) -> Iterator[LivePage]:
    """Render the module in Chromium; fails if the console showed an error or a request wanted to leave."""
    source, css = (FOLDER / "live.js").read_text(), (FOLDER / "live.css").read_text()
    with browser(width, height) as opened:
        state = {"rows": rows, "meta": meta or {}, "snapshot": snapshot or {}, "card": card}
        variables = "".join(f"{name}:{value};" for name, value in THEMES[theme].items())
        opened.page.set_content(
            f"<!doctype html><html style='{variables}'><body style='margin:12px;"
            "background:var(--jp-layout-color0,#fff)'></body></html>"
        )
        opened.page.evaluate(HARNESS, [source, css, state])
        live = LivePage(opened)
        live.drawn()
        yield live
        opened.assert_quiet()
