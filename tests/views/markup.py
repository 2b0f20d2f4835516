"""Checks that HTML written by hand is well-formed and harmless."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

VOID = {"br", "img", "input", "meta", "link", "hr"}
_OURS = (
    "div span section style details summary b h4 p pre code dl dt dd table thead tbody tr th td figure figcaption "
    "svg g title text tspan line path polygon circle"
)
ALLOWED = frozenset(_OURS.split())
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, f"<{tag}> is no tag of ours"
        for name, value in attrs:
            assert not name.startswith("on"), f"{name}={value!r} on <{tag}>"
            assert name not in {"href", "src", "srcdoc", "action"}, f"{name} on <{tag}>"
            assert re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name), f"attribute {name!r}"
            if name == "title":
                self.titles.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"comment {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"declaration {decl!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"declaration {data!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"processing instruction {data!r}")


def check(html: str) -> str:
    """Assert that a fragment is well-formed, made of our tags only, and safe; return its text."""
    parser = _Checker()
    parser.feed(html)
    parser.close()
    assert not parser.open, f"never closed: {parser.open}"
    assert not HIDDEN.search(html), "a control or bidirectional character came through"
    html.encode("utf-8")
    ET.fromstring(html)  # quoted attributes, no bare & or <: also well-formed as XML
    return " ".join(" ".join([*parser.text, *parser.titles]).split())
